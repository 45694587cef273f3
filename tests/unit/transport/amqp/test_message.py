"""Messages of an AMQP channel: property blocks, and what is computed when it is asked for."""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from datetime import datetime
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any

import pytest
from amqp.basic_message import Message as AmqpMessage
from amqp.serialization import dumps, loads
from hypothesis import given
from hypothesis import strategies as st

from greenconn.exceptions import DecodeError
from greenconn.transport.amqp.message import (
    Delivery,
    Outgoing,
    ReturnedMessage,
    pack_properties,
    unpack_properties,
)


def header_of(block: bytes) -> bytes:
    """The payload of a content header frame."""
    return struct.pack(">HHQ", 60, 0, 0) + block


def block_of(**properties: Any) -> bytes:
    """The property block that amqp itself writes."""
    message = AmqpMessage("", **properties)
    return bytes(message._serialize_properties())


def delivery_of(body: bytes, **properties: Any) -> Delivery:
    """A message as a consumer gets it."""
    method = struct.pack(">HH", 60, 60) + b"\3tag" + struct.pack(">Q?", 1, False) + b"\1x\3key"
    return Delivery(None, 1, method, header_of(block_of(**properties)), body, "tag")


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


TEXT = st.text(max_size=60)
TEXTS = ("correlation_id", "reply_to", "expiration", "message_id", "type", "user_id", "app_id")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "content_type": TEXT,
            "content_encoding": TEXT,
            "application_headers": st.dictionaries(st.text(max_size=9), st.integers(0, 9)),
            "delivery_mode": st.sampled_from([1, 2]),
            "priority": st.integers(0, 255),
            "timestamp": st.integers(0, 2**63),
            **dict.fromkeys([*TEXTS, "cluster_id"], TEXT),
        },
    )
)
def test_all_fields_are_as_amqp_has_them(fields: dict[str, Any]) -> None:
    rest = dict(fields)
    block = pack_properties(
        rest.pop("priority", None),
        rest.pop("content_type", None),
        rest.pop("content_encoding", None),
        rest.pop("application_headers", None),
        rest,
    )
    assert block == block_of(**fields)
    assert unpack_properties(header_of(block)) == fields


class Colour(str, Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


NAMES = st.text(max_size=9) | st.sampled_from([*Colour, "red", "x" * 255])
SINGLE = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from([-(2**31), 1 - 2**31, 2**31 - 1, 2**31, *Colour, *Level])
    | st.text(max_size=9)
    | st.sampled_from(["x" * 255, "x" * 256, "\u20ac" * 90])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.decimals(-(10**6), 10**6, places=3)
    | st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(
        lambda at: at.replace(microsecond=0)
    )
)
VALUES = st.recursive(
    SINGLE,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(NAMES, inside, max_size=3)
        | st.dictionaries(NAMES, inside, max_size=3).map(OrderedDict)
    ),
    max_leaves=5,
)


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=6))
def test_headers_are_as_amqp_has_them(headers: dict[str, Any]) -> None:
    table = dumps("F", [headers])
    for _ in range(2):  # made, then remembered
        block = pack_properties(None, None, None, headers, None)
        assert block == b"\x20\0" + table
        found = unpack_properties(header_of(block))["application_headers"]
        assert repr(found) == repr(loads("F", table, 0)[0][0])  # with types and order


@pytest.mark.parametrize("name", [*TEXTS, "timestamp", "delivery_mode"])
@pytest.mark.parametrize("headers", [None, {"a": 1}])
def test_what_does_not_fit_is_named(name: str, headers: dict[str, Any] | None) -> None:
    value: Any = {"timestamp": -1, "delivery_mode": 256}.get(name, "x" * 256)
    with pytest.raises(ValueError, match=f"message property {name}="):
        pack_properties(0, "text/plain", "utf-8", headers, {name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"in": [1.5, (value,)]}])
def test_a_float_that_rabbitmq_cannot_read_is_refused(value: float, wrap: Any) -> None:
    with pytest.raises(ValueError, match="header 'bad': a float must be finite"):
        pack_properties(None, None, None, {"good": 1.5, "bad": wrap(value)}, None)


