"""Messages of an AMQP channel: property blocks, and what is computed when it is asked for."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
from amqp.basic_message import Message as AmqpMessage

from greenconn.exceptions import DecodeError
from greenconn.transport.amqp.message import Delivery, Outgoing
from greenconn.transport.amqp.properties import pack_properties, unpack_properties


def header_of(block: bytes) -> bytes:
    """The payload of a content header frame."""
    return struct.pack(">HHQ", 60, 0, 0) + block


def block_of(**properties: Any) -> bytes:
    """The property block that amqp itself writes."""
    message = AmqpMessage("", **properties)
    return bytes(message._serialize_properties())


def delivery_of(body: bytes, **properties: Any) -> Delivery:
    """A message as a consumer gets it."""
    tail = struct.pack(">Q?", 1, False) + b"\1x\3key"
    return Delivery(None, 1, tail, header_of(block_of(**properties)), body, "tag")


@pytest.mark.parametrize("headers", [None, {}, {"a": 1}])
@pytest.mark.parametrize("properties", [{"delivery_mode": 2}, {"correlation_id": "c"}, {}])
def test_blocks_are_amqps(headers: dict[str, Any] | None, properties: dict[str, Any]) -> None:
    for _ in range(2):  # made, then remembered
        block = pack_properties(0, "text/plain", "utf-8", headers, properties)
        expected = {
            "priority": 0,
            "content_type": "text/plain",
            "content_encoding": "utf-8",
            **properties,
        }
        if headers is not None:
            expected["application_headers"] = headers
        assert block == block_of(**expected)
        assert unpack_properties(header_of(block)) == expected


def test_an_empty_table_of_headers_is_ones_own() -> None:
    header = header_of(pack_properties(0, "text/plain", "utf-8", {}, {"delivery_mode": 2}))
    for _ in range(3):
        properties = unpack_properties(header)
        assert properties["application_headers"] == {}
        properties["application_headers"]["mine"] = 1


def test_a_message_of_amqps_own_class_is_taken() -> None:
    outgoing = Outgoing.of(
        AmqpMessage("x", content_type="text/plain", application_headers={"a": 1})
    )
    assert outgoing.body == b"x"
    assert unpack_properties(header_of(outgoing.packed))["application_headers"] == {"a": 1}


def test_a_body_that_cannot_be_unpacked_is_told_before_it_is_looked_at() -> None:
    message = delivery_of(b"x", application_headers={"compression": "application/x-gzip"})
    (error,) = message.errors
    assert isinstance(error[1], DecodeError)
    assert message.body == b"x"
    assert len(message.errors) == 1
    with pytest.raises(DecodeError):
        message.decode()


@pytest.mark.parametrize("first", ["errors", "body", "payload"])
def test_a_body_is_unpacked_once(first: str) -> None:
    body = zlib.compress(b"text")
    message = delivery_of(
        body,
        content_type="text/plain",
        content_encoding="utf-8",
        application_headers={"compression": "application/x-gzip"},
    )
    getattr(message, first)
    assert message.errors == []
    assert message.body == b"text"
    assert message.payload == "text"
    assert message.delivery_info["routing_key"] == "key"
