"""A pool of carrot's connections."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

from greenconn.exceptions import ConnectionLimitExceeded
from greenconn.green.deadline import Deadline
from greenconn.green.pool import FairPool

if TYPE_CHECKING:
    from greenconn.compat.carrot.connection import BrokerConnection

__all__ = ["ConnectionLimitExceeded", "ConnectionPool"]


class ConnectionPool:
    """Lends connections, each to one greenlet at a time, in the order of arrival.

    Arguments:
        source_connection: the first one; the others are copies.
        min: connections that are there from the beginning.
        max: connections at most; None is without limit.
        preload: open the first *min* at once (may switch).
    """

    def __init__(
        self,
        source_connection: BrokerConnection,
        min: int = 2,
        max: int | None = None,
        preload: bool = True,
    ) -> None:
        if max is not None and max < min:
            raise ValueError(f"max must be at least min, got max={max} and min={min}")
        self.source_connection = source_connection
        self.min = min
        self.max = max
        self.preload = preload
        source_connection.pool = self
        self._pool: FairPool[BrokerConnection] = FairPool(
            lambda deadline: self._new_connection(),
            lambda connection: connection.close(),
            None,
            max,
            lambda: f"carrot of {source_connection.host}",
            ConnectionLimitExceeded,
        )
        for connection in [source_connection, *(self._new_connection() for _ in range(min - 1))]:
            if preload:
                connection.connect()
            self._pool.add(connection)

    def acquire(
        self,
        block: bool = False,
        timeout: float | None = None,
        connect_timeout: float | None = None,
    ) -> BrokerConnection:
        """Borrow a connection.  May switch.

        Arguments:
            block: wait when all are lent.
            timeout: seconds of that wait; None waits.
            connect_timeout: of the connection, from now on.

        Raises:
            ConnectionLimitExceeded: all are lent (for *timeout* seconds).
        """
        connection = self._pool.acquire(block, Deadline(timeout))
        if connect_timeout is not None:
            connection.connect_timeout = connect_timeout
        return connection

    def release(self, connection: BrokerConnection) -> None:
        """Give a connection back.  A second call does nothing."""
        self._pool.release(connection)

    def _new_connection(self) -> BrokerConnection:
        return copy(self.source_connection)