def test_an_empty_table_of_headers_is_ones_own() -> None:
    header = header_of(pack_properties(0, "text/plain", "utf-8", {}, {"delivery_mode": 2}))
    for _ in range(3):
        properties = unpack_properties(header)
        assert properties["application_headers"] == {}
        properties["application_headers"]["mine"] = 1


@pytest.mark.parametrize("headers", [None, {}, {"a": 1}])
def test_messages_that_differ_in_identifiers_alone(headers: dict[str, Any] | None) -> None:
    for number in range(3):
        further = {"correlation_id": f"id {number}" * number, "reply_to": "r", "timestamp": number}
        block = pack_properties(0, "text/plain", "utf-8", headers, further)
        properties = unpack_properties(header_of(block))
        assert properties.pop("application_headers", None) == headers
        assert properties == {
            "content_type": "text/plain",
            "content_encoding": "utf-8",
            "priority": 0,
            **further,
        }
        if headers is not None:
            again = unpack_properties(header_of(block))
            again["application_headers"]["mine"] = 1


def test_a_text_that_was_cut_off_is_no_start_of_the_next_block() -> None:
    whole = block_of(content_type="text/plain", correlation_id="c")
    for size in range(2, len(whole)):
        try:
            unpack_properties(header_of(whole[:size]))
        except DecodeError:
            pass
        assert unpack_properties(header_of(whole)) == {
            "content_type": "text/plain",
            "correlation_id": "c",
        }


def test_a_message_of_amqps_own_class_is_taken() -> None:
    outgoing = Outgoing.of(
        AmqpMessage("x", content_type="text/plain", application_headers={"a": 1})
    )
    assert outgoing.body == b"x"
    assert unpack_properties(header_of(outgoing.packed))["application_headers"] == {"a": 1}


def test_a_body_that_cannot_be_unpacked_is_reported_before_it_is_looked_at() -> None:
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


def test_where_a_delivery_came_from() -> None:
    assert delivery_of(b"").delivery_info == {
        "consumer_tag": "tag",
        "delivery_tag": 1,
        "exchange": "x",
        "redelivered": False,
        "routing_key": "key",
    }


def test_what_a_program_notes_there_stays() -> None:
    message = delivery_of(b"")
    message.delivery_info["mine"] = 1
    assert message.delivery_info["mine"] == 1
    assert message.delivery_info["exchange"] == "x"
    message.delivery_info = {"exchange": "another"}
    assert message.delivery_info == {"exchange": "another"}
    with pytest.raises(AttributeError, match="'Delivery' object has no attribute 'unknown'"):
        message.unknown  # type: ignore[attr-defined]  # noqa: B018


def test_the_interpreter_reads_slots_directly() -> None:
    # With a __getattr__ each use of an attribute takes a detour, which costs a tenth of a message.
    assert not hasattr(Delivery, "__getattr__")


@pytest.mark.parametrize("headers", [{}, {"other": "x-mine"}, {"x-mine": 1}])
def test_whether_a_message_came_with_a_header(headers: dict[str, Any]) -> None:
    message = delivery_of(b"", application_headers=headers)
    assert message._came_with("x-mine") == ("x-mine" in headers)
    assert message._came_with("y") is False


def test_where_a_message_that_was_got_came_from() -> None:
    method = struct.pack(">HHQ?", 60, 71, 7, True) + b"\0\5queue" + struct.pack(">I", 12)
    message = Delivery(None, 7, method, header_of(block_of()), b"", None)
    assert message.delivery_info == {
        "delivery_tag": 7,
        "exchange": "",
        "message_count": 12,
        "redelivered": True,
        "routing_key": "queue",
    }


JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
PARTS = ["properties", "headers", "content_type", "content_encoding", "body", "errors"]


@pytest.mark.parametrize("first", PARTS)
@pytest.mark.parametrize("headers", [{}, {"a": 1}])
def test_each_part_can_be_the_first_that_is_asked_for(first: str, headers: dict[str, Any]) -> None:
    for _ in range(2):  # a block of properties that is not known, then a known one
        message = delivery_of(b'{"a": 1}', application_headers=headers, **JSON)
        getattr(message, first)
        assert message.properties == {"application_headers": headers, **JSON}
        assert message.headers == headers
        assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
        assert (message.body, message.errors) == ('{"a": 1}', [])
        assert message.decode() == {"a": 1}


