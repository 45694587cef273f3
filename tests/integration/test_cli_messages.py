"""``greenconn publish`` and ``greenconn consume`` in processes of their own: messages there and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

import greenconn
from greenconn import Connection
from greenconn.message import Message
from tests.integration.processes import Outcome, run
from tests.receiving import taken

pytestmark = [pytest.mark.programs, pytest.mark.halved]


@pytest.fixture(params=["amqp", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """The address of a broker."""
    address: str = request.getfixturevalue(f"{request.param}_url")
    return address


@pytest.fixture
def connection(url: str, unique: str) -> Iterator[Connection]:
    """A connection, which deletes the queues of the test at its end."""
    with Connection(url) as connection:
        yield connection
        for name in (unique, f"{unique}-copy"):
            connection.default_channel.queue_delete(name)


def command(*arguments: str, input: bytes = b"") -> Outcome:
    """Run a command to its end."""
    return run("-m", "greenconn", *arguments, input=input)


def shown(message: Message) -> tuple[Any, ...]:
    """Return what must be the same after a message was consumed and published."""
    properties = dict(message.properties)
    names = ("correlation_id", "reply_to", "delivery_mode", "priority", "message_id", "type")
    return (
        message.body if isinstance(message.body, str) else bytes(message.body),
        message.content_type,
        message.content_encoding,
        message.headers,
        *(properties.get(name) for name in names),
    )


@pytest.mark.sampled(1)
def test_the_round_trip_of_whole_messages(url: str, connection: Connection, unique: str) -> None:
    options: dict[str, Any] = {"connection": connection, "declare": True}
    bodies = ({"a": [1, "ä", None]}, "grün", b"\x00\xff\n", "", [1.5, True])
    for number, body in enumerate(bodies):
        headers = {"n": number, "text": "ä", "table": {"list": [1, "x"]}}
        greenconn.publish(
            *(unique, body),
            headers=headers,
            correlation_id=f"c{number}",
            reply_to="r",
            message_id="m",
            type="t",
            delivery_mode="transient" if number % 2 else "persistent",
            **options,
        )
    greenconn.publish(unique, {"b": 1}, serializer="pickle", **options)
    greenconn.publish(unique, "x" * 5000, compression="zlib", **options)
    out = command("consume", unique, "-n", "7", "--json", "-u", url)
    assert (out.code, out.errors) == (0, f"consumed 7 messages from {unique}\n")
    for target in (unique, f"{unique}-copy"):
        ended = command(
            *("publish", target, "--jsonl", "--declare", "-u", url), input=out.output.encode()
        )
        assert (ended.code, ended.errors) == (0, f"published 7 messages to {target}\n")
    again = command("consume", unique, "-n", "7", "--json", "-u", url)
    records = [[json.loads(line) for line in each.output.splitlines()] for each in (out, again)]
    assert records[0] == records[1]
    copies = taken(connection, f"{unique}-copy")
    assert [each.payload for each in copies[:5]] == list(bodies)
    assert copies[6].payload == "x" * 5000
    assert copies[6].headers["compression"] == "application/x-gzip"
    assert [shown(each)[4] for each in copies[:5]] == [f"c{number}" for number in range(5)]


def test_values_that_only_amqp_has(amqp_url: str, unique: str) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    with Connection(amqp_url) as connection:
        greenconn.publish(
            *(unique, b"x"),
            headers={"bytes": b"\x00\xff", "when": when},
            timestamp=when,
            priority=4,
            expires=600,
            connection=connection,
            declare=True,
        )
        out = command("consume", unique, "-n", "1", "--json", "-u", amqp_url)
        ended = command("publish", unique, "--jsonl", "-u", amqp_url, input=out.output.encode())
        assert ended.code == 0, ended.errors
        (message,) = taken(connection, unique)
        connection.default_channel.queue_delete(unique)
    record = json.loads(out.output)
    assert record["headers"]["bytes"] == {"__type__": "base64", "__value__": "AP8="}
    assert message.headers["bytes"] in (b"\x00\xff", bytearray(b"\x00\xff"))
    assert message.headers["when"].replace(tzinfo=timezone.utc) == when
    assert message.properties["timestamp"] == when.timestamp()
    assert (message.properties["priority"], message.properties["expiration"]) == (4, "600000")


def test_peek_counts_what_it_shows(url: str, connection: Connection, unique: str) -> None:
    with connection.SimpleQueue(unique) as queue:
        for number in range(3):
            queue.put(number)
        assert command("peek", unique, "-n", "2", "-u", url).errors.endswith("2 of 3 messages\n")
        queue.clear()
