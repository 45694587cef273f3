"""The tables.

All times are seconds of the machine's clock, since they are compared between processes.

``messages.state``: 0 it waits, 1 it must not be delivered before ``at``, 2 somebody has it, until
``at``.  ``claim`` tells two claims of one message apart, so that who comes too late changes nothing.

``consumers.armed``: its link found nothing and waits for a word; set in the transaction that found
nothing, so that whoever stores a message afterwards sees it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["APPLICATION_ID", "SCHEMA", "VERSION"]

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
