"""Messages as rows of an outbox.

The body is serialised when the row is written, so that a body that cannot be is an error of the
transaction.  All that is said of it beside (the target with its arguments, options, headers) is one
text in greenconn's JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import time
from typing import Any, Final
from zlib import crc32

from greenconn import jsoncodec
from greenconn.entity import Exchange, Queue, binding
from greenconn.identity import uuid
from greenconn.publishing.publisher import PublishOptions, Target

#: Relays that can share the work at most.  Rows name theirs: never change it.
PARTITIONS: Final = 32
#: Characters of an ordering key, of a target's name and of a message id.
LONGEST: Final = 255
#: Options that have become part of the body or of its description.
_SERIALIZED: Final = frozenset(
    {"serializer", "compression", "content_type", "content_encoding", "headers"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutboxRow:
    """A message to be published, as it is written; the names are those of the columns."""

    message_id: str
    """By which consumers know a second delivery."""

    partition: int
    """The share that it belongs to, from 0 to :data:`PARTITIONS` - 1."""

    ordering_key: str | None
    """Messages of one key are published in their order; None: in any."""

    target: str
    """The name of the queue or exchange, for who looks at the table."""

    envelope: str
    """All that is said of the body."""

    body: bytes
    """The serialised body."""

    created_ms: int
    """Milliseconds since 1970."""


def now_ms() -> int:
    """Return the time in milliseconds since 1970."""
    return int(time() * 1000)


def row_of(target: Target, body: Any, key: str | None, options: Mapping[str, Any]) -> OutboxRow:
    """Return the row of a message.  Never switches.

    Arguments:
        target, body, options: as for :func:`greenconn.publish`.
        key: messages of one key are published in their order; None: in any.

    Raises:
        EncodeError: the body or the headers cannot be serialised.
        TypeError, ValueError: wrong arguments.
    """
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= LONGEST):
        raise ValueError(f"key must be text of 1 to {LONGEST} characters, or None, got {key!r}")
    for name in ("connection", "timeout"):
        if name in options:
            raise TypeError(
                f"{name} must be given to the relay, which publishes, not to the outbox"
            )
    checked = PublishOptions(target, options)
    message = checked.message(body)
    message_id = checked.properties.get("message_id") or uuid()
    given = {name: value for name, value in options.items() if name not in _SERIALIZED}
    envelope = {
        "target": target if isinstance(target, str) else _described(target),
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "headers": message.headers,
        "options": {**given, "message_id": message_id},
    }
    name = target if isinstance(target, str) else target.name
    return OutboxRow(
        message_id=message_id,
        partition=crc32((key or message_id).encode()) % PARTITIONS,
        ordering_key=key,
        target=str(name),
        envelope=jsoncodec.dumps(envelope),
        body=_as_bytes(message.body),
        created_ms=now_ms(),
    )


def publish_arguments(envelope: str) -> dict[str, Any]:
    """Return the arguments of :func:`greenconn.publish` but the body, of a row's *envelope*."""
    found: dict[str, Any] = jsoncodec.loads(envelope)
    options = found.pop("options")
    target = found.pop("target")
    return {"target": target if isinstance(target, str) else _entity(target), **found, **options}


def _as_bytes(body: Any) -> bytes:
    return body.encode() if isinstance(body, str) else bytes(body)


def _described(target: Queue | Exchange) -> dict[str, Any]:
    if isinstance(target, Exchange):
        return {"exchange": target.as_dict(recurse=True)}
    return {"queue": target.as_dict(recurse=True)}


def _entity(described: dict[str, Any]) -> Queue | Exchange:
    if "exchange" in described:
        return Exchange(**described["exchange"])
    queue = described["queue"]
    queue["exchange"] = queue["exchange"] and Exchange(**queue["exchange"])
    queue["bindings"] = [
        binding(**{**each, "exchange": each["exchange"] and Exchange(**each["exchange"])})
        for each in queue["bindings"]
    ]
    return Queue(**queue)
