"""Messages in tables."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from greenconn.broker.port import Settlement, SettleRequest
from greenconn.transport.sqlite.messages import Claim, claim, settle
from greenconn.transport.sqlite.queues import Queues
from greenconn.transport.sqlite.sql import SCHEMA
from greenconn.transport.virtual.declaration import UNDECLARED


def steps(waiting: int) -> int:
    """Count the steps of SQLite's machine that claiming and settling ten messages takes."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(SCHEMA)
        queues, how, count = Queues(), Claim(1, 60.0, "me"), 0
        queues.make(db, "q", UNDECLARED, "me")
        db.executemany(
            "INSERT INTO messages (queue, state, priority, envelope, body) VALUES (1, 0, 0, ?, '')",
            [("{}",)] * waiting,
        )

        def progress() -> int:
            nonlocal count
            count += 1
            return 0

        db.set_progress_handler(progress, 1)
        taken = claim(db, queues, {1: 10}, how).claimed
        assert len(taken) == 10
        settle(db, queues, [SettleRequest(each.handle, Settlement.ACK) for each in taken], how)
        return count


def test_a_claim_costs_the_same_whatever_waits() -> None:
    few, many = steps(100), steps(10_000)
    assert many < 1.1 * few
