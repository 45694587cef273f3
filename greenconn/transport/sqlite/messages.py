"""What is done to messages: functions that run in a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from time import time
from typing import Final, NamedTuple

from greenconn.jsoncodec import dumps, loads
from greenconn.transport.leased.store import (
    Answer,
    Claimed,
    Entry,
    NoQueue,
    QueueFull,
    Settlement,
)
from greenconn.transport.sqlite.arming import Pipes, armed
from greenconn.transport.sqlite.queues import QueueRow, Queues
from greenconn.transport.virtual.publishing import Envelope

__all__ = ["Claim", "Handle", "Put", "Taken", "claim", "put", "renew", "settle", "take_dead"]

READY, DELAYED, HELD = range(3)

#: Messages that are counted for ``basic_get``.
COUNTED: Final = 1000
#: Messages that are given up in one transaction.
MOST_DEAD: Final = 100

_PUT: Final = (
    "INSERT INTO messages (queue, state, priority, at, expires, envelope, body) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_TAKE: Final = (
    "SELECT id, envelope, body, deliveries FROM messages WHERE queue = ? AND state = 0 "
    "ORDER BY priority DESC, id LIMIT ?"
)
_HOLD: Final = (
    "UPDATE messages SET state = 2, at = ?, claim = ?, deliveries = deliveries + 1 WHERE id = ?"
)


class Handle(NamedTuple):
    """A message that somebody has."""

    id: int
    claim: int


class Claim(NamedTuple):
    """How messages are taken.

    Attributes:
        number: tells this claim from all others.
        lease: seconds.
        owner: who takes.
    """

    number: int
    lease: float
    owner: str


class Put(NamedTuple):
    """What came of storing.

    Attributes:
        outcomes: for each entry.
        pipes: who is to be told, and of which queues.
        dead: what became too many.
        next_at: when the next of them may be delivered, or dies.
    """

    outcomes: list[Exception | None]
    pipes: Pipes
    dead: list[Claimed]
    next_at: float | None


class Taken(NamedTuple):
    """What came of a claim.

    Attributes:
        dead: what had grown too old.
        due: queues of which something may be delivered again.
        pipes: who is to be told, and of which queues.
        next_at: when something may be delivered that cannot be now.
    """

    claimed: list[Claimed]
    dead: list[Claimed]
    due: set[int]
    pipes: Pipes
    next_at: float | None


# -- storing


def put(db: sqlite3.Connection, queues: Queues, entries: Sequence[Entry], claim: Claim) -> Put:
    """Store messages."""
    now = time()
    outcomes: list[Exception | None] = []
    dead: list[Claimed] = []
    touched: dict[str, QueueRow | None] = {}
    next_at: float | None = None
    texts: dict[int, tuple[str, bytes]] = {}
    for entry in entries:
        if entry.queue in touched:
            queue = touched[entry.queue]
        else:
            queue = touched[entry.queue] = queues.row(db, entry.queue)
        if queue is None:
            outcomes.append(NoQueue(entry.queue))
            continue
        text = texts.get(id(entry.envelope))
        if text is None:
            text = texts[id(entry.envelope)] = _written(entry.envelope)
        at = now + entry.delay if entry.delay else None
        expires = None if entry.lifetime is None else (at or now) + entry.lifetime
        outcome = None
        if queue.policy.is_bounded:
            outcome = _make_room(db, queue, len(text[1]), claim, dead)
        outcomes.append(outcome)
        if outcome is None:
            state = READY if at is None else DELAYED
            db.execute(_PUT, (queue.id, state, entry.priority, at, expires, *text))
            for when in (at, expires):
                if when is not None and (next_at is None or when < next_at):
                    next_at = when
    pipes = armed(db, [queue.id for queue in touched.values() if queue], claim.owner)
    return Put(outcomes, pipes, dead, next_at)


def _written(envelope: Envelope) -> tuple[str, bytes]:
    body = envelope["body"]
    return dumps({**envelope, "body": None}), body


def _read(text: str, body: bytes) -> Envelope | None:
    try:
        envelope: Envelope = loads(text)
        envelope["body"] = body
        return envelope
    except (ValueError, TypeError):
        return None


def _make_room(
    db: sqlite3.Connection, queue: QueueRow, size: int, claim: Claim, dead: list[Claimed]
) -> Exception | None:
    """Make room for one more message in a queue that is bounded; what it refuses."""
    policy = queue.policy
    while True:
        count, total = db.execute(
            "SELECT count(*), total(length(body)) FROM messages WHERE queue = ? AND state = 0",
            (queue.id,),
        ).fetchone()
        if not policy.is_above(count + 1, int(total) + size):
            return None
        if policy.refuses_overflow or not count:
            return QueueFull(queue.name)
        dead += _hold(db, queue, 1, claim, "maxlen")


# -- taking


def claim(
    db: sqlite3.Connection, queues: Queues, wanted: Mapping[str, int], how: Claim, counts: bool
) -> Taken:
    """Take messages.

    Arguments:
        counts: tell how many are left.
    """
    now = time()
    due, pipes = release_due(db, now, how.owner)
    dead = take_dead(db, queues, how, now)
    claimed: list[Claimed] = []
    next_at: float | None = None
    for name, most in wanted.items():
        queue = queues.row(db, name)
        if queue is None:
            continue
        if queue.policy.is_single_active and not counts and not _is_first(db, queue, how.owner):
            found: list[Claimed] = []
        else:
            found = _hold(db, queue, most, how)
        if counts:
            queues.touch(db, queue, now)
            found = [each._replace(waiting=_count(db, queue.id)) for each in found]
        elif len(found) < most:
            db.execute(
                "UPDATE consumers SET armed = 1 WHERE queue = ? AND owner = ? AND armed = 0",
                (queue.id, how.owner),
            )
        claimed += found
        if len(found) < most:
            next_at = next_time(db)
    return Taken(claimed, dead, due, pipes, next_at)


def _hold(
    db: sqlite3.Connection, queue: QueueRow, most: int, how: Claim, dead: str | None = None
) -> list[Claimed]:
    rows = db.execute(_TAKE, (queue.id, most)).fetchall()
    until = time() + how.lease
    db.executemany(_HOLD, [(until, how.number, row[0]) for row in rows])
    return [
        Claimed(queue.name, _read(text, body), Handle(id, how.number), deliveries, body, dead)
        for id, text, body, deliveries in rows
    ]


def _is_first(db: sqlite3.Connection, queue: QueueRow, owner: str) -> bool:
    """Whether *owner* has the single active consumer of a queue."""
    first = db.execute(
        "SELECT owner FROM consumers WHERE queue = ? ORDER BY id LIMIT 1", (queue.id,)
    ).fetchone()
    return first is not None and first[0] == owner


def _count(db: sqlite3.Connection, queue: int) -> int:
    (count,) = db.execute(
        "SELECT count(*) FROM (SELECT 1 FROM messages WHERE queue = ? AND state = 0 LIMIT ?)",
        (queue, COUNTED),
    ).fetchone()
    return int(count)


def release_due(db: sqlite3.Connection, now: float, owner: str) -> tuple[set[int], Pipes]:
    """What was delayed or held until now waits from now on: in which queues, and who is to be told."""
    due = {
        queue
        for (queue,) in db.execute("SELECT DISTINCT queue FROM messages WHERE at <= ?", (now,))
    }
    if not due:
        return due, {}
    db.execute("UPDATE messages SET state = 0, at = NULL, claim = NULL WHERE at <= ?", (now,))
    return due, armed(db, due, owner)


def take_dead(db: sqlite3.Connection, queues: Queues, how: Claim, now: float) -> list[Claimed]:
    """Take what waits and has grown too old."""
    rows = db.execute(
        "SELECT id, queue, envelope, body, deliveries FROM messages "
        "WHERE expires <= ? AND state = 0 ORDER BY expires LIMIT ?",
        (now, MOST_DEAD),
    ).fetchall()
    dead = []
    for id, queue, text, body, deliveries in rows:
        name = queues.name(db, queue)
        db.execute(_HOLD, (now + how.lease, how.number, id))
        handle = Handle(id, how.number)
        dead.append(Claimed(name, _read(text, body), handle, deliveries, body, "expired"))
    return dead


def next_time(db: sqlite3.Connection) -> float | None:
    """When something may be delivered, or dies, without anybody's doing."""
    times = [
        row[0]
        for row in (
            db.execute(
                "SELECT at FROM messages WHERE at IS NOT NULL ORDER BY at LIMIT 1"
            ).fetchone(),
            db.execute(
                "SELECT expires FROM messages WHERE expires IS NOT NULL AND state = 0 "
                "ORDER BY expires LIMIT 1"
            ).fetchone(),
            db.execute(
                "SELECT min(idle_until) FROM queues WHERE idle_until IS NOT NULL"
            ).fetchone(),
        )
        if row is not None and row[0] is not None
    ]
    return min(times, default=None)


