"""The clock of a measurement."""

from __future__ import annotations

import resource
from statistics import median
from time import perf_counter
from typing import ClassVar, Protocol

#: What was measured, by key: ``cpu`` and ``wall`` in microseconds a message, and others.
Figures = dict[str, float]


class Watcher(Protocol):
    """Looks on while the clock runs."""

    def start(self) -> None:
        """The clock starts."""

    def stop(self) -> None:
        """The clock stops."""


class Clock:
    """Measures what happens inside ``with``: CPU time of this process, and time."""

    watcher: ClassVar[Watcher | None] = None

    def __init__(self) -> None:
        self._began = (0.0, 0.0)
        self._took: tuple[float, float] | None = None  # seconds of CPU time, and of time

    def __enter__(self) -> Clock:
        if self.watcher is not None:
            self.watcher.start()
        self._began = (_cpu(), perf_counter())
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._took is None:
            self.stop()

    def stop(self) -> None:
        """Stop before the end of ``with``: what follows is not part of the work."""
        cpu, wall = self._began
        self._took = (_cpu() - cpu, perf_counter() - wall)
        if self.watcher is not None:
            self.watcher.stop()

    def per(self, count: int, **figures: float) -> Figures:
        """Microseconds for each of *count*, and further *figures*."""
        assert self._took is not None
        cpu, wall = self._took
        return {"cpu": cpu / count * 1e6, "wall": wall / count * 1e6, **figures}


def p50(seconds: list[float]) -> float:
    """Their median, in microseconds."""
    return median(seconds) * 1e6


def p99(seconds: list[float]) -> float:
    """What 99 of 100 do not exceed, in milliseconds."""
    return sorted(seconds)[int(len(seconds) * 0.99)] * 1e3


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
