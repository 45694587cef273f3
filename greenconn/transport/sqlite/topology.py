"""Exchanges and bindings in a file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from greenconn.broker.exchanges import DirectTopology, ExchangeRecord, Row, Topology, TopologyStore
from greenconn.jsoncodec import dumps, loads

if TYPE_CHECKING:
    from greenconn.transport.sqlite.database import Database

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
        self._database = database
        #: Exchange -> its rows, as of this version.
        self._rows: dict[str, Sequence[Row] | None] = {}
        self._version = 0

    def _read(self, function: Callable[..., T], *args: Any) -> T:
        found: T = self._database.read(_on_records, function, *args)
        return found

    def _change(self, function: Callable[..., object], *args: Any) -> None:
        self._database.write(_on_records, function, *args)

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


def _on_records(db: sqlite3.Connection, function: Callable[..., T], *args: Any) -> T:
    return function(Records(db), *args)


def _rows(db: sqlite3.Connection, name: str, known: int) -> _Read:
    """Return the bindings of an exchange, unless nothing has changed since version *known*."""
    (version,) = db.execute("SELECT version FROM topology").fetchone()
    is_known = version == known
    return _Read(version, () if is_known else DirectTopology(Records(db)).rows(name))


def _text(arguments: Mapping[str, Any] | None) -> str:
    """Return arguments as text; equal arguments give the same text."""
    given = arguments or {}
    return dumps({name: given[name] for name in sorted(given)})