# -- settling


def settle(db: sqlite3.Connection, queues: Queues, answers: Sequence[Answer], claim: Claim) -> Put:
    """Settle what is held; what is not held any more stays as it is."""
    now = time()
    gone = []
    back: set[int] = set()
    entries: list[Entry] = []
    next_at: float | None = None
    for answer in answers:
        handle: Handle = answer.handle
        if answer.settlement is not Settlement.BACK:
            if answer.entries and _holds(db, handle):
                entries += answer.entries
            gone.append(handle)
            continue
        row = db.execute("SELECT queue FROM messages WHERE id = ? AND claim = ?", handle).fetchone()
        if row is None:
            continue
        at = now + answer.delay if answer.delay else None
        db.execute(
            "UPDATE messages SET state = ?, at = ?, claim = NULL, deliveries = deliveries - ? "
            "WHERE id = ?",
            (READY if at is None else DELAYED, at, answer.is_unseen, handle.id),
        )
        back.add(row[0])
        if at is not None and (next_at is None or at < next_at):
            next_at = at
    stored = put(db, queues, entries, claim) if entries else Put([], {}, [], None)
    db.executemany("DELETE FROM messages WHERE id = ? AND claim = ?", gone)
    pipes = armed(db, back, claim.owner)
    for pipe, numbers in stored.pipes.items():
        pipes.setdefault(pipe, set()).update(numbers)
    times = [each for each in (next_at, stored.next_at) if each is not None]
    return Put([], pipes, stored.dead, min(times, default=None))


def _holds(db: sqlite3.Connection, handle: Handle) -> bool:
    found = db.execute("SELECT 1 FROM messages WHERE id = ? AND claim = ?", handle).fetchone()
    return found is not None


def renew(db: sqlite3.Connection, handles: Sequence[Handle], lease: float) -> list[Handle]:
    """Begin leases anew; those that are lost."""
    until = time() + lease
    renewed = db.executemany(
        "UPDATE messages SET at = ? WHERE id = ? AND claim = ?",
        [(until, *handle) for handle in handles],
    ).rowcount
    if renewed == len(handles):
        return []
    return [handle for handle in handles if not _holds(db, handle)]
