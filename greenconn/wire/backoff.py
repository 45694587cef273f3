"""Back-off: how long to wait before each further attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Backoff"]


def _draw() -> float:
    import random  # when something has failed, not before

    return random.random()


class Backoff:
    """An endless iterator of intervals in seconds.

    Without jitter the intervals are ``start``, then each ``factor`` times the one before plus
    ``step``, never above ``max``.  ``factor`` 1 is kombu's linear series (``interval_start``,
    ``interval_step``, ``interval_max``), ``step`` 0 an exponential one.

    Arguments:
        start: seconds before the first repetition; an exponential series must not begin at 0.
        step: seconds added each time.
        factor: by which each interval is multiplied, at least 1.
        max: seconds that no interval exceeds.
        jitter: the part of an interval that is drawn at random, 0 to 1: 0 none, 0.5 between half
            and whole, 1 (or True) between nothing and whole ("full jitter").
        rng: gives floats in [0, 1).

    >>> backoff = Backoff(0.0, step=0.2, max=0.5)
    >>> [round(next(backoff), 1) for _ in range(5)]
    [0.0, 0.2, 0.4, 0.5, 0.5]
    """

    __slots__ = ("_interval", "_rng", "attempts", "factor", "jitter", "max", "start", "step")

    def __init__(
        self,
        start: float = 1.0,
        step: float = 0.0,
        factor: float = 1.0,
        max: float = 30.0,
        jitter: float = 0.0,
        rng: Callable[[], float] = _draw,
    ) -> None:
        if start < 0.0 or step < 0.0 or max < 0.0:
            raise ValueError(f"back-off below 0 s: start {start}, step {step}, max {max}")
        if factor < 1.0:
            raise ValueError(f"back-off factor {factor}, it must be at least 1")
        if not 0.0 <= jitter <= 1.0:
            raise ValueError(f"back-off jitter {jitter}, it must be between 0 and 1")
        self.start = start
        self.step = step
        self.factor = factor
        self.max = max
        self.jitter = float(jitter)
        self._rng = rng
        self._interval = min(start, max)
        #: Intervals given since the beginning or the latest :meth:`reset`.
        self.attempts = 0

    @classmethod
    def exponential(
        cls,
        start: float = 0.1,
        max: float = 30.0,
        factor: float = 2.0,
        rng: Callable[[], float] = _draw,
    ) -> Backoff:
        """Doubling intervals with full jitter: what many clients of one broker should use."""
        return cls(start, 0.0, factor, max, 1.0, rng)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> float:
        interval = self._interval
        self._interval = min(interval * self.factor + self.step, self.max)
        self.attempts += 1
        return interval * (1.0 - self.jitter * self._rng()) if self.jitter else interval

    def reset(self) -> None:
        """Begin again: the last attempt succeeded."""
        self._interval = min(self.start, self.max)
        self.attempts = 0
