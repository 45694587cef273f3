"""The tables of a file, and its queues, exchanges and consumers: functions that run in a transaction.

All times are seconds of the machine's clock, since they are compared between processes.

``messages.state``: 0 for a waiting message, 1 for one that must not be delivered before ``at``, NULL for
one that is claimed until ``at``.  ``claim`` tells two claims of one message apart, so that a late
settlement changes nothing.

A claimed message stands in one index only, from which its ack has to take it.  The conditions of the
indexes must stand in a statement for SQLite to use them: ``state = 0`` implies ``state IS NOT NULL``.

A claim must not change how many bytes a row takes: else SQLite writes the whole row anew, with a body of
any size, where it would write a few bytes in their places.  NULL, 0 and 1 take no byte, and large
integers 8, as a number with a fraction; so ``at`` and ``claim`` have such values where they mean
nothing.

``owners.has_lost``: 1 where another link has deleted a queue that this one consumes, until it has looked
which.

``lengths``: the messages that wait in a queue with a maximum length, and the bytes of their bodies; no
row where they have yet to be counted.

``consumers.armed``: 1 where its link found nothing and waits to be notified.  It is set in the
transaction that found nothing, so that a process that stores a message afterwards sees it.  2 where it
was notified of a message, and has not claimed since: it will see what is stored meanwhile, too.

Each step of a statement releases Python's lock and has to wait for it, which takes long where the main
thread is busy; so one statement handles many rows where that is possible.  The number of values is
rounded up, so that few texts of statements occur and each is compiled once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from random import randrange, shuffle
from time import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from greenconn.broker.exchanges import ExchangeRecord, Row, Topology, TopologyStore
from greenconn.broker.port import LeaseExpired
from greenconn.broker.queues import Declaration, QueuePolicy
from greenconn.jsoncodec import dumps, loads

if TYPE_CHECKING:
    from greenconn.transport.sqlite.database import Database

#: Says that the file is ours (``PRAGMA application_id``).
APPLICATION_ID: Final = 0x67634E4E

#: What stands in ``messages.at`` and in ``messages.claim`` where there is none.
NEVER: Final = 1e300
UNCLAIMED: Final = -(2**62)

#: Of the tables (``PRAGMA user_version``).
VERSION: Final = 1
#: The number of a message that is gone may be another one's: who means a message names its claim, too.
#: (AUTOINCREMENT would write a page more for each publish.)
SCHEMA: Final = f"""
CREATE TABLE queues (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    declaration TEXT NOT NULL,
    owner TEXT,
    auto_delete INTEGER NOT NULL,
    idle_until REAL
);
CREATE INDEX queues_by_end ON queues (idle_until) WHERE idle_until IS NOT NULL;
CREATE INDEX queues_by_owner ON queues (owner) WHERE owner IS NOT NULL;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL,
    state INTEGER DEFAULT 0,
    priority INTEGER NOT NULL DEFAULT 0,
    at REAL NOT NULL DEFAULT {NEVER},
    expires REAL,
    deliveries INTEGER NOT NULL DEFAULT 0,
    claim INTEGER NOT NULL DEFAULT {UNCLAIMED},
    envelope TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX messages_in_order ON messages (queue, state, priority DESC) WHERE state IS NOT NULL;
