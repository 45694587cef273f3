"""Messages in tables."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from greenconn.broker.port import Entry, Settlement, SettleRequest
from greenconn.broker.queues import UNDECLARED, Declaration
from greenconn.transport.sqlite.messages import Claim, claim, put, settle
from greenconn.transport.sqlite.queues import SCHEMA, Queues


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
        settle(db, queues, [SettleRequest(each, Settlement.ACK) for each in taken], how)
        return count


def test_a_claim_costs_the_same_whatever_waits() -> None:
    few, many = steps(100), steps(10_000)
    assert many < 1.1 * few


def test_a_claim_writes_no_body_anew(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(SCHEMA)
        queues, body = Queues(), b"x" * 500_000
        queues.make(db, "q", UNDECLARED, "me")
        put(db, queues, [Entry("q", {"body": body}, head="{}")], Claim(1, 60.0, "me"))
        for number in (1 << 60, 1 << 61):
            how = Claim(number, 60.0, "me")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (taken,) = claim(db, queues, {1: 10}, how).claimed
            assert taken.raw == body
            settle(db, queues, [SettleRequest(taken, Settlement.REQUEUE, is_unseen=True)], how)
            assert 0 < (tmp_path / "q.db-wal").stat().st_size < len(body) / 2


def test_messages_of_any_kind_stay_in_their_order() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(SCHEMA)
        queues, how = Queues(), Claim(1, 60.0, "me")
        queues.make(db, "q", UNDECLARED, "me")
        bodies = [b"%d" % number for number in range(200)]
        lifetimes = [None if number % 7 else 60.0 for number in range(200)]
        entries = [
            Entry("q", {"body": body}, lifetime=lifetime, head="{}")
            for body, lifetime in zip(bodies, lifetimes, strict=True)
        ]
        put(db, queues, entries, how)
        assert [each.raw for each in claim(db, queues, {1: 200}, how).claimed] == bodies


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ({"x-max-length": 3}, [b"66", b"77", b"88"]),
        ({"x-max-length-bytes": 5}, [b"77", b"88"]),
        ({"x-max-length": 3, "x-overflow": "reject-publish"}, [b"00", b"11", b"22"]),
    ],
)
def test_a_bounded_queue_is_counted_once_for_many_messages(
    arguments: dict[str, Any], left: list[bytes]
) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(SCHEMA)
        queues, how = Queues(), Claim(1, 60.0, "me")
        queues.make(db, "q", Declaration(arguments=arguments), "me")
        statements: list[str] = []
        db.set_trace_callback(statements.append)
        bodies = [b"%d%d" % (number, number) for number in range(9)]
        put(db, queues, [Entry("q", {"body": body}) for body in bodies], how)
        assert sum("count(*)" in each for each in statements) == 1
        assert [each.raw for each in claim(db, queues, {1: 10}, how).claimed] == left
