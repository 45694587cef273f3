"""Measurements of a run: its latencies, and the resources of this process."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from math import floor, log2
from typing import Final

#: Columns of the histogram for each doubling of the latency.
STEPS: Final = 2
#: Lines of a histogram.
MOST_LINES: Final = 20
#: Characters of the longest bar.
LONGEST: Final = 40


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that *share* of all are below; 0.0 without values.

    Arguments:
        values: in any order.
        share: from 0 to 1.
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def histogram_lines(
    seconds: Sequence[float], bar: str, most: int = MOST_LINES, longest: int = LONGEST
) -> list[str]:
    """Return a histogram of latencies, a line each: from how many milliseconds on, a bar, how many.

    Arguments:
        bar: the character of the bars.
        most: lines at most; the last one counts what was slower, too.
        longest: characters of the longest bar.
    """
    if not seconds:
        return []
    counts: dict[int, int] = {}
    for each in seconds:
        step = floor(log2(max(each, 1e-6)) * STEPS)
        counts[step] = counts.get(step, 0) + 1
    first = min(counts)
    last = min(max(counts), first + most - 1)
    slower = sum(count for step, count in counts.items() if step > last)
    counts[last] = counts.get(last, 0) + slower
    highest = max(counts[step] for step in counts if step <= last)
    return [
        f"{_milliseconds(2 ** (step / STEPS))}  "
        f"{bar * -(-counts.get(step, 0) * longest // highest):{longest}}  "
        f"{counts.get(step, 0):,}{' (and slower)' * (step == last and bool(slower))}"
        for step in range(first, last + 1)
    ]


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:8.3f} ms" if value < 1 else f"{value:8,.1f} ms"


def sockets() -> int | None:
    """Sockets that are open; None where the system does not tell."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return None
    count = 0
    for name in names:
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            continue  # the descriptor of the listing itself
    return count


def threads() -> int:
    """Threads of the process; where the system does not tell, those that run Python code."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return len(sys._current_frames())


def cpu_seconds() -> float:
    """User and system time so far, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory() -> int:
    """Resident size now, in bytes; where the system does not tell, the largest so far."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_memory()


def peak_memory() -> int:
    """Largest resident size so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
