"""The tables, and lists of values in statements.

All times are seconds of the machine's clock, since they are compared between processes.

``messages.state``: 0 for a waiting message, 1 for one that must not be delivered before ``at``, 2 for
one that is claimed until ``at``.  ``claim`` tells two claims of one message apart, so that a late
settlement changes nothing.

``consumers.armed``: its link found nothing and waits to be notified.  It is set in the transaction that
found nothing, so that a process that stores a message afterwards sees it.

Each step of a statement releases Python's lock and has to wait for it, which takes long where the main
thread is busy; so one statement handles many rows where that is possible.  The number of values is
rounded up, so that few texts of statements occur and each is compiled once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

#: Says that the file is ours (``PRAGMA application_id``).
APPLICATION_ID: Final = 0x67634E4E
#: Of the tables (``PRAGMA user_version``).
VERSION: Final = 1

SCHEMA: Final = """
CREATE TABLE queues (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    declaration TEXT NOT NULL,
    owner TEXT,
    auto_delete INTEGER NOT NULL,
    idle_until REAL
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue INTEGER NOT NULL,
    state INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    at REAL,
    expires REAL,
    deliveries INTEGER NOT NULL DEFAULT 0,
    claim INTEGER,
    envelope TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX messages_in_order ON messages (queue, state, priority DESC, id);
CREATE INDEX messages_by_time ON messages (at) WHERE at IS NOT NULL;
CREATE INDEX messages_by_death ON messages (expires) WHERE expires IS NOT NULL;
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
    until REAL NOT NULL
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
CREATE INDEX consumers_by_owner ON consumers (owner);
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
