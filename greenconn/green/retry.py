"""Retries: how often, after which pauses, until when; and the renewal of credentials before their end.

A retry loop::

    for attempt in attempts(POLICY, deadline, is_retryable):
        with attempt:
            return connect()

The block is left by its result, by an error that is not retryable, or by the last error when no
attempt is left or the deadline has ended.  Otherwise the loop goes on: after the block
``attempt.error`` is why, and ``attempt.interval`` the seconds until the next attempt.  A block that
ends without leaving the loop is tried again, too.  What has a state instead of a loop takes the
intervals from a :class:`Backoff`.  Items that are refused together are sent again one by one
(:func:`isolated`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from weakref import WeakMethod

import gevent
from gevent import Greenlet, Timeout, get_hub, getcurrent

from greenconn.checks import Record
from greenconn.clocks import CLOCK
from greenconn.credentials import Token
from greenconn.exceptions import error_summary
from greenconn.green.deadline import NEVER, Deadline, is_thrown, marking_thrown
from greenconn.green.hub import weakly, yield_to_hub
from greenconn.green.supervisor import spawn

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
R = TypeVar("R")


class RetryPolicy(Record):
    """A number of attempts, and the pauses between them.

    The pauses are ``first``, then each ``factor`` times the one before plus ``step``, at most
    ``longest``.

    Raises:
        ValueError: a value is out of its range.
    """

    first: float = 0.1
    """Seconds of the first pause."""

    step: float = 0.0
    """Seconds that are added each time."""

    factor: float = 2.0
    """By which each pause is multiplied; at least 1."""

    longest: float = 5.0
    """Seconds that no pause exceeds."""

    jitter: float = 0.5
    """The part of a pause that is drawn at random: 0 none, 0.5 between half and whole."""

    immediate: int = 0
    """Repetitions that follow at once, without a switch, before the first pause."""

    round: int = 1
    """Attempts that follow each other without a pause, as at each broker of a list."""

    tries: int | None = None
    """Attempts at most, with the first; None: without an end."""

    def __post_init__(self) -> None:
        if self.first < 0.0 or self.step < 0.0 or self.longest < 0.0:
            raise ValueError(f"pauses must be at least 0 s, got {self!r}")
        if self.factor < 1.0:
            raise ValueError(f"factor must be at least 1, got {self!r}")
        if not 0.0 <= self.jitter <= 1.0:
            raise ValueError(f"jitter must be between 0 and 1, got {self!r}")
        if self.immediate < 0 or self.round < 1 or (self.tries is not None and self.tries < 1):
            raise ValueError(f"immediate, round and tries must be at least 0, got {self!r}")


def _draw() -> float:
    return CLOCK.jitter()


class Backoff:
    """The intervals of a policy, in seconds: one for each attempt that failed.

    An iterator, which ends where no attempt is left.

    Arguments:
        rng: gives floats in [0, 1).

    >>> backoff = Backoff(RetryPolicy(first=0.0, step=0.2, factor=1.0, longest=0.5, jitter=0.0))
    >>> [round(next(backoff), 1) for _ in range(5)]
    [0.0, 0.2, 0.4, 0.5, 0.5]
    """

    def __init__(self, policy: RetryPolicy, rng: Callable[[], float] = _draw) -> None:
        self._policy = policy
        self._rng = rng
        self._interval = min(policy.first, policy.longest)
        #: Intervals given since the beginning or the latest :meth:`reset`.
        self.failures = 0
        #: The latest interval, before jitter shortened it.
        self.unjittered = 0.0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> float:
        policy = self._policy
        self.failures += 1
        if policy.tries is not None and self.failures >= policy.tries:
            raise StopIteration
        if self.failures <= policy.immediate or self.failures % policy.round:
            self.unjittered = 0.0
            return 0.0
        self.unjittered = interval = self._interval
        self._interval = min(interval * policy.factor + policy.step, policy.longest)
        return interval * (1.0 - policy.jitter * self._rng()) if policy.jitter else interval

    def reset(self) -> None:
        """Begin again: the last attempt succeeded."""
        self._interval = min(self._policy.first, self._policy.longest)
        self.failures = 0


def sleep(seconds: float) -> None:
    """Wait; 0 lets others run.  May switch."""
    if not seconds:
        yield_to_hub()
        return
    with marking_thrown():
        gevent.sleep(seconds)


def _is_error(exc: Exception) -> bool:
    return True


def attempts(
    policy: RetryPolicy,
    deadline: Deadline = NEVER,
    is_retryable: Callable[[Exception], bool] = _is_error,
    *,
    pause: Callable[[float], object] = sleep,
    failure: Exception | None = None,
) -> Attempts:
    """Return the attempts of a loop; see the module.

    Arguments:
        deadline: no further attempt begins after it; pauses are cut to the time left.
        is_retryable: whether an error is worth another attempt; may raise another one instead.  Never
            switches.  Not asked for one that the program has thrown into this greenlet.
        pause: waits for so many seconds.
        failure: of the first attempt, where that was made outside of the loop, for its speed.
    """
    return Attempts(policy, deadline, is_retryable, pause, failure)


class Attempts:
    """An iterator of attempts; each item is a context manager for one.

    Attributes:
        number: of the attempt, from 1.
        error: why the last attempt failed; None before, and if it ended without an error.
        interval: seconds between the last attempt, which has failed, and the next.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        deadline: Deadline,
        is_retryable: Callable[[Exception], bool],
        pause: Callable[[float], object],
        failure: Exception | None,
    ) -> None:
        self._policy = policy
        self._deadline = deadline
        self._is_retryable = is_retryable
        self._pause = pause
        self._backoff: Backoff | None = None
        self._has_interval = False
        self.number = 0 if failure is None else 1
        self.error = failure
        self.interval = 0.0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Self:
        """Wait, and begin the next attempt.  May switch, save for the first.

        Raises:
            Exception: the last error, if the deadline has ended meanwhile.
        """
        if self.number:
            if not self._has_interval and not self._goes_on(self.error):
                self._give_up()
            self._has_interval = False
            if self.number > self._policy.immediate:
                left = self._deadline.left()
                self._pause(self.interval if left is None else min(self.interval, left))
            if self._deadline.has_ended:
                self._give_up()
        self.number += 1
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        # An error refers to the frame that refers to this object: nothing is kept of the last one.
        self.error = None
        if isinstance(exc, Exception) and self._goes_on(exc):
            self.error = exc
            self._has_interval = True
            return True
        return False

    def reset(self) -> None:
        """Begin the pauses anew: it worked meanwhile."""
        self._backoff = None

    def _give_up(self) -> NoReturn:
        """Raise the last error; end if there was none."""
        error, self.error = self.error, None
        try:
            raise error or StopIteration
        finally:
            del error

    def _goes_on(self, exc: Exception | None) -> bool:
        """Return whether there is another attempt after this error, or none, and note the interval."""
        if exc is not None and (is_thrown(exc) or not self._is_retryable(exc)):
            return False
        if self._deadline.has_ended:
            return False
        if self._backoff is None:
            # Most attempts succeed.
            self._backoff = Backoff(self._policy)
        interval = next(self._backoff, None)
        if interval is None:
            return False
        self.interval = interval
        return True


