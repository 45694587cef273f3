"""What the demo shows."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from greenconn.cli.demo import Display, Plan, Snapshot, Summary, summary_table

PLAN = Plan(messages=1000, consumers=10)
STARTING = Snapshot(
    elapsed=0.1,
    published=0,
    handled=0,
    rate=0.0,
    latency=0.0,
    ready=4,
    sockets=1,
    threads=1,
    memory=48 * 2**20,
    latencies=(),
    rates=(0,),
    outages=0,
    duplicates=0,
)
RUNNING = replace(
    STARTING,
    elapsed=1.5,
    published=600,
    handled=500,
    rate=12345.6,
    latency=0.0123,
    ready=10,
    latencies=(0.012, 0.0123, 0.3),
    rates=(0, 6000, 12345),
    outages=3,
    duplicates=17,
)
SUMMARY = Summary(
    elapsed=2.0,
    published=1000,
    handled=990,
    lost=10,
    in_flight=0,
    outages=5,
    duplicates=1,
    cpu=0.1,
    latencies=(0.001, 0.02),
    sockets=3,
    threads=1,
    peak_memory=64 * 2**20,
)


def shown(*snapshots: Snapshot, terminal: bool = False, width: int = 100, plan: Plan = PLAN) -> str:
    """What a display draws."""
    file = StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, highlight=False, _environ={})
    with Display(console, plan, plain=not terminal) as display:
        for snapshot in snapshots:
            display.show(snapshot)
    return file.getvalue()


def test_plain_lines() -> None:
    lines = shown(STARTING, RUNNING).splitlines()
    assert lines[0] == "   0.1 s  4 of 10 consumers ready"
    assert " ".join(lines[1].split()) == (
        "1.5 s 50% 12,346 messages/s 100 in flight 12.3 ms latency 10 consumers 1 sockets 1 thread"
    )


def test_plain_lines_come_once_a_second_and_are_not_broken() -> None:
    snapshots = [replace(RUNNING, elapsed=each / 10) for each in range(31)]
    lines = shown(*snapshots, width=20).splitlines()
    assert len(lines) == 4
    assert all(line.endswith(" 1 thread") for line in lines)


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_the_picture_fits(width: int) -> None:
    text = shown(STARTING, RUNNING, terminal=True, width=width)
    assert "of 1,000 messages handled" in text
    assert "12,346" in text
    assert "messages/s" in text


def test_a_wide_picture_has_graphs() -> None:
    lines = shown(RUNNING, terminal=True, width=80).splitlines()
    assert all(cell_len(Text.from_ansi(line).plain) <= 80 for line in lines)
    text = "\n".join(Text.from_ansi(line).plain for line in lines)
    assert "48 MiB of memory" in " ".join(text.split())
    assert "22.1 ms" in text  # the first line counts what was faster, too
    assert "250.0 ms" in text
    assert text.count(" ms  ") >= 8
    assert "messages/s  " in text
    narrow = shown(RUNNING, terminal=True, width=70)
    assert "of the latest messages" not in narrow


def test_cuts_are_shown_if_there_are_any() -> None:
    assert "connections cut" not in shown(RUNNING, terminal=True)
    plan = replace(PLAN, cut_interval=1.0)
    text = Text.from_ansi(shown(RUNNING, terminal=True, plan=plan)).plain
    assert "3 connections cut" in text
    assert "17 handled twice" in text


def table(summary: Summary, width: int = 100, plan: Plan = PLAN) -> str:
    """A summary as text."""
    file = StringIO()
    Console(file=file, width=width).print(summary_table(plan, summary))
    return file.getvalue()


def test_the_summary_is_honest() -> None:
    rows = dict(line.split(None, 1) for line in table(SUMMARY).splitlines())
    assert rows["published"].strip() == "1,000 of 1,000"
    assert rows["handled"].strip() == "990"
    assert rows["lost"].strip() == "10"
    assert rows["rate"].strip() == "495 messages/s"
    assert "in flight" not in table(SUMMARY)
    assert "connections" not in table(SUMMARY)
    assert "5 connections" in table(SUMMARY, plan=replace(PLAN, cut_interval=1.0))
    assert "7 when it ended" in table(replace(SUMMARY, in_flight=7))
    assert "unknown" in table(replace(SUMMARY, sockets=None, elapsed=0.0))
