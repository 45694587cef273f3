"""Limits in SQLite, in a table, and in PostgreSQL, by a function of the schema: one call for all that is
asked together.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import time
from typing import TYPE_CHECKING, Any, Final

from greenconn.jsoncodec import dumps, loads
from greenconn.limits.store import (
    LONGEST_WAIT,
    MICRO,
    PATIENCE,
    Give,
    Note,
    Operation,
    Renew,
    Seen,
    Take,
    Taken,
    carry_out,
    micro,
)

if TYPE_CHECKING:
    import sqlite3

    from greenconn.broker.link import StoreLink
    from greenconn.transport.postgresql import PostgresStore
    from greenconn.transport.sqlite import SqliteStore

# -- SQLite

#: Made when it is first needed: most files have no limits.
_TABLES: Final = (
    """
CREATE TABLE facts (
    key TEXT NOT NULL,
    holder TEXT NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (key, holder)
) WITHOUT ROWID
""",
    "CREATE INDEX facts_until ON facts (until)",
)


class SqliteRows:
    """Facts as rows, in a transaction.

    Arguments:
        connection: of the file.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def at(self, key: str, now: int) -> dict[str, int]:
        """Return the holders of *key* whose lease has not ended, and when it does."""
        statement = "SELECT holder, until FROM facts WHERE key = ? AND until > ?"
        return dict(self._connection.execute(statement, (key, now)).fetchall())

    def put(self, key: str, holder: str, until: int) -> None:
        """Have *holder* hold until then."""
        self._connection.execute(
            "INSERT OR REPLACE INTO facts (key, holder, until) VALUES (?, ?, ?)",
            (key, holder, until),
        )

    def drop(self, key: str, holder: str) -> None:
        """Forget *holder*."""
        self._connection.execute("DELETE FROM facts WHERE key = ? AND holder = ?", (key, holder))


def run_in_sqlite(link: StoreLink, operations: Sequence[Operation]) -> list[Any]:
    """Carry *operations* out in one transaction, and return their replies.  May switch."""
    store: SqliteStore = link.store  # type: ignore[assignment]
    replies: list[Any] = store.database.write(_run_in_file, operations)
    return replies


def _run_in_file(connection: sqlite3.Connection, operations: Sequence[Operation]) -> list[Any]:
    # In the thread.
    now = round(time() * MICRO)
    try:
        connection.execute("DELETE FROM facts WHERE until <= ?", (now,))
    except connection.OperationalError as exc:
        if "no such table" not in str(exc):
            raise
        for statement in _TABLES:
            connection.execute(statement)
    rows = SqliteRows(connection)
    return [carry_out(rows, operation, now) for operation in operations]


# -- PostgreSQL


def run_in_postgresql(link: StoreLink, operations: Sequence[Operation]) -> list[Any]:
    """Carry *operations* out by one statement, and return their replies.  May switch."""
    store: PostgresStore = link.store  # type: ignore[assignment]
    session = store.session
    asked = dumps([_row_of(operation) for operation in operations])
    ((found,),) = session.call(session.fetch, "SELECT greenconn.limits(%s::jsonb)::text", (asked,))
    return [_reply_of(*pair) for pair in zip(operations, loads(found), strict=True)]


def _row_of(operation: Operation) -> list[Any]:
    if isinstance(operation, Take):
        return [
            "take",
            operation.place,
            operation.holder,
            micro(operation.lease),
            operation.rate,
            operation.limit,
            micro(operation.interval),
            operation.burst,
            operation.has_waited,
            micro(PATIENCE),
            micro(LONGEST_WAIT),
        ]
    if isinstance(operation, Give):
        return ["give", operation.place, operation.holder, 0, ""]
    if isinstance(operation, Renew):
        kind = "restore" if operation.restores else "renew"
        return [kind, operation.place, operation.holder, micro(operation.lease), ""]
    if isinstance(operation, Note):
        return ["note", operation.key, operation.token, micro(operation.lease), ""]
    return ["read", operation.key, "", 0, ""]


def _reply_of(operation: Operation, reply: Any) -> Any:
    if isinstance(operation, Take):
        is_taken, wait, holder = reply
        return Taken(is_taken, wait / MICRO, holder)
    if isinstance(operation, Renew):
        return bool(reply)
    if isinstance(operation, (Give, Note)):
        return None
    now, token = reply
    return Seen(now, token)
