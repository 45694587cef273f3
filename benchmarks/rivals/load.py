"""Latency while calls or messages come at a rate: the same for all rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Final

from benchmarks.clock import Figures

__all__ = ["LOADS", "QUANTILES", "arrivals", "under_load"]

#: Percent of saturation.
LOADS: Final = (50, 90)
QUANTILES: Final = {"p50": 0.5, "p99": 0.99, "p999": 0.999}

#: Takes a count and a rate, 0 for as fast as possible; returns latencies and how long it took.
Run = Callable[[int, float], tuple[list[float], float]]


def arrivals(count: int, rate: float) -> Iterator[float]:
    """Yield when each of *count* calls is due, for callers that share them.

    A call that comes late because all callers were busy counts from when it was due.
    """
    began = perf_counter()
    for number in range(count):
        yield began + number / rate if rate else perf_counter()


def under_load(run: Run, count: int) -> Figures:
    """The rate at saturation, and latencies in milliseconds at a part of it."""
    _, seconds = run(count, 0.0)
    figures = {"rate": count / seconds}
    for load in LOADS:
        took, _ = run(count, figures["rate"] * load / 100)
        took.sort()
        for name, quantile in QUANTILES.items():
            figures[f"{name}_{load}"] = took[int(len(took) * quantile)] * 1e3
    return figures
