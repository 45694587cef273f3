"""Logical clocks, which order the events of processes whose clocks differ (kombu.clocks)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import takewhile
from operator import itemgetter
from threading import Lock as ThreadLock
from typing import Any, cast

__all__ = ["LamportClock", "timetuple"]


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
