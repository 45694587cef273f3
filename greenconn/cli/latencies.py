"""Latencies: percentiles, and a histogram as text."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log2
from typing import Final

__all__ = ["STEPS", "histogram_lines", "percentile"]

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
