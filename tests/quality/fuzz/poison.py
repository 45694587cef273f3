"""Queues with messages that no publisher of ours would send, among good ones."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from struct import pack
from typing import Any

import greenconn
from greenconn import Connection
from greenconn.exceptions import AMQPError, KombuError
from greenconn.transport.amqp.message import Outgoing
from tests.integration.redis_clients import control
from tests.quality.fuzz import corpus

#: What a good message says.
GOOD = {"good": True}

_JSON = b"\x80\0\x10application/json"


def _text(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()


def _block(kind: str, encoding: str, fields: bytes = b"") -> bytes:
    return b"\xe0\0" + _text(kind) + _text(encoding) + pack(">I", len(fields)) + fields


def _field(name: str, value: bytes) -> bytes:
    return _text(name) + value


def _long(text: bytes) -> bytes:
    return b"S" + pack(">I", len(text)) + text


#: Property blocks and bodies that RabbitMQ passes on.
AMQP: list[tuple[bytes, bytes]] = [
    *((block, b"{}") for block in corpus.PROPERTIES),
    *((_JSON, body) for body in corpus.BODIES[::3]),
    (_block("application/x-python-serialize", "binary"), b"cos\nsystem\n(S'true'\ntR."),
    (_block("application/x-yaml", "utf-8"), b"!!python/object/apply:os.system [true]"),
    (_block("application/json\0", "utf-8"), b"{}"),
    (_block("application/json", "utf-8\0"), b"{}"),
    (_block("text/plain", "punycode"), b"a-" + b"b" * 50_000),
    (_block("text/plain", "nothing"), b"text"),
    *(
        (_block("application/json", "utf-8", _field("compression", value)), b"{}")
        for value in (
            b"V",
            b"t\1",
            _long(b"zlib"),
            _long(b"nothing"),
            b"A" + bytes(4),
            b"F" + bytes(4),
        )
    ),
    (_block("application/json", "utf-8", _field("x-death", _long(b"x"))), b"not json"),
]


def amqp_poison(url: str, queue: str, cases: Iterable[tuple[bytes, bytes]]) -> None:
    """Publish such messages; what RabbitMQ does not take is left out.  May switch."""
    with Connection(url) as connection:
        for block, body in cases:
            # It ends the whole connection for what it cannot read.
            with suppress(KombuError, AMQPError, OSError):
                message = Outgoing(block, body)
                channel = connection.default_channel
                channel.basic_publish_confirm(message, "", queue, timeout=10)


def redis_poison(url: str, queue: str, cases: Iterable[bytes]) -> None:
    """Put such messages into the list of a queue.  May switch."""
    with control(url) as command:
        for raw in cases:
            command("LPUSH", queue, raw)


def sqlite_poison(url: str, queue: str, cases: Sequence[bytes]) -> None:
    """Put such messages into the database instead of good ones.  May switch."""
    with Connection(url) as connection:
        for _ in cases:
            greenconn.publish(queue, GOOD, connection=connection, declare=True)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database, database:
        rows = database.execute("SELECT id FROM messages ORDER BY id").fetchall()
        for (row,), raw in zip(rows, cases, strict=True):
            text = raw.decode("utf-8", "replace")
            database.execute("UPDATE messages SET envelope = ? WHERE id = ?", (text, row))


def poison(url: str, queue: str, prefix: str) -> None:
    """Put all that is known into a queue, of which the key begins with *prefix*.  May switch."""
    if url.startswith("sqlite"):
        sqlite_poison(url, queue, [*corpus.ENVELOPES, *map(in_envelope, corpus.BODIES)])
    elif url.startswith("redis"):
        redis_poison(url, prefix + queue, corpus.ENVELOPES)
        redis_poison(url, prefix + queue, [in_envelope(body) for body in corpus.BODIES])
    else:
        amqp_poison(url, queue, AMQP)


def in_envelope(body: bytes, **properties: Any) -> bytes:
    """A body in an envelope that is right."""
    return json.dumps(
        {
            "body": body.decode("latin-1"),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {},
            "properties": {
                "delivery_tag": "t",
                "delivery_info": {"exchange": "", "routing_key": "q"},
                **properties,
            },
        }
    ).encode()
