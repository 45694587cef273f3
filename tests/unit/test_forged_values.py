"""Values of messages that any publisher can write, where the library reads them."""

from __future__ import annotations

import importlib
import json
from datetime import datetime
from typing import Any

import click
import pytest

import greenconn
from greenconn import Connection, Message
from greenconn.broker.envelope import lifetime_of
from greenconn.checks import is_number
from greenconn.cli.messages import _letter_lines
from greenconn.cli.records import message_lines
from greenconn.contrib.idempotency import LONGEST_ID, _storable
from greenconn.delays import LONGEST
from greenconn.log import message_fields
from greenconn.service.records import body_of, json_line, line_of
from greenconn.streams import OFFSET, StreamPosition
from greenconn.transport.memory import reset
from greenconn.worker.failures import EXCHANGE, ROUTING_KEY, dead_letter_of, restore_route

WRONG: list[Any] = [5, [], {}, {"a": [1]}, True, b"x", "\ud800", "x" * 300, 1.5]


@pytest.mark.pure
@pytest.mark.parametrize("value", [*WRONG, None])
def test_a_route_that_a_message_claims(value: Any) -> None:
    message = Message(headers={EXCHANGE: value, ROUTING_KEY: value})
    message.delivery_info = {"exchange": "e", "routing_key": "r"}
    restore_route(message)
    assert message.delivery_info["exchange"] in ("e", "\ud800")
    restore_route(Message(headers={EXCHANGE: "x" * 255}))


@pytest.mark.pure
@pytest.mark.parametrize("value", [2**62, 10**400, 1e300, "9" * 400])
def test_a_lifetime_is_one_that_clocks_can_add(value: Any) -> None:
    assert 0 < lifetime_of(value) <= LONGEST
    assert not is_number(10**400)


@pytest.mark.pure
@pytest.mark.parametrize("value", ["x" * 10_000, {"a": 1}, ["x" * 10_000]])
def test_identifiers_in_log_records_are_short(value: Any) -> None:
    fields = message_fields(Message(properties={"message_id": value, "correlation_id": value}))
    assert all(len(fields[name]) <= 255 for name in ("message_id", "correlation_id"))
    assert json.dumps(fields)


@pytest.mark.pure
@pytest.mark.parametrize("offset", [-1, 2**63, 10**300, "5", None, 1.5])
def test_an_offset_that_is_none(offset: Any) -> None:
    position = StreamPosition("next")
    position.watching(lambda message: None)(Message(headers={OFFSET: offset}))
    assert position.settled_before is None


@pytest.mark.pure
@pytest.mark.parametrize("found", ["x" * 300, "\ud800", "a\0b"])
def test_an_id_that_no_store_keeps(found: str) -> None:
    stored = _storable(f"handler:{found}")
    assert stored.isascii()
    assert len(stored) <= LONGEST_ID
    assert stored != _storable(f"handler:{found}x")
    assert _storable("handler:m1") == "handler:m1"


@pytest.mark.parametrize("value", WRONG)
def test_a_request_that_says_a_strange_place_for_its_reply(value: Any) -> None:
    """The function is called, and the server goes on."""
    called: list[int] = []
    with Connection("memory:///strange-replies") as connection:
        server = greenconn.rpc.spawn_server("strange", called.append, connection=connection)
        assert server.wait_ready(30)
        with connection.channel() as channel:
            for number, properties in enumerate(
                ({"reply_to": value}, {"reply_to": "nobody", "correlation_id": value})
            ):
                message = channel.prepare_message(
                    str(number), 0, "application/json", "utf-8", {}, properties
                )
                channel.basic_publish(message, "", "strange")
        assert greenconn.rpc.call("strange", 2, connection=connection, timeout=30) is None
        assert called == [0, 1, 2]
        assert server.stop(30)
        stats = server.get()
        assert (stats["handled"], stats["failed"]) == (3, 0)
    reset("strange-replies")


@pytest.mark.pure
@pytest.mark.parametrize("body", [None, 5, {"a": 1}, b"\xff", "\ud800\x9b", "[" * 200 + "]" * 200])
@pytest.mark.parametrize("encoding", [None, 5, ["list"], "nothing", "utf-8"])
@pytest.mark.parametrize("kind", [None, 5, ["list"], "application/json"])
def test_a_message_of_any_form_is_printed(body: Any, encoding: Any, kind: Any) -> None:
    headers: Any = {
        "x-greenconn-error": [1],
        "table": {b"\xff": b"\xfe"},
        "\x1b[31m": "\x9b31m\ud800",
        "when": datetime(2026, 1, 2),
        b"\xff": 1,
    }
    message = Message(body, content_type=kind, content_encoding=encoding)
    message.headers, message.properties = headers, {"message_id": {b"x": "\x9b"}}
    text = click.unstyle("\n".join([*_letter_lines(1, dead_letter_of(message)), line_of(message)]))
    text.encode()
    assert not {"\x1b", "\x9b", "\x07"} & set(text)
    assert isinstance(json.loads(line_of(message)), dict)
    list(message_lines("title", {"a": headers}, body_of(message)))


@pytest.mark.pure
def test_json_of_a_line_has_no_control_characters() -> None:
    line = json_line({"a": "\x7f\x9b\ud800\u20ac"}, json.dumps)
    assert line == '{"a": "\\u007f\\u009b\\ud800\u20ac"}'
    assert json.loads(line) == {"a": "\x7f\x9b\ud800\u20ac"}


@pytest.mark.parametrize("eta", [10**400, 2**62, -(10**400), "soon", None, 1e300])
def test_an_end_of_a_delay_far_away(eta: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dramatiq")
    consumer: Any = importlib.import_module("greenconn.contrib.dramatiq.broker")
    waits: list[float] = []
    monkeypatch.setattr(consumer.gevent, "sleep", waits.append)
    consumer._hold(eta)
    assert all(0 < each <= 1 for each in waits)
