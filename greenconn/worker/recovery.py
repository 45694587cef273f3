"""Recovery of a consumer: its queues are confirmed by the broker, at first and after each loss.

One kind of loss needs more.  RabbitMQ waits for the ack of a delivery no longer than its consumer
timeout (30 min), and does not say which delivery it was: the one that has waited longest.  Up to 4.2 it
closes the channel.  4.3 has the timeout for quorum queues only: it cancels the consumer, without a
reason, and requeues its unacked messages.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gevent import Timeout

from greenconn.entity.existence import ensure_queue_exists
from greenconn.exceptions import (
    NEVER_REPEATED,
    AccessRefused,
    AMQPError,
    ChannelError,
    InternalError,
    IrrecoverableConnectionError,
    KombuError,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
    error_text,
    is_denied_feature,
    is_unavailable,
)
from greenconn.green.deadline import Deadline
from greenconn.green.retry import Backoff, RetryPolicy
from greenconn.session.connect import is_lockout
from greenconn.session.session import Session
from greenconn.worker.channels import SharedChannels, Subscription
from greenconn.worker.dispatch import Dispatcher
from greenconn.worker.handling import Handling

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.message import Message

logger = logging.getLogger("greenconn.worker")

CONSUMING: Final = RetryPolicy(first=0.1, longest=10.0, immediate=1)
#: Seconds of a pause at most for a queue that exists, and whose node is away or has no leader.
LONGEST_AWAY: Final = 1.0
#: A consumer that ran for so many seconds begins its back-off after losses anew.
STABLE_AFTER: Final = 10.0
#: How often the broker may end the whole connection for what we ask before we stop asking, and how
#: often it may not find a queue that we have just declared.
MAX_FAILURES: Final = 3
#: The same for internal errors of the broker (541) that may pass: RabbitMQ 3.10 can have them for
#: seconds after a quorum queue was deleted and declared again.  With the back-off about half a minute.
MAX_INTERNAL_ERRORS: Final = 10

#: Classes of AMQP methods, and methods of the class basic (qos, consume), that a start sends.
_OWN_CLASSES: Final = frozenset({20, 40, 50})
_OWN_METHODS: Final = frozenset({(60, 10), (60, 20)})

#: RabbitMQ's words.
_TIMED_OUT: Final = "delivery acknowledgement on channel"

#: The first RabbitMQ that cancels a consumer for its consumer timeout.
_CANCELS_SINCE: Final = (4, 3)


class RecoveryOutcome(Enum):
    """The end of an attempt in which the broker did not refuse for good."""

    CONFIRMED = "confirmed"
    #: Something failed that may pass.
    FAILED = "failed"
    #: The program has closed the connection.
    CLOSED = "closed"


class SubscriptionRecovery:
    """The start of those subscriptions of one consumer that are not confirmed.

    A broker that is away is waited for.  What may pass is retried with back-off, and so is, with a
    back-off of its own, a consumer that is lost again and again: what a long start has cost is not
    held against the next one.  A refusal for want of rights, a connection that the broker ends, and an
    error of what the program supplies for a login or a declaration end a consumer that never ran; for
    one that did, what worked once may work again.

    Arguments:
        session: of the connection.
        channels: channels.
        subscriptions: all of the consumer.

    Attributes:
        failure: class and text of the last error; None once all are confirmed.
    """

    __slots__ = (
        "_channels",
        "_confirmed_at",
        "_disconnections",
        "_failures",
        "_losses",
        "_misses",
        "_not_before",
        "_session",
        "_subscriptions",
        "_warned_of",
        "failure",
    )

    def __init__(
        self, session: Session, channels: SharedChannels, subscriptions: Sequence[Subscription]
    ) -> None:
        self._session = session
        self._channels = channels
        self._subscriptions = subscriptions
        # Made when needed: most consumers never fail.
        self._failures: Backoff | None = None
        self._losses: Backoff | None = None
        self._not_before = 0.0
        self._confirmed_at = 0.0
        self._disconnections = 0
        self._misses = 0
        #: Classes of the errors since the last success that were logged as warnings.
        self._warned_of: frozenset[type[BaseException]] = frozenset()
        self.failure: str | None = None

    @property
    def pause(self) -> float:
        """Seconds until the next attempt may begin; 0.0 is now."""
        if not self._not_before:
            return 0.0
        return max(0.0, self._not_before - monotonic())

    @property
    def has_succeeded(self) -> bool:
        """Whether all were confirmed once."""
        return bool(self._confirmed_at)

    def note_loss(self) -> None:
        """Note a loss: the next attempt may begin at once the first time, then ever later.

        Called by the reader.  Never switches.
        """
        if self._losses is None or monotonic() - self._confirmed_at > STABLE_AFTER:
            self._losses = Backoff(CONSUMING)
        self._wait(next(self._losses))

    def _back_off(self, longest: float = CONSUMING.longest) -> None:
        if self._failures is None:
            self._failures = Backoff(CONSUMING)
        self._wait(min(next(self._failures), longest))

    def _wait(self, interval: float) -> None:
        self._not_before = monotonic() + interval if interval else 0.0

    def attempt(self) -> RecoveryOutcome | BaseException:
        """Try once, and return the outcome; an error is final.  May switch.

        Called in a task of the consumer: a ``gevent.Timeout`` is one of the program's functions.
        """
        subscription = None
        try:
            self._session.link()
            # It may have been another consumer that the broker has closed the connection for: one by one
            # they show who it is.
            with self._channels.lone_start if self._disconnections else nullcontext():
                for subscription in self._subscriptions:
                    if not subscription.is_confirmed and not subscription.must_wait(self._session):
                        subscription.start(self._session, self._channels)
        except (Exception, Timeout) as exc:
            if self._session.is_closed:
                return RecoveryOutcome.CLOSED
            if self._is_final(exc, subscription):
                return exc
            self._note_failure(exc, subscription)
            return RecoveryOutcome.FAILED
        if not all(each.is_confirmed for each in self._subscriptions):
            self._back_off()
            return RecoveryOutcome.FAILED
        self._confirmed_at = monotonic()
        self._disconnections = 0
        self._misses = 0
        self._warned_of = frozenset()
        self._failures = None
        self.failure = None
        return RecoveryOutcome.CONFIRMED

    def _note_failure(self, exc: BaseException, subscription: Subscription | None) -> None:
        self.failure = f"{type(exc).__name__}: {error_text(exc)}"
        if subscription is not None and isinstance(exc, ChannelError):
            # It may cost the next channel too: from now on one that is its alone.
            subscription.fails_alone = True
        if subscription is None:
            self._not_before = monotonic() + CONSUMING.first  # the session itself backs off
        elif is_unavailable(exc):
            self._back_off(LONGEST_AWAY)
        else:
            self._back_off()
        is_known = isinstance(exc, known_errors(self._session))
        is_new = not self._warned_of if is_known else type(exc) not in self._warned_of
        if is_new:
            self._warned_of |= {type(exc)}
        names = ", ".join(each.name for each in self._subscriptions if not each.is_confirmed)
        logger.log(
            logging.WARNING if is_new else logging.DEBUG,
            "consumer of queue %r cannot start yet, trying again: %s: %s",
            names,
            type(exc).__name__,
            error_text(exc),
            exc_info=None if is_known else exc,
            extra={"connection": self._session.broker.label, "queue": names},
        )

    def _is_final(self, exc: BaseException, subscription: Subscription | None) -> bool:
        """Return whether trying again would be of no use."""
        if isinstance(exc, NEVER_REPEATED):
            return True
        if not isinstance(exc, known_errors(self._session)):
            return not self._confirmed_at
        if subscription is None:
            is_locked_out = bool(self._confirmed_at) and is_lockout(exc)
            return self._session.is_final(exc) and not is_locked_out
        if isinstance(exc, IrrecoverableConnectionError):
            # The broker closed the connection, maybe because of another user of it.
            if _may_be_own(exc):
                self._disconnections += 1
            if self._confirmed_at:
                return False  # what it took once it may take again: a frame was damaged on its way
            may_pass = isinstance(exc, InternalError) and not is_denied_feature(exc)
            return self._disconnections >= (MAX_INTERNAL_ERRORS if may_pass else MAX_FAILURES)
        passing = (RecoverableConnectionError, RecoverableChannelError, *self._transient())
        if isinstance(exc, passing):
            return False
        if is_unavailable(exc):
            return False
        if isinstance(exc, NotFound) and not subscription.is_passive:
            return self._is_lost_for_good(subscription)
        if isinstance(exc, AccessRefused) or not isinstance(exc, ChannelError):
            # Its rights were taken; or it is exclusive, and its former life is not over yet; or the
            # server takes nothing now (Redis: OOM, MISCONF).  What it took once it may take again.
            is_refused = isinstance(exc, self._session.broker.channel_errors)
            return is_refused and not subscription.was_confirmed
        return True

    def _is_lost_for_good(self, subscription: Subscription) -> bool:
        """Return whether a queue that should be there, and is not, will never be."""
        # Deleted since it was seen last, or its node is away: look again.
        subscription.forget_declaration(self._session)
        self._misses += 1
        return not subscription.was_confirmed and self._misses >= MAX_FAILURES

    def _transient(self) -> tuple[type[BaseException], ...]:
        return self._session.broker.recoverable_channel_errors


def _may_be_own(exc: IrrecoverableConnectionError) -> bool:
    """Return whether the broker may have closed the connection for what a start sends.

    The broker names the method that it could not take, if there is one (AMQP 0-9-1, connection.close).
    """
    class_id, method_id = exc.method_sig or (0, 0)
    return not class_id or class_id in _OWN_CLASSES or (class_id, method_id) in _OWN_METHODS


def known_errors(session: Session) -> tuple[Any, ...]:
    """Return the errors of networks, brokers and limits; any other is an error in a program."""
    broker = session.broker
    errors = (*broker.connection_errors, *broker.channel_errors)
    return (OSError, AMQPError, KombuError, *errors)


class OverdueDelivery(NamedTuple):
    """A delivery that was not settled in time, as it is logged."""

    queue: str
    delivery_tag: Any
    is_handled: bool
    handler: str
    outcome: str

    def log(self) -> None:
        """Log whose it was.  May switch."""
        logger.error(
            "delivery %s of queue %r %s for longer than the broker's consumer timeout; %s",
            self.delivery_tag,
            self.queue,
            f"was in its handler {self.handler}"
            if self.is_handled
            else f"waited for its handler {self.handler}",
            self.outcome,
            extra={"queue": self.queue, "delivery_tag": self.delivery_tag},
        )


def find_overdue(
    dispatcher: Dispatcher, handler: str, queue: str, tag: str, channel: Channel, exc: BaseException
) -> OverdueDelivery | None:
    """Return the delivery that the broker has waited for, if consumer *tag* has it.  Never switches.

    Arguments:
        dispatcher: the consumer's messages.
        handler: its name.
        queue: where they are from.
        exc: why the channel was closed.
    """
    if not isinstance(exc, PreconditionFailed) or _TIMED_OUT not in str(exc):
        return None
    oldest = getattr(channel, "oldest_unacked", None)
    for message, is_handled in dispatcher.unacked():
        if message.delivery_tag == oldest and _is_of(message, tag, channel):
            outcome = (
                f"its channel was closed with all consumers, and the message is redelivered: {exc}"
            )
            return OverdueDelivery(queue, oldest, is_handled, handler, outcome)
    return None


def _is_of(message: Message, tag: str, channel: Channel) -> bool:
    return message.channel is channel and message.delivery_info.get("consumer_tag") == tag


class CancelledConsumer:
    """A consumer that the broker has cancelled, and what waits here for its handler.

    If its queue was deleted, these are the last copies of their messages, and are handled.  If the
    queue is there, the broker has taken them back, so they are given up here.  The broker does not
    say which it is, so the queue is looked for.

    Nothing switches while this is made, in the reader.

    Arguments:
        dispatcher: the consumer's messages; those of this life are taken out.
        handling: settles them.
        queue, tag, channel: what it consumed, and where.
    """

    def __init__(
        self, dispatcher: Dispatcher, handling: Handling, queue: str, tag: str, channel: Channel
    ) -> None:
        self._dispatcher = dispatcher
        self._handling = handling
        self._queue = queue
        self._channel = channel
        self._overdue = self._oldest(tag)
        self._held = [] if handling.is_no_ack else dispatcher.drop(channel, tag)

    def _oldest(self, tag: str) -> OverdueDelivery | None:
        version = getattr(self._channel.connection, "server_version", None)
        if version is None or version < _CANCELS_SINCE or self._handling.is_no_ack:
            return None
        unacked = [
            (message.delivery_tag, is_handled)
            for message, is_handled in self._dispatcher.unacked()
            if _is_of(message, tag, self._channel) and not message.acknowledged
        ]
        if not unacked:
            return None
        outcome = (
            "the broker cancelled the consumer and requeued its unacked messages, which a new "
            "one gets: ack sooner, lower the prefetch_count, or raise consumer_timeout "
            "or the queue's x-consumer-timeout"
        )
        return OverdueDelivery(self._queue, *min(unacked), self._handling.name, outcome)

    def resolve(self, session: Session) -> None:
        """Find out why it was cancelled, and handle its messages or give them up.  May switch."""
        if self._channel.is_open and not self._is_queue_there(session):
            session.topology.queue_deleted(self._queue)
            held, self._held = self._held, []
            self._dispatcher.put_dropped(message for message, _ in held)
            return
        if self._channel.is_open and self._overdue is not None:
            overdue, self._overdue = self._overdue, None
            overdue.log()
        self.requeue()

    def _is_queue_there(self, session: Session) -> bool:
        try:
            ensure_queue_exists(session, self._queue, Deadline(), passive=True)
        except NotFound as exc:
            return bool(is_unavailable(exc))
        except Exception as exc:
            logger.debug(
                "checking queue %r: %s", self._queue, error_text(exc), extra={"queue": self._queue}
            )
        return True

    def requeue(self) -> None:
        """Put the messages back; a broker that has done so already ignores that.  May switch."""
        while self._held:
            message, has_begun = self._held.pop()
            self._handling.requeue(message, has_begun=has_begun)
