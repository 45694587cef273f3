"""Stores for the offsets of stream readers: files, and queues of the streams' broker.

AMQP 0-9-1 has no method by which a broker keeps them.  Both stores keep one offset for each pair of a
stream and a reader, and replace it as a whole: whatever ends the program or the broker, the last one
or the one before is there.
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
from greenconn.entity.existence import ensure_declared
from greenconn.exceptions import OperationalError
from greenconn.green.deadline import Deadline
from greenconn.green.threadpool import in_hub_thread
from greenconn.publishing import publish

if TYPE_CHECKING:
    from greenconn.abc import Channel

__all__ = ["FileOffsets", "QueueOffsets"]

#: Seconds for a request to the broker, the wait for its connection included.
TIMEOUT: Final = 30.0


class FileOffsets:
    """Offsets in files, one for each stream and reader.

    A file has another name until it is whole and on the disk.  That is done in the hub's own threads,
    so that the hub turns meanwhile.

    Arguments:
        folder: exists, or is made when the first offset is stored.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = os.fspath(folder)

    def __repr__(self) -> str:
        return f"FileOffsets({self._folder!r})"

    def path(self, stream: str, reader: str) -> str:
        """Return the name of the file.  Never switches."""
        return os.path.join(self._folder, f"{quote(reader, safe='')}@{quote(stream, safe='')}")

    def load(self, stream: str, reader: str) -> int | None:
        """Return the offset that was stored last; None if there is none.  May switch.

        Raises:
            ValueError: there is something else in the file.
            OSError: it cannot be read.
        """
        path = self.path(stream, reader)
        text = in_hub_thread(lambda: _read(path))
        return None if text is None else _offset(text.strip(), f"file {path!r}")

    def store(self, stream: str, reader: str, offset: int) -> None:
        """Return when *offset* is on the disk.  May switch.

        Raises:
            OSError: it cannot be written.
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
    """Offsets in queues of the broker: each stream and reader has one, which holds the last offset.

    Arguments:
        connection: a ``Connection``, a URL, or None for the default ones; see :func:`greenconn.publish`.
        prefix: beginning of the queues' names; the reader and the stream follow, as in
            ``offsets.billing@invoices``.
        queue_arguments: of the queues; quorum queues are declared where these say nothing else.
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
        """Return the queue for an offset; its newest message counts.  Never switches."""
        name = f"{self._prefix}{reader}@{stream}"
        return Queue(name, max_length=1, queue_arguments=self._arguments)

    def load(self, stream: str, reader: str) -> int | None:
        """Return the offset that was stored last; None if there is none.  May switch.

        Raises:
            ValueError: there is something else in the queue.
            Exception: what the broker or the connection did.
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
        """Return when the broker has confirmed *offset*.  May switch.

        Raises:
            OperationalError: it has not, or the program has closed the connection.
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