CREATE INDEX messages_claimed ON messages (at, queue) WHERE state IS NULL;
CREATE INDEX messages_delayed ON messages (at) WHERE state = 1;
CREATE INDEX messages_by_death ON messages (expires) WHERE expires IS NOT NULL AND state = 0;
CREATE TABLE lengths (
    queue INTEGER PRIMARY KEY,
    messages INTEGER NOT NULL,
    bytes INTEGER NOT NULL
);
CREATE TABLE exchanges (
    name TEXT PRIMARY KEY,
    type TEXT NOT NULL,
    durable INTEGER NOT NULL,
    auto_delete INTEGER NOT NULL,
    arguments TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE bindings (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    destination TEXT NOT NULL,
    to_exchange INTEGER NOT NULL,
    routing_key TEXT NOT NULL,
    pattern TEXT NOT NULL,
    arguments TEXT NOT NULL,
    UNIQUE (source, destination, to_exchange, routing_key, arguments)
);
CREATE INDEX bindings_by_end ON bindings (destination, to_exchange);
CREATE TABLE topology (version INTEGER NOT NULL);
INSERT INTO topology VALUES (1);
CREATE TABLE owners (
    owner TEXT PRIMARY KEY,
    until REAL NOT NULL,
    has_lost INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE consumers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue INTEGER NOT NULL,
    owner TEXT NOT NULL,
    count INTEGER NOT NULL,
    exclusive INTEGER NOT NULL,
    armed INTEGER NOT NULL DEFAULT 0,
    UNIQUE (queue, owner)
);
CREATE INDEX consumers_by_owner ON consumers (owner, queue);
"""

#: Values in one statement, at most.
CHUNK: Final = 512


@lru_cache(64)
def _marks(count: int) -> str:
    return f"({', '.join('?' * count)})"


def in_list(values: Sequence[Any]) -> tuple[str, list[Any]]:
    """Return the text behind ``IN`` and the values for it; at most :data:`CHUNK`, at least one."""
    size = 1 << (len(values) - 1).bit_length()
    return _marks(size), [*values, *[values[-1]] * (size - len(values))]


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut *values* into what one statement takes."""
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]


def rows_of(rows: Sequence[tuple[Any, ...]], limit: int) -> Iterator[tuple[str, list[Any]]]:
    """Return texts behind ``VALUES`` and the values for them, in pieces of powers of two.

    Arguments:
        limit: a power of two; rows in one piece, at most.
    """
    start = 0
    while start < len(rows):
        size = limit
        while size > len(rows) - start:
            size >>= 1
        piece = rows[start : start + size]
        start += size
        yield _row_marks(len(piece[0]), size), [value for row in piece for value in row]


@lru_cache(64)
def _row_marks(width: int, count: int) -> str:
    return ", ".join([_marks(width)] * count)


T = TypeVar("T")


class Records(TopologyStore):
    """Exchanges and bindings within a transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def get(self, exchange: str) -> ExchangeRecord | None:
        found = self._db.execute(
            "SELECT type, durable, auto_delete, arguments FROM exchanges WHERE name = ?",
            (exchange,),
        ).fetchone()
        if found is None:
            return None
        kind, durable, auto_delete, arguments = found
        return {
            "type": kind,
            "durable": durable,
            "auto_delete": auto_delete,
            "arguments": loads(arguments),
        }

    def put(self, exchange: str, record: ExchangeRecord) -> None:
        values = (
            record["type"],
            record["durable"],
            record["auto_delete"],
            _text(record["arguments"]),
        )
        self._write(
            "INSERT INTO exchanges VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
            exchange,
            *values,
        )

    def delete(self, exchange: str) -> None:
        self._write("DELETE FROM exchanges WHERE name = ?", exchange)
        self._write("DELETE FROM bindings WHERE source = ?", exchange)

    def rows(self, exchange: str) -> Sequence[Row] | None:
        found = self._db.execute(
            "SELECT routing_key, pattern, destination, arguments, to_exchange FROM bindings "
            "WHERE source = ? ORDER BY id",
            (exchange,),
        ).fetchall()
        if not found and self.get(exchange) is None:
            return None
        return tuple(
            Row(key, pattern, queue, loads(arguments) or None, bool(to_exchange))
            for key, pattern, queue, arguments, to_exchange in found
        )

    def add(self, exchange: str, row: Row) -> None:
        self._write(
            "INSERT INTO bindings (source, destination, to_exchange, routing_key, pattern, arguments) "
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            *(exchange, row.queue, row.to_exchange, row.routing_key, row.pattern),
            _text(row.arguments),
        )

    def remove(self, exchange: str, row: Row) -> bool:
        return self._write(
            "DELETE FROM bindings WHERE source = ? AND destination = ? AND to_exchange = ? "
            "AND routing_key = ? AND arguments = ?",
            *(exchange, row.queue, row.to_exchange, row.routing_key, _text(row.arguments)),
        )

    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        end = (destination, is_exchange)
        sources = self._db.execute(
            "SELECT DISTINCT source FROM bindings WHERE destination = ? AND to_exchange = ?", end
        ).fetchall()
        if sources:
            self._write("DELETE FROM bindings WHERE destination = ? AND to_exchange = ?", *end)
        return [source for (source,) in sources]

    def _write(self, statement: str, *values: Any) -> bool:
        """Run a statement; if it changes anything, what others know is old."""
        changed = self._db.execute(statement, values).rowcount > 0
        if changed:
            self._db.execute("UPDATE topology SET version = version + 1")
        return changed


class _Read(NamedTuple):
    """The bindings of an exchange; None: there is no such exchange.

    Attributes:
        version: of all exchanges and bindings.
    """

    version: int
    rows: Sequence[Row] | None


class FileTopology(Topology):
    """The exchanges and bindings of a file; each change is one transaction."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    def _read(self, function: Callable[[TopologyStore], T]) -> T:
        found: T = self._database.read(_on_records, function)
        return found

    def _change(self, function: Callable[[TopologyStore], object]) -> None:
        self._database.write(_on_records, function, durable=True)

    def rows(self, name: str) -> Sequence[Row] | None:
        known = self._version if name in self._rows else 0
        read: _Read = self._database.read(_rows, name, known)
        if read.version < self._version:
            return read.rows if read.version != known else self._rows.get(name)
        if read.version > self._version:
            self._rows.clear()
            self._version = read.version
        if read.version != known:
            self._rows[name] = read.rows
        return self._rows[name]


