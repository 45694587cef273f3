"""The abilities of the terminal."""

from __future__ import annotations

import io

import pytest

from greenconn.cli.terminal import folded, is_colourless, is_screen, visible


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


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