@pytest.mark.parametrize(
    ("raw", "kind", "decoded"),
    [
        (b'{"a": 1}', JSON, {"a": 1}),
        ('"\u20ac"'.encode(), JSON, "\u20ac"),
        ('"\xe4"'.encode("latin-1"), {**JSON, "content_encoding": "latin-1"}, "\xe4"),
        (b"[1]", {**JSON, "content_encoding": "binary"}, [1]),
        (b"[1]", {"content_type": "application/json"}, [1]),
        (b"text", {"content_type": "text/plain", "content_encoding": "utf-8"}, "text"),
        (b"\xff", {"content_type": "application/data", "content_encoding": "binary"}, b"\xff"),
        (b"", JSON, ""),
        (b"abc", {"content_type": "a/b", "content_encoding": "no such"}, DecodeError),
        (b"\xff", JSON, DecodeError),
        (b"{", JSON, DecodeError),
        (b"", {}, ""),
    ],
)
def test_decoding_an_untouched_message_is_decoding_a_touched_one(
    raw: bytes, kind: dict[str, str], decoded: Any
) -> None:
    for touch in ("", "", *PARTS):  # the first one makes the block of properties a known one
        message = delivery_of(raw, **kind)
        if touch:
            getattr(message, touch)
        if decoded is DecodeError:
            with pytest.raises(DecodeError):
                message.decode()
        else:
            assert message.decode() == decoded
            assert type(message.decode()) is type(decoded)


@pytest.mark.parametrize(
    ("part", "value", "decoded"),
    [
        ("body", "[2]", [2]),
        ("content_type", "text/plain", "[1]"),
        ("headers", {"compression": "gzip"}, [1]),
    ],
)
def test_what_a_program_writes_into_a_message_is_what_it_decodes(
    part: str, value: Any, decoded: Any
) -> None:
    delivery_of(b"[1]", **JSON).headers  # noqa: B018 - a known block
    message = delivery_of(b"[1]", **JSON)
    if part == "headers":
        message.body = "[1]"  # it was decompressed already
    setattr(message, part, value)
    assert message.decode() == decoded


def test_what_is_not_utf_8_is_shown() -> None:
    message = Delivery(
        None,
        1,
        b"\0\x3c\0\x3c\3tag" + bytes(9) + b"\2x\xff\1\xfe",
        bytes(12) + b"\x84\0\x0aapplicatio\3i\xffd",
        b"",
        "tag",
    )
    assert message.delivery_info["exchange"] == "x\\xff"
    assert message.delivery_info["routing_key"] == "\\xfe"
    assert message.properties == {"content_type": "applicatio", "correlation_id": "i\\xffd"}


def table_of(*items: bytes) -> bytes:
    """A property block with headers ``a``, ``b``... of these values, and what stands behind them."""
    content = b"".join(b"\1" + bytes((97 + at,)) + item for at, item in enumerate(items))
    early = b"\x10application/json\5utf-8" + struct.pack(">I", len(content)) + content
    return b"\xee\x40" + early + b"\2\4corr\5reply" + struct.pack(">Q", 2**63 + 5)


def received(block: bytes, body: bytes = b"{}") -> Delivery:
    method = b"\0\x3c\0\x3c\3tag" + bytes(11)
    return Delivery(None, 1, method, bytes(12) + block, body, "tag")


FAR = b"T" + struct.pack(">Q", 1_764_000_000_000)