def _on_records(db: sqlite3.Connection, function: Callable[[TopologyStore], T]) -> T:
    return function(Records(db))


def _rows(db: sqlite3.Connection, name: str, known: int) -> _Read:
    """Return the bindings of an exchange, unless nothing has changed since version *known*."""
    (version,) = db.execute("SELECT version FROM topology").fetchone()
    is_known = version == known
    return _Read(version, () if is_known else Records(db).rows(name))


def _text(arguments: Mapping[str, Any] | None) -> str:
    """Return arguments as text; equal arguments give the same text."""
    given = arguments or {}
    return dumps({name: given[name] for name in sorted(given)})


#: Links to notify through their pipes: link -> the numbers of the queues.
Pipes = dict[str, set[int]]


def note_waiting(db: sqlite3.Connection, queues: Collection[int], owner: str) -> None:
    """Note that *owner* found nothing in these, and waits to be notified."""
    for chunk in chunks(list(queues)):
        marks, values = in_list(chunk)
        db.execute(
            f"UPDATE consumers SET armed = 1 WHERE owner = ? AND armed != 1 AND queue IN {marks}",
            (owner, *values),
        )


def wake_all(db: sqlite3.Connection, queues: Collection[int], owner: str) -> Pipes:
    """Return all consumers that wait to be notified of *queues*, and stop their waits.

    Arguments:
        owner: a link that is not notified.
    """
    pipes: Pipes = {}
    for chunk in chunks(list(queues)):
        marks, values = in_list(chunk)
        found = db.execute(
            f"SELECT queue, owner FROM consumers WHERE armed = 1 AND owner != ? AND queue IN {marks}",
            (owner, *values),
        ).fetchall()
        if found:
            db.execute(
                f"UPDATE consumers SET armed = 0 WHERE armed = 1 AND owner != ? AND queue IN {marks}",
                (owner, *values),
            )
            shuffle(found)  # who is notified first is often the first to claim
            for queue, consumer in found:
                pipes.setdefault(consumer, set()).add(queue)
    return pipes


