"""The queues of a broker, looked at again and again: rates, lag and trend."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from greenconn.cli.table import can_write

if TYPE_CHECKING:
    from greenconn.cli.listing import QueueFigures

__all__ = ["ASCII_BARS", "BARS", "Monitor", "QueueTrend", "Reader", "sparkline", "writable_bars"]

#: Looks that a trend shows.
TREND: Final = 10
BARS: Final = "▁▂▃▄▅▆▇█"
#: The same for terminals without these characters.
ASCII_BARS: Final = "_.:-=+*#"


class Reader(Protocol):
    """The source of the figures."""

    def read(self, *, must_exist: bool = False) -> list[QueueFigures]:
        """Return the figures of the queues.  May switch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueTrend:
    """The figures of one queue, and what follows from earlier ones."""

    figures: QueueFigures
    change: float | None  #: messages a second by which it grows; None at the first look
    lag: float | None  #: seconds in which all leave at the present rate; None: they do not
    totals: Sequence[int]  #: messages at the last looks, the latest at the end


class Monitor:
    """Computes the trends of queues.

    Arguments:
        reader: reads their figures.
        clock: gives seconds.
    """

    def __init__(self, reader: Reader, clock: Callable[[], float] = monotonic) -> None:
        self._reader = reader
        self._clock = clock
        #: Queue -> the times and messages of the last looks.
        self._looks: dict[str, deque[tuple[float, int]]] = {}

    def look(self, *, must_exist: bool = False) -> list[QueueTrend]:
        """Read the figures, and return the trends.  May switch."""
        found = self._reader.read(must_exist=must_exist)
        now = self._clock()
        before, self._looks = self._looks, {}
        return [self._trend(each, before.get(each.name), now) for each in found]

    def _trend(
        self, figures: QueueFigures, looks: deque[tuple[float, int]] | None, now: float
    ) -> QueueTrend:
        looks = self._looks[figures.name] = looks or deque(maxlen=TREND)
        total = (figures.ready or 0) + (figures.unacked or 0)
        change = None
        if looks and now > looks[-1][0]:
            then, before = looks[-1]
            change = (total - before) / (now - then)
        looks.append((now, total))
        return QueueTrend(
            figures=figures,
            change=change,
            lag=_lag(total, figures.out_rate, change),
            totals=[each for _, each in looks],
        )


def _lag(total: int, out_rate: float | None, change: float | None) -> float | None:
    if not total:
        return 0.0
    # Without the rate at which they leave, as many leave at least as the queue gets shorter.
    leaving = out_rate if out_rate is not None else max(0.0, -(change or 0.0))
    return total / leaving if leaving else None


def sparkline(totals: Sequence[int], bars: str = BARS) -> str:
    """Return a small picture of numbers, the largest as high as can be.

    >>> sparkline([0, 1, 2, 8], ASCII_BARS)
    '_..#'
    """
    highest = max(totals, default=0) or 1
    return "".join(bars[each * (len(bars) - 1) // highest] for each in totals)


def writable_bars() -> str:
    """Return the bars that the standard output has, from the lowest to the highest."""
    return BARS if can_write(BARS) else ASCII_BARS
