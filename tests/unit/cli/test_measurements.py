"""Percentiles and histograms."""

from __future__ import annotations

import pytest

from greenconn.cli.terminal import MOST_LINES, histogram_lines, percentile

pytestmark = pytest.mark.pure


def test_percentiles() -> None:
    assert percentile([], 0.5) == 0.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(range(1000), 0.99) == 990
    assert percentile([1.0, 2.0], 1.0) == 2.0


def test_a_histogram() -> None:
    lines = histogram_lines([0.001, 0.001, 0.0011, 0.002, 0.004], "#")
    assert [line.split() for line in lines] == [
        ["0.977", "ms", "#" * 40, "3"],
        ["1.4", "ms", "0"],
        ["2.0", "ms", "#" * 14, "1"],
        ["2.8", "ms", "0"],
        ["3.9", "ms", "#" * 14, "1"],
    ]
    assert len({len(line.rpartition("  ")[0]) for line in lines}) == 1
    assert max(map(len, lines)) < 78


def test_what_is_much_slower_is_in_the_last_line() -> None:
    lines = histogram_lines([0.0001] * 10 + [100.0, 200.0], "#")
    assert len(lines) == MOST_LINES
    assert lines[-1].endswith("  2 (and slower)")


def test_without_latencies_and_without_time() -> None:
    assert histogram_lines([], "#") == []
    assert len(histogram_lines([0.0], "#")) == 1
