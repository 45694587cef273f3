"""Messages as JSON records, and back."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest

from greenconn.jsoncodec import loads
from greenconn.message import Message
from greenconn.service.records import line_of, message_of, record_of

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("body", "content_type", "encoding", "shown"),
    [
        (b'{"a": [1, null, "\xc3\xa4"]}', "application/json", "utf-8", {"a": [1, None, "ä"]}),
        (b'{"a": 1}', "application/json; charset=utf-8", None, {"a": 1}),
        (b'"text"', "application/json", "utf-8", "text"),
        (b"{", "application/json", "utf-8", b"{"),
        (b'{"__type__": "bytes", "__value__": "x"}', "application/json", "utf-8", None),
        (b'{"__type__": "unheard", "__value__": "x"}', "application/json", "utf-8", None),
        (b"gr\xc3\xbcn", "text/plain", "utf-8", "grün"),
        (b"gr\xfcn", "text/plain", "latin-1", "grün"),
        (b"gr\xfcn", "text/plain", "utf-8", None),
        (b"\x00\xff\n", "application/data", "binary", None),
        (b"text", "application/data", "binary", None),
        (b"", "text/plain", "utf-8", ""),
        (b"as it is", None, None, "as it is"),
        (b"\xff", None, None, None),
        ("a text", "text/plain", "utf-8", "a text"),
    ],
)
def test_a_body_there_and_back(
    body: Any, content_type: str | None, encoding: str | None, shown: Any
) -> None:
    message = Message(body, content_type=content_type, content_encoding=encoding)
    line = line_of(message)
    assert "\n" not in line
    assert loads(line)["body"] == (body if shown is None else shown)
    again = message_of(loads(line))
    raw = body.encode() if isinstance(body, str) else body
    if isinstance(shown, (str, dict)) and str(content_type).startswith("application/json"):
        assert json.loads(again.body) == json.loads(raw)
    else:
        assert again.body == raw
    assert (again.content_type, again.content_encoding) == (content_type, encoding)


def test_headers_and_properties_there_and_back() -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    headers = {
        "text": "ä",
        "number": 5,
        "bytes": b"\x00\xff",
        "word": b"word",
        "when": when,
        "price": Decimal("1.50"),
        "list": [{"x": [1, b"\x80"]}],
        "compression": "application/x-gzip",
    }
    properties = {
        "correlation_id": "c",
        "timestamp": when,
        "priority": 3,
        "delivery_mode": 1,
        "expiration": "5000",
    }
    message = Message(
        b"x", properties={**properties, "delivery_tag": "t", "content_type": "text/plain"}
    )
    message.headers = headers
    message.delivery_info = {"exchange": "e", "routing_key": "k", "consumer_tag": "tag"}
    assert record_of(message)["exchange"] == "e"
    again = message_of(loads(line_of(message)))
    assert again.headers == headers
    assert again.properties == properties
    assert again.delivery_info == {"exchange": "e", "routing_key": "k"}
    assert again.errors == []


def test_a_record_written_by_hand() -> None:
    assert (made := message_of({"body": {"a": 1}})).content_type == "application/json"
    assert json.loads(made.body) == {"a": 1}
    assert (made := message_of({"body": "text"})).content_type == "text/plain"
    assert made.body == b"text"
    made = message_of({"body": b"\xff"})
    assert (made.body, made.content_type, made.content_encoding) == (
        b"\xff",
        "application/data",
        "binary",
    )
    assert message_of({"body": None, "content_type": "application/json"}).body == b"null"


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ([1], 'must be an object with a "body"'),
        ({"headers": {}}, 'must be an object with a "body"'),
        ({"body": 1, "header": {}}, "unknown field 'header'"),
        ({"body": 1, "headers": [1]}, "headers must be an object"),
        ({"body": 1, "properties": {"correlation-id": "x"}}, "unknown property 'correlation-id'"),
        ({"body": {}, "content_type": "text/plain"}, "must be text or bytes, got dict"),
        ({"body": "x", "content_type": "a/b", "content_encoding": "binary"}, "content_encoding"),
    ],
)
def test_what_is_no_record(record: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        message_of(record)
