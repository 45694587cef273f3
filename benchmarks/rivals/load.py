"""Latency while calls or messages come at a rate: the same for all rivals."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from time import CLOCK_MONOTONIC, perf_counter
from typing import Final

from benchmarks.clock import Figures
from benchmarks.works import LOADS, QUANTILES

#: Calls or messages a second that each rival can take, to compare them at the same rate.
RATE: Final = 2000

#: Takes a count and a rate, 0 for as fast as possible; returns latencies and how long it took.
Run = Callable[[int, float], tuple[list[float], float]]


class _Time(ctypes.Structure):
    """``struct timespec``."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    """``struct itimerspec``."""

    _fields_ = (("interval", _Time), ("first", _Time))


class Calls:
    """Calls that come at a rate: a file that can be read once one is due, as the socket of a request.

    It is Linux' ``timerfd``.  The timers of gevent and asyncio wait for whole milliseconds, and a
    program that publishes because a request came does not use them.

    A call that comes late because all callers were busy counts from when it was due.

    Arguments:
        count: how many.
        rate: a second; 0: all at once.
    """

    def __init__(self, count: int, rate: float) -> None:
        #: Of those that have not come yet.
        self.left = count
        self._count = count
        self._pause = int(1e9 / rate) if rate else 1
        library = ctypes.CDLL(None, use_errno=True)
        self._file = int(library.timerfd_create(CLOCK_MONOTONIC, os.O_CLOEXEC))
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        each = _Time(*divmod(self._pause, 1_000_000_000))
        self._began = perf_counter()
        library.timerfd_settime(self._file, 0, ctypes.byref(_Timer(each, each)), None)

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._file

    def come(self) -> list[float]:
        """Wait until calls are due; return when each was, by ``perf_counter``."""
        new = min(int.from_bytes(os.read(self._file, 8), sys.byteorder), self.left)
        first = self._count - self.left + 1
        self.left -= new
        return [self._began + each * self._pause / 1e9 for each in range(first, first + new)]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


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
