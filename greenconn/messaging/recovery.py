"""What a session restores of a consumer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.abc import DeadlineLike
from greenconn.green.deadline import Deadline
from greenconn.green.limit import Limit
from greenconn.messaging.subscriptions import is_open

if TYPE_CHECKING:
    from greenconn.messaging.consumer import Consumer

__all__ = ["Recovery"]


class Recovery:
    """A consumer's place among the members of its session.

    It is not the consumer itself, whose ``recover()`` is AMQP's ``basic.recover``.

    Arguments:
        consumer: who is restored.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._session: Any = None
        #: The channel on which recovery has restored the consumer.
        self._restored_on: Any = None
        #: Restoring has failed and is tried again.
        self._has_failed = False

    def __repr__(self) -> str:
        return f"<recovery of {self._consumer!r}>"

    def join(self, channel: Any) -> None:
        """Be restored when the connection of *channel* is lost, if it has a session."""
        session = getattr(getattr(channel.connection, "client", None), "session", None)
        if session is not self._session:
            self.leave()
        if session is not None:
            # Again and again: a session that was closed has forgotten its members.
            session.add(self)
            self._session = session

    def leave(self) -> None:
        """Be restored no more."""
        session, self._session = self._session, None
        self._restored_on = None
        if session is not None:
            session.discard(self)

    def has_restored_beside(self, channel: Any) -> bool:
        """Whether all is consumed again on the connection of *channel*, thanks to recovery."""
        own = self._restored_on
        return (
            own is not None
            and own is self._consumer._channel
            and is_open(own)
            and own.connection is channel.connection
            and self._consumer._subscriptions.are_placed_on(own)
        )

    def recover(self, deadline: DeadlineLike) -> None:
        """Declare and consume again on the connection's new life.  May switch.

        Raises:
            TimeoutError: the deadline ended first.
            ChannelError, ConnectionError: the broker or the network refused.
        """
        consumer, session = self._consumer, self._session
        old = consumer._channel
        if session is None:
            return
        if not self._has_failed and _ended_by_itself(old):
            # The program closed it, or it was told why it was closed: there is nothing to bring back.
            self.leave()
            return
        self._has_failed = True
        with Limit(Deadline(deadline.left()), f"restoring {consumer!r}"):
            channel = session.successor(old)
            consumer._settle(channel)
        self._has_failed = False
        if self._session is not None:
            self._restored_on = channel


def _ended_by_itself(channel: Any) -> bool:
    """Whether a channel was closed before its connection was lost."""
    cause = getattr(channel, "cause", None)
    return cause is not None and cause is not getattr(channel.connection, "lost", None)
