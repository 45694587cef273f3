"""A file descriptor for event loops, readable while an event of a connection waits."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from gevent import Greenlet
from gevent.event import Event

from greenconn.exceptions import OperationalError, RecoverableConnectionError, error_text
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn

if TYPE_CHECKING:
    from greenconn.connection import Connection


logger = logging.getLogger("greenconn.session")


class EventDescriptor:
    """A pipe that *loop* watches: it is readable while an event of *connection* waits.

    The loop's callback drains all events.  The pipe is closed with the connection.

    Arguments:
        loop: anything with ``add_reader(fd, callback)``, running in a greenlet.

    Raises:
        TypeError: *loop* has no ``add_reader``.
        WrongHub: the connection belongs to another thread.
    """

    def __init__(self, connection: Connection, loop: Any) -> None:
        if not hasattr(loop, "add_reader"):
            raise TypeError(f"loop must have a method add_reader(fd, callback), got {loop!r}")
        self._connection = connection
        self._session = connection.session
        self._session.check_hub()
        self._loop = loop
        self._drained = Event()
        self._readable, self._writable = os.pipe()
        for descriptor in (self._readable, self._writable):
            os.set_blocking(descriptor, False)
        loop.add_reader(self._readable, self.drain)
        self._session.on_closed.append(self.close)
        self._watcher: Greenlet[..., Any] = spawn("event-fd", self._watch)

    def drain(self) -> None:
        """Run all events that wait: the loop's callback.  May switch."""
        try:
            os.read(self._readable, 64)
        except BlockingIOError:
            return
        try:
            while True:
                self._connection.drain_events(timeout=0)
        except TimeoutError:
            pass
        finally:
            self._drained.set()

    def close(self) -> None:
        """Take the descriptor from the loop and close it."""
        self._session.on_closed.remove(self.close)
        self._watcher.kill(block=False)
        remove = getattr(self._loop, "remove_reader", None) or getattr(self._loop, "remove", None)
        if remove is not None:
            remove(self._readable)
        os.close(self._readable)
        os.close(self._writable)

    def _watch(self) -> None:
        while True:
            try:
                events = self._session.wait_ready(Deadline()).link.events
                events.put_back(events.get(Deadline()))
            except (OperationalError, RecoverableConnectionError, OSError) as exc:
                logger.debug(
                    "no event: %s",
                    error_text(exc),
                    extra={"connection": self._session.broker.label},
                )
                if self._session.is_closed:
                    return
                continue
            self._drained.clear()
            os.write(self._writable, b"!")
            self._drained.wait()
