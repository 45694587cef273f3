"""The tables of a schema, and the migrations that make them.

SQL is written for the schema ``greenconn`` everywhere in this package; a session puts the name of its
own in that place (:meth:`~greenconn.transport.postgresql.connection.Session.fetch`).

``messages.holder`` is the number of the link that has claimed a message; NULL where it waits.  A link
has one lease, in ``links``, for all that it holds: it is renewed by one statement, however much that
is.  A message with ``due`` is delayed: when that time has come, a consumer sets it to NULL.  So what can
be claimed is in one partial index, and nothing else is.

``consumers.armed``: the link found nothing and waits to be notified.  Nothing in that table outlives its
session, so it needs no write-ahead log.  It must have no sequence, which would be unlogged, too, and
damaged on a replica that becomes the primary (PostgreSQL 15).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from psycopg import errors

from greenconn.transport.postgresql.connection import CannotUse, quoted

if TYPE_CHECKING:
    from greenconn.transport.postgresql.connection import Session

#: The migrations, in order: the version of a schema is the number of those that were applied.  Never
#: change one that was released.
MIGRATIONS: Final[Sequence[str]] = (
    """
CREATE TABLE greenconn.queues (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    declaration text NOT NULL,
    owner text COLLATE "C",
    auto_delete boolean NOT NULL,
    is_bounded boolean NOT NULL,
    idle_until timestamptz
);
CREATE INDEX queues_owner ON greenconn.queues (owner) WHERE owner IS NOT NULL;
CREATE INDEX queues_idle_until ON greenconn.queues (idle_until) WHERE idle_until IS NOT NULL;
CREATE TABLE greenconn.messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue bigint NOT NULL,
    holder bigint,
    due timestamptz,
    expires timestamptz,
    deliveries integer NOT NULL DEFAULT 0,
    priority smallint NOT NULL DEFAULT 0,
    redelivered boolean NOT NULL DEFAULT false,
    envelope text NOT NULL,
    body bytea NOT NULL
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0.2,
    autovacuum_analyze_scale_factor = 0.2,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX messages_ready ON greenconn.messages (queue, priority DESC, id)
    WHERE holder IS NULL AND due IS NULL;
CREATE INDEX messages_held ON greenconn.messages (holder, queue) WHERE holder IS NOT NULL;
CREATE INDEX messages_due ON greenconn.messages (due, queue) WHERE due IS NOT NULL;
CREATE INDEX messages_expires ON greenconn.messages (expires)
    WHERE expires IS NOT NULL AND holder IS NULL AND due IS NULL;
CREATE TABLE greenconn.exchanges (
    name text COLLATE "C" PRIMARY KEY,
    type text NOT NULL,
    durable boolean NOT NULL,
    auto_delete boolean NOT NULL,
    arguments text NOT NULL
);
CREATE TABLE greenconn.bindings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text COLLATE "C" NOT NULL,
    destination text COLLATE "C" NOT NULL,
    to_exchange boolean NOT NULL,
    routing_key text COLLATE "C" NOT NULL,
    pattern text NOT NULL,
    arguments text COLLATE "C" NOT NULL
);
CREATE UNIQUE INDEX bindings_source ON greenconn.bindings
    (source, destination, to_exchange, routing_key, md5(arguments));
