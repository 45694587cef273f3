"""Clocks: that of the process, and logical ones (kombu.clocks).

:data:`CLOCK` is what retries, batches, rate limits and time limits of handlers go by.  A logical clock
orders the events of processes whose clocks differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import Context, copy_context
from itertools import takewhile
from operator import itemgetter
from threading import Lock as ThreadLock
from time import monotonic
from typing import Any, Final, cast

from gevent import Timeout, get_hub, sleep

__all__ = ["CLOCK", "Clock", "LamportClock", "timetuple"]

#: Seconds that greenlets may take from the hub without giving it a turn.
PACE: Final = 0.005


class Clock:
    """The clock of the process, and what waits by it.

    A test replaces the functions (:mod:`greenconn.testing`), so look them up at each use.  They are
    attributes of one object, so that the system's own cost no call more than if they were imported.

    Attributes:
        monotonic: returns the time in seconds, which never goes back.
        timer: takes seconds and returns a timer of the hub, to be started and closed; with ``ref=False``
            one that keeps nothing going.
        sleep: takes seconds, and waits.
        timeout: takes seconds and returns a ``gevent.Timeout``.
        context: returns the context in which a handler is called.
        jitter: returns the number from 0 up to 1 by which a pause is shortened.
        pace: seconds without a turn of the hub after which a greenlet gives it one.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Go by the system's clock."""
        self.monotonic: Callable[[], float] = monotonic
        self.timer: Callable[..., Any] = _timer
        self.sleep: Callable[[float], object] = sleep
        self.timeout: Callable[[float], Timeout] = Timeout
        self.context: Callable[[], Context] = copy_context
        self.jitter: Callable[[], float] = _draw
        self.pace = PACE


def _timer(seconds: float, *, ref: bool = True) -> Any:
    return get_hub().loop.timer(seconds, ref=ref)


def _draw() -> float:
    import random  # when something has failed, not before

    return random.random()


#: The clock of this process.
CLOCK: Final = Clock()


class timetuple(tuple[Any, ...]):  # noqa: N801 - kombu's name
    """An event in an order: by logical clock, then by process; without clocks by time stamp.

    Arguments:
        clock: of the event; None or 0 if it has none.
        timestamp: seconds since 1970.
        id: of the process, for example ``host:pid``.
        obj: what belongs to it.
    """

    __slots__ = ()

    def __new__(cls, clock: int | None, timestamp: float, id: str, obj: Any = None) -> timetuple:
        return tuple.__new__(cls, (clock, timestamp, id, obj))

    clock = cast(Any, property(itemgetter(0)))
    timestamp = cast(Any, property(itemgetter(1)))
    id = cast(Any, property(itemgetter(2)))
    obj = cast(Any, property(itemgetter(3)))

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        clock, timestamp, id, obj = self
        return f"_lamport(clock={clock}, timestamp={timestamp}, id={id} {obj!r})"

    def __lt__(self, other: tuple[Any, ...]) -> bool:
        try:
            if self[0] and other[0]:
                return bool((self[0], self[2]) < (other[0], other[2]))
            return bool(self[1] < other[1])
        except IndexError:
            return NotImplemented

    def __gt__(self, other: tuple[Any, ...]) -> bool:
        return bool(other < self)

    def __le__(self, other: tuple[Any, ...]) -> bool:
        return not other < self

    def __ge__(self, other: tuple[Any, ...]) -> bool:
        return not self < other


class LamportClock:
    """A counter that grows with each event and is never behind a received value (Lamport, 1978).

    Call :meth:`forward` before something is sent, and send the value along; call :meth:`adjust` with
    the value that came along with what was received.

    Arguments:
        initial_value: the first value.
        Lock: makes the lock; threads may share the clock.  Nothing switches while it is held.
    """

    value: int = 0

    def __init__(
        self,
        initial_value: int = 0,
        Lock: Callable[[], AbstractContextManager[Any]] = ThreadLock,  # noqa: N803 - kombu's name
    ) -> None:
        self.value = initial_value
        self.mutex = Lock()

    def adjust(self, other: int) -> int:
        """Advance beyond *other*, a received value, and return the new value."""
        with self.mutex:
            self.value = max(self.value, other) + 1
            return self.value

    def forward(self) -> int:
        """Advance by one, and return the new value."""
        with self.mutex:
            self.value += 1
            return self.value

    def sort_heap(self, h: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Return the first of events, of the same clock that of the smallest process.

        Arguments:
            h: tuples of clock, process and more, sorted by clock.
        """
        same = takewhile(lambda event: event[0] == h[0][0], h)
        return min(same, key=itemgetter(1))

    def __str__(self) -> str:
        return str(self.value)

    def __repr__(self) -> str:
        return f"<LamportClock: {self.value}>"
