"""Latency under load."""

from __future__ import annotations

import gc
from time import perf_counter

import pytest

from benchmarks.rivals.load import RATE, arrivals, under_load
from benchmarks.works import LOAD_WORKS


def test_calls_are_due_at_regular_times() -> None:
    first, second, third = arrivals(3, 100.0)
    assert [second - first, third - second] == pytest.approx([0.01, 0.01])


def test_calls_without_a_rate_are_due_at_once() -> None:
    began = perf_counter()
    assert all(began <= due <= perf_counter() for due in arrivals(3, 0.0))


def test_percentiles_are_taken_at_parts_of_the_saturation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "freeze", lambda: None)  # what this process has made, others look for
    rates: list[float] = []

    def run(count: int, rate: float) -> tuple[list[float], float]:
        rates.append(rate)
        return [number / 1000 for number in reversed(range(count))], 2.0

    figures = under_load(run, 1000)
    assert rates == [0.0, 250.0, 450.0, RATE]
    assert figures["rate"] == 500.0
    assert (figures["p50_50"], figures["p99_50"], figures["p999_90"]) == (500.0, 990.0, 999.0)
    assert figures.keys() == {each.key for each in LOAD_WORKS["loaded_publish"].figures}
