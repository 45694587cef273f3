"""``greenconn publish``: bodies, records, headers, properties, exchanges, counts and rates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import monotonic, tzset
from typing import Any

import pytest

from greenconn import Connection, Exchange, Queue
from tests.receiving import taken
from tests.unit.cli.conftest import Command

Stdin = Callable[[bytes], None]


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """A connection to the broker of the command."""
    with Connection(url) as connection:
        yield connection


def test_headers_and_properties(command: Command, url: str, connection: Connection) -> None:
    given = ("-H", "kind=a=b", "-H", "count:=5", "-H", 'tags:=["x", null]')
    named = (
        *("-p", "correlation_id=c", "-p", "reply_to=r", "-p", "type=t", "-p", "app_id=shell"),
        *("-p", "message_id=m", "-p", "delivery_mode=transient", "--priority", "3"),
    )
    ended = command("publish", "q", "x", "--declare", *given, *named, "--expires", "60", "-u", url)
    assert ended.code == 0, ended.errors
    (message,) = taken(connection, "q")
    assert message.headers == {"kind": "a=b", "count": 5, "tags": ["x", None]}
    properties = message.properties
    assert [properties[name] for name in ("correlation_id", "reply_to", "type", "app_id")] == [
        *("c", "r", "t", "shell")
    ]
    assert (properties["delivery_mode"], properties["priority"]) == (1, 3)
    assert (properties["message_id"], properties["expiration"]) == ("m", "60000")


@pytest.mark.parametrize(
    ("options", "kind", "payload"),
    [
        ((), "application/data", b'{"a": 1}\n'),
        (("--json",), "application/json", {"a": 1}),
        (("--content-type", "image/png"), "image/png", b'{"a": 1}\n'),
        (("--content-type", "application/json"), "application/json", {"a": 1}),
    ],
)
def test_the_bytes_of_a_file(
    command: Command,
    url: str,
    connection: Connection,
    tmp_path: Path,
    options: tuple[str, ...],
    kind: str,
    payload: Any,
) -> None:
    file = tmp_path / "body"
    file.write_bytes(b'{"a": 1}\n')
    ended = command("publish", "q", f"@{file}", "--declare", *options, "-u", url)
    assert ended.code == 0, ended.errors
    (message,) = taken(connection, "q")
    assert (message.content_type, message.payload) == (kind, payload)


@pytest.fixture
def three_hours_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The local time is three hours ahead of UTC."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "EAST-3")
        tzset()
        yield
    tzset()


@pytest.mark.usefixtures("three_hours_east")
@pytest.mark.parametrize(
    ("hours", "form", "is_there"),
    [
        (-1, "%Y-%m-%dT%H:%MZ", True),
        (1, "%Y-%m-%dT%H:%MZ", False),
        (1, "%Y-%m-%dT%H:%M+02:00", True),
        (1, "%Y-%m-%dT%H:%M-02:00", False),
        (2, "%Y-%m-%dT%H:%M", True),  # local time: an hour ago
        (4, "%Y-%m-%dT%H:%M", False),
        (2, "%Y-%m-%d %H:%M:%S", True),
        (50, "%Y-%m-%d", False),
    ],
)
def test_a_time(
    command: Command, url: str, connection: Connection, hours: int, form: str, is_there: bool
) -> None:
    at = (datetime.now(timezone.utc) + timedelta(hours=hours)).strftime(form)
    ended = command("publish", "q", "x", "y", "--declare", "--at", at, "-u", url)
    assert (ended.code, ended.complaint) == (0, "published 2 messages to q")
    assert len(taken(connection, "q")) == 2 * is_there


@pytest.mark.parametrize("at", ["tomorrow", "", "10:00", "2026-13-01", "2999-01-01T10:00", "1e3"])
def test_what_is_no_time(command: Command, url: str, at: str) -> None:
    ended = command("publish", "q", "x", "--declare", "--at", at, "-u", url)
    assert ended.code == 2
    assert "Invalid value for --at: TIME must be ISO 8601, such as 2026-12-01T10:00" in ended.errors
    assert f"got {at!r}" in ended.errors


def test_a_time_and_a_delay(command: Command, url: str) -> None:
    options = ("--at", "2026-12-01T10:00", "--delay", "1")
    ended = command("publish", "q", "x", "--declare", *options, "-u", url)
    assert ended.code == 2
    assert "--at cannot be combined with --delay" in ended.errors


def test_an_exchange(command: Command, url: str, connection: Connection) -> None:
    events = Exchange("events", type="topic")
    Queue("q", events, routing_key="user.*")(connection.default_channel).declare()
    ended = command("publish", "user.new", "one", "-x", "events", "-u", url)
    assert (ended.code, ended.complaint) == (0, "published 1 message to 'events' with 'user.new'")
    ended = command("publish", "order.new", "two", "-x", "events", "-u", url)
    assert ended.code == 1
    assert "'events'" in ended.complaint
    assert "'order.new'" in ended.complaint
    assert "queues bind" in ended.complaint
    ended = command("publish", "order.new", "two", "-x", "events", "--no-mandatory", "-u", url)
    assert ended.code == 0
    assert [each.payload for each in taken(connection, "q")] == ["one"]
    ended = command("publish", "k", "x", "-x", "nosuch", "-u", url)
    assert ended.code == 1
    assert "nosuch" in ended.complaint
    assert "check the name of the exchange" in ended.complaint


def test_the_result_as_json(command: Command, url: str) -> None:
    ended = command("publish", "q", "1", "2", "--json", "--declare", "-u", url)
    assert (ended.code, ended.errors) == (0, "")
    result = json.loads(ended.output)
    assert result["published"] == 2
    assert result["seconds"] >= 0


def test_count_and_rate(command: Command, url: str, connection: Connection, stdin: Stdin) -> None:
    ended = command("publish", "q", "a", "b", "-n", "2501", "--declare", "-u", url)
    assert ended.complaint == "published 2501 messages to q"
    assert [each.payload for each in taken(connection, "q")] == (["a", "b"] * 1251)[:2501]
    began = monotonic()
    ended = command("publish", "q", "a", "-n", "11", "--rate", "100", "-u", url)
    assert monotonic() - began >= 0.05  # bursts of five: the last one leaves after 0.1 s
    assert len(taken(connection, "q")) == 11
    stdin(b"1\n2\n3\n")
    assert command("publish", "q", "-n", "2", "-u", url).complaint == "published 2 messages to q"
    assert [each.payload for each in taken(connection, "q")] == ["1", "2"]


def test_a_dash_is_the_standard_input(
    command: Command, url: str, connection: Connection, stdin: Stdin
) -> None:
    stdin(b"1\n2\n")
    ended = command("publish", "q", "-", "--declare", "-u", url)
    assert ended.complaint == "published 2 messages to q"
    stdin(b'{"body": "3"}\n')
    assert command("publish", "q", "-", "--jsonl", "-u", url).code == 0
    assert [each.payload for each in taken(connection, "q")] == ["1", "2", "3"]
    for name in ("publish", "rpc"):
        ended = command(name, "q", "a", "-", "-u", url)
        assert ended.code == 2
        assert "'-' stands for the lines of the standard input" in ended.complaint
    assert taken(connection, "q") == []


def test_records_are_published_as_they_were(
    command: Command, url: str, connection: Connection, stdin: Stdin
) -> None:
    line = {
        "content_type": "text/plain",
        "content_encoding": "utf-8",
        "headers": {"a": {"__type__": "base64", "__value__": "AP8="}, "b": 1},
        "properties": {"correlation_id": "c", "priority": 7, "delivery_mode": 1},
        "body": "grün",
    }
    other = {"body": {"__type__": "base64", "__value__": "/w=="}}
    stdin(f"{json.dumps(line)}\n{json.dumps(other)}\n".encode())
    options = ("-H", "b:=2", "-p", "correlation_id=d", "--declare")
    ended = command("publish", "q", "--jsonl", *options, "-u", url)
    assert (ended.code, ended.complaint) == (0, "published 2 messages to q")
    found = {each.content_type: each for each in taken(connection, "q")}
    text, data = found["text/plain"], found["application/data"]
    assert text.payload == "grün"
    assert text.headers == {"a": b"\x00\xff", "b": 2}
    assert (text.properties["correlation_id"], text.properties["priority"]) == ("d", 7)
    assert text.properties["delivery_mode"] == 1
    assert data.payload == b"\xff"
    assert data.properties["delivery_mode"] == 2


def test_what_was_published_before_an_error_is_counted(
    command: Command, url: str, connection: Connection, stdin: Stdin
) -> None:
    Queue("q")(connection.default_channel).declare()
    lines = [{"routing_key": "q", "body": 1}, {"routing_key": "nosuch", "body": 2}]
    stdin("\n".join(map(json.dumps, lines)).encode())
    ended = command("publish", "--jsonl", "-u", url)
    assert ended.code == 1
    count, why = ended.errors.splitlines()
    assert count == "published 1 message"
    assert "nosuch" in why


def test_what_was_consumed_is_published_again(
    command: Command, url: str, connection: Connection, stdin: Stdin
) -> None:
    stdin(b"\x00\xff")
    command("publish", "q", "@-", "--declare", "-u", url)
    command("publish", "q", '{"a": 1}', "--json", "-H", "n:=1", "-p", "type=t", "-u", url)
    ended = command("consume", "q", "-n", "2", "--json", "-u", url)
    stdin(ended.output.encode())
    ended = command("publish", "copy", "--jsonl", "--declare", "-u", url)
    assert ended.complaint == "published 2 messages to copy"
    first, second = taken(connection, "copy")
    assert (first.body, first.content_type) == (b"\x00\xff", "application/data")
    assert (second.payload, second.headers) == ({"a": 1}, {"n": 1})
    assert second.properties["type"] == "t"
