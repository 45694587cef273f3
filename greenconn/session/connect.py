"""Connecting: one attempt at a time for all that wait for a link, along the failover list.

Many greenlets may want a link at the same moment, and a broker that just came back must not get a
thousand logins.  So callers join one *attempt*: it runs in a greenlet of its own, connects to one
broker, and gives its outcome to all that wait.  A caller whose deadline ends leaves it, and it goes on;
when its last caller is killed it is abandoned.

A failed attempt makes the next broker of the list the next one to try.  Within a round over the list
the next attempt starts at once; after each round that failed there is a pause, which grows and has
jitter.  A caller may ask for an earlier start, never for a later one.

A host may accept the connection and be silent from then on.  So in the first round each broker but the
last gets a share of ``connect_timeout`` only.  One that is healthy but slow gets all of it in the next
round; until then callers go on waiting, as for one attempt.

An error is final when every broker of the list has refused the login in turn, or has no transport that
can be made (a missing library), or when neither the network nor a broker raised it (a wrong argument)
before the first link was open.  Once one was, what the program supplies (a password function, a
credential provider, certificate files, a transport) worked, and may work again: its error is logged with
its traceback, once of each class until a link is open, and may pass like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from gevent.event import Event
from greenlet import GreenletExit, getcurrent

from greenconn.credentials import SuppliedError
from greenconn.exceptions import (
    NEVER_REPEATED,
    AccessRefused,
    AMQPError,
    NotAllowed,
    OperationalError,
    RecoverableConnectionError,
    error_summary,
    error_text,
)
from greenconn.green.deadline import Deadline
from greenconn.green.retry import Backoff, RetryPolicy
from greenconn.green.slot import Slot
from greenconn.green.supervisor import State, moved, spawn
from greenconn.transport.base import drop, is_open

if TYPE_CHECKING:
    from greenconn.session.session import Session

logger = logging.getLogger("greenconn.session")

#: Seconds between rounds over the failover list: the first, and what doubling stops at.
ROUNDS_APART: Final = RetryPolicy(first=0.1, longest=5.0)
#: Failed rounds after which a call gives up that has no end otherwise.
ROUNDS: Final = 2
#: Seconds that such a call waits beyond the attempts' own deadlines.
GRACE: Final = 0.1
#: What a broker says to a login or a virtual host (403, 530) that it will refuse again.
REFUSALS: Final = (AccessRefused, NotAllowed)
#: A 530 with this text is temporary: another client will close a connection.
PASSING: Final = "limit"


def is_refusal(exc: BaseException) -> bool:
    """Return whether the broker refuses us, and will again."""
    if isinstance(exc, NotAllowed) and PASSING in str(exc.reply_text or ""):
        return False
    return isinstance(exc, REFUSALS)


def is_lockout(exc: BaseException) -> bool:
    """Return whether rights are missing that may be given back; not for a virtual host that is gone."""
    is_gone = isinstance(exc, NotAllowed) and "not found" in str(exc.reply_text or "")
    return is_refusal(exc) and not is_gone


class ConnectOutcome:
    """The end of an attempt: a link, or the error that all who waited for it get.

    Attributes:
        link: what was opened, or None.
        error: why it failed, or None.
        is_cut: whether the broker had only a share of ``connect_timeout``, and needed more.
    """

    def __init__(self, link: object, error: BaseException | None = None) -> None:
        self.link: Any = link
        self.error = error
        self.is_cut = False
        self._traceback: TracebackType | None = None if error is None else error.__traceback__

    def shorten(self) -> None:
        """Leave of a foreseen error what its text says: each of those who wait gets it."""
        error = self.error
        if isinstance(error, (OSError, AMQPError)) and not isinstance(error, SuppliedError):
            self._traceback = None
            error.__cause__ = None
            error.__suppress_context__ = True

    def result(self) -> Any:
        """Return the link.

        Raises:
            BaseException: the error.
        """
        if self.error is not None:
            # Each caller begins with the traceback of the attempt, not with another caller's.
            raise self.error.with_traceback(self._traceback)
        return self.link


class AttemptState(State):
    """The stages of one attempt."""

    #: Its time has not come yet.
    SCHEDULED = "scheduled"
    #: It opens a link.
    CONNECTING = "connecting"
    #: It has a link.
    OPENED = "opened"
    #: It has an error.
    FAILED = "failed"
    #: It was ended from outside, by a close, by a fork, or because its greenlet was killed.
    ABORTED = "aborted"
    #: Its last caller was killed.
    ABANDONED = "abandoned"


_ENDS: Final = frozenset(
    {AttemptState.OPENED, AttemptState.FAILED, AttemptState.ABORTED, AttemptState.ABANDONED}
)

ATTEMPT_MOVES: Final[Mapping[AttemptState, frozenset[AttemptState]]] = {
    # FAILED: an error was thrown into its greenlet.
    AttemptState.SCHEDULED: frozenset({AttemptState.CONNECTING, *_ENDS} - {AttemptState.OPENED}),
    AttemptState.CONNECTING: _ENDS,
    **dict.fromkeys(_ENDS, frozenset()),
}


class Attempt:
    """One attempt to open a link, shared by all greenlets that want one.

    It runs in a greenlet of its own.  A caller that is killed does not cancel it for the others; when
    the last one is killed, so is the attempt.  A caller whose deadline ends leaves it running: the
    next call finds it under way or done, so that programs which wait in short steps get their link.

    Arguments:
        connect: opens a link.  May switch; cleans up when it is killed.
        settle: called once, before those who wait get the outcome.  Never switches.
        start_at: time on the monotonic clock to begin at.

    Attributes:
        outcome: None until it is over.
    """

    def __init__(
        self, connect: Callable[[], Any], settle: Callable[[Attempt], None], start_at: float
    ) -> None:
        self.outcome: ConnectOutcome | None = None
        self._state = AttemptState.SCHEDULED
        self._is_told = False
        self._connect = connect
        self._settle = settle
        self._start_at = start_at
        self._rescheduled: Event | None = None
        self._waiters: dict[Slot[None], None] = {}
        self._greenlet = spawn("connect", self._run)
        # By a weak reference, as the hub keeps it until its next turn.
        self._greenlet.rawlink(partial(_see_end, ref(self)))

    def __repr__(self) -> str:
        return f"<Attempt: {self._state.value}, {len(self._waiters)} waiting>"

    @property
    def state(self) -> AttemptState:
        """The stage that it has reached."""
        return self._state

    def start_sooner(self, start_at: float) -> None:
        """Begin at *start_at* if that is earlier than what was planned."""
        if start_at < self._start_at:
            self._start_at = start_at
            if self._rescheduled is not None:
                self._rescheduled.set()

    def wait(self, deadline: Deadline) -> ConnectOutcome | None:
        """Wait for the outcome; None when the deadline ended first.  May switch.

        Raises:
            BaseException: what was thrown into the caller, never the attempt's own error.
        """
        slot: Slot[None] = Slot()
        self._waiters[slot] = None
        try:
            slot.wait(deadline)
        except BaseException:
            if slot.has_expired:  # else an error was thrown in
                return self.outcome
            if len(self._waiters) == 1 and self.outcome is None:
                abandoned = RecoverableConnectionError("the connection is not needed any more")
                self._stop(AttemptState.ABANDONED, abandoned)
            raise
        finally:
            self._waiters.pop(slot, None)
        return self.outcome

    def abort(self, exc: BaseException) -> None:
        """End the attempt and raise *exc* in its waiters.  Never switches."""
        self._stop(AttemptState.ABORTED, exc)

    def forget(self) -> None:
        """After a fork, in the child: end it, before it shakes hands on the parent's socket."""
        if self._state not in _ENDS:
            self._move(AttemptState.ABORTED)
        self._waiters = {}
        if self._greenlet is not getcurrent():
            self._greenlet.kill(block=False)

    def _stop(self, state: AttemptState, exc: BaseException) -> None:
        if self._state not in _ENDS:
            self._end(state, ConnectOutcome(None, exc))
            self._greenlet.kill(block=False)

    def see_end(self) -> None:
        """Do what is left at the end of its greenlet, which a signal may have interrupted anywhere.

        In the hub.
        """
        if self.outcome is None:
            interrupted = RecoverableConnectionError("connecting was interrupted")
            self._end(AttemptState.ABORTED, ConnectOutcome(None, interrupted))
        elif not self._is_told:
            self._tell()
        for slot in list(self._waiters):
            slot.expire()  # where its filling was interrupted

    def _run(self) -> None:
        link, error = None, None
        try:
            self._wait_for_start()
            if self._state in _ENDS:
                return
            self._move(AttemptState.CONNECTING)
            link = self._connect()
        except (GreenletExit, SystemExit, KeyboardInterrupt) as exc:
            # These are for the greenlet that they hit, not for those who wait for it.
            interrupted = RecoverableConnectionError(
                f"connecting was interrupted ({error_text(exc, repr)})"
            )
            self._end(AttemptState.ABORTED, ConnectOutcome(None, interrupted))
            raise
        except BaseException as exc:
            error = exc
        if self._state not in _ENDS:
            state = AttemptState.OPENED if error is None else AttemptState.FAILED
            self._end(state, ConnectOutcome(link, error))
        elif link is not None:
            # Ended while the link was already on its way to us.
            drop(link)

    def _wait_for_start(self) -> None:
        while (left := self._start_at - monotonic()) > 0.0:
            self._rescheduled = Event()
            self._rescheduled.wait(left)

    def _end(self, state: AttemptState, outcome: ConnectOutcome) -> None:
        if self._state in _ENDS:
            return
        self.outcome = outcome
        self._move(state)
        self._tell()

    def _tell(self) -> None:
        """Give the outcome to the connector and to those who wait."""
        try:
            self._settle(self)
        finally:
            for slot in self._waiters:
                slot.offer(None)
        self._is_told = True

    def _move(self, state: AttemptState) -> None:
        self._state = moved(self._state, state, ATTEMPT_MOVES, "an attempt to connect")


