"""A pool of connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import gevent

from greenconn import exceptions
from greenconn.caching import lazy
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from greenconn.resource.base import Resource, known

if TYPE_CHECKING:
    from greenconn.abc import Connection

__all__ = ["ConnectionPool"]


class ConnectionPool(Resource):
    """Connections like a given one.

    What is acquired is a ``PooledConnection`` over one that the pool keeps open: of the same class
    and equal, and with the same channels below.  It knows connections by protocol only
    (:class:`~greenconn.abc.Lendable`); it makes them by ``connection.clone()``, which opens nothing.

    Arguments:
        connection: what the others are made like; it is not itself in the pool.
        limit: connections at most, those being opened included; None or 0 is unlimited.
        preload: connections to open at once (may switch).
    """

    LimitExceeded: ClassVar[type[exceptions.LimitExceeded]] = exceptions.ConnectionLimitExceeded
    close_after_fork = True

    def __init__(self, connection: Connection, limit: int | None = None, **kwargs: Any) -> None:
        self.connection = connection
        super().__init__(limit=limit, **known(type(self), kwargs))

    def new(self) -> Any:
        """A connection like ours, not opened yet."""
        return self.connection.clone()

    def is_alive(self, resource: Any) -> bool:
        """Whether it was not closed."""
        try:
            is_alive: bool = resource.is_reusable
        except AttributeError:
            return True
        return is_alive

    def collect_resource(self, resource: Any, socket_timeout: float | None = 0.1) -> None:
        """Close the connection: what was published leaves first, within the 2 s that a close takes."""
        if isinstance(resource, lazy):
            return  # it was never made
        try:
            resource.close()
        finally:
            resource.collect(socket_timeout)

    def _collect(self, cores: list[Any]) -> None:
        # All at once, and each by itself: one may have nobody at its other end.
        gevent.joinall([spawn("pool-collect", self._collect_each, [core]) for core in cores])

    @contextmanager
    def acquire_channel(
        self, block: bool = False, timeout: float | Deadline | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """Borrow a connection for a ``with`` block: gives ``(connection, its default channel)``."""
        with self.acquire(block=block, timeout=timeout) as connection:
            yield connection, connection.default_channel

    def _describe(self) -> str:
        return str(self.connection.as_uri())

    def _preloaded(self) -> Any:
        connection = self.prepare(self.new())
        try:
            connection.connect()
        except BaseException:
            connection.collect()  # it may be open already
            raise
        return connection

    def facade(self, core: Any, lender: Any) -> Any:
        """A facade over *core*, which *lender* lends.  Never switches."""
        lend = getattr(core, "lend", None)
        return super().facade(core, lender) if lend is None else lend(lender)

    def expire(self, borrowed: Any, reason: str) -> None:
        """End such a facade: from now on it raises, naming the *reason*.  Never switches."""
        # Looked up on the class: of a connection that lends no facade of its own we made a general
        # one, which has no such method and would forward to what is below.
        expire = getattr(type(borrowed), "expire", None)
        if expire is None:
            super().expire(borrowed, reason)
        else:
            expire(borrowed, reason)

    def returned(self, borrowed: Any) -> None:
        """Note that it was given back: later uses are logged.  Never switches."""
        mark_released = getattr(type(borrowed), "mark_released", None)
        if mark_released is None:
            super().returned(borrowed)
        else:
            mark_released(borrowed)
