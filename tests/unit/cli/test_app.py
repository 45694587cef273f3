"""The command line: help, exit codes, and one line for each mistake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from greenconn import __version__
from greenconn.cli import COMMANDS
from tests.unit.cli.conftest import Command, Ended

Stdin = Callable[[bytes], None]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help(command: Command, arguments: tuple[str, ...]) -> None:
    ended = command(*arguments)
    assert ended.code == 0
    assert ended.errors == ""
    assert "Example" in ended.output
    assert all(name in ended.output for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(command: Command, name: str) -> None:
    ended = command(name, "--help")
    assert ended.code == 0
    assert f"Usage: greenconn {name}" in ended.output
    assert f"  greenconn {name}" in ended.output.split("Example")[1]


def test_help_loads_neither_gevent_nor_a_transport() -> None:
    program = (
        "import sys; from greenconn.cli import main; code = main(['--help'])\n"
        "loaded = [name for name in ('gevent', 'amqp', 'rich', 'greenconn.connection') "
        "if name in sys.modules]\n"
        "sys.exit(code or ' '.join(loaded) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_standard_output_that_is_closed(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # what Python has after the shell's >&-
    assert command("--version") == Ended(0, "", "")
    ended = command("consume", "q", "--url", "memory://")
    assert ended.code == 2  # and nothing was taken from the queue
    assert "standard output is closed" in ended.errors


def test_version(command: Command) -> None:
    ended = command("--version")
    assert (ended.code, ended.output) == (0, f"greenconn, version {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["publsh", "q", "x"], "did you mean 'publish'"),
        (["xyz"], "known: demo, bench"),
        (["--verbos", "ping"], "--verbose"),
        (["publish"], "QUEUE"),
        (["publish", "q", "x", "--jsno"], "--json"),
        (["publish", "q", "x", "-u", "memroy://"], "Did you mean memory://?"),
        (["publish", "q", "x", "-u", "amqp://host:port"], "the port must be a number"),
        (["publish", "q", "x", "-u", "memory://?bogus=1"], "unknown option 'bogus'"),
        (["publish", "q", "x", "-u", "http://localhost"], "No such transport: http"),
        (["publish", "q", "x", "-u", "kafka://u:secret@h"], "kafka"),
        (["publish", "q", "{x", "--json", "-u", "memory://"], "'{x' is not JSON"),
        (["publish", "q", "x", "-H", "foo", "-u", "memory://"], "NAME=VALUE"),
        (["publish", "q", "x", "-H", "=foo", "-u", "memory://"], "NAME=VALUE"),
        (["publish", "q", "x", "-t", "soon"], "--timeout"),
        (["publish", "q", "x", "-t", "0"], "--timeout"),
        (["publish", "q", "x", "--jsonl"], "combined with BODY"),
        (["publish", "--exchange", "e"], "QUEUE"),
        (["publish", "k", "x", "-x", "e", "--declare"], "queues bind"),
        (["publish", "q", "@nosuch"], "cannot read the file 'nosuch'"),
        (["publish", "q", "x", "-H", "n:={"], "'{' is not JSON"),
        (["publish", "q", "x", "-p", "priority=3"], "--priority"),
        (["publish", "q", "x", "-p", "correlation-id=3"], "unknown property 'correlation-id'"),
        (["publish", "q", "x", "-p", "timestamp=noon"], "ISO 8601"),
        (["publish", "q", "x", "-p", "delivery_mode=3"], "delivery_mode must be"),
        (["publish", "q", "x", "-p", "content_encoding=gzip"], "--content-type"),
        (["publish", "q", "x", "--priority", "256"], "--priority"),
        (["publish", "q", "x", "--rate", "0"], "--rate"),
        (["consume", "q", "--no-ack", "-n", "1"], "cannot be combined with --count"),
        (["publish", "", "x", "-u", "memory://"], "must have a name"),
        (["publish", "q" * 300, "x", "-u", "memory://"], "255 bytes"),
        (["consume", "", "-u", "memory://"], "queue must not be empty"),
        (["consume", "q", "-n", "0"], "--count"),
        (["consume", "q", "-w", "-1"], "--wait"),
        (["consume", "q", "--accept", "jsno", "-u", "memory://"], "jsno"),
        (["purge", "", "-y", "-u", "memory://"], "QUEUE"),
        (["ping", "-c", "0"], "--count"),
        (["ping", "memory://", "again"], "again"),
        (["demo", "--messages", "0"], "--messages"),
        (["demo", "--url", "memroy://"], "Did you mean memory://?"),
    ],
)
def test_wrong_usage_is_reported_in_one_line(
    command: Command, arguments: list[str], text: str
) -> None:
    ended = command(*arguments)
    assert text in ended.complaint
    assert ended.code == (1 if "jsno" in arguments else 2)
    assert "secret" not in ended.errors


@pytest.mark.parametrize("name", ["consume", "purge"])
def test_a_queue_that_does_not_exist(command: Command, url: str, name: str) -> None:
    ended = command(name, "nosuch", "-u", url)
    assert ended.code == 1
    assert "no queue 'nosuch'" in ended.complaint
    assert "check the name, or publish to it first" in ended.complaint


def test_the_environment_names_the_broker(
    command: Command, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENCONN_URL", url)
    assert command("publish", "q", "--declare", "x").code == 0
    assert command("consume", "q", "-n", "1").output == "x\n"
    assert command("ping").output.startswith("memory://")


def test_lines_of_the_standard_input(command: Command, url: str, stdin: Stdin) -> None:
    lines = [f"line {number} ä" for number in range(3000)]
    stdin("\n".join(lines).encode())
    assert (
        command("publish", "q", "--declare", "-u", url).complaint == "published 3000 messages to q"
    )
    assert command("consume", "q", "-n", "3000", "-u", url).output.splitlines() == lines


def test_input_that_is_no_text(command: Command, url: str, stdin: Stdin) -> None:
    stdin(b"good\n\xff\xfe\n")
    ended = command("publish", "q", "--declare", "-u", url)
    assert ended.code == 2
    assert "line 2 of the standard input is not UTF-8 text" in ended.complaint
    assert "use @- as BODY" in ended.complaint


def test_binary_input_is_one_message(command: Command, url: str, stdin: Stdin) -> None:
    stdin(b"\x00\xff\n" * 50_000)
    assert (
        command("publish", "q", "--declare", "@-", "-u", url).complaint
        == "published 1 message to q"
    )
    ended = command("consume", "q", "-n", "1", "-u", url)
    assert ended.output == "\x00\\xff\n" * 50_000 + "\n"


def test_content_that_is_not_accepted_stays(command: Command, url: str) -> None:
    import greenconn

    greenconn.publish("q", {"a": 1}, connection=url, serializer="pickle", declare=True)
    ended = command("consume", "q", "-w", "5", "-u", url)
    assert ended.code == 1
    assert "--accept" in ended.complaint
    ended = command("consume", "q", "-n", "1", "--accept", "pickle", "-u", url)
    assert (ended.code, ended.output) == (0, '{"a": 1}\n')


def test_ping(command: Command, url: str) -> None:
    ended = command("ping", url, "-c", "3")
    first, second = ended.output.splitlines()
    assert "memory, open in" in first
    assert "(3 times)" in second
    assert (ended.code, ended.errors) == (0, "")


def test_verbose_shows_the_log(command: Command, url: str) -> None:
    ended = command("--verbose", "ping", url)
    assert ended.code == 0
    assert "greenconn.session" in ended.errors


def test_verbose_shows_where_it_failed(command: Command, url: str) -> None:
    ended = command("-v", "consume", "nosuch", "-u", url)
    assert "Traceback" in ended.errors
    assert ended.errors.splitlines()[-1].startswith("greenconn: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("consume", "amqp://me:secret@h//"),
        ("publish", "amqp://me:secret@h//", "hello"),
        ("queues", "list", "mail", "amqp://me:secret@h//"),
        ("dead", "count", "amqp://me:secret@h//"),
        ("move", "mail", "amqp://me:secret@h//"),
        ("top", "amqp://me:secret@h//"),
    ],
)
def test_a_url_is_no_name_of_a_queue(command: Command, arguments: tuple[str, ...]) -> None:
    ended = command(*arguments)
    assert ended.code == 2
    assert "'amqp://me:**@h//' is a URL where the name of a queue is expected" in ended.errors
    assert "give the URL with --url" in ended.errors
