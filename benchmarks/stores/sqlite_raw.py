"""SQLite by hand: the standard library's sqlite3."""

from __future__ import annotations

import sqlite3

from benchmarks.clock import Clock, Figures
from benchmarks.redis.envelopes import envelope
from benchmarks.rivals.shape import PREFETCH
from benchmarks.stage import BODY
from benchmarks.stores.by_hand import ByHand
from benchmarks.stores.sqlite import Stage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, queue TEXT, claim INTEGER, envelope BLOB);
CREATE INDEX IF NOT EXISTS waiting ON messages (queue, id) WHERE claim IS NULL;
"""
_PUT = "INSERT INTO messages (queue, envelope) VALUES (?, ?)"
_CLAIM = (
    "UPDATE messages SET claim = 1 WHERE id IN (SELECT id FROM messages WHERE queue = ? AND claim "
    f"IS NULL ORDER BY id LIMIT {PREFETCH}) RETURNING id, envelope"
)


class Works(ByHand):
    """What SQLite takes for a message, if nobody asks for anything else, as greenconn uses it.

    What is published is on the disk, and a claim and an ack are in the log.
    """

    def __init__(self, url: str, stage: Stage) -> None:
        super().__init__(stage)
        path = stage.of(sqlite3).partition("sqlite:///")[2]
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def put(self, queue: str, count: int, at_once: int) -> Clock:
        rows = [(queue, envelope(BODY, queue))] * at_once
        database = self._database
        database.execute("PRAGMA synchronous=FULL")
        with Clock() as clock:
            for _ in range(0, count, at_once):
                database.execute("BEGIN IMMEDIATE")
                database.executemany(_PUT, rows)
                database.execute("COMMIT")
        return clock

    def consume(self, count: int) -> Figures:
        """Two transactions for a hundred."""
        source, database = self.stage.name(), self._database
        self.put(source, count, PREFETCH)
        database.execute("PRAGMA synchronous=NORMAL")
        with Clock() as clock:
            for _ in range(0, count, PREFETCH):
                database.execute("BEGIN IMMEDIATE")
                claimed = database.execute(_CLAIM, (source,)).fetchall()
                database.execute("COMMIT")
                keys = [(number,) for number, _ in claimed]
                database.execute("BEGIN IMMEDIATE")
                database.executemany("DELETE FROM messages WHERE id = ?", keys)
                database.execute("COMMIT")
        return clock.per(count)
