"""The walk over the brokers of a failover list until one lets us in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol

from greenconn.exceptions import (
    NEVER_REPEATED,
    AccessRefused,
    AMQPError,
    NotAllowed,
    OperationalError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from greenconn.session.attempt import Attempt, Outcome
from greenconn.session.life import is_open
from greenconn.wire.backoff import Backoff

__all__ = ["BrokerLike", "Pace", "Walk"]

logger = logging.getLogger("greenconn.session")

#: Seconds between rounds over the failover list: the first, and what doubling stops at.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
#: Failed rounds after which a call gives up that has no end otherwise.
ROUNDS: Final = 2
#: Seconds that such a call waits beyond the attempts' own deadlines.
GRACE: Final = 0.1
#: What a broker says to a login or a virtual host (403, 530) that it will refuse again.
REFUSALS: Final = (AccessRefused, NotAllowed)
#: A 530 with this in its text passes: somebody else will close a connection.
PASSING: Final = "limit"


def is_refusal(exc: BaseException) -> bool:
    """Whether the broker refuses us, and will again."""
    if isinstance(exc, NotAllowed) and PASSING in str(exc.reply_text or ""):
        return False
    return isinstance(exc, REFUSALS)


def is_lockout(exc: BaseException) -> bool:
    """Whether rights are missing that may be given back; a virtual host that is gone is none."""
    is_gone = isinstance(exc, NotAllowed) and "not found" in str(exc.reply_text or "")
    return is_refusal(exc) and not is_gone


class BrokerLike(Protocol):
    """What a session asks of the broker that it is pointed at (``session.broker.Broker``)."""

    @property
    def label(self) -> str: ...

    @property
    def hosts(self) -> int: ...

    @property
    def connect_timeout(self) -> float | None: ...

    @property
    def transport(self) -> Any: ...

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]: ...

    @property
    def recoverable_channel_errors(self) -> tuple[type[BaseException], ...]: ...

    def advance(self) -> None: ...

    def establish(self, deadline: Deadline) -> Any: ...


class Pace:
    """When the next attempt may begin.

    At once while a round over the failover list lasts; after each round that failed a little later,
    with jitter, so that the clients of one broker do not come all at the same moment.
    """

    __slots__ = ("_backoff", "_failed_at", "_pause", "failures")

    def __init__(self) -> None:
        self._backoff = Backoff(FIRST_PAUSE, factor=2.0, max=LONGEST_PAUSE, jitter=0.5)
        self._failed_at = 0.0
        self._pause = 0.0
        #: Attempts in a row that failed.
        self.failures = 0

    def failed(self, hosts: int, longest: float = LONGEST_PAUSE) -> None:
        """Note that an attempt failed; *hosts* of them are a round.

        Arguments:
            longest: seconds that no pause exceeds.
        """
        self.failures += 1
        self._failed_at = monotonic()
        pause = next(self._backoff) if self.failures % hosts == 0 else 0.0
        self._pause = min(pause, longest)

    def reset(self) -> None:
        """Note that an attempt succeeded, or that another broker is meant from now on."""
        self.failures = 0
        self._pause = 0.0
        self._backoff.reset()

    def start_at(self, interval: float | None) -> float:
        """Time on the monotonic clock before which no attempt begins.

        Arguments:
            interval: seconds after the last failure that suit the caller, if that is earlier.
        """
        pause = self._pause if interval is None else min(interval, self._pause)
        return self._failed_at + pause


class Walk:
    """Attempts, one after another, at one broker of the list each.

    Arguments:
        broker: gives and changes the broker that is tried.
        prepare: makes a link ready before anybody has it.  May switch; drops the link if it fails.
        begin: takes a link that was opened.  Never switches.
        fail: called when an attempt ended without one.  Never switches.
    """

    def __init__(
        self,
        broker: BrokerLike,
        prepare: Callable[[Any], None],
        begin: Callable[[Any], None],
        fail: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._prepare = prepare
        self._begin = begin
        self._fail = fail
        self._pace = Pace()
        self._attempt: Attempt | None = None
        self._refusals = 0
        #: The broker that is tried next is another than the last one.
        self._moves_on = False

    @property
    def is_under_way(self) -> bool:
        """Whether there is an attempt, running or waiting for its time."""
        return self._attempt is not None

    def join(self, deadline: Deadline, interval: float | None) -> Outcome:
        """Return the outcome of the attempt under way, or of a new one.  May switch.

        Raises:
            TimeoutError: there was none before the deadline; the attempt goes on.
        """
        # Made here, so that the caller gets the error of a name that no transport has.
        _ = self._broker.transport
        start_at = self._pace.start_at(interval)
        attempt = self._attempt
        if attempt is None:
            attempt = self._attempt = Attempt(self._dial, self._settle, start_at)
        else:
            attempt.hurry(start_at)
        outcome = attempt.wait(deadline)
        if outcome is None:
            raise TimeoutError(
                f"no connection to {self._broker.label} within {deadline.timeout:g} s"
            )
        return outcome

    def patience(
        self, deadline: Deadline | None, rounds: int | None
    ) -> tuple[Deadline, int | None]:
        """Give a call that has no end one: ``connect_timeout`` for each broker of the list."""
        if deadline is not None and deadline.at is not None:
            return deadline, rounds
        timeout = self._broker.connect_timeout
        if timeout is not None:
            # The attempts' own errors, which name the step that took too long, come first.
            return Deadline(timeout * self._broker.hosts + GRACE), rounds
        return Deadline(), rounds or ROUNDS

    def is_final(self, exc: BaseException) -> bool:
        """Whether to try again would be of no use after this outcome of an attempt.

        A login that each broker of the list refused in turn is final, and so is what no network or
        broker did: a wrong argument, a missing library.
        """
        if is_refusal(exc):
            return self._refusals >= self._broker.hosts
        if isinstance(exc, NEVER_REPEATED):
            return True
        errors = self._broker.connection_errors
        return not isinstance(exc, (OSError, AMQPError, OperationalError, *errors))

    def move_on(self) -> None:
        """A link was lost: try the next broker of the list first."""
        self._moves_on = True

    def reset(self, exc: BaseException) -> None:
        """Give up the attempt under way, and forget failures.  Never switches."""
        attempt, self._attempt = self._attempt, None
        self._pace.reset()
        self._refusals = 0
        self._moves_on = False
        if attempt is not None:
            attempt.abort(exc)

    def forget(self) -> None:
        """After a fork, in the child."""
        if self._attempt is not None:
            self._attempt.forget()
            self._attempt = None
        self._pace.reset()

    def _dial(self) -> Any:
        """One attempt at one broker, in the attempt's greenlet."""
        broker = self._broker
        if self._moves_on:
            self._moves_on = False
            broker.advance()
        logger.debug("open.started %s", broker.label)
        link = broker.establish(Deadline(broker.connect_timeout))
        if is_open(link):
            self._prepare(link)
        if not is_open(link):
            lost = getattr(link, "lost", None)
            raise RecoverableConnectionError(
                f"connection to {broker.label} was lost as soon as it was open ({lost})"
            ) from lost
        return link

    def _settle(self, attempt: Attempt) -> None:
        """The attempt is over.  In its greenlet, or in that of its last caller who was killed."""
        if attempt is not self._attempt:
            return
        self._attempt = None
        outcome = attempt.outcome
        assert outcome is not None
        if outcome.error is None:
            self._pace.reset()
            self._refusals = 0
            self._begin(outcome.link)
            return
        if not attempt.was_abandoned:
            error = outcome.error
            logger.debug("open.failed %s: %s", self._broker.label, error, exc_info=error)
            outcome.shorten()
            transport = self._broker.transport
            longest = getattr(transport, "longest_pause", LONGEST_PAUSE)
            self._pace.failed(self._broker.hosts, longest)
            self._refusals = self._refusals + 1 if is_refusal(outcome.error) else 0
            self._moves_on = True
        self._fail()
