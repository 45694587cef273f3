"""Queues and their consumers: functions that run in a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from random import shuffle
from time import time
from typing import Final, NamedTuple

from greenconn.broker.exchanges import DirectTopology
from greenconn.broker.port import LeaseExpired
from greenconn.broker.queues import Declaration, QueuePolicy
from greenconn.transport.sqlite.sql import chunks, in_list
from greenconn.transport.sqlite.topology import Records

#: Links to notify through their pipes: link -> the numbers of the queues.
Pipes = dict[str, set[int]]


def note_waiting(db: sqlite3.Connection, queues: Collection[int], owner: str) -> None:
    """Note that *owner* found nothing in these, and waits to be notified."""
    for chunk in chunks(list(queues)):
        marks, values = in_list(chunk)
        db.execute(
            f"UPDATE consumers SET armed = 1 WHERE owner = ? AND armed = 0 AND queue IN {marks}",
            (owner, *values),
        )


def take_waiting(db: sqlite3.Connection, queues: Collection[int], owner: str) -> Pipes:
    """Return the consumers that wait to be notified of *queues*, and stop their waits.

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

    def drop(self, db: sqlite3.Connection, name: str) -> tuple[int, set[str]]:
        """Delete a queue; how many messages waited, and the links that consumed."""
        row = self.row(db, name)
        if row is None:
            return 0, set()
        count = self.size(db, name)
        found = db.execute("SELECT owner FROM consumers WHERE queue = ?", (row.id,))
        consumers = {owner for (owner,) in found}
        db.execute("DELETE FROM messages WHERE queue = ?", (row.id,))
        db.execute("DELETE FROM consumers WHERE queue = ?", (row.id,))
        db.execute("DELETE FROM queues WHERE id = ?", (row.id,))
        DirectTopology(Records(db)).forget_queue(name)
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
        (dead,) = db.execute(
            "SELECT count(*) FROM messages WHERE expires <= ? AND queue = ? AND state = 0",
            (time(), row.id),
        ).fetchone()
        return int(count - dead)

    def purge(self, db: sqlite3.Connection, name: str) -> int:
        """Delete what waits, now or for its time."""
        row = self.row(db, name)
        if row is None:
            return 0
        return db.execute("DELETE FROM messages WHERE queue = ? AND state < 2", (row.id,)).rowcount

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
            if row.policy.is_single_active:
                pipes = take_waiting(db, [row.id], owner)
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


# -- links


def check_registered(db: sqlite3.Connection, owner: str) -> None:
    """See that a link is registered.

    Raises:
        LeaseExpired: others have removed it.
    """
    if db.execute("SELECT 1 FROM owners WHERE owner = ?", (owner,)).fetchone() is None:
        raise LeaseExpired
