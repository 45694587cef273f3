"""The progress of a command that takes long."""

from __future__ import annotations

import io
import sys

import pytest

from greenconn.cli import progress as module
from greenconn.cli.progress import ERASE, progress
from tests.unit.cli.test_terminal import Tty


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the progress sees, its only item."""
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")
    return now


@pytest.mark.parametrize(
    ("total", "text"),
    [(4000, "moved 3,000 of 4,000 (75 %), 1,500 a second"), (None, "moved 3,000, 1,500 a second")],
)
def test_a_line_that_is_erased(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], total: int | None, text: str
) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Tty())
    with progress("moved", total) as show:
        clock[0] = 100.9
        show(1000)
        assert screen.getvalue() == ""
        clock[0] = 102.0
        show(3000)
        assert screen.getvalue() == f"{ERASE}{text}"
        clock[0] = 102.1
        show(3001)
    assert screen.getvalue() == f"{ERASE}{text}{ERASE}"


def test_a_short_command_shows_nothing(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Tty())
    with progress("moved", 10) as show:
        show(10)
    assert screen.getvalue() == ""


@pytest.mark.parametrize("kind", ["pipe", "dumb", "none"])
def test_without_a_screen(monkeypatch: pytest.MonkeyPatch, clock: list[float], kind: str) -> None:
    stream = {"pipe": io.StringIO(), "dumb": Tty(), "none": None}[kind]
    monkeypatch.setattr(sys, "stderr", stream)
    if kind == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    with progress("moved", 10) as show:
        clock[0] = 200.0
        show(5)
    assert stream is None or stream.getvalue() == ""
