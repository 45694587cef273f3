"""The table of the benchmarks."""

from __future__ import annotations

import json

import pytest

from benchmarks.runner import Results
from benchmarks.table import Report
from benchmarks.works import WORKS, Budget


@pytest.fixture
def results() -> Results:
    """Three rounds of one work, and a failure."""
    results = Results()
    results.figures["publish", "greenconn"] = [{"cpu": 5.0}, {"cpu": 4.0}, {"cpu": 9.0}]
    results.figures["publish", "kombu"] = [{"cpu": 40.0}, {"cpu": 1234.5}, {"cpu": 41.0}]
    results.failures["spawned", "greenconn"] = "Traceback\nKeyError: 1"
    return results


@pytest.fixture
def report(results: Results) -> Report:
    """The report of them."""
    return Report(results, ["publish", "spawned"], ["greenconn", "kombu"], 3, budget=True)


def test_a_cell_is_the_median_with_the_spread(report: Report) -> None:
    rst = report.rst().splitlines()
    assert rst[0] == rst[2] == rst[-1]
    assert set(rst[0]) == {"=", " "}
    assert "5.0 (4.0 to 9.0)" in rst[3]
    assert "41.0 (40.0 to 1,234)" in rst[3]
    assert "6.5 (met)" in rst[3]


def test_an_empty_cell_has_its_reason(report: Report) -> None:
    assert "failed" in report.rst().splitlines()[4]
    notes = list(report.notes())
    assert "spawn_consumer, concurrency 100: greenconn: failed: KeyError: 1" in notes
    assert "spawn_consumer, concurrency 100: kombu + gevent: calls one handler at a time" in notes


def test_programs_get_every_round(report: Report) -> None:
    figures = json.loads(report.json())["figures"]
    assert [each["cpu"] for each in figures["publish"]["greenconn"]] == [5.0, 4.0, 9.0]


def test_a_budget_may_depend_on_a_rival() -> None:
    assert Budget(6.5).limit({}) == 6.5
    assert Budget(0.5, "kombu").limit({"kombu": 30.0}) == 15.0
    assert Budget(0.5, "kombu").limit({}) is None


def test_slow_works_take_fewer_messages() -> None:
    assert WORKS["publish"].count(10_000) == 10_000
    assert WORKS["connect"].count(10_000) == 100
    assert all(work.count(1) >= 1 for work in WORKS.values())
