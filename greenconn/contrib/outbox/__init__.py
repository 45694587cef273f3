"""Outbox: messages that are written in a database transaction and published after its commit.

A program that commits and then publishes loses messages when it dies in between; one that publishes
first announces what may be rolled back.  Here the message is a row of the same transaction, and a
*relay* publishes what was committed::

    with Session(engine) as session, session.begin():
        session.add(Order(number=7))
        outbox.publish(session, "orders", {"number": 7}, key="customer-3")

:mod:`greenconn.contrib.outbox.sqlalchemy` and :mod:`greenconn.contrib.outbox.django` write the rows
and read them, and a relay (:mod:`~greenconn.contrib.outbox.relay`) publishes them; this module has what
both sides know: a message as a row, and the calls of a database that a relay needs.

The body of a message is serialised when its row is written, so that a body that cannot be is an error of
the transaction.  All that is said of it beside (target, options, headers) is one text in
greenconn's JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Any, Final, Protocol
from zlib import crc32

from greenconn import jsoncodec
from greenconn.checks import in_seconds
from greenconn.entity import Exchange, Queue, binding
from greenconn.identity import uuid
from greenconn.publishing.publisher import PublishOptions, Target

__all__ = ["Backlog", "Lease", "OutboxStore", "PendingMessage"]


#: Relays that can share the work at most.  Rows name theirs: never change it.
PARTITIONS: Final = 32
#: On which PostgreSQL notifies relays of commits, with the name of the table.
CHANNEL: Final = "greenconn_outbox"
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
    given = {name: in_seconds(value) for name, value in options.items() if name not in _SERIALIZED}
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


def conninfo_of(driver: Any) -> dict[str, Any] | None:
    """Return libpq's parameters of a driver's connection; None: it is not one of psycopg 3."""
    info = getattr(driver, "info", None)
    parameters = getattr(info, "get_parameters", None)
    return {**parameters(), "password": info.password} if info and parameters else None


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


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingMessage:
    """A row that was not published yet."""

    id: int
    partition: int
    ordering_key: str | None
    attempts: int
    envelope: str
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A row of the table of leases: a partition and the relay that holds it, or the presence of one."""

    name: str
    owner: str
    """The relay; empty: none."""

    beat: int
    """A number that its owner increments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """The rows of an outbox that were not published."""

    waiting: int
    """All of them."""

    failing: int
    """Those of them that the broker has refused at least once."""

    oldest_ms: int | None
    """The time of the oldest one, in milliseconds since 1970; None without any."""


class OutboxStore(Protocol):
    """The database of an outbox, with the calls that a relay needs.

    Each is a transaction of its own and may block; a relay makes one at a time, always from the same
    greenlet or thread.  What a call raises is logged, and the call made again later.
    """

    def table(self) -> str:
        """Return the name of the table of messages.  Never blocks."""

    def conninfo(self) -> dict[str, Any] | None:
        """Return libpq's parameters, with which commits can be listened for; None: they cannot."""

    def pending(self, partitions: Collection[int], now: int, limit: int) -> list[PendingMessage]:
        """Return the first rows of *partitions*, in the order of their ids.

        Rows that are to be tried again later are left out, and all rows of their keys.

        Arguments:
            now: milliseconds since 1970.
        """

    def mark_sent(self, ids: Sequence[int], now: int) -> None:
        """Note that rows were published."""

    def mark_failed(self, id: int, error: str, retry: int) -> None:
        """Note that a row could not be published, and when to try again (milliseconds since 1970)."""

    def prune(self, before: int, limit: int) -> int:
        """Delete at most *limit* rows that were published before; return how many there were."""

    def backlog(self) -> Backlog:
        """Count the rows that were not published."""

    def leases(self) -> list[Lease]:
        """Return all leases."""

    def add_leases(self, leases: Collection[Lease]) -> None:
        """Insert leases; those whose name is there are left as they are."""

    def renew_leases(self, owner: str) -> None:
        """Increment ``beat`` of all leases of *owner*."""

    def take_leases(self, leases: Collection[Lease], owner: str) -> None:
        """Give *owner* those leases that have not changed; their ``beat`` is incremented."""

    def free_leases(self, names: Collection[str], owner: str) -> None:
        """Take leases from *owner*."""

    def delete_leases(self, leases: Collection[Lease]) -> None:
        """Delete those leases that have not changed."""

    def close(self) -> None:
        """Close the connection to the database, if it is the caller's own."""