CREATE INDEX bindings_destination ON greenconn.bindings (destination, to_exchange);
CREATE TABLE greenconn.topology (version bigint NOT NULL) WITH (fillfactor = 10);
INSERT INTO greenconn.topology VALUES (1);
CREATE TABLE greenconn.links (
    number bigint PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    lease_until timestamptz NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX links_owner ON greenconn.links (owner);
CREATE UNLOGGED TABLE greenconn.consumers (
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    queue bigint NOT NULL,
    owner text COLLATE "C" NOT NULL,
    count integer NOT NULL,
    exclusive boolean NOT NULL,
    armed boolean NOT NULL DEFAULT false,
    PRIMARY KEY (queue, owner)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX consumers_owner ON greenconn.consumers (owner);
""",
)

#: What undoes each of them, with the messages.
REVERSALS: Final[Sequence[str]] = (
    """
DROP TABLE greenconn.consumers, greenconn.links, greenconn.topology, greenconn.bindings,
    greenconn.exchanges, greenconn.messages, greenconn.queues, greenconn.migrations
""",
)

#: The version of a schema that this version of the library uses.
VERSION: Final = len(MIGRATIONS)

#: The advisory lock under which migrations are applied.
MIGRATION_LOCK: Final = 0x67634E4E

_VERSIONS: Final = """
CREATE TABLE greenconn.migrations (
    version integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


def statements(schema: str, version: int = 0, wanted: int = VERSION) -> list[str]:
    """Return the SQL that brings a schema from *version* to *wanted*; 0: there are no tables."""
    name = quoted(schema)
    texts: list[str] = []
    if wanted and not version:
        texts += [f"CREATE SCHEMA IF NOT EXISTS {name}", _VERSIONS.strip()]
    for number in range(version + 1, wanted + 1):
        texts += [each.strip() for each in MIGRATIONS[number - 1].split(";") if each.strip()]
        texts.append(f"INSERT INTO greenconn.migrations (version) VALUES ({number})")
    for number in range(version, wanted, -1):
        texts += [each.strip() for each in REVERSALS[number - 1].split(";") if each.strip()]
        if number > 1:
            texts.append(f"DELETE FROM greenconn.migrations WHERE version = {number}")
    if version and not wanted and schema != "public":
        # It stays where it has something else, or is another role's.
        texts.append(
            f"DO $greenconn$ BEGIN DROP SCHEMA {name}; EXCEPTION "
            f"WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL; END $greenconn$"
        )
    return [in_schema(schema, text) for text in texts]


def in_schema(schema: str, text: str) -> str:
    """Return SQL with the name of a schema in the place of ours."""
    return text.replace("greenconn.", f"{quoted(schema)}.")


def ensure(session: Session) -> None:
    """See that the schema is there and of this version; make it, or migrate it.  May switch.

    Raises:
        CannotUse: it is of a later version, or this role may not make it; says what to do.
    """
    if _version(session) != VERSION:
        try:
            _migrate(session)
        except errors.InsufficientPrivilege as exc:
            raise CannotUse(
                f"{session.where}: schema {session.schema!r} does not have the tables of this version "
                f"of greenconn, and role {session.user!r} may not create them "
                f"({exc.diag.message_primary}): connect once as a role that may, or grant it CREATE "
                f"on the database"
            ) from exc


def _migrate(session: Session) -> None:
    # Many processes may start at the same time, and CREATE ... IF NOT EXISTS is no lock.
    with session.transaction():
        session.fetch("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        for text in statements(session.schema, _version(session)):
            session.fetch(text)


def _version(session: Session) -> int:
    try:
        version = version_of(session.schema, session.fetch)
    except errors.InsufficientPrivilege as exc:
        raise CannotUse(
            f"{session.where}: role {session.user!r} may not use schema {session.schema!r} "
            f"({exc.diag.message_primary}): grant it USAGE on the schema, and SELECT, INSERT, UPDATE "
            f"and DELETE on its tables"
        ) from exc
    if version > VERSION:
        raise CannotUse(
            f"{session.where}: schema {session.schema!r} was created by a later version of greenconn "
            f"(version {version}, known here up to {VERSION}): upgrade greenconn in this program"
        )
    return version


def version_of(schema: str, fetch: Callable[[str], Sequence[Sequence[Any]]]) -> int:
    """Return the version of the tables in *schema*; 0: there are none.

    Arguments:
        fetch: runs a statement, as it is written here, and returns its rows.
    """
    # Not to_regclass: within a transaction it would not look anew for what others have made.
    literal = schema.replace("'", "''")
    found = fetch(
        "SELECT 1 FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid "
        f"WHERE nspname = '{literal}' AND relname = 'migrations'"
    )
    if not found:
        return 0
    ((version,),) = fetch("SELECT coalesce(max(version), 0) FROM greenconn.migrations")
    return int(version)
