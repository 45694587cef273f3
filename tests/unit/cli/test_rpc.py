"""``greenconn rpc``, with a server in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenconn import Connection, Queue
from greenconn.service.rpc import spawn_server
from tests.fix_wires import until
from tests.unit.cli.conftest import Command

Stdin = Callable[[bytes], None]
SOON = 60.0


def serve(body: Any) -> Any:
    """Return the sum of a list, text in capitals, or an error."""
    if isinstance(body, list):
        return {"sum": sum(body)}
    return str(body).upper()


@pytest.fixture
def server(url: str) -> Iterator[str]:
    """The queue of a server."""
    with Connection(url) as connection:
        consumer = spawn_server(Queue("work"), serve, connection=connection)
        assert consumer.wait_ready(SOON)
        yield "work"
        assert consumer.stop(SOON)


def test_requests_from_the_standard_input(
    command: Command, url: str, server: str, stdin: Stdin
) -> None:
    stdin(b"one\ntwo\n")
    ended = command("rpc", server, "-u", url)
    assert (ended.code, ended.output) == (0, "ONE\nTWO\n")


def test_json(command: Command, url: str, server: str) -> None:
    ended = command("rpc", server, "[1, 2]", '["x"]', "-H", "a=b", "--json", "-u", url)
    good, bad = map(json.loads, ended.output.splitlines())
    assert (ended.code, ended.errors) == (1, "")
    assert good["reply"] == {"sum": 3}
    assert good["error"] is None
    assert good["seconds"] > 0
    assert bad["reply"] is None
    assert bad["error"].startswith("TypeError: unsupported operand")


def test_no_reply(command: Command, url: str) -> None:
    command("queues", "declare", "idle", "-u", url)
    ended = command("rpc", "idle", "x", "-t", "0.1", "-u", url)
    assert (ended.code, ended.output) == (1, "")
    assert "is a server of the queue running?" in ended.complaint
    # The request expires with its caller: it was published a moment after the caller began to wait.
    with Connection(url) as connection:
        channel = connection.default_channel
        until(lambda: channel.queue_declare("idle", passive=True).message_count == 0)


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (["nosuch", "x"], "check the name of the queue", 1),
        (["work", "{x", "--json"], "'{x' is not JSON", 2),
        (["work", "x", "-H", "foo"], "NAME=VALUE", 2),
        ([], "QUEUE", 2),
    ],
)
def test_mistakes(command: Command, url: str, arguments: list[str], text: str, code: int) -> None:
    ended = command("rpc", *arguments, "-u", url)
    assert ended.code == code
    assert text in ended.complaint
