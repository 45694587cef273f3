"""Latency while calls or messages come at a rate: the same for all rivals."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Final

from benchmarks.clock import Figures
from benchmarks.works import LOADS, QUANTILES

#: Calls or messages a second that each rival can take, to compare them at the same rate.
RATE: Final = 2000

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
    """The rate at saturation, and latencies in milliseconds at a part of it, and at a given rate.

    Full collections of garbage pass over what was there before, as docs/running.rst has it: how long
    they take depends on the program, and they would be most of what is measured.
    """
    gc.collect()
    gc.freeze()
    _, seconds = run(count, 0.0)
    figures = {"rate": count / seconds}
    rates = {f"{load}": figures["rate"] * load / 100 for load in LOADS}
    for key, rate in {**rates, "same": RATE}.items():
        took, _ = run(count, rate)
        took.sort()
        for name, quantile in QUANTILES.items():
            figures[f"{name}_{key}"] = took[min(int(len(took) * quantile), len(took) - 1)] * 1e3
    return figures
