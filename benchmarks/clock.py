"""The clock of a measurement."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from statistics import median
from time import perf_counter
from types import TracebackType

__all__ = ["Clock", "Figures", "consumer_memory", "p50"]

#: What was measured, by key: ``cpu`` and ``wall`` in microseconds a message, and others.
Figures = dict[str, float]


class Clock:
    """Measures what happens inside ``with``: CPU time of this process, and time."""

    def __init__(self) -> None:
        self._cpu = 0.0  # seconds, user and system
        self._wall = 0.0

    def __enter__(self) -> Clock:
        self._cpu, self._wall = _cpu(), perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cpu, self._wall = _cpu() - self._cpu, perf_counter() - self._wall

    def per(self, count: int, **figures: float) -> Figures:
        """Microseconds for each of *count*, and further *figures*."""
        return {"cpu": self._cpu / count * 1e6, "wall": self._wall / count * 1e6, **figures}


def p50(seconds: list[float]) -> float:
    """Their median, in microseconds."""
    return median(seconds) * 1e6


def consumer_memory(consume: Callable[[str], None], queues: list[str]) -> float:
    """Start a consumer of each queue; returns the KiB that one of the later half takes.

    The first half fills what imports and connecting have left free.  Linux only.
    """
    half = len(queues) // 2
    for queue in queues[:half]:
        consume(queue)
    before = _resident()
    for queue in queues[half:]:
        consume(queue)
    return (_resident() - before) / (len(queues) - half)


def _resident() -> float:
    """KiB of memory that this process has in use."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1024


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
