"""Messages, from publishing to settlement, and maintenance: functions that run in a transaction.

A process that died said nothing: its exclusive queues go, and so do the auto-delete queues that only
it consumed from.  What it held comes back when the leases end.

A link that lives may be taken for dead, too, when its process was suspended or blocked for longer than
its lease.  Nothing of it is left then, so its next renewal finds no row and raises ``LeaseExpired``:
the link ends, and the next one declares and consumes anew.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from time import time
from typing import Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from greenconn.broker.envelope import mark_redelivered, read_envelope
from greenconn.broker.port import (
    Claimed,
    Entry,
    LeaseExpired,
    NoQueue,
    QueueFull,
    Settlement,
    SettleRequest,
    StaleRoute,
)
from greenconn.jsoncodec import dumps
from greenconn.transport.sqlite.queues import (
    NEVER,
    UNCLAIMED,
    Pipes,
    QueueRow,
    Queues,
    chunks,
    in_list,
    note_waiting,
    ready_for,
    ready_of,
    rows_of,
    wake_all,
    wake_one,
)

#: See :mod:`greenconn.transport.sqlite.queues`.
READY, DELAYED, CLAIMED = 0, 1, None

#: Of what is delayed, or claimed, no longer than until now.
_IS_DUE: Final = "(state IS NULL AND at <= :now OR state = 1 AND at <= :now)"

#: Messages that are counted for ``basic_get``.
COUNTED: Final = 1000

#: Messages that are given up in one transaction.
MOST_DEAD: Final = 100

#: Messages that one statement stores; a power of two.
STORED: Final = 64
#: The columns of rows by their number: the first are those of a message that waits, and does not end.
_COLUMNS: Final = {
    3: "queue, envelope, body",
    7: "queue, envelope, body, state, priority, at, expires",
}
_TAKE: Final = (
    "SELECT id, envelope, body, deliveries FROM messages WHERE queue = ? AND state = 0 "
    "ORDER BY priority DESC, id LIMIT ?"
)


class Handle(Struct, frozen=True):
    """A claimed message."""

    id: int
    claim: int


class Claim(NamedTuple):
    """The terms of a claim.

    Attributes:
        number: tells this claim from all others.
        lease: seconds.
        owner: who takes.
    """

    number: int
    lease: float
    owner: str


class PutResult(NamedTuple):
    """The outcome of storing messages.

    Attributes:
        outcomes: for each entry.
        pipes: those to wake, and for which queues.
        dead: what became too many.
        next_at: when the next of them may be delivered, or dies.
        others: queues of which others wait than those to wake.
        late: acks that came too late.
        refused: queues of dead letters that were not stored, so that their messages stay; and why.
    """

    outcomes: list[Exception | None]
    pipes: Pipes
    dead: list[Claimed]
    next_at: float | None
    others: Collection[int] = ()
    late: int = 0
    refused: Sequence[tuple[str, Exception]] = ()


class ClaimResult(NamedTuple):
    """The outcome of a claim.

    Attributes:
        dead: what had grown too old.
        due: queues of which something may be delivered again.
        pipes: those to wake, and for which queues.
        next_at: when something may be delivered that cannot be now.
        others: queues of which others wait than those to wake.
    """

    claimed: list[Claimed]
    dead: list[Claimed]
    due: set[int]
    pipes: Pipes
    next_at: float | None
    others: Collection[int] = ()


def earliest(*times: float | None) -> float | None:
    """Return the earliest of *times*; None is never."""
    return min((each for each in times if each is not None), default=None)


# -- storing
class _Storing:
    """Entries on their way into the file, in one transaction."""

    def __init__(self, db: sqlite3.Connection, claim: Claim) -> None:
        self._db = db
        self._claim = claim
        self._now = time()
        self._rows: list[tuple[Any, ...]] = []
        self.dead: list[Claimed] = []
        self.next_at: float | None = None
        #: Bounded queue -> its waiting messages, and the bytes of their bodies.
        self._waiting: dict[int, tuple[int, int]] = {}

    def add(self, entry: Entry, queue: QueueRow) -> Exception | None:
        """Store an entry; or why not."""
        body = entry.envelope["body"]
        if queue.policy.is_bounded:
            refusal = self._make_room(queue, len(body))
            if refusal is not None:
                if queue.policy.overflow == "reject-publish-dlx":
                    self._give_up(queue, entry)
                return refusal
        if not entry.delay and queue.id in self._waiting:
            count, total = self._waiting[queue.id]
            self._waiting[queue.id] = (count + 1, total + len(body))
        row: tuple[Any, ...] = (queue.id, entry.head, body)
        if entry.priority or entry.delay or entry.lifetime is not None:
            at = self._now + entry.delay if entry.delay else None
            expires = None if entry.lifetime is None else (at or self._now) + entry.lifetime
            self.next_at = earliest(self.next_at, at, expires)
            times = (READY, entry.priority, NEVER) if at is None else (DELAYED, entry.priority, at)
            row += (*times, expires)
        self._rows.append(row)
        return None

    def flush(self) -> None:
        """Write what was added."""
        rows, self._rows = self._rows, []
        for width, alike in groupby(rows, len):
            for marks, values in rows_of(list(alike), STORED):
                self._db.execute(f"INSERT INTO messages ({_COLUMNS[width]}) VALUES {marks}", values)

    def end(self) -> None:
        """Write what is left, and the lengths of bounded queues."""
        self.flush()
        for queue, length in self._waiting.items():
            self._db.execute("INSERT OR REPLACE INTO lengths VALUES (?, ?, ?)", (queue, *length))

    def _give_up(self, queue: QueueRow, entry: Entry) -> None:
        """Let a refused message be a dead letter: it is stored as one that was claimed."""
        until = self._now + self._claim.lease
        claim, body = self._claim.number, entry.envelope["body"]
        number = self._db.execute(
            "INSERT INTO messages (queue, state, priority, at, claim, envelope, body) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (queue.id, CLAIMED, entry.priority, until, claim, entry.head, body),
        ).lastrowid
        assert number is not None
        handle = Handle(number, claim)
        self.dead.append(Claimed(queue.name, entry.envelope, handle, dead="maxlen"))

    def _make_room(self, queue: QueueRow, size: int) -> Exception | None:
        """Make room for one more message in a queue that is bounded; what it refuses."""
        policy = queue.policy
        if queue.id not in self._waiting:
            self._waiting[queue.id] = self._count(queue)
        while True:
            count, total = self._waiting[queue.id]
            if not policy.is_above(count + 1, total + size):
                return None
            if policy.refuses_overflow or not count:
                return QueueFull(queue.name)
            self.flush()
            dropped = _take(self._db, queue, 1, self._claim, "maxlen")
            self._waiting[queue.id] = (
                count - len(dropped),
                total - sum(len(each.raw) for each in dropped),
            )
            self.dead += dropped

    def _count(self, queue: QueueRow) -> tuple[int, int]:
        """Return the waiting messages, and the bytes of their bodies."""
        found: tuple[int, int] | None = self._db.execute(
            "SELECT messages, bytes FROM lengths WHERE queue = ?", (queue.id,)
        ).fetchone()
        # The first time, or behind a purge.
        return (
            found
            or self._db.execute(
                "SELECT count(*), coalesce(sum(length(body)), 0) FROM messages "
                "WHERE queue = ? AND state = 0",
                (queue.id,),
            ).fetchone()
        )


def _note_length(db: sqlite3.Connection, queue: int, messages: int, size: int) -> None:
    """Note that more messages wait in a queue, or fewer, and so many bytes of bodies.

    One that is not bounded has no row.
    """
    db.execute(
        "UPDATE lengths SET messages = messages + ?, bytes = bytes + ? WHERE queue = ?",
        (messages, size, queue),
    )


def put(
    db: sqlite3.Connection, queues: Queues, entries: Sequence[Entry], claim: Claim
) -> PutResult:
    """Store messages."""
    storing = _Storing(db, claim)
    rows = queues.rows(db, {entry.queue for entry in entries})
    version = 0
    if any(entry.version for entry in entries):
        (version,) = db.execute("SELECT version FROM topology").fetchone()
    outcomes: list[Exception | None] = []
    for entry in entries:
        queue = rows.get(entry.queue)
        if entry.version and (entry.version != version or queue is None):
            outcomes.append(StaleRoute())
        else:
            outcomes.append(NoQueue(entry.queue) if queue is None else storing.add(entry, queue))
    storing.end()
    pipes, others = _wake(db, rows.values(), claim.owner)
    return PutResult(outcomes, pipes, storing.dead, storing.next_at, others)


def _wake(
    db: sqlite3.Connection, rows: Iterable[QueueRow], owner: str
) -> tuple[Pipes, Collection[int]]:
    """Wake a consumer of each of some queues, and the one that is active where there is but one."""
    shared: list[int] = []
    single: list[int] = []
    for row in rows:
        (single if row.policy.is_single_active else shared).append(row.id)
    pipes, others = wake_one(db, shared, owner)
    if single:
        _add(pipes, wake_all(db, single, owner))
    return pipes, others


def follow_up(
    db: sqlite3.Connection, numbers: Collection[int], owner: str
) -> tuple[Pipes, Collection[int]]:
    """Wake one more consumer of each queue whose messages none of those that were woken has claimed."""
    left = ready_of(db, numbers)
    for chunk in chunks(left):
        marks, values = in_list(chunk)
        db.execute(f"UPDATE consumers SET armed = 0 WHERE armed = 2 AND queue IN {marks}", values)
    return wake_one(db, left, owner)


# -- taking
def claim(
    db: sqlite3.Connection, queues: Queues, wanted: Mapping[int, int], how: Claim
) -> ClaimResult:
    """Take messages of queues that are consumed.

    Arguments:
        wanted: number of a queue -> how many.
    """
    now = time()
    due, pipes = release_due(db, now, how.owner)
    dead = take_dead(db, queues, how, now)
    claimed: list[Claimed] = []
    dry = set(wanted)
    full: list[int] = []
    for number in ready_of(db, wanted):
        queue = queues.of(db, number)
        if queue.policy.is_single_active and not _is_first(db, queue, how.owner):
            continue
        found = _take(db, queue, wanted[number], how)
        if len(found) == wanted[number]:
            dry.discard(number)
            if not queue.policy.is_single_active:
                full.append(number)
        claimed += found
    others = _pass_on(db, full, how.owner, pipes) if full else ()
    if not dry:
        return ClaimResult(claimed, dead, due, pipes, None, others)
    note_waiting(db, dry, how.owner)
    return ClaimResult(claimed, dead, due, pipes, next_time(db), others)


def _pass_on(
    db: sqlite3.Connection, numbers: Collection[int], owner: str, pipes: Pipes
) -> Collection[int]:
    """Have another consumer woken for what a link that has no more room has left.

    Arguments:
        pipes: gets those to wake.

    Returns:
        the queues of which others wait.
    """
    others: set[int] = set()
    for chunk in chunks(list(numbers)):
        marks, values = in_list(chunk)
        found = db.execute(
            f"SELECT DISTINCT queue FROM consumers WHERE armed > 0 AND queue IN {marks}", values
        )
        waiting = [number for (number,) in found]
        if waiting:  # else all are busy, and claim again by themselves
            marks, values = in_list(waiting)
            db.execute(
                f"UPDATE consumers SET armed = 0 WHERE owner = ? AND queue IN {marks}",
                (owner, *values),
            )
            more, left = wake_one(db, ready_of(db, waiting), owner)
            _add(pipes, more)
            others.update(left)
    return others


def get(db: sqlite3.Connection, queues: Queues, name: str, how: Claim) -> ClaimResult:
    """Take one message of a queue, and tell how many are left."""
    now = time()
    due, pipes = release_due(db, now, how.owner)
    dead = take_dead(db, queues, how, now)
    queue = queues.row(db, name)
    if queue is None:
        return ClaimResult([], dead, due, pipes, None)
    queues.touch(db, queue, now)
    (waiting,) = db.execute(
        "SELECT count(*) FROM (SELECT 1 FROM messages WHERE queue = ? AND state = 0 LIMIT ?)",
        (queue.id, COUNTED + 1),
    ).fetchone()
    found = [replace(each, waiting=waiting - 1) for each in _take(db, queue, 1, how)]
    return ClaimResult(found, dead, due, pipes, None)


def _take(
    db: sqlite3.Connection, queue: QueueRow, most: int, how: Claim, dead: str | None = None
) -> list[Claimed]:
    rows = db.execute(_TAKE, (queue.id, most)).fetchall()
    _hold(db, [row[0] for row in rows], how)
    if queue.policy.is_bounded:
        _note_length(db, queue.id, -len(rows), -sum(len(body) for _, _, body, _ in rows))
    return [
        Claimed(queue.name, text, Handle(id, how.number), deliveries, body, dead)
        for id, text, body, deliveries in rows
    ]


def _hold(db: sqlite3.Connection, ids: Sequence[int], how: Claim) -> None:
    until = time() + how.lease
    for chunk in chunks(ids):
        marks, values = in_list(chunk)
        db.execute(
            "UPDATE messages SET state = NULL, at = ?, claim = ?, deliveries = deliveries + 1 "
            f"WHERE id IN {marks}",
            (until, how.number, *values),
        )


def _is_first(db: sqlite3.Connection, queue: QueueRow, owner: str) -> bool:
    """Return whether *owner* has the single active consumer of a queue."""
    first = db.execute(
        "SELECT owner FROM consumers WHERE queue = ? ORDER BY id LIMIT 1", (queue.id,)
    ).fetchone()
    return first is not None and first[0] == owner


def release_due(db: sqlite3.Connection, now: float, owner: str) -> tuple[set[int], Pipes]:
    """Make due messages claimable; return their queues, and the links to notify."""
    terms = {"now": now, "never": NEVER, "unclaimed": UNCLAIMED}
    found = db.execute(
        f"SELECT queue, count(*), sum(length(body)) FROM messages WHERE {_IS_DUE} GROUP BY queue",
        terms,
    ).fetchall()
    if not found:
        return set(), {}
    for queue, count, size in found:
        _note_length(db, queue, count, size)
    db.execute(
        f"UPDATE messages SET state = 0, at = :never, claim = :unclaimed WHERE {_IS_DUE}", terms
    )
    due = {queue for queue, _, _ in found}
    return due, wake_all(db, due, owner)


def take_dead(db: sqlite3.Connection, queues: Queues, how: Claim, now: float) -> list[Claimed]:
    """Take what waits and has grown too old."""
    rows = db.execute(
        "SELECT id, queue, envelope, body, deliveries FROM messages "
        "WHERE expires <= ? AND state = 0 ORDER BY expires LIMIT ?",
        (now, MOST_DEAD),
    ).fetchall()
    _hold(db, [row[0] for row in rows], how)
    for _, queue, _, body, _ in rows:
        _note_length(db, queue, -1, -len(body))
    return [
        Claimed(
            queues.of(db, queue).name,
            text,
            Handle(id, how.number),
            deliveries,
            body,
            "expired",
        )
        for id, queue, text, body, deliveries in rows
    ]


def next_time(db: sqlite3.Connection) -> float | None:
    """Return the time at which the next message becomes due or expires."""
    times = db.execute(
        "SELECT (SELECT min(at) FROM messages WHERE state IS NULL), "
        "(SELECT min(at) FROM messages WHERE state = 1), "
        "(SELECT min(expires) FROM messages WHERE expires IS NOT NULL AND state = 0), "
        "(SELECT min(idle_until) FROM queues WHERE idle_until IS NOT NULL)"
    ).fetchone()
    return earliest(*times)


def settle(
    db: sqlite3.Connection, queues: Queues, requests: Sequence[SettleRequest], claim: Claim
) -> PutResult:
    """Settle what is held; what is not held any more stays as it is."""
    gone: list[Handle] = []
    back: defaultdict[_Return, list[Handle]] = defaultdict(list)
    dead: list[SettleRequest] = []
    for request in requests:
        if request.settlement is Settlement.REQUEUE:
            how = _Return(request.delay, request.is_unseen, request.is_unhandled)
            back[how].append(request.message.handle)
        elif request.entries and _holds(db, request.message.handle):
            dead.append(request)
        else:
            gone.append(request.message.handle)
    entries = [entry for request in dead for entry in request.entries]
    stored = put(db, queues, entries, claim) if entries else PutResult([], {}, [], None)
    outcomes = iter(stored.outcomes)
    refused: list[tuple[str, Exception]] = []
    for request in dead:
        refusals = [
            (entry.queue, error)
            for entry, error in zip(request.entries, outcomes, strict=False)
            if error is not None and not isinstance(error, NoQueue)
        ]
        refused += refusals[:1]
        if refusals:
            back[_Return(claim.lease)].append(request.message.handle)
        else:
            gone.append(request.message.handle)
    late = len(gone)
    for number, marks, values in _by_claim(gone):
        late -= db.execute(
            f"DELETE FROM messages WHERE claim = ? AND id IN {marks}", (number, *values)
        ).rowcount
    pipes, next_at = stored.pipes, stored.next_at
    if back:
        returned, again_at = _requeue(db, back)
        next_at = earliest(next_at, again_at)
        _add(pipes, wake_all(db, returned, claim.owner))
    return PutResult([], pipes, stored.dead, next_at, stored.others, late, refused)


class _Return(NamedTuple):
    """The terms of a requeue: see :class:`~greenconn.broker.port.SettleRequest`."""

    delay: float = 0.0
    is_unseen: bool = False
    is_unhandled: bool = False


def _requeue(
    db: sqlite3.Connection, back: Mapping[_Return, Sequence[Handle]]
) -> tuple[set[int], float | None]:
    """Let others have messages; the queues of those, and when the first may be delivered."""
    now = time()
    returned: set[int] = set()
    next_at: float | None = None
    for (delay, is_unseen, is_unhandled), handles in back.items():
        at = now + delay if delay else None
        until = (READY, NEVER) if at is None else (DELAYED, at)
        next_at = earliest(next_at, at)
        for number, marks, values in _by_claim(handles):
            where = f"WHERE claim = ? AND id IN {marks}"
            found = db.execute(
                f"SELECT queue, count(*), sum(length(body)) FROM messages {where} GROUP BY queue",
                (number, *values),
            )
            for queue, count, size in found.fetchall():
                returned.add(queue)
                if at is None:
                    _note_length(db, queue, count, size)
            if is_unhandled:
                _mark_redelivered(db, where, (number, *values))
            db.execute(
                "UPDATE messages SET state = ?, at = ?, claim = ?, deliveries = deliveries - ? "
                + where,
                (*until, UNCLAIMED, is_unseen or is_unhandled, number, *values),
            )
    return returned, next_at


def _mark_redelivered(db: sqlite3.Connection, where: str, values: Sequence[Any]) -> None:
    """Note in messages that were delivered for the first time that they were."""
    found = db.execute(f"SELECT id, envelope FROM messages {where} AND deliveries = 1", values)
    marked: list[tuple[str, int]] = []
    for id, text in found.fetchall():
        try:
            envelope = read_envelope(text)
            mark_redelivered(envelope)
            marked.append((dumps(envelope), id))
        except Exception:  # a stranger may have written it
            continue
    db.executemany("UPDATE messages SET envelope = ? WHERE id = ?", marked)


def _by_claim(handles: Sequence[Handle]) -> list[tuple[int, str, list[Any]]]:
    """Return the numbers of claims, each with the SQL text for its ids and the ids."""
    ids: defaultdict[int, list[int]] = defaultdict(list)
    for handle in handles:
        ids[handle.claim].append(handle.id)
    return [(number, *in_list(chunk)) for number, each in ids.items() for chunk in chunks(each)]


def _holds(db: sqlite3.Connection, handle: Handle) -> bool:
    found = db.execute(
        "SELECT 1 FROM messages WHERE id = ? AND claim = ?", (handle.id, handle.claim)
    ).fetchone()
    return found is not None


def renew(db: sqlite3.Connection, handles: Sequence[Handle], lease: float) -> list[Handle]:
    """Begin leases anew; those that are lost."""
    until = time() + lease
    renewed = 0
    for number, marks, values in _by_claim(handles):
        renewed += db.execute(
            f"UPDATE messages SET at = ? WHERE claim = ? AND id IN {marks}",
            (until, number, *values),
        ).rowcount
    if renewed == len(handles):
        return []
    return [handle for handle in handles if not _holds(db, handle)]


class MaintenanceResult(NamedTuple):
    """The findings of one maintenance run.

    Attributes:
        ready: queues that have messages; the own link consumes them, or they were due.
        has_lost: a queue that the own link consumes may have been deleted.
        dead: messages that had grown too old.
        pipes: those to wake, and for which queues; 0: that some are deleted.
        orphans: links of dead processes.
        overdue: links whose leases have ended, where time alone does not say that they are dead.
        next_at: when the next look is due.
    """

    ready: set[int]
    has_lost: bool
    dead: list[Claimed]
    pipes: Pipes
    orphans: list[str]
    overdue: list[str]
    next_at: float | None


def register(db: sqlite3.Connection, owner: str, lease: float) -> None:
    """Register a link that has consumers or exclusive queues."""
    db.execute(
        "INSERT INTO owners (owner, until) VALUES (?, ?) "
        "ON CONFLICT (owner) DO UPDATE SET until = excluded.until",
        (owner, time() + lease),
    )


def renew_owner(db: sqlite3.Connection, owner: str, lease: float) -> None:
    """Renew the lease of a registered link.

    Raises:
        LeaseExpired: others have removed what it had.
    """
    until = time() + lease
    found = db.execute("UPDATE owners SET until = ? WHERE owner = ?", (until, owner)).rowcount
    if not found:
        raise LeaseExpired


def leave(db: sqlite3.Connection, queues: Queues, owner: str) -> Pipes:
    """Remove a link with its consumers and its exclusive queues."""
    pipes: Pipes = {}
    names = [name for (name,) in db.execute("SELECT name FROM queues WHERE owner = ?", (owner,))]
    consumed = db.execute(
        "SELECT queue, name, auto_delete FROM consumers JOIN queues ON queues.id = queue "
        "WHERE consumers.owner = ?",
        (owner,),
    ).fetchall()
    db.execute("DELETE FROM owners WHERE owner = ?", (owner,))
    for _, name, auto_delete in consumed:
        noted = queues.set_consumers(db, name, owner, 0, False)
        if noted is not None:
            pipes.update(noted[1])
        if auto_delete and not queues.other_consumers(db, name, owner):
            names.append(name)
    for name in names:
        for consumer in queues.drop(db, name)[1]:
            pipes.setdefault(consumer, set()).add(0)
    return pipes


def maintain(
    db: sqlite3.Connection,
    queues: Queues,
    how: Claim,
    silent: Collection[str],
    is_registered: bool,
    trusts_clock: bool,
) -> MaintenanceResult:
    """Release what is due, and remove links that are dead.

    Arguments:
        silent: links whose pipes no process reads.
        is_registered: the own link has a row.
        trusts_clock: a lease that has ended says that its link is dead.

    Raises:
        LeaseExpired: the own link was registered, and others have removed it.
    """
    now = time()
    if is_registered:
        renew_owner(db, how.owner, how.lease)
    due, pipes = release_due(db, now, how.owner)
    ended = [
        owner
        for (owner,) in db.execute(
            "SELECT owner FROM owners WHERE until <= ? AND owner != ?", (now, how.owner)
        )
    ]
    orphans = {*silent, *(ended if trusts_clock else ())} - {how.owner}
    orphans = {each for each in orphans if not _is_awaited(db, queues, each, how.lease)}
    for owner in orphans:
        _add(pipes, leave(db, queues, owner))
    for (name,) in db.execute(
        # Not OR: SQLite would walk all queues.
        "SELECT name FROM queues WHERE idle_until <= ? UNION SELECT name FROM queues "
        "WHERE owner IS NOT NULL AND owner NOT IN (SELECT owner FROM owners) AND owner != ?",
        (now, how.owner),
    ).fetchall():
        _add(pipes, {consumer: {0} for consumer in queues.drop(db, name)[1]})
    dead = take_dead(db, queues, how, now)
    # Not by counting what it consumes, which may be thousands.
    has_lost = db.execute(
        "UPDATE owners SET has_lost = 0 WHERE owner = ? AND has_lost", (how.owner,)
    ).rowcount
    ready = {*ready_for(db, how.owner), *due}
    overdue = [each for each in ended if each not in orphans]
    return MaintenanceResult(
        ready, bool(has_lost), dead, pipes, sorted(orphans), overdue, next_time(db)
    )


def _is_awaited(db: sqlite3.Connection, queues: Queues, owner: str, lease: float) -> bool:
    """Return whether a dead link may hold messages of a queue with a single active consumer.

    They are older than what the next active consumer would get.  Their leases end no later than one
    lease after the link's; those of the living are renewed.
    """
    held = db.execute(
        "SELECT c.queue FROM consumers c JOIN owners o ON o.owner = c.owner WHERE c.owner = ? "
        "AND EXISTS (SELECT 1 FROM messages m WHERE m.queue = c.queue AND m.state IS NULL "
        "AND m.at <= o.until + ?)",
        (owner, lease),
    ).fetchall()
    return any(queues.of(db, number).policy.is_single_active for (number,) in held)


def existing(db: sqlite3.Connection, numbers: Sequence[int]) -> set[int]:
    """Return those of some queues that exist."""
    there: set[int] = set()
    for chunk in chunks(numbers):
        marks, values = in_list(chunk)
        found = db.execute(f"SELECT id FROM queues WHERE id IN {marks}", values)
        there.update(number for (number,) in found)
    return there


def _add(pipes: Pipes, more: Pipes) -> None:
    for owner, numbers in more.items():
        pipes.setdefault(owner, set()).update(numbers)
