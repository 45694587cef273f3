"""Stores for the offsets of stream readers: in files, or in queues of the broker.

AMQP 0-9-1 has no method for storing offsets on the broker.  Both stores keep one offset for each pair of
a stream and a reader, and replace it atomically: after a crash of the program or the broker, the store
contains either the last offset or the previous one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from greenconn.connection import Connection
from greenconn.defaults import consuming_connection
from greenconn.entity import Queue
from greenconn.entity.declaration import ensure_declared
from greenconn.exceptions import OperationalError
from greenconn.green.deadline import Deadline
from greenconn.green.threadpool import in_hub_thread
from greenconn.publishing import publish

if TYPE_CHECKING:
    from greenconn.abc import Channel

#: Seconds for a request to the broker, the wait for its connection included.
TIMEOUT: Final = 30.0


class FileOffsets:
    """A store that keeps offsets in files, one file for each stream and reader.

    Each offset is written to a temporary file, which replaces the previous file when it is on the disk.
    Reading and writing run in the hub's thread pool, so that they do not block the hub.

    Arguments:
        folder: the directory of the files.  It is created when the first offset is stored.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = os.fspath(folder)

    def __repr__(self) -> str:
        return f"FileOffsets({self._folder!r})"

    def path(self, stream: str, reader: str) -> str:
        """Return the path of the file for *stream* and *reader*.  Never switches."""
        return os.path.join(self._folder, f"{quote(reader, safe='')}@{quote(stream, safe='')}")

    def load(self, stream: str, reader: str) -> int | None:
        """Return the last stored offset, or None if there is none.  May switch.

        Raises:
            ValueError: the file does not contain an offset.
            OSError: the file cannot be read.
        """
        path = self.path(stream, reader)
        text = in_hub_thread(lambda: _read(path))
        return None if text is None else _offset(text.strip(), f"file {path!r}")

    def store(self, stream: str, reader: str, offset: int) -> None:
        """Store *offset*, and return when it is on the disk.  May switch.

        Raises:
            OSError: the file cannot be written.
        """
        path = self.path(stream, reader)
        in_hub_thread(lambda: _write(path, f"{offset}\n"))


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _write(path: str, text: str) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)  # else the new name may be lost with the power
    finally:
        os.close(directory)


class QueueOffsets:
    """A store that keeps offsets in queues of the broker, one queue for each stream and reader.

    Arguments:
        connection: a ``Connection``, a URL, or None for the default connections, as in
            :func:`greenconn.publish`.
        prefix: the prefix of the queue names, which the reader and the stream follow, for example
            ``offsets.billing@invoices``.
        queue_arguments: additional arguments for declaring the queues.  The queues are quorum queues
            unless the arguments set ``x-queue-type``.
    """

    def __init__(
        self,
        connection: Connection | str | None = None,
        *,
        prefix: str = "offsets.",
        queue_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self._arguments = {"x-queue-type": "quorum", **(queue_arguments or {})}

    def __repr__(self) -> str:
        return f"QueueOffsets(prefix={self._prefix!r})"

    def queue(self, stream: str, reader: str) -> Queue:
        """Return the queue for the offset of *stream* and *reader*.  Never switches.

        The newest message in the queue is the current offset.
        """
        name = f"{self._prefix}{reader}@{stream}"
        return Queue(name, max_length=1, queue_arguments=self._arguments)

    def load(self, stream: str, reader: str) -> int | None:
        """Return the last stored offset, or None if there is none.  May switch.

        The offset is published anew, so load none while its reader runs: it could put an older one in
        place of one that is just stored.

        Raises:
            ValueError: a message in the queue is not an offset.
            Exception: the connection failed, or the broker sent an error reply.
        """
        queue, deadline = self.queue(stream, reader), Deadline(TIMEOUT)
        session = consuming_connection(self._connection).session
        ensure_declared(session, queue, deadline)
        return session.utility.run(lambda channel: self._take(queue, channel), deadline)

    def _take(self, queue: Queue, channel: Channel) -> int | None:
        """Return the offset, which is published anew.

        Else each load would count as a delivery, and RabbitMQ 4 drops what was delivered too often.
        """
        taken: list[Any] = []
        while (message := queue(channel).get(no_ack=False)) is not None:
            taken.append(message)
        if not taken:
            return None
        # A program that was killed here may have left more than one.
        offset = max(_offset(each.payload, f"queue {queue.name!r}") for each in taken)
        self._publish(queue, offset)
        for each in taken:
            each.ack()
        return offset

    def store(self, stream: str, reader: str, offset: int) -> None:
        """Store *offset*, and return when the broker has confirmed it.  May switch.

        Raises:
            OperationalError: the broker did not confirm the offset, or the program has closed the
                connection.
        """
        self._publish(self.queue(stream, reader), offset)

    def _publish(self, queue: Queue, offset: int) -> None:
        connection = self._connection
        if isinstance(connection, Connection) and connection.session.is_closed:
            # To publish would open it again.
            raise OperationalError(f"the connection of {self!r} is closed")
        publish(queue, offset, connection=connection, timeout=TIMEOUT)


def _offset(value: object, place: str) -> int:
    try:
        offset = int(value)  # type: ignore[call-overload]  # whatever it is
    except (TypeError, ValueError):
        offset = -1
    if offset < 0:
        raise ValueError(f"{place} must have an offset, an integer from 0, got {value!r}")
    return int(offset)
