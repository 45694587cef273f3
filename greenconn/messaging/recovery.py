"""Recovery of a consumer by its session.

The broker may accept the new connection before it has closed the old one, and what is deleted with the
old one is deleted while it is declared again: an auto-delete queue with its last consumer, an exchange
with its last binding.  So declarations are repeated here where a program, which sees one connection
after the other, would not have to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import gevent

from greenconn.entity.pipelining import Declarations
from greenconn.exceptions import NotFound, RecoverableChannelError
from greenconn.green.deadline import NEVER, Deadline, TimeLimit
from greenconn.green.retry import attempts
from greenconn.session.state import is_open
from greenconn.session.topology import GONE_MEANWHILE

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.green.deadline import Deadline
    from greenconn.messaging.consumer import Consumer
    from greenconn.session.session import Session

#: Seconds that consumers of the former connection are waited for, and seconds between two checks.
FORMER_TIMEOUT: Final = 1.0
CHECK_INTERVAL: Final = 0.02

#: When the waiting ends, by link: all that is restored on one shares it.
_former_deadlines: Final[WeakKeyDictionary[Any, Deadline]] = WeakKeyDictionary()


class ConsumerRecovery:
    """A consumer's place among the members of its session.

    It is not the consumer itself, whose ``recover()`` is AMQP's ``basic.recover``.

    Arguments:
        consumer: the consumer to recover.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._session: Any = None
        #: The channel on which recovery has restored the consumer.
        self._restored_on: Any = None
        #: Restoring has failed and is tried again.
        self._has_failed = False
        #: The queues were there a moment ago.
        self._has_declared = False

    def __repr__(self) -> str:
        return f"<recovery of {self._consumer!r}>"

    def join(self, channel: Channel) -> None:
        """Register for recovery after the loss of the connection of *channel*, if it has a session."""
        session = _session_of(channel)
        if session is not self._session:
            self.leave()
        if session is not None:
            # Again and again: a session that was closed has forgotten its members.
            session.add(self)
            self._session = session

    def declare_beside(self, channel: Channel) -> None:
        """Declare for a program that does not leave it to recovery, on its *channel*.  May switch.

        A program that rebuilds itself may be as quick as recovery, and so meet what is about to go.
        """
        consumer, session = self._consumer, _session_of(channel)
        # One that consumes has been through that, or moves, and its own consumer is not a former one.
        consumes = any(map(is_open, consumer._subscriptions.placed.values()))
        generation = getattr(session, "generation", 0)
        is_later = isinstance(generation, int) and generation > 1  # programs' tests have stand-ins
        if is_later and not consumes:
            _wait_for_former_consumers(consumer.queues, channel)
            if consumer._channel is not channel:
                return  # moved on: who moved it declares
        consumer.declare()

    def leave(self) -> None:
        """Unregister."""
        session, self._session = self._session, None
        self._restored_on = None
        if session is not None:
            session.discard(self)

    def has_restored_beside(self, channel: Channel) -> bool:
        """Return whether all is consumed again on the connection of *channel*, thanks to recovery."""
        own = self._restored_on
        return (
            own is not None
            and own is self._consumer._channel
            and is_open(own)
            and own.connection is channel.connection
            and self._consumer._subscriptions.are_placed_on(own)
        )

    def recover(self, deadline: Deadline) -> None:
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
            # The program closed it, or got the error that closed it: there is nothing to recover.
            self.leave()
            return
        self._has_failed = True
        within = Deadline(deadline.left())
        with TimeLimit(within, f"recovering {consumer!r}"):
            channel = session.successor(old)
            self._has_declared = False
            try:
                consumer._settle(channel, lambda: self._declare(session, within))
            except NotFound as exc:
                if self._has_declared and consumer.auto_declare:
                    raise RecoverableChannelError(
                        f"the channel was closed during its recovery: {exc}"
                    ) from exc
                raise
        self._has_failed = False
        if self._session is not None:
            self._restored_on = channel

    def _declare(self, session: Session, deadline: Deadline) -> None:
        """Declare the queues, or see that they are there.  May switch.

        That goes through a channel apart, since what the broker refuses costs its channel, and on
        the consumer's own others consume again.
        """
        for attempt in attempts(GONE_MEANWHILE, NEVER, lambda exc: isinstance(exc, NotFound)):
            with attempt:
                session.utility.run(self._declare_through, deadline)
                break
        self._has_declared = True

    def _declare_through(self, channel: Channel) -> None:
        consumer = self._consumer
        if not consumer.auto_declare:
            _declare_queues(consumer.queues, channel, passive=True)
            return
        _wait_for_former_consumers(consumer.queues, channel)
        consumer._declare_through(channel)


def _wait_for_former_consumers(queues: Iterable[Any], channel: Channel) -> None:
    """Wait until the former connection's consumers have left the auto-delete queues.  May switch.

    Queues that others consume from are waited for only once for each link.
    """
    consumed = [
        queue
        for queue in queues
        if queue.name and queue.auto_delete and not queue.exclusive and not queue.no_declare
    ]
    if not consumed:
        return
    deadline = _former_deadlines.setdefault(channel.connection, Deadline(FORMER_TIMEOUT))
    while True:
        replies = _declare_queues(consumed, channel)
        consumed = [queue for queue, reply in zip(consumed, replies, strict=True) if reply[2]]
        if not consumed or deadline.has_ended:
            return
        gevent.sleep(CHECK_INTERVAL)


def _declare_queues(queues: list[Any], channel: Channel, **how: bool) -> list[Any]:
    """Declare the queues, without their bindings.  May switch.

    Arguments:
        how: arguments of ``Queue.queue_declare``.

    Returns:
        For each queue: name, number of messages and of consumers.
    """
    with Declarations(channel) as declarations:
        for queue in queues:
            declarations.queue_declare(queue, **how)
        declarations.finish()
        return declarations.replies


def _session_of(channel: Channel) -> Any:
    return getattr(getattr(channel.connection, "client", None), "session", None)


def _ended_by_itself(channel: Channel) -> bool:
    """Return whether a channel was closed before its connection was lost."""
    cause = getattr(channel, "cause", None)
    return cause is not None and cause is not getattr(channel.connection, "lost", None)