def wake_one(
    db: sqlite3.Connection, queues: Collection[int], owner: str
) -> tuple[Pipes, Collection[int]]:
    """Choose one of the consumers that wait to be notified of each of *queues*, and stop its wait.

    None is chosen where one that was notified has not claimed yet.  If all were notified of each
    message, all of them but one would find nothing.

    Arguments:
        owner: a link that is not notified.

    Returns:
        those to notify, and the queues of which others wait on: look at these again, by
        :func:`~greenconn.transport.sqlite.messages.follow_up`.
    """
    pipes: Pipes = {}
    others: set[int] = set()
    for chunk in chunks(list(queues)):
        marks, values = in_list(chunk)
        found = db.execute(
            "SELECT queue, owner, armed FROM consumers "
            f"WHERE armed > 0 AND owner != ? AND queue IN {marks}",
            (owner, *values),
        ).fetchall()
        woken = {queue for queue, _, armed in found if armed == 2}
        waiting: dict[int, list[str]] = {}
        for queue, consumer, armed in found:
            if armed == 1:
                waiting.setdefault(queue, []).append(consumer)
        chosen: list[tuple[int, str]] = []
        for queue, consumers in waiting.items():
            if queue not in woken:
                consumer = consumers.pop(randrange(len(consumers)))
                chosen.append((queue, consumer))
                pipes.setdefault(consumer, set()).add(queue)
            if consumers:
                others.add(queue)
        if chosen:
            db.executemany("UPDATE consumers SET armed = 2 WHERE queue = ? AND owner = ?", chosen)
    return pipes, others


def ready_of(db: sqlite3.Connection, numbers: Collection[int]) -> list[int]:
    """Return those of some queues that have messages, in the order of *numbers*."""
    ready: set[int] = set()
    asked = list(numbers)
    for chunk in chunks(asked):
        marks, values = in_list(chunk)
        ready.update(
            number
            for (number,) in db.execute(
                f"SELECT id FROM queues WHERE id IN {marks} AND EXISTS (SELECT 1 FROM messages "
                "WHERE queue = queues.id AND state = 0)",
                values,
            )
        )
    return [number for number in asked if number in ready]


#: Goes in turn through the queues that a link consumes and those with messages, each time to the first
#: that is not below the other's, so that it takes as many steps as the shorter of the two has queues.
_READY_FOR: Final = """
WITH RECURSIVE candidate (queue) AS (
    SELECT (SELECT min(queue) FROM consumers WHERE owner = :owner
        AND queue >= (SELECT min(queue) FROM messages WHERE state IS NOT NULL))
    UNION ALL
    SELECT (SELECT min(c.queue) FROM consumers c WHERE c.owner = :owner
        AND c.queue >= (SELECT min(m.queue) FROM messages m
            WHERE m.queue > candidate.queue AND m.state IS NOT NULL))
    FROM candidate WHERE queue IS NOT NULL
)
SELECT queue FROM candidate WHERE queue IS NOT NULL
    AND EXISTS (SELECT 1 FROM messages m WHERE m.queue = candidate.queue AND state = 0)
"""


def ready_for(db: sqlite3.Connection, owner: str) -> list[int]:
    """Return the queues with messages that the link *owner* consumes."""
    return [number for (number,) in db.execute(_READY_FOR, {"owner": owner})]


#: Queues whose declarations are kept.
MOST_KNOWN: Final = 10_000


class QueueRow(NamedTuple):
    """A queue as it is in the file."""

    id: int
    name: str
    declaration: Declaration
    policy: QueuePolicy


