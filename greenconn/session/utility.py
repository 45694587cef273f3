"""Channels for what may fail: looking queues up, declaring, binding, deleting.

A broker's error closes the channel that it came on, so none of this may run where others consume or
publish.  A connection has at most eight of these channels, and each serves one greenlet at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from greenconn.green.deadline import Deadline
from greenconn.session.life import is_open
from greenconn.session.walk import BrokerLike

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.green.pool import FairPool

__all__ = ["UtilityChannels"]

T = TypeVar("T")

#: Channels of one connection.  A lookup that misses costs its channel: 1,000 misses take 3.5 s on one
#: channel and about 1.5 s on eight.
LIMIT: Final = 8


class _SessionLike(Protocol):
    @property
    def broker(self) -> BrokerLike: ...

    def link(self, deadline: Deadline) -> Any: ...


class UtilityChannels:
    """The utility channels of one session.

    Arguments:
        session: opens links.
    """

    def __init__(self, session: _SessionLike) -> None:
        self._session = session
        #: Made, and its class imported, when it is first needed: many connections never do.
        self._pool: FairPool[Any] | None = None

    def run(self, function: Callable[[Any], T], deadline: Deadline) -> T:
        """Return ``function(channel)``; nobody else uses that channel meanwhile.  May switch.

        Arguments:
            deadline: for a free channel; its calls have the connection's ``reply_timeout``.

        Raises:
            LimitExceeded: no channel was free in time.
            Exception: what opening the channel, or *function*, raised.
        """
        pool = self._pool
        if pool is None:
            from greenconn.green.pool import FairPool

            pool = self._pool = FairPool(self._open, _close, is_open, LIMIT, self._name)
        channel = pool.acquire(True, deadline)
        is_idle = False
        try:
            result = function(channel)
            is_idle = is_open(channel)
            return result
        finally:
            if is_idle:
                pool.release(channel)
            else:
                # An answer may be due that closes it: that must not hit the next one.
                pool.remove(channel)

    def drop(self) -> None:
        """After a close: they belonged to a former life.  Never switches."""
        if self._pool is not None:
            self._pool.clear()

    def forget(self) -> None:
        """After a fork, in the child: begin anew.  Never switches."""
        if self._pool is not None:
            self._pool.forget()

    def _name(self) -> str:
        return f"utility channels of {self._session.broker.label}"

    def _open(self, deadline: Deadline) -> Any:
        link = self._session.link(deadline)
        return self._session.broker.transport.create_channel(link)


def _close(channel: Channel) -> None:
    if is_open(channel):
        channel.close()
