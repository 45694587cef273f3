"""What is done to exchanges and bindings: functions that run in a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

from greenconn.broker.port import Row
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.sqlite.queues import drop_unbound, note_change
from greenconn.transport.virtual.entities import PREDECLARED
from greenconn.transport.virtual.exchange import ROUTERS
from greenconn.transport.virtual.state import Exchange

__all__ = ["Rows", "bind", "drop", "find", "note", "rows", "unbind"]


class Rows(NamedTuple):
    """The bindings of an exchange; None: there is no such exchange.

    Attributes:
        version: of all exchanges and bindings.
    """

    version: int
    rows: tuple[Row, ...] | None


def _text(arguments: Mapping[str, Any] | None) -> str:
    """Arguments as text, the same for the same ones."""
    given = arguments or {}
    return dumps({name: given[name] for name in sorted(given)})


def note(db: sqlite3.Connection, exchange: Exchange) -> None:
    """An exchange was declared."""
    made = db.execute(
        "INSERT INTO exchanges VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
        (
            exchange.name,
            exchange.type,
            exchange.durable,
            exchange.auto_delete,
            _text(exchange.arguments),
        ),
    ).rowcount
    if made:
        note_change(db)


def find(db: sqlite3.Connection, name: str) -> Exchange | None:
    """Return an exchange without its bindings."""
    found = db.execute(
        "SELECT type, durable, auto_delete, arguments FROM exchanges WHERE name = ?", (name,)
    ).fetchone()
    if found is None:
        return None
    kind, durable, auto_delete, arguments = found
    return Exchange(
        name,
        kind,
        ROUTERS[kind](),
        durable=bool(durable),
        auto_delete=bool(auto_delete),
        arguments=loads(arguments),
    )


def drop(db: sqlite3.Connection, name: str) -> None:
    """Delete an exchange, its bindings, and those that lead to it."""
    sources = db.execute(
        "SELECT DISTINCT source FROM bindings WHERE destination = ? AND to_exchange = 1", (name,)
    ).fetchall()
    db.execute("DELETE FROM exchanges WHERE name = ?", (name,))
    db.execute(
        "DELETE FROM bindings WHERE source = ? OR (destination = ? AND to_exchange = 1)",
        (name, name),
    )
    drop_unbound(db, [source for (source,) in sources])
    note_change(db)


def bind(db: sqlite3.Connection, exchange: str, row: Row) -> None:
    """Add a binding."""
    made = db.execute(
        "INSERT INTO bindings (source, destination, to_exchange, routing_key, pattern, arguments) "
        "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            exchange,
            row.queue,
            row.to_exchange,
            row.routing_key,
            row.pattern,
            _text(row.arguments),
        ),
    ).rowcount
    if made:
        note_change(db)


def unbind(db: sqlite3.Connection, exchange: str, row: Row) -> None:
    """Remove a binding, and an auto-delete exchange with its last one."""
    gone = db.execute(
        "DELETE FROM bindings WHERE source = ? AND destination = ? AND to_exchange = ? "
        "AND routing_key = ? AND arguments = ?",
        (exchange, row.queue, row.to_exchange, row.routing_key, _text(row.arguments)),
    ).rowcount
    if gone:
        drop_unbound(db, [exchange])
        note_change(db)


def rows(db: sqlite3.Connection, exchange: str, known: int) -> Rows:
    """The bindings of an exchange, unless nothing has changed since version *known*."""
    (version,) = db.execute("SELECT version FROM topology").fetchone()
    if version == known:
        return Rows(version, ())
    if exchange not in PREDECLARED:
        there = db.execute("SELECT 1 FROM exchanges WHERE name = ?", (exchange,)).fetchone()
        if there is None:
            return Rows(version, None)
    found = db.execute(
        "SELECT routing_key, pattern, destination, arguments, to_exchange FROM bindings "
        "WHERE source = ? ORDER BY id",
        (exchange,),
    )
    return Rows(
        version,
        tuple(
            Row(key, pattern, queue, loads(arguments) or None, bool(to_exchange))
            for key, pattern, queue, arguments, to_exchange in found
        ),
    )
