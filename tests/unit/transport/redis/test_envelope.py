"""Kombu's envelope as bytes."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenconn.broker import envelope as virtual
from greenconn.broker.envelope import contents_in, contents_of_head, envelope_json, joined
from greenconn.compression import compress
from greenconn.exceptions import DecodeError
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.redis.envelope import Delivery, Outgoing, marked_redelivered

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def envelope(message: Outgoing, exchange: str = "", key: str = "q") -> bytes:
    """The whole text, as the channel puts it together."""
    route = message.route_json(exchange, key, "base64")
    return b"".join((b'{"body": ', message.body_json("base64"), message.middle, route, b'TAG"}}'))


@given(
    body=st.one_of(st.binary(max_size=50), st.text(max_size=20)),
    priority=st.integers(0, 9),
    headers=st.dictionaries(names, st.one_of(st.integers(), names), max_size=3),
    key=names,
)
def test_what_is_written_is_read(
    body: Any, priority: int, headers: dict[str, Any], key: str
) -> None:
    headers.pop("compression", None)
    encoding = "utf-8" if isinstance(body, str) else "binary"
    properties = {"delivery_mode": 2, "correlation_id": key}
    message = Outgoing(body, priority, "text/plain", encoding, headers, properties)
    raw = envelope(message, "x", key)
    assert list(json.loads(raw)) == ["body", "content-encoding", "content-type", "headers",
                                     "properties"]  # fmt: skip
    found = Delivery(None, "gc.a.1", 1, raw, "q")
    assert found.body == body
    assert found.headers == headers
    assert found.properties["priority"] == priority
    assert found.properties["correlation_id"] == key
    assert found.delivery_info["routing_key"] == key
    assert found.delivery_info["exchange"] == "x"
    assert not found.errors


def test_snapshot() -> None:
    headers = {"deep": {"n": 1}}
    message = Outgoing("x", headers=headers)
    headers["deep"]["n"] = 2
    assert b'"n": 1' in message.middle


def test_what_json_does_not_know() -> None:
    now = datetime.now(timezone.utc)
    message = Outgoing(b"x", properties={"timestamp": now, "priority": 7})
    assert loads(envelope(message))["properties"]["timestamp"] == now
    assert message.priority == 7
    with pytest.raises(ValueError, match="cannot be sent"):
        Outgoing("x", headers={"a": object()})
    with pytest.raises(TypeError, match="text or bytes"):
        Outgoing({"no": "bytes"})


def test_message_of_kombu_is_sent_on() -> None:
    raw = {
        "body": "hello",
        "content-encoding": "utf-8",
        "content-type": "text/plain",
        "headers": {"a": 1},
        "properties": {"delivery_mode": 2, "priority": 3, "delivery_tag": "old",
                       "body_encoding": "base64", "delivery_info": {"exchange": "old"}},
    }  # fmt: skip
    found = loads(envelope(Outgoing.of(raw), "new", "k"))
    assert found["properties"]["delivery_tag"] == "TAG"
    assert found["properties"]["priority"] == 3
    assert found["properties"]["delivery_info"] == {"exchange": "new", "routing_key": "k"}


def test_deliveries_are_counted() -> None:
    raw = envelope(Outgoing("x"))
    for expected in (1, 2, 3):
        raw, count, found = marked_redelivered(raw)
        assert count == expected
        assert found is not None
    message = Delivery(None, "f", 1, raw, "q")
    assert message.redelivered
    assert message.headers == {"x-delivery-count": 3, "redelivered": True}
    assert marked_redelivered(b"\xff no JSON") == (b"\xff no JSON", 0, None)


def test_message_that_cannot_be_read() -> None:
    for raw in (b"\xff", b"[]", b'{"body": "x"}', b'{"body": "!", "properties": {}}'[:9]):
        message = Delivery(None, "f", 1, raw, "q")
        assert message.errors
        assert message.body == raw
        assert message.headers == {}
        with pytest.raises(Exception):  # noqa: B017 - whatever it was
            message.decode()


@pytest.mark.parametrize("part", ["headers", "delivery_info"])
def test_deliveries_are_counted_beside_a_malformed_part(part: str) -> None:
    found = loads(envelope(Outgoing("x")))
    (found if part == "headers" else found["properties"])[part] = 5
    raw, count, _ = marked_redelivered(dumps(found).encode())
    assert count == 1
    message = Delivery(None, "f", 1, raw, "q")
    assert message.redelivered
    assert message.headers["x-delivery-count"] == 1


def test_a_header_that_json_cannot_hold() -> None:
    """All other parts are as they were sent, also when it goes back to its queue."""
    digits = "9" * 5000
    date = {"__type__": "datetime", "__value__": "2026-01-02T03:04:05"}
    wrong = {"__type__": "datetime", "__value__": "2026-01-02T03:04:05 or so"}
    found = loads(envelope(Outgoing("x", headers={"good": 1})))
    found["headers"] |= {"date": date, "wrong": wrong, "count": 0}
    raw = dumps(found).replace('"count": 0', f'"count": {digits}').encode()
    expected = {"good": 1, "date": datetime(2026, 1, 2, 3, 4, 5), "wrong": wrong, "count": digits}
    for _ in range(2):
        message = Delivery(None, "f", 1, raw, "q")
        assert message.payload == "x"
        assert expected.items() <= message.headers.items()
        raw, _, _ = marked_redelivered(raw)


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ({"body": "not base64!"}, "not base64!"),
        ({"properties": {"body_encoding": "rot13"}}, "eA=="),
        ({"properties": "text"}, "eA=="),
    ],
)
def test_a_body_that_cannot_be_read_leaves_the_rest(parts: dict[str, Any], body: str) -> None:
    found = {**loads(envelope(Outgoing("x", headers={"a": 1}))), **parts}
    message = Delivery(None, "f", 1, dumps(found).encode(), "q")
    assert message.headers == {"a": 1}
    assert message.content_encoding == "utf-8"
    assert message.body == body
    with pytest.raises(DecodeError, match="cannot decode a body out of its envelope"):
        message.decode()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2)
    ),
    max_leaves=4,
)
_bodies = (
    st.binary(max_size=30).map(lambda body: b64encode(body).decode())
    | st.text("QR=/\n", max_size=9)
    | _json
)


@given(
    body=_bodies,
    encoding=st.sampled_from(["base64", "base64", "utf-8", "BASE64", "", None, 7]),
    headers=_json | st.dictionaries(st.text(max_size=8), _json, max_size=2),
    info=st.just({"exchange": "", "routing_key": "q"}) | _json,
    more=st.dictionaries(st.sampled_from(["content-type", "content-encoding", "x"]), _json),
    ensure_ascii=st.booleans(),
)
def test_what_is_opened_at_once_is_the_same_as_in_steps(
    body: Any, encoding: Any, headers: Any, info: Any, more: dict[str, Any], ensure_ascii: bool
) -> None:
    properties = {"body_encoding": encoding, "delivery_info": info}
    found = {"body": body, "headers": headers, "properties": properties, **more}
    raw = json.dumps(found, ensure_ascii=ensure_ascii).encode(errors="replace")
    at_once = virtual.usual_contents(raw)
    if at_once is not None:
        assert repr(at_once) == repr(contents_in(loads(raw)))
    del found["body"]
    head = json.dumps(found, ensure_ascii=ensure_ascii)
    assert _outcome(contents_of_head, head, b"QQ==") == _outcome(_in_steps, head, b"QQ==")


@given(body=_bodies, headers=st.dictionaries(st.text(max_size=8), _json, max_size=2))
def test_an_envelope_is_written_as_json_of_ascii(body: Any, headers: Any) -> None:
    written = {"body": body, "headers": headers, "properties": {}}
    text = envelope_json(written)
    assert text.isascii()
    assert repr(loads(text)) == repr(loads(dumps(written)))


@given(body=st.binary(max_size=30), cut=st.integers(1, 8))
def test_base_64_may_be_in_lines(body: bytes, cut: int) -> None:
    text = b64encode(body).decode()
    for written in (text, text.encode(), f"{text[:cut]}\n{text[cut:]}\n"):
        assert contents_in({"body": written, "properties": {"body_encoding": "base64"}})[4] == body


def _in_steps(head: str, body: bytes) -> Any:
    return contents_in(joined(head, body))


def _outcome(function: Callable[[str, bytes], Any], head: str, body: bytes) -> str:
    try:
        return repr(function(head, body))
    except DecodeError as exc:
        return repr(exc)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"body": "QQ==", "properties": {"body_encoding": "base64"}}',
        b'{"body": "QQ==", "properties": {"body_encoding": "base64", "delivery_info": []}}',
        b'{"body": "QQ==", "properties": {"body_encoding": "utf-8", "delivery_info": {}}}',
        b'{"body": "QQ==", "properties": {"delivery_info": {}}}',
        b'{"body": "QQ==\\n", "properties": {"body_encoding": "base64", "delivery_info": {}}}',
        b'{"body": "QQ", "properties": {"body_encoding": "base64", "delivery_info": {}}}',
        b'{"body": "QQ==", "more": 1, "properties": {"body_encoding": "base64", "delivery_info": {}}}',
        b'{"body": "QQ==", "properties": {"body_encoding": "base64", "delivery_info": {}}, "headers":'
        b' {"at": {"__type__": "date", "__value__": "2026-11-25"}}}',
        b'{"body": "", "properties": {"body_encoding": "base64", "delivery_info": {}}, "headers":'
        b' {"at": {"__type__": "date", "__value__": "2026-11-25"}}, "body": "' + b"A" * 400 + b'"}',
        b'{"body": "QQ=="}',
        b'["body"]',
        b'{"body": "QQ==", "prop',
        b'{"body": "\xff"}',
    ],
)
def test_what_is_not_opened_at_once(raw: bytes) -> None:
    assert virtual.usual_contents(raw) is None


def test_the_usual_envelope_is_opened_at_once() -> None:
    raw = envelope(Outgoing(b"body", 3, "text/plain", "utf-8", {"h": 1}, {"type": "t"}))
    found = virtual.usual_contents(raw)
    assert found is not None
    properties, headers, *others = found
    assert properties["delivery_info"] == {"exchange": "", "routing_key": "q"}
    assert (headers, others) == ({"h": 1}, ["text/plain", "utf-8", b"body"])


def test_what_a_program_writes_stays() -> None:
    raw = envelope(Outgoing("body", 3, "text/plain", "utf-8", {"h": 1}, {"type": "t"}))
    found = Delivery(None, "gc.a.1", 1, raw, "q")
    found.headers = {"mine": 1}
    assert (found.headers, found.body, found.properties["type"]) == ({"mine": 1}, "body", "t")
    found.delivery_info["mine"] = 1
    assert found.delivery_info["mine"] == 1
    assert found.delivery_info["routing_key"] == "q"
    found.delivery_info = {"exchange": "another"}
    assert found.delivery_info == {"exchange": "another"}
    with pytest.raises(AttributeError, match="'Delivery' object has no attribute 'unknown'"):
        found.unknown  # type: ignore[attr-defined]  # noqa: B018


def test_a_compressed_body_is_unpacked_once_it_is_asked_for() -> None:
    packed, name = compress(b'{"a": 1}', "zlib")
    raw = envelope(Outgoing(packed, 0, "application/json", "utf-8", {"compression": name}, {}))
    found = Delivery(None, "gc.a.1", 1, raw, "q")
    assert found.headers == {"compression": name}
    assert found.body == b'{"a": 1}'
    assert found.errors == []
    assert Delivery(None, "gc.a.1", 1, raw, "q").decode() == {"a": 1}
    raw = envelope(Outgoing(b"not packed", 0, "a/b", "utf-8", {"compression": name}, {}))
    found = Delivery(None, "gc.a.1", 1, raw, "q")
    assert found.content_type == "a/b"
    assert len(found.errors) == 1
    assert found.body == b"not packed"
    with pytest.raises(DecodeError):
        found.decode()


@pytest.mark.parametrize("count", [-5, "many", [], None, 1e999, 2.5])
def test_a_count_of_deliveries_that_is_none(count: Any) -> None:
    raw = json.dumps({"headers": {"x-delivery-count": count}, "properties": {"delivery_info": {}}})
    again, deliveries, _ = marked_redelivered(raw.encode())
    assert deliveries == 1
    assert json.loads(again)["headers"]["x-delivery-count"] == 1