def isolated(
    items: Sequence[T],
    send: Callable[[Sequence[T]], R],
    refused: Callable[[T, Exception], R],
    is_refusal: Callable[[Exception], bool] = lambda exc: True,
) -> list[R]:
    """Return the outcomes of *items*, sent together, or each by itself where that is refused.

    May switch where *send* does.

    Arguments:
        items: at least one.
        send: sends them; either all of them count then, or none.
        refused: returns what becomes of one that is refused by itself.
        is_refusal: whether an error is for what was sent, as each is by default; others are raised.
    """
    try:
        return [send(items)]
    except Exception as exc:
        if not is_refusal(exc):
            raise
        if len(items) == 1:
            return [refused(items[0], exc)]
    return [outcome for item in items for outcome in isolated([item], send, refused, is_refusal)]


#: The part of its life after which a token is renewed.
RENEW_AT: Final = 0.8
#: Seconds between two renewals at least, whatever the tokens say.
LEAST_PAUSE: Final = 1.0
#: For a login that is not to be had, or that the broker does not take.
RENEWING: Final = RetryPolicy(first=1.0, longest=30.0)


class Renewal:
    """Renews the login of one connection as long as that lives.

    A :class:`~greenconn.credentials.Token` is renewed when four fifths of its life are over, and any
    login after *interval*.  What fails is tried again with back-off; the first error of each class is
    logged with its traceback.

    Arguments:
        renew: a bound method that asks for the login, tells the broker if it is another one, and
            returns its secret.  May switch.  It is referred to weakly.
        logger, where: what failures are logged to, and what names the broker there.
        interval: seconds; None renews only what says when it ends.
    """

    def __init__(
        self,
        renew: Callable[[], object],
        logger: logging.Logger,
        where: str,
        interval: float | None = None,
    ) -> None:
        self._renew = WeakMethod(renew)
        self._logger = logger
        self._where = where
        self._interval = interval
        self._timer: Any = None
        self._greenlet: Greenlet[..., Any] | None = None
        self._backoff: Backoff | None = None
        #: Classes of the errors since the last success.
        self._reported: set[type[BaseException]] = set()
        self._is_over = False

    def keep(self, secret: object) -> None:
        """Renew *secret*, and what comes after it, in time.  Never switches."""
        pauses = []
        if isinstance(secret, Token) and secret.expires_in is not None:
            pauses.append(max(RENEW_AT * secret.expires_in, LEAST_PAUSE))
        if self._interval is not None:
            pauses.append(self._interval)
        if pauses:
            self.begin_in(min(pauses))

    def begin_in(self, seconds: float) -> None:
        """Renew the login then, and after that in time.  Never switches."""
        if not self._is_over:
            self._drop_timer()
            self._timer = get_hub().loop.timer(seconds, ref=False)
            self._timer.start(weakly(self._on_time), update=True)

    def stop(self) -> None:
        """Stop, as the connection has ended.  Never switches."""
        self.forget()
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None and greenlet is not getcurrent():
            greenlet.kill(block=False)

    def forget(self) -> None:
        """After a fork, in the child: the timer is the parent's."""
        self._is_over = True
        self._drop_timer()

    def _drop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _on_time(self) -> None:
        # In the hub.
        self._drop_timer()
        self._greenlet = spawn("renew-login", self._run)

    def _run(self) -> None:
        renew = self._renew()
        if renew is None:
            return
        try:
            secret = renew()
        except (Exception, Timeout) as exc:  # a timeout here is the program's own
            if self._is_over:
                return  # a new connection asks for a login of its own
            is_new = type(exc) not in self._reported
            self._reported.add(type(exc))
            if self._backoff is None:
                self._backoff = Backoff(RENEWING)
            pause = max(next(self._backoff), LEAST_PAUSE)
            self._logger.warning(
                "%s: the credentials could not be renewed, next attempt in %.1f s: %s",
                self._where,
                pause,
                error_summary(exc),
                exc_info=exc if is_new else None,
                extra={"connection": self._where},
            )
            self.begin_in(pause)
        else:
            self._backoff = None
            self._reported.clear()
            self.keep(secret)
