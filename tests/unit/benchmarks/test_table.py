"""The table of the benchmarks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks.boards import BOARDS
from benchmarks.chart import add_option, draw
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
    assert "3.4 (over by 1.6)" in rst[3]


def test_an_empty_cell_has_its_reason(report: Report) -> None:
    assert "failed" in report.rst().splitlines()[4]
    notes = list(report.notes())
    assert "spawn_consumer, concurrency 100: greenconn: failed: KeyError: 1" in notes
    assert "spawn_consumer, concurrency 100: kombu + gevent: calls one handler at a time" in notes


def test_programs_get_every_round(report: Report) -> None:
    figures = json.loads(report.json())["figures"]
    assert [each["cpu"] for each in figures["publish"]["greenconn"]] == [5.0, 4.0, 9.0]


def test_a_report_is_read_again(report: Report, results: Results) -> None:
    again = Report.read(report.json(), report.board)
    assert again.results == results
    assert (again.works, again.rivals, again.rounds) == (report.works, report.rivals, 3)
    assert next(again.notes()) == again.machine


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not figures that --json printed"),
        ("[]", "not figures that --json printed"),
        ('{"machine": "", "figures": {"fly": {"pika": []}}, "failures": {}}', "'fly' by 'pika'"),
    ],
)
def test_what_is_no_report(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Report.read(text, BOARDS["rabbitmq"])


def test_a_chart_has_a_panel_for_each_comparison(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(report, tmp_path / "chart.svg")
    svg = (tmp_path / "chart.svg").read_text()
    assert svg.count("publish, one greenlet") == 1
    assert "kombu + gevent" in svg
    assert "41.0" in svg
    assert "spawn_consumer" not in svg


def test_a_chart_of_one_library_is_refused(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.rivals.remove("kombu")
    with pytest.raises(ValueError, match="no two libraries"):
        draw(report, tmp_path / "chart.svg")


def test_a_budget_may_depend_on_a_rival() -> None:
    assert Budget(6.5).limit({}) == 6.5
    assert Budget(0.5, "kombu").limit({"kombu": 30.0}) == 15.0
    assert Budget(0.5, "kombu").limit({}) is None


def test_slow_works_take_fewer_messages() -> None:
    assert WORKS["publish"].count(10_000) == 10_000
    assert WORKS["connect"].count(10_000) == 100
    assert all(work.count(1) >= 1 for work in WORKS.values())


def test_a_chart_without_matplotlib_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    parser = argparse.ArgumentParser()
    add_option(parser, "all figures")
    with pytest.raises(SystemExit):
        parser.parse_args(["--chart", "chart.svg"])
    assert "pip install --group bench" in capsys.readouterr().err
