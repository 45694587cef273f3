"""The abilities of the terminal, and the progress of a command that takes long."""

from __future__ import annotations

import io
import sys

import pytest

from greenconn.cli import terminal
from greenconn.cli.terminal import ERASE, folded, is_colourless, is_screen, progress, visible


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the progress sees, its only item."""
    now = [100.0]
    monkeypatch.setattr(terminal, "monotonic", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")
    return now


@pytest.mark.parametrize(("kind", "expected"), [("xterm", True), ("dumb", False)])
def test_screens(monkeypatch: pytest.MonkeyPatch, kind: str, expected: bool) -> None:
    monkeypatch.setenv("TERM", kind)
    assert is_screen(Tty()) is expected
    assert not is_screen(io.StringIO())
    assert not is_screen(None)


def test_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert not is_colourless()
    monkeypatch.setenv("NO_COLOR", "")
    assert not is_colourless()
    monkeypatch.setenv("NO_COLOR", "1")
    assert is_colourless()


def test_a_terminal_breaks_lines_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = "greenconn: no queue 'a-very-long-name-of-a-queue' is here"
    assert folded(text, io.StringIO()) == text
    assert folded(text, Tty()).split("\n") == [
        "greenconn: no queue",
        "'a-very-long-name-of-a-queue'",
        "is here",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ä 漢\n\tnext", "plain ä 漢\n\tnext"),
        ("\x1b]0;title\x07\x00\x9b", "\\x1b]0;title\\x07\\x00\\x9b"),
        ("a\r\nb", "a\\r\nb"),
    ],
)
def test_no_control_character_reaches_the_terminal(text: str, expected: str) -> None:
    assert visible(text) == expected


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