@pytest.mark.parametrize(
    ("item", "value"),
    [
        (FAR, 1_764_000_000_000),  # milliseconds
        (b"T" + struct.pack(">q", -5), -5),  # before 1970
        (b"T" + b"\xff" * 8, -1),
        (b"T\x7f" + b"\xff" * 7, 2**63 - 1),
        (b"T" + struct.pack(">Q", 1_764_000_000), datetime(2025, 11, 24, 16, 0)),
        (b"A" + struct.pack(">I", 9) + FAR, [1_764_000_000_000]),
        (b"F" + struct.pack(">I", 11) + b"\1t" + FAR, {"t": 1_764_000_000_000}),
        (b"t\1", True),
        (b"t\0", False),
        (b"b\xff", -1),
        (b"B\xff", 255),
        (b"s\xff\xfe", -2),
        (b"U\xff\xfe", -2),
        (b"u\xff\xfe", 65534),
        (b"I\xff\xff\xff\xfd", -3),
        (b"i\xff\xff\xff\xfd", 2**32 - 3),
        (b"l" + struct.pack(">q", -(2**60)), -(2**60)),
        (b"L" + struct.pack(">q", -(2**60)), -(2**60)),
        (b"f" + struct.pack(">f", 1.5), 1.5),
        (b"d" + struct.pack(">d", 1.1), 1.1),
        (b"D\2" + struct.pack(">i", -150), Decimal("-1.5")),
        (b"D\xff" + struct.pack(">i", 7), Decimal("7E-255")),
        (b"S\0\0\0\3\xe2\x82\xac", "\u20ac"),
        (b"S\0\0\0\2\xff\xfe", b"\xff\xfe"),
        (b"x\0\0\0\2ab", b"ab"),
        (b"V", None),
        (b"A\0\0\0\0", []),
        (b"F\0\0\0\0", {}),
        (b"A\0\0\0\4t\1VV", [True, None, None]),
    ],
)
def test_a_header_of_each_type_beside_one_out_of_range(item: bytes, value: Any) -> None:
    message = received(table_of(item, FAR, b"S\0\0\0\4last"))
    assert message.payload == {}
    headers = {"a": value, "b": 1_764_000_000_000, "c": "last"}
    assert message.headers == headers
    assert [type(each) for each in message.headers.values()] == list(map(type, headers.values()))
    assert message.properties == {
        "application_headers": headers,
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "priority": 2,
        "correlation_id": "corr",
        "reply_to": "reply",
        "timestamp": 2**63 + 5,
    }
    if item is not FAR and item[:1] != b"T":  # the type alone, as amqp reads it
        assert received(table_of(item)).headers == {"a": value}
    # It can be sent again, and is the same then.
    packed = pack_properties(2, None, None, {**headers}, {"timestamp": 2**63 + 5})
    found = unpack_properties(header_of(packed))
    assert found["timestamp"] == 2**63 + 5
    if item[:1] != b"x":  # amqp has no letter for bytes
        assert found["application_headers"] == headers


DEEP = b"V"
for _ in range(3000):
    DEEP = b"A" + struct.pack(">I", len(DEEP)) + DEEP


@pytest.mark.parametrize(
    ("items", "headers"),
    [
        ((b"t\1", b"Q"), {"a": True}),  # a type of another protocol
        ((b"t\1", b"A\0\0\0\1Q", b"t\1"), {"a": True}),
        ((b"t\1", b"S\xff\xff\xff\xff"), {"a": True}),
        ((b"t\1", b"A\xff\xff\xff\xff"), {"a": True}),
        ((FAR, b"I\0\0"), {"a": 1_764_000_000_000}),
        ((b"t\1", DEEP, b"t\0"), {"a": True, "c": False}),
    ],
)
def test_headers_of_which_not_all_can_be_read(items: tuple[bytes], headers: dict[str, Any]) -> None:
    message = received(table_of(*items))
    assert message.headers == headers
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
    assert (message.properties["correlation_id"], message.properties["reply_to"]) == (
        "corr",
        "reply",
    )
    assert message.body == b"{}"
    assert [kind for kind, _, _ in message.errors] == [DecodeError]
    with pytest.raises(DecodeError, match="properties of a message cannot be read"):
        message.decode()
    back = ReturnedMessage(None, "", "q", bytes(12) + table_of(*items), b"{}")
    assert (back.headers, back.properties["reply_to"]) == (headers, "reply")
    with pytest.raises(DecodeError, match="properties of a message cannot be read"):
        back.decode()


def test_a_message_that_came_back_has_a_time_out_of_range() -> None:
    back = ReturnedMessage(None, "", "q", bytes(12) + table_of(FAR), b"{}")
    assert (back.headers, back.payload) == ({"a": 1_764_000_000_000}, {})


def test_a_block_that_is_cut_off_has_what_stands_before() -> None:
    block = table_of(FAR, b"S\0\0\0\4last")
    for size in range(len(block)):
        message = received(block[:size])
        headers = {"a": 1_764_000_000_000, "b": "last"}
        assert headers.items() >= message.headers.items()
        if size > 20:
            assert message.content_type == "application/json"
        with pytest.raises(DecodeError):
            message.decode()
