"""Recovery of a consumer: its queues are confirmed by the broker, at first and after each loss."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import Enum
from time import monotonic
from typing import Any, Final

from greenconn.exceptions import (
    NEVER_REPEATED,
    AccessRefused,
    AMQPError,
    ChannelError,
    IrrecoverableConnectionError,
    KombuError,
    NotFound,
    RecoverableChannelError,
    is_unavailable,
)
from greenconn.green.retry import Backoff, RetryPolicy
from greenconn.session.connect import is_lockout
from greenconn.session.session import Session
from greenconn.worker.channels import SharedChannels, Subscription

__all__ = ["ConsumerRecovery", "Outcome"]

logger = logging.getLogger("greenconn.worker")

CONSUMING: Final = RetryPolicy(first=0.1, longest=10.0, immediate=1)
#: A consumer that ran for so many seconds begins its back-off anew.
CALM: Final = 10.0
#: How often the broker may end the whole connection for what we ask before we stop asking, and how
#: often it may not find a queue that we have just declared.
STRIKES: Final = 3


class Outcome(Enum):
    """The end of an attempt in which the broker did not refuse for good."""

    CONFIRMED = "confirmed"
    #: Something failed that may pass.
    FAILED = "failed"
    #: The program has closed the connection.
    CLOSED = "closed"


class ConsumerRecovery:
    """The start of those subscriptions of one consumer that are not confirmed.

    A broker that is away is waited for.  What may pass is retried with back-off, and so is a
    consumer that is lost again and again.  A refusal for want of rights ends a consumer that never
    ran; for one that did, rights were taken away, and whoever took them may give them back.

    Arguments:
        session: of the connection.
        channels: channels.
        subscriptions: all of the consumer.
    """

    __slots__ = (
        "_backoff",
        "_channels",
        "_confirmed_at",
        "_disconnections",
        "_has_warned",
        "_may_reopen",
        "_misses",
        "_not_before",
        "_session",
        "_subscriptions",
    )

    def __init__(
        self, session: Session, channels: SharedChannels, subscriptions: Sequence[Subscription]
    ) -> None:
        self._session = session
        self._channels = channels
        self._subscriptions = subscriptions
        self._backoff: Backoff | None = None
        self._not_before = 0.0
        self._confirmed_at = 0.0
        self._disconnections = 0
        self._misses = 0
        self._has_warned = False
        # To spawn a consumer is an explicit use, which opens a closed connection again; once.
        self._may_reopen = session.is_closed

    @property
    def pause(self) -> float:
        """Seconds until the next attempt may begin; 0.0 is now."""
        if not self._not_before:
            return 0.0
        return max(0.0, self._not_before - monotonic())

    def note_loss(self) -> None:
        """Note a loss: the next attempt may begin at once the first time, then ever later.

        Called by the reader.  Never switches.
        """
        if monotonic() - self._confirmed_at > CALM:
            self._backoff = None
        self._back_off()

    def _back_off(self) -> None:
        if self._backoff is None:
            # Made when needed: most consumers never fail.
            self._backoff = Backoff(CONSUMING)
        interval = next(self._backoff)
        self._not_before = monotonic() + interval if interval else 0.0

    def attempt(self) -> Outcome | Exception:
        """Try once, and return the outcome; an error is final.  May switch."""
        subscription = None
        try:
            self._session.link(reopen=self._may_reopen)
            self._may_reopen = False
            for subscription in self._subscriptions:
                if not subscription.is_confirmed and not subscription.must_wait(self._session):
                    subscription.start(self._session, self._channels)
        except Exception as exc:
            if self._session.is_closed:
                return Outcome.CLOSED
            if self._is_final(exc, subscription):
                return exc
            self._note_failure(exc, subscription)
            return Outcome.FAILED
        if not all(each.is_confirmed for each in self._subscriptions):
            self._back_off()
            return Outcome.FAILED
        self._confirmed_at = monotonic()
        self._disconnections = 0
        self._misses = 0
        self._has_warned = False
        return Outcome.CONFIRMED

    def _note_failure(self, exc: Exception, subscription: Subscription | None) -> None:
        if subscription is not None and isinstance(exc, ChannelError):
            # It may cost the next channel too: from now on one that is its alone.
            subscription.fails_alone = True
        if subscription is None:
            self._not_before = monotonic() + CONSUMING.first  # the session itself backs off
        else:
            self._back_off()
        level = logging.DEBUG
        if not self._has_warned:
            self._has_warned = True
            level = logging.WARNING
        logger.log(
            level,
            "consumer of queue %r cannot start yet, trying again: %s: %s",
            ", ".join(each.name for each in self._subscriptions if not each.is_confirmed),
            type(exc).__name__,
            exc,
        )

    def _is_final(self, exc: Exception, subscription: Subscription | None) -> bool:
        """Whether trying again would be of no use."""
        if isinstance(exc, NEVER_REPEATED) or not isinstance(exc, _known(self._session)):
            return True
        if subscription is None:
            is_locked_out = bool(self._confirmed_at) and is_lockout(exc)
            return self._session.is_final(exc) and not is_locked_out
        if isinstance(exc, IrrecoverableConnectionError):
            # The broker ended the connection, perhaps for what somebody else did.
            self._disconnections += 1
            return self._disconnections >= STRIKES
        if isinstance(exc, (RecoverableChannelError, *self._transient())):
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
        """Whether a queue that should be there, and is not, will never be."""
        # Deleted since it was seen last, or its node is away: look again.
        subscription.forget_declaration(self._session)
        self._misses += 1
        return not subscription.was_confirmed and self._misses >= STRIKES

    def _transient(self) -> tuple[type[BaseException], ...]:
        return self._session.broker.recoverable_channel_errors


def _known(session: Session) -> tuple[Any, ...]:
    """Return the errors of networks, brokers and limits; any other is an error of a program."""
    broker = session.broker
    errors = (*broker.connection_errors, *broker.channel_errors)
    return (OSError, AMQPError, KombuError, *errors)
