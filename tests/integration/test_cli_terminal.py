"""Commands in pseudo-terminals: colours that read on every ground, and lines that are whole."""

from __future__ import annotations

import os
import pty
import re
from pathlib import Path

import gevent
import pytest
from gevent.socket import wait_read

import greenconn
from greenconn import Connection
from greenconn.cli.terminal import ACCENT
from tests.integration.processes import run, start

pytestmark = [pytest.mark.programs, pytest.mark.halved]

SOON = 120.0
#: ANSI colours that read on dark and on light grounds: red, magenta, ours of 256; and grey, for the rest
#: of a bar.
READABLE = {"31", "35", f"38;5;{ACCENT}", "90"}
#: Codes that set no colour: reset, bold, dim, and the ends of those.
NEUTRAL = {"0", "1", "2", "22", "39", "49"}


def shown_in_terminal(*arguments: str, columns: int = 80, **environment: str) -> str:
    """Run a command in a terminal, and return what it wrote.  May switch."""
    ours, its = pty.openpty()
    os.set_blocking(ours, False)
    env = {"TERM": "xterm-256color", "COLUMNS": str(columns), **environment}
    program = start("-m", "greenconn", *arguments, stdout=its, stderr=its, env=env)
    os.close(its)
    seen = b""
    try:
        with gevent.Timeout(SOON):
            while True:
                wait_read(ours)
                try:
                    data = os.read(ours, 65536)
                except OSError:  # the program has closed its end
                    break
                if not data:
                    break
                seen += data
        program.process.wait(timeout=SOON)
    finally:
        program.end()
        os.close(ours)
    return seen.decode().replace("\r\n", "\n")


def colours(text: str) -> set[str]:
    """Return the codes of the styles that *text* sets."""
    found: set[str] = set()
    for codes in re.findall(r"\x1b\[([\d;]*)m", text):
        found.update(re.findall(r"38;5;\d+|\d+", codes or "0"))
    return found


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A broker in a file, with two messages in the queue ``mail``."""
    url = f"sqlite:///{tmp_path}/mail.db"
    script = "\x1b]0;owned\x07 text"
    with Connection(url) as connection:
        for body in ({"to": "ada@example.org"}, script):
            greenconn.publish(
                "mail", body, connection=connection, declare=True, headers={"a": "\x1b[2J"}
            )
    return url


@pytest.mark.parametrize(
    "arguments",
    [
        ("peek", "mail", "-u"),
        ("top", "-n", "2", "-i", "0.1", "-u"),
        pytest.param(("queues", "list", "-u"), marks=pytest.mark.full),
        pytest.param(("doctor",), marks=pytest.mark.full),
        pytest.param(
            ("demo", "--messages", "2000", "--consumers", "20", "--url"), marks=pytest.mark.full
        ),
    ],
)
@pytest.mark.sampled(1)
def test_colours_read_on_every_ground(file: str, arguments: tuple[str, ...]) -> None:
    text = shown_in_terminal(*arguments, file)
    assert colours(text) - READABLE - NEUTRAL == set()
    assert colours(text) & {"1", *READABLE}
    plain = shown_in_terminal(*arguments, file, NO_COLOR="1")
    assert colours(plain) - NEUTRAL == set()
    dumb = shown_in_terminal(*arguments, file, TERM="dumb")
    assert "\x1b" not in dumb
    assert "Traceback" not in dumb


def test_bodies_and_headers_cannot_command_the_terminal(file: str) -> None:
    text = shown_in_terminal("peek", "mail", "-u", file)
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text
    assert "\\x1b]0;owned\\x07 text" in text


def test_an_error_is_broken_between_words(file: str) -> None:
    text = shown_in_terminal("publish", "nosuch", "x", "-u", file, columns=40)
    assert all(len(line) <= 40 for line in text.splitlines() if " " in line)
    outcome = run("-m", "greenconn", "publish", "nosuch", "x", "-u", file)
    assert text.split() == outcome.errors.split()
    assert "queue 'nosuch' does not exist" in " ".join(text.split())


def test_a_long_field_is_broken_between_words(file: str) -> None:
    with Connection(file) as connection:
        long = " ".join(["word"] * 40)
        greenconn.publish("mail", "x", connection=connection, headers={"long": long})
    text = shown_in_terminal("peek", "mail", "-u", file, columns=40, NO_COLOR="1")
    lines = text.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("  header long "))
    field = lines[begin : lines.index("  x", begin)]
    assert " ".join(" ".join(field).split()) == f"header long {long}"
    assert max(map(len, field)) <= 40
    assert len({len(line) - len(line.lstrip()) for line in field[1:]}) == 1  # below its first word
    outcome = run("-m", "greenconn", "peek", "mail", "-u", file)
    assert long in outcome.output


def test_the_progress_of_a_long_command(file: str) -> None:
    text = shown_in_terminal("publish", "mail", "x", "-n", "40", "--rate", "20", "-u", file)
    assert re.search(r"\r\x1b\[Kpublished \d+ of 40 \(\d+ %\), \d+ a second", text)
    assert text.endswith("\r\x1b[Kpublished 40 messages to mail\n")