def _see_end(attempt: ref[Attempt], greenlet: object) -> None:
    if (ended := attempt()) is not None:
        ended.see_end()


class ConnectBackoff:
    """The time of the next attempt.

    At once while a round over the failover list lasts; after each round that failed a little later,
    with jitter, so that the clients of one broker do not come all at the same moment.

    Attributes:
        failures: attempts in a row that failed.
    """

    def __init__(self) -> None:
        self._backoff = Backoff(ROUNDS_APART)
        self._failed_at = 0.0
        self._pause = 0.0
        self.failures = 0

    def failed(self, hosts: int, longest: float = ROUNDS_APART.longest) -> None:
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
        """Return the time on the monotonic clock before which no attempt begins.

        Arguments:
            interval: seconds after the last failure that suit the caller, if that is earlier.
        """
        pause = self._pause if interval is None else min(interval, self._pause)
        return self._failed_at + pause


class Connector:
    """Attempts, one after another, at one broker of the failover list each.

    Arguments:
        session: gets the links that are opened.

    Attributes:
        duration: seconds that the last attempt to succeed took.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        #: Gives and changes the broker that is tried.
        self._broker = session.broker
        self._backoff = ConnectBackoff()
        self._attempt: Attempt | None = None
        #: Attempts in a row after which their broker need not be tried again.
        self._refusals = 0
        #: The error of the last attempt, if there was no transport for it.
        self._unmade: BaseException | None = None
        #: Of the attempt under way, if that has less than ``connect_timeout``.
        self._share: Deadline | None = None
        #: The broker that is tried next is another than the last one.
        self._fails_over = False
        #: Classes of the program's errors that were logged since the last link.
        self._reported: set[type[BaseException]] = set()
        self.duration = 0.0

    @property
    def is_under_way(self) -> bool:
        """Whether there is an attempt, running or waiting for its time."""
        return self._attempt is not None

    def join(self, deadline: Deadline, interval: float | None) -> ConnectOutcome:
        """Return the outcome of the attempt under way, or of a new one.  May switch.

        Raises:
            TimeoutError: there was none before the deadline; the attempt goes on.
        """
        start_at = self._backoff.start_at(interval)
        attempt = self._attempt
        if attempt is None:
            attempt = self._attempt = Attempt(self._connect, self._settle, start_at)
        else:
            attempt.start_sooner(start_at)
        outcome = attempt.wait(deadline)
        if outcome is None:
            raise TimeoutError(
                f"no connection to {self._broker.label} within {deadline.timeout:g} s"
            )
        return outcome

    def limits(self, deadline: Deadline | None, rounds: int | None) -> tuple[Deadline, int | None]:
        """Give a call that has no end one: the shares, then ``connect_timeout`` for each broker."""
        if deadline is not None and deadline.at is not None:
            return deadline, rounds
        timeout, hosts = self._broker.connect_timeout, self._broker.hosts
        if timeout is None:
            return Deadline(), rounds or ROUNDS
        # The attempts' own errors, which name the step that took too long, come first.
        limit = timeout * hosts + GRACE
        if hosts > 1:
            share = Deadline(timeout).share(hosts).timeout or 0.0
            limit += share * (hosts - 1) + ROUNDS_APART.first
        return Deadline(limit), rounds

    def is_final(self, exc: BaseException) -> bool:
        """Return whether to try again would be of no use after this outcome of an attempt.

        A login that each broker of the list refused in turn is final, and so is a transport that can be
        made for none of them, or, before the first link, what no network or broker did: a wrong
        argument.
        """
        if is_refusal(exc) or exc is self._unmade:
            return self._refusals >= self._broker.hosts
        if isinstance(exc, NEVER_REPEATED):
            return True
        if self._broker.login.has_worked:
            return False
        errors = self._broker.connection_errors
        return not isinstance(exc, (OSError, AMQPError, OperationalError, *errors))

    def fail_over(self) -> None:
        """Note that a link was lost: the next broker of the list is tried first."""
        self._fails_over = True

    def reset(self, exc: BaseException) -> None:
        """Give up the attempt under way, and forget failures.  Never switches."""
        attempt, self._attempt = self._attempt, None
        self._backoff.reset()
        self._refusals = 0
        self._fails_over = False
        if attempt is not None:
            attempt.abort(exc)

    def forget(self) -> None:
        """After a fork, in the child: begin anew.  Never switches."""
        if self._attempt is not None:
            self._attempt.forget()
            self._attempt = None
        self._backoff.reset()

    def _connect(self) -> Any:
        """Connect to one broker, in the attempt's greenlet."""
        broker, began_at = self._broker, monotonic()
        if self._fails_over:
            self._fails_over = False
            broker.advance()
        self._unmade = None
        try:
            _ = broker.transport
        except Exception as exc:  # of a name that no transport has, or for want of a library
            self._unmade = exc
            raise
        if logger.isEnabledFor(logging.DEBUG):
            # In another greenlet: a log handler may use the connection that this attempt opens.
            text, label = "open.started %s", broker.label
            spawn("log", logger.debug, text, label, extra={"connection": label})
        error: BaseException
        try:
            link = broker.establish(self._time_for_one())
            if is_open(link):
                self._session.prepare(link)
        except (GreenletExit, SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            error = self._attributed(exc)
            if error is exc:
                raise
        else:
            self._check(link)
            self.duration = monotonic() - began_at
            return link
        raise error

    def _check(self, link: object) -> None:
        """Raise if *link* is not open any more."""
        if not is_open(link):
            lost = getattr(link, "lost", None)
            raise RecoverableConnectionError(
                f"connection to {self._broker.label} was lost as soon as it was open ({lost})"
            ) from lost

    def _attributed(self, exc: BaseException) -> BaseException:
        """Return the error of an attempt: where the program failed, its own or :class:`SuppliedError`.

        A ``gevent.Timeout`` in the greenlet of an attempt was set by the program's function, not by a
        caller that waits for the attempt.  Never switches.
        """
        broker = self._broker
        is_supplied = isinstance(exc, SuppliedError)
        known = (
            OSError,
            AMQPError,
            OperationalError,
            *broker.connection_errors,
            *broker.channel_errors,
        )
        if not is_supplied and isinstance(exc, (*known, *NEVER_REPEATED)):
            return exc
        cause = exc.__cause__ if is_supplied else exc
        assert cause is not None
        is_first = not broker.login.has_worked
        if is_first and isinstance(cause, Exception) and not isinstance(cause, known):
            return cause
        error = SuppliedError(
            f"connecting to {broker.label} failed in what the program supplies for it: "
            f"{error_summary(cause)}"
        )
        error.__cause__ = cause
        if type(cause) not in self._reported:
            self._reported.add(type(cause))
            spawn(
                "log",
                logger.warning,
                "%s; trying again",
                error,
                exc_info=(type(cause), cause, cause.__traceback__),
                extra={"connection": broker.label},
            )
        return error

    def _time_for_one(self) -> Deadline:
        """Return the deadline of an attempt at the broker that is meant now."""
        whole, hosts = Deadline(self._broker.connect_timeout), self._broker.hosts
        self._share = None
        # A transport of kombu's contract takes the whole time in any case.
        if self._backoff.failures < hosts - 1 and not self._broker.has_base_contract:
            self._share = whole.share(hosts)
        return self._share or whole

    def _settle(self, attempt: Attempt) -> None:
        """End the attempt, in its greenlet or in that of its last caller, if that was killed."""
        if attempt is not self._attempt:
            return
        self._attempt = None
        outcome = attempt.outcome
        assert outcome is not None
        if outcome.error is None:
            self._backoff.reset()
            self._refusals = 0
            self._reported.clear()
            self._broker.login.has_worked = True
            self._session.begin_life(outcome.link)
            return
        if attempt.state is not AttemptState.ABANDONED:
            error, label = outcome.error, self._broker.label
            is_unmade = error is self._unmade
            longest = ROUNDS_APART.longest
            if not is_unmade:
                longest = getattr(self._broker.transport, "longest_pause", longest)
            self._backoff.failed(self._broker.hosts, longest)
            self._refusals = self._refusals + 1 if is_unmade or is_refusal(error) else 0
            self._fails_over = True
            has_ended = self._share is not None and self._share.has_ended
            outcome.is_cut = has_ended and not is_refusal(error) and not self.is_final(error)
            self._session.attempt_failed()
            # Last, as a log handler may switch, and with all that led to the error.
            logger.debug(
                "open.failed %s: %s",
                label,
                error_text(error),
                exc_info=error,
                extra={"connection": label},
            )
            outcome.shorten()
        else:
            self._session.attempt_failed()