class Queues:
    """The queues of a file.  Used in its thread only.

    A number stands for one queue for ever, and a queue never changes, so what is known of a number is
    kept.
    """

    def __init__(self) -> None:
        self._known: dict[int, QueueRow] = {}

    def row(self, db: sqlite3.Connection, name: str) -> QueueRow | None:
        """Return a queue; None: there is none."""
        found = db.execute("SELECT id FROM queues WHERE name = ?", (name,)).fetchone()
        return None if found is None else self.of(db, found[0])

    def rows(self, db: sqlite3.Connection, names: Collection[str]) -> dict[str, QueueRow]:
        """Return those of some queues that are there, by name."""
        found: list[tuple[int]] = []
        for chunk in chunks(list(names)):
            marks, values = in_list(chunk)
            found += db.execute(f"SELECT id FROM queues WHERE name IN {marks}", values)
        rows = [self.of(db, number) for (number,) in found]
        return {row.name: row for row in rows}

    def of(self, db: sqlite3.Connection, number: int) -> QueueRow:
        """Return the queue of a number, which is there."""
        known = self._known.get(number)
        if known is None:
            name, text = db.execute(
                "SELECT name, declaration FROM queues WHERE id = ?", (number,)
            ).fetchone()
            declared = Declaration.read(text)
            known = QueueRow(number, name, declared, declared.policy)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[number] = known
        return known

    # -- declaring

    def make(
        self, db: sqlite3.Connection, name: str, declared: Declaration, caller: str
    ) -> Declaration:
        """Make a queue unless it is there, and return how it was declared.

        Arguments:
            caller: the link that declares it.

        Raises:
            LeaseExpired: it is exclusive, and others have deregistered the link.
        """
        if declared.owner is not None:
            check_registered(db, declared.owner)
        found = self.find(db, name, caller)
        if found is not None:
            return found
        self.drop(db, name)  # that of a dead link
        db.execute(
            "INSERT INTO queues (name, declaration, owner, auto_delete) VALUES (?, ?, ?, ?)",
            (name, declared.text(), declared.owner, declared.auto_delete),
        )
        row = self.row(db, name)
        assert row is not None
        self.touch(db, row, time())
        return declared

    def find(self, db: sqlite3.Connection, name: str, caller: str) -> Declaration | None:
        """Return the declaration of a queue; None: there is none, or its owner is dead.

        Arguments:
            caller: the link that asks; it lives.
        """
        row = self.row(db, name)
        if row is None:
            return None
        owner = row.declaration.owner
        if owner is not None and owner != caller:
            alive = db.execute(
                "SELECT 1 FROM owners WHERE owner = ? AND until > ?", (owner, time())
            ).fetchone()
            if alive is None:
                return None
        return row.declaration

    def names(self, db: sqlite3.Connection, caller: str) -> Collection[str]:
        """Return the names of the queues whose owners, where they have one, are alive.

        Arguments:
            caller: the link that asks; it lives.
        """
        found = db.execute(
            "SELECT name FROM queues WHERE owner IS NULL OR owner = ? "
            "OR owner IN (SELECT owner FROM owners WHERE until > ?)",
            (caller, time()),
        )
        return [name for (name,) in found]

    def touch(self, db: sqlite3.Connection, row: QueueRow, now: float) -> float | None:
        """Start the ``x-expires`` of a used queue anew; return when it ends; None: never."""
        expires = row.policy.expires
        if expires is None:
            return None
        used = db.execute("SELECT 1 FROM consumers WHERE queue = ? LIMIT 1", (row.id,)).fetchone()
        idle_until = None if used else now + expires
        db.execute("UPDATE queues SET idle_until = ? WHERE id = ?", (idle_until, row.id))
        return idle_until

    def drop(self, db: sqlite3.Connection, name: str, owner: str = "") -> tuple[int, set[str]]:
        """Delete a queue; how many messages waited, and the links that consumed.

        Arguments:
            owner: a link that knows of it, and need not look.
        """
        row = self.row(db, name)
        if row is None:
            return 0, set()
        count = self.size(db, name)
        found = db.execute("SELECT owner FROM consumers WHERE queue = ?", (row.id,))
        consumers = {owner for (owner,) in found}
        db.executemany(
            "UPDATE owners SET has_lost = 1 WHERE owner = ?",
            [(each,) for each in consumers - {owner}],
        )
        self._delete_unclaimed(db, row)
        db.execute("DELETE FROM messages WHERE queue = ? AND state IS NULL", (row.id,))
        db.execute("DELETE FROM lengths WHERE queue = ?", (row.id,))
        db.execute("DELETE FROM consumers WHERE queue = ?", (row.id,))
        db.execute("DELETE FROM queues WHERE id = ?", (row.id,))
        Records(db).forget_queue(name)
        self._known.pop(row.id, None)
        return count, consumers

    def size(self, db: sqlite3.Connection, name: str) -> int:
        """Return the number of messages that wait."""
        row = self.row(db, name)
        if row is None:
            return 0
        (count,) = db.execute(
            "SELECT count(*) FROM messages WHERE queue = ? AND state = 0", (row.id,)
        ).fetchone()
        # By the index of what expires, in which few are due: all that wait are in the other one.
        (dead,) = db.execute(
            "SELECT count(*) FROM messages WHERE expires <= ? AND +queue = ? AND state = 0",
            (time(), row.id),
        ).fetchone()
        return int(count - dead)

    def purge(self, db: sqlite3.Connection, name: str) -> int:
        """Delete what waits, now or for its time."""
        row = self.row(db, name)
        if row is None:
            return 0
        db.execute("DELETE FROM lengths WHERE queue = ?", (row.id,))
        return self._delete_unclaimed(db, row)

    @staticmethod
    def _delete_unclaimed(db: sqlite3.Connection, row: QueueRow) -> int:
        return db.execute(
            "DELETE FROM messages WHERE queue = ? AND state IS NOT NULL", (row.id,)
        ).rowcount

    # -- consumers

    def set_consumers(
        self, db: sqlite3.Connection, name: str, owner: str, count: int, exclusive: bool
    ) -> tuple[int, Pipes, float | None] | None:
        """Note how many consumers a link has.

        Returns:
            the queue's number, 0 for none, those to wake, and until when it may be unused; None:
            it may not.

        Raises:
            LeaseExpired: it begins to consume, and others have deregistered it.
        """
        if count:
            check_registered(db, owner)
        row = self.row(db, name)
        if row is None:
            return 0, {}, None
        pipes: Pipes = {}
        if not count:
            db.execute("DELETE FROM consumers WHERE queue = ? AND owner = ?", (row.id, owner))
            if row.policy.is_single_active or ready_of(db, [row.id]):
                # It may be the next, or what this one was notified of is still there.
                pipes = wake_all(db, [row.id], owner)
        else:
            others = db.execute(
                "SELECT max(exclusive) FROM consumers WHERE queue = ? AND owner != ?",
                (row.id, owner),
            ).fetchone()[0]
            if others is not None and (others or exclusive):
                return None
            db.execute(
                "INSERT INTO consumers (queue, owner, count, exclusive) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (queue, owner) DO UPDATE SET count = excluded.count",
                (row.id, owner, count, exclusive),
            )
        return row.id, pipes, self.touch(db, row, time())

    def consumers(self, db: sqlite3.Connection, name: str) -> set[str]:
        """Return the links that consume from a queue."""
        row = self.row(db, name)
        if row is None:
            return set()
        found = db.execute("SELECT owner FROM consumers WHERE queue = ?", (row.id,))
        return {owner for (owner,) in found}

    def other_consumers(self, db: sqlite3.Connection, name: str, owner: str) -> int:
        """Return the number of consumers that other links have."""
        row = self.row(db, name)
        if row is None:
            return 0
        (count,) = db.execute(
            "SELECT total(count) FROM consumers WHERE queue = ? AND owner != ?", (row.id, owner)
        ).fetchone()
        return int(count)

    def counts(
        self, db: sqlite3.Connection, names: Collection[str], owner: str
    ) -> dict[str, tuple[int, int]]:
        """Return the numbers of messages that wait, and of consumers on other links, of queues."""
        return {
            name: (self.size(db, name), self.other_consumers(db, name, owner)) for name in names
        }


# -- links
def check_registered(db: sqlite3.Connection, owner: str) -> None:
    """See that a link is registered.

    Raises:
        LeaseExpired: others have removed it.
    """
    if db.execute("SELECT 1 FROM owners WHERE owner = ?", (owner,)).fetchone() is None:
        raise LeaseExpired
