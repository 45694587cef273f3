"""Getting a consumer's queues confirmed by the broker, at first and after each loss."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import Enum
from time import monotonic
from typing import Any, Final

import gevent

from greenconn.exceptions import (
    NEVER_REPEATED,
    AccessRefused,
    AMQPError,
    ChannelError,
    IrrecoverableConnectionError,
    KombuError,
    NotFound,
    RecoverableChannelError,
)
from greenconn.session.session import Session
from greenconn.wire.backoff import Backoff
from greenconn.worker.berths import Berths
from greenconn.worker.subscription import Subscription

__all__ = ["Outcome", "Restorer"]

logger = logging.getLogger("greenconn.worker")

#: Seconds before the second attempt, and at most.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
#: A consumer that ran for so many seconds begins its back-off anew.
CALM: Final = 10.0
#: How often the broker may end the whole connection for what we ask, before we stop asking.
STRIKES: Final = 3


class Outcome(Enum):
    """How an attempt to restore ended, where it is no error."""

    CONFIRMED = "confirmed"
    #: The program has closed the connection.
    CLOSED = "closed"


class Restorer:
    """Starts the subscriptions of one consumer that are not confirmed, until all are.

    A broker that is away is waited for.  What the broker refuses for good ends it; what may pass is
    tried again with back-off.

    Arguments:
        session: of the connection.
        berths: channels.
        subscriptions: all of the consumer.
        on_pause: called when it is going to wait until it tries again.

    Attributes:
        is_pausing: it waits until it tries again.
    """

    __slots__ = (
        "_backoff",
        "_berths",
        "_confirmed_at",
        "_has_warned",
        "_may_reopen",
        "_on_pause",
        "_session",
        "_strikes",
        "_subscriptions",
        "is_pausing",
    )

    def __init__(
        self,
        session: Session,
        berths: Berths,
        subscriptions: Sequence[Subscription],
        on_pause: Callable[[], None],
    ) -> None:
        self._session = session
        self._berths = berths
        self._subscriptions = subscriptions
        self._on_pause = on_pause
        self._backoff: Backoff | None = None
        self._confirmed_at = monotonic()
        self._strikes = 0
        self._has_warned = False
        # To spawn a consumer is an explicit use, which opens a closed connection again; once.
        self._may_reopen = session.is_closed
        self.is_pausing = False

    def run(self) -> Outcome | Exception:
        """Return how it ended; an error is final.  May switch."""
        if monotonic() - self._confirmed_at > CALM:
            self._backoff = None
        while True:
            if self._backoff is None:
                # Made when needed: most consumers never fail.
                self._backoff = Backoff(0.0, FIRST_PAUSE, 2.0, LONGEST_PAUSE, 0.5)
            self._pause(next(self._backoff))
            subscription = None
            try:
                self._session.link(reopen=self._may_reopen)
                self._may_reopen = False
                for subscription in self._subscriptions:
                    if not subscription.is_confirmed:
                        subscription.start(self._session, self._berths)
            except Exception as exc:
                if self._session.is_closed:
                    return Outcome.CLOSED
                if self._is_final(exc, subscription):
                    return exc
                self._note_failure(exc, subscription)
            else:
                self._confirmed_at = monotonic()
                self._strikes = 0
                self._has_warned = False
                return Outcome.CONFIRMED

    def _pause(self, seconds: float) -> None:
        if not seconds:
            return
        self.is_pausing = True
        self._on_pause()
        try:
            if self._session.is_open or self._session.is_closed:
                gevent.sleep(seconds)
            else:
                self._session.pause(seconds)  # a link that comes earlier ends it
        except Exception as exc:
            logger.debug("waiting for %s: %s", self._session.broker.label, exc)
        finally:
            self.is_pausing = False

    def _note_failure(self, exc: Exception, subscription: Subscription | None) -> None:
        if subscription is not None and isinstance(exc, ChannelError):
            # It may cost the next channel too: from now on one that is its alone.
            subscription.fails_alone = True
        level = logging.DEBUG
        if not self._has_warned:
            self._has_warned = True
            level = logging.WARNING
        logger.log(
            level,
            "consumer of queue %r is not there yet, it is tried again: %s: %s",
            ", ".join(each.name for each in self._subscriptions if not each.is_confirmed),
            type(exc).__name__,
            exc,
        )

    def _is_final(self, exc: Exception, subscription: Subscription | None) -> bool:
        """Whether trying again would be of no use."""
        if isinstance(exc, NEVER_REPEATED) or not isinstance(exc, _known(self._session)):
            return True
        if subscription is None:
            return self._session.is_final(exc)
        if isinstance(exc, IrrecoverableConnectionError):
            # The broker ended the connection, perhaps for what somebody else did.
            self._strikes += 1
            return self._strikes >= STRIKES
        if isinstance(exc, (RecoverableChannelError, *self._transient())):
            return False
        if isinstance(exc, NotFound):
            # Deleted again, or its node is away.
            return subscription.is_passive or not subscription.was_confirmed
        if isinstance(exc, AccessRefused) and subscription.is_exclusive:
            # After a reconnect the broker may still know the consumer of the former life.
            return not subscription.was_confirmed
        return isinstance(exc, ChannelError)

    def _transient(self) -> tuple[type[BaseException], ...]:
        return self._session.broker.recoverable_channel_errors


def _known(session: Session) -> tuple[Any, ...]:
    """What a network, a broker or a limit does; anything else is an error of a program."""
    return (OSError, AMQPError, KombuError, *session.broker.connection_errors)
