"""A deadline, from which each step gets the time that is left, and a limit for calls that take none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Any, Final

from gevent import Timeout

from greenconn.checks import Seconds, in_seconds

__all__ = ["LEAST_SHARE", "NEVER", "Deadline", "TimeLimit", "is_seconds"]

#: Seconds that a candidate gets at least where that leaves half of the time to the others: a
#: connection's first packet, when it is lost, is sent again after 1 s.
LEAST_SHARE: Final = 1.5
#: Neither it nor NaN is a number of seconds.
_FAR: Final = float("inf")
#: Not their subclasses: bool is one.
_NUMBERS: Final = frozenset({float, int})


def is_seconds(timeout: object) -> bool:
    """Return whether *timeout* is a finite int or float; anything else a Deadline must check."""
    return timeout.__class__ in _NUMBERS and -_FAR < timeout < _FAR  # type: ignore[operator]


class Deadline:
    """A point in time on the monotonic clock that all steps of one call share.

    Arguments:
        timeout: seconds from now, or a timedelta; None never ends; 0 or less has ended already.

    Raises:
        TypeError, ValueError: it is no finite number of seconds.
    """

    __slots__ = ("at", "timeout")

    def __init__(self, timeout: Seconds | None = None) -> None:
        seconds: Any = timeout
        self.timeout: float | None = seconds
        self.at: float | None = None
        if seconds.__class__ is float and 0.0 <= seconds < _FAR:
            self.at = monotonic() + seconds
        elif seconds is not None:
            self.timeout = seconds = in_seconds(seconds)
            try:
                if seconds.__class__ is bool:
                    raise TypeError
                is_number = -_FAR < seconds < _FAR
            except TypeError:
                raise TypeError(
                    f"timeout must be a number of seconds, or None to wait without limit, got "
                    f"{timeout!r}"
                ) from None
            if not is_number:
                raise ValueError(
                    f"timeout must be a finite number of seconds, or None to wait without limit, got "
                    f"{timeout!r}"
                )
            self.at = monotonic() + seconds

    @classmethod
    def of(cls, timeout: Seconds | Deadline | None) -> Deadline:
        """Take seconds, None or a deadline that is already running."""
        if isinstance(timeout, Deadline):
            return timeout
        return NEVER if timeout is None else cls(timeout)

    def left(self) -> float | None:
        """Return the seconds left, at least 0.0; None without an end."""
        if self.at is None:
            return None
        left = self.at - monotonic()
        return left if left > 0.0 else 0.0

    @property
    def has_ended(self) -> bool:
        """Whether no time is left."""
        return self.at is not None and monotonic() >= self.at

    def within(self, timeout: Seconds | None) -> Deadline:
        """Return the earlier of this deadline and *timeout* seconds from now."""
        if timeout is None:
            return self
        other = Deadline(timeout)
        assert other.at is not None
        return self if self.at is not None and self.at <= other.at else other

    def share(self, candidates: int) -> Deadline:
        """Return the deadline for the next of several candidates that are tried one after another.

        That is an equal part of what is left, or :data:`LEAST_SHARE` if that is more, but never more
        than half while others wait: one that is silent must not take the time of those behind it.

        Arguments:
            candidates: those that are not tried yet; the last one gets all that is left.
        """
        left = self.left()
        if left is None or candidates < 2:
            return self
        return self.within(min(left / 2, max(left / candidates, LEAST_SHARE)))

    def renewed(self) -> Deadline:
        """Return the deadline for the next step of a call whose last step has succeeded.

        That is this one.  If it has ended, it did so while the hub was blocked, which is not the peer's
        time: the next step gets all of it once more.
        """
        return Deadline(self.timeout) if self.has_ended else self

    def __repr__(self) -> str:
        left = self.left()
        return "<Deadline: none>" if left is None else f"<Deadline: {left:.3f} s left>"


#: The deadline without an end, of which one is enough.
NEVER: Final = Deadline()


def mark_thrown(exc: BaseException) -> None:
    """Note that *exc* was thrown into a greenlet that waited."""
    if isinstance(exc, Exception):
        exc._is_thrown = True  # type: ignore[attr-defined]


@contextmanager
def marking_thrown() -> Iterator[None]:
    """Around what only waits: note that an error was thrown in."""
    try:
        yield
    except BaseException as exc:
        mark_thrown(exc)
        raise


def is_thrown(exc: BaseException) -> bool:
    """Return whether *exc* was thrown into a greenlet that waited for something here.

    ``gevent.Timeout(seconds, TimeoutError)`` and ``Greenlet.kill(error)`` do that.  It is the program's
    own: not an error of the connection, although it may be of such a class, so that no call is repeated.
    """
    return getattr(exc, "_is_thrown", False)


class TimeLimit:
    """A context that raises ``TimeoutError`` when *deadline* ends while something in it waits.

    It is a ``gevent.Timeout`` inside, a BaseException: what is called may take a ``TimeoutError``
    for an error of the network and try again, this it lets through.

    Arguments:
        deadline: when the block must be left.
        what: names the block in the error.
    """

    __slots__ = ("_deadline", "_timer", "_what")

    def __init__(self, deadline: Deadline, what: str) -> None:
        self._deadline = deadline
        self._what = what
        self._timer: Timeout | None = None

    def __enter__(self) -> None:
        left = self._deadline.left()
        if left is not None:
            self._timer = Timeout(left)
            self._timer.start()

    def __del__(self) -> None:
        # A signal may have raised before the end of the block: its timer must not strike later.
        timer = getattr(self, "_timer", None)  # or before it had one
        if timer is not None:
            timer.close()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        timer = self._timer
        if timer is None:
            return
        timer.close()
        self._timer = None
        if exc is timer:
            raise TimeoutError(
                f"{self._what} took longer than {self._deadline.timeout:g} s"
            ) from None
