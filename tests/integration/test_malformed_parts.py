"""Messages of which one part is malformed, on each transport: handled, kept, replayed.

The part is all that is lost: the message reaches its handler, or the queue of its dead letters if its
body cannot be decoded, and a replayed dead letter is what was sent.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from struct import pack
from typing import Any

import pytest

import greenconn
from greenconn import Connection
from greenconn.broker.envelope import head_of
from greenconn.broker.port import Entry
from greenconn.transport.amqp.message import Outgoing
from greenconn.wire.amqp import header_error
from tests.fix_wires import until
from tests.integration.capabilities import connection_of_kind  # noqa: F401 - ``connection``
from tests.integration.redis_clients import control

pytestmark = pytest.mark.halved

SOON = 60.0
BODY = {"order": 5}

#: What a header may be, and what a program may give as a property.
HEADERS: list[Any] = [
    {"__type__": "datetime", "__value__": "soon"},
    {"__type__": "decimal", "__value__": []},
    {"__type__": "nothing", "__value__": 1},
    {"__type__": [], "__value__": 1},
    *(10**300, -(2**63), 1e300, "\ud800", "x" * 20_000, [[[[[{}]]]]]),
]
VALUES: list[Any] = [5.5, -5, "text", [], {"a": 1}, None, 10**300, True]
PROPERTIES = [
    *("priority", "expiration", "correlation_id", "reply_to", "timestamp", "message_id", "type"),
    *("user_id", "app_id", "cluster_id", "delivery_mode", "delivery_tag"),
]
#: Parts of an envelope with which the body can be decoded.
READABLE: list[dict[str, Any]] = [
    {},
    {"headers": 5},
    {"headers": "text"},
    {"headers": [1]},
    {"headers": None},
    *({"headers": {"x": each, "own": 1}} for each in HEADERS),
    {"content-type": "application/nothing"},  # text, as its encoding says
    {"content-encoding": 5},
    {"content-encoding": ["list"]},
    {"content-encoding": "nothing"},
    {"content-encoding": "utf-8\0"},
    {"content-encoding": None},
    *({"properties": {name: each}} for name in PROPERTIES for each in VALUES),
    {"properties": {"delivery_info": 5}},
    {"properties": {"delivery_info": [1]}},
    {"properties": {"delivery_info": "text"}},
    {"properties": {"delivery_info": {"exchange": 5, "routing_key": []}}},
    {"properties": {"delivery_info": None}},
    {"body": {"number": 1000}},  # taken for JSON
    {"body": [1001]},
    {"body": 1002},
    {"body": None},
]
#: Parts with which it cannot.
UNREADABLE: list[dict[str, Any]] = [
    {"headers": {"compression": ["zlib"]}},
    {"headers": {"compression": "zlib"}},
    {"content-type": 5},
    {"content-type": ["list"]},
    {"content-type": {"a": 1}},
    {"properties": {"body_encoding": 5}},
    {"properties": {"body_encoding": "rot13"}},
    {"properties": {"body_encoding": []}},
    {"properties": {"body_encoding": {"a": 1}}},
    {"body": "not base64!"},
    {"body": "\ud800"},
]
#: Kinds of transports that store such an envelope.
STORES = ["redis", "sqlite", "mongodb", "beanstalk", "couchdb", "sqs"]


def envelope_of(parts: dict[str, Any], number: int, encoding: str | None) -> dict[str, Any]:
    """Return an envelope with such parts."""
    body: Any = json.dumps({**BODY, "number": number}).encode()
    given = dict(parts)
    properties: Any = {
        "body_encoding": encoding,
        "delivery_tag": f"t{number}",
        "message_id": f"m{number}",
        "correlation_id": "c",
        "priority": 0,
        "delivery_info": {"exchange": "", "routing_key": "q"},
    }
    if isinstance(given.get("properties", {}), dict):
        properties.update(given.pop("properties", {}))
    return {
        "body": base64.b64encode(body).decode() if encoding else body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"own": number},
        "properties": properties,
        **given,
    }


def put(connection: Connection, queue: str, cases: list[dict[str, Any]]) -> None:
    """Store envelopes with these parts in a queue.  May switch."""
    connection.connect()
    if connection.transport_cls == "redis":
        with control(connection.as_uri(include_password=True)) as command:
            for number, parts in enumerate(cases):
                command("LPUSH", queue, json.dumps(envelope_of(parts, number, "base64")))
        return
    store: Any = connection.connection.store
    if connection.transport_cls == "sqs":
        for number, parts in enumerate(cases):
            body = json.dumps(envelope_of(parts, number, "base64"))
            fields = [{"MessageBody": body}]
            assert not any(store.queues.get(queue).batch("SendMessageBatch", fields, retries=3))
        return
    entries = []
    for number, parts in enumerate(cases):
        envelope = envelope_of(parts, number, store.body_encoding)
        head = head_of(envelope) if store.keeps_body_apart else ""
        entries.append(Entry(queue, envelope, head=head))
    assert not [error for entry in entries for error in store.put([entry]) if error is not None]


class Seen:
    """What came: the bodies, and the parts of the messages."""

    def __init__(self) -> None:
        self.handled: list[Any] = []

    def handle(self, body: Any, message: Any) -> None:
        # Nothing cannot be published; nor can it be decoded, so that it comes as empty text.
        self.handled.append((body or "", *parts_of(message)))

    def fail(self, body: Any, message: Any) -> None:
        self.handle(body, message)
        raise ValueError("fails")


def parts_of(message: Any) -> tuple[Any, ...]:
    """Return all that is sent with a message, without what says how it failed."""
    headers = {
        name: value
        for name, value in message.headers.items()
        if not str(name).startswith(("x-greenconn-", "x-delivery-count", "redelivered"))
    }
    left_out = {
        *("delivery_info", "delivery_tag", "body_encoding", "application_headers"),
        *("priority", "expiration", "user_id", "message_attributes"),
    }
    properties = {
        name: value
        for name, value in message.properties.items()
        if name not in left_out and value is not None
    }
    return message.content_type, headers, {"delivery_mode": 2, **properties}


def number_of(seen: tuple[Any, ...]) -> str:
    """Return which of the cases it is; that without a body has none."""
    return str(seen[0]).rpartition(":")[2].strip("[]} ")


def consume(connection: Connection, queue: str, handler: Callable[..., Any], **options: Any) -> Any:
    consumer = greenconn.spawn_consumer(queue, handler, connection=connection, **options)
    assert consumer.wait_ready(SOON)
    return consumer


def check_kept_and_replayed(
    connection: Connection, queue: str, readable: int, unreadable: int, mended: int = 0
) -> None:
    """Let all messages fail, replay them, and compare what came with what came before.

    Arguments:
        mended: so many of the unreadable are readable without the part that cannot be read.
    """
    first, second = Seen(), Seen()
    count = readable + unreadable
    consumer = consume(connection, queue, first.fail, dead_letter=True)
    until(lambda: consumer.stats()["rejected"] == count, SOON)
    assert consumer.stop(SOON)
    dead = greenconn.dead_letters(queue, connection=connection)
    until(lambda: dead.count() == count, SOON)
    assert len(first.handled) == readable
    letters = dead.look(count)
    assert {each.reason for each in letters} <= {"failed", "undecodable"}
    kept = [parts_of(each.message) for each in letters if each.reason == "undecodable"]
    assert len(kept) == unreadable
    until(lambda: dead.count() == count, SOON)
    assert dead.replay() == count
    consumer = consume(connection, queue, second.handle, dead_letter=True)
    until(lambda: consumer.stats()["handled"] + consumer.stats()["rejected"] == count, SOON)
    assert consumer.stop(SOON)
    found = {number_of(each): each for each in second.handled}
    assert len(found) == readable + mended
    for one in first.handled:
        assert repr(found[number_of(one)]) == repr(one)
    until(lambda: dead.count() == unreadable - mended, SOON)
    again = [parts_of(each.message) for each in dead.look(count)]
    assert mended or sorted(map(repr, again)) == sorted(map(repr, kept))


@pytest.mark.parametrize("broker_kind", STORES, indirect=True)
def test_parts_of_an_envelope(connection: Connection, unique: str) -> None:
    with connection.channel() as channel:
        channel.queue_declare(unique, durable=True, auto_delete=False)
    readable, unreadable = READABLE, UNREADABLE
    if connection.transport_cls == "sqlite":  # a column has the body
        readable = [each for each in READABLE if "body" not in each]
        unreadable = [each for each in UNREADABLE if "body" not in str(each)]
    put(connection, unique, [*readable, *unreadable])
    check_kept_and_replayed(connection, unique, len(readable), len(unreadable))


@pytest.mark.parametrize("broker_kind", ["memory"], indirect=True)
def test_headers_and_properties_in_memory(connection: Connection, unique: str) -> None:
    cases = [parts for parts in READABLE if set(parts) <= {"headers", "properties"}]
    count = 0
    with connection.channel() as channel:
        channel.queue_declare(unique, durable=True, auto_delete=False)
        for number, parts in enumerate(cases):
            headers = parts.get("headers", {})
            properties = {"correlation_id": "c", **parts.get("properties", {})}
            expiration = properties.pop("expiration", None)
            if not isinstance(headers, dict) or header_error(headers) or expiration is not None:
                continue
            body = json.dumps({**BODY, "number": number})
            message = channel.prepare_message(
                body, 0, "application/json", "utf-8", headers, properties
            )
            channel.basic_publish(message, "", unique)
            count += 1
    assert count > 80
    check_kept_and_replayed(connection, unique, count, 0)


def item_of(value: bytes, number: int) -> bytes:
    """Return a property block with such a header, and with all properties."""
    table = b"\1a" + value + b"\4last" + b"S\0\0\0\3end"
    return (
        b"\xfe\xe8\x10application/json\5utf-8"
        + (pack(">I", len(table)) + table)
        + b"\2\0\3cor\3rep\2id"
        + pack(">Q", 2**63 + number)
        + b"\4type\3app"
    )


#: Values of a header, with their type.
ITEMS = [
    b"T" + pack(">Q", 1_764_000_000_000),
    b"T" + pack(">q", -5),
    b"T\xff\xff\xff\xff\xff\xff\xff\xff",
    b"T" + pack(">Q", 1_764_000_000),
    b"A" + pack(">I", 9) + b"T" + pack(">q", -5),
    b"F" + pack(">I", 11) + b"\1tT" + pack(">q", -5),
    *(b"t\1", b"b\xff", b"B\xff", b"s\xff\xfe", b"u\xff\xfe", b"I\xff\xff\xff\xfd", b"V"),
    *(b"i\xff\xff\xff\xfd", b"l" + pack(">q", -(2**60)), b"f" + pack(">f", 1.5)),
    *(b"d" + pack(">d", 1e300), b"D\xff\0\0\0\7", b"S\0\0\0\2\xff\xfe", b"x\0\0\0\2\xff\xfe"),
    b"S" + pack(">I", 60_000) + b"x" * 60_000,
]
#: Other property blocks: what is no UTF-8, and what cannot be decoded.
BLOCKS = [
    (b"\x84\0\x10application/json\3\xff\xfe\xfd", True),
    (b"\x80\x40\x10application/json" + b"\xff" * 8, True),
    (b"\xc0\0\x10application/json\7nothing", True),
    (b"\x80\0\3\xff\xfe\xfd", True),  # text of no known type
]


@pytest.mark.parametrize("broker_kind", ["amqp"], indirect=True)
def test_properties_and_headers_of_amqp(connection: Connection, unique: str) -> None:
    deep = b"V"
    for _ in range(2000):
        deep = b"A" + pack(">I", len(deep)) + deep
    blocks = [(item_of(item, number), True) for number, item in enumerate(ITEMS)] + BLOCKS
    blocks.append((item_of(deep, 99), False))
    with connection.channel() as channel:
        channel.queue_declare(unique, durable=True, auto_delete=False)
        for number, (block, _) in enumerate(blocks):
            body = json.dumps({**BODY, "number": number}).encode()
            message: Any = Outgoing(block, body)
            channel.basic_publish_confirm(message, "", unique)
    readable = sum(can for _, can in blocks)
    check_kept_and_replayed(connection, unique, readable, len(blocks) - readable, mended=1)


#: What is no envelope.
STRANGE: list[dict[str, Any]] = [
    {"properties": None},
    {"properties": []},
    {"properties": "text"},
    {"properties": 5, "headers": 5, "content-type": []},
]


@pytest.mark.parametrize("broker_kind", STORES, indirect=True)
def test_rejected_messages_become_dead_letters(connection: Connection, unique: str) -> None:
    dead = f"{unique}-dead"
    queue = greenconn.Queue(
        unique, queue_arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    )
    cases = [
        parts
        for parts in (*READABLE, *UNREADABLE)
        if "body" not in parts or connection.transport_cls != "sqlite"
    ]
    with connection.channel() as channel:
        channel.queue_declare(dead, durable=True, auto_delete=False)
        queue(channel).declare()
        put(connection, unique, [*cases, *STRANGE])
        count = len(cases) + len(STRANGE)
        consumer = consume(connection, unique, Seen().fail, on_error="reject")
        until(lambda: consumer.stats()["rejected"] == count, SOON)
        assert consumer.stop(SOON)
        until(lambda: channel.queue_declare(dead, passive=True).message_count == count, SOON)
        bodies = []
        for _ in range(count):
            message: Any = None
            while message is None:
                message = channel.basic_get(dead)
            body = message.body
            bodies.append(body.decode() if isinstance(body, bytes) else str(body))
            message.ack()
        # What cannot be read is the body.
        for number, parts in enumerate([*cases, *STRANGE]):
            text = json.dumps({**BODY, "number": number})
            coded = base64.b64encode(text.encode()).decode()
            assert "body" in parts or any(text in each or coded in each for each in bodies), parts
