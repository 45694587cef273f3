"""The tables of a schema, and the migrations that make them.

SQL is written for the schema ``greenconn`` everywhere in this package; a session puts the name of its
own in that place (:meth:`~greenconn.transport.postgresql.connection.Session.fetch`).

``messages.holder`` is the number of the link that has claimed a message; NULL where it waits.  A link
has one lease, in ``links``, for all that it holds: it is renewed by one statement, however much that
is.  A message with ``due`` is delayed: when that time has come, a consumer sets it to NULL.  So what can
be claimed is in one partial index, and nothing else is.

``lengths``: the messages that wait in a queue with a maximum length, and the bytes of their bodies: what
was counted (``backend`` 0; NULL where that is to be done again), and what each session of the server
has added since, or taken away.  (One row for all would have claims wait for publishers, and for one
another.)

``consumers.armed``: 1 where the link found nothing and waits to be notified, 2 where it was notified of
a message and has not claimed since.  Nothing in that table outlives its session, so it needs no
write-ahead log.  It must have no sequence, which would be unlogged, too, and damaged on a replica that
becomes the primary (PostgreSQL 15).
"""

from __future__ import annotations

import re
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
    max_length bigint,
    max_length_bytes bigint,
    is_bounded boolean GENERATED ALWAYS AS (num_nonnulls(max_length, max_length_bytes) > 0) STORED,
    is_single boolean NOT NULL,
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
    is_counted boolean NOT NULL DEFAULT false,
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
    armed smallint NOT NULL DEFAULT 0,
    PRIMARY KEY (queue, owner)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX consumers_owner ON greenconn.consumers (owner);
""",
    # Limits: see ``greenconn.limits.store``, whose functions in Python say the same.
    """
CREATE TABLE greenconn.facts (
    key text COLLATE "C" NOT NULL,
    holder text COLLATE "C" NOT NULL,
    until bigint NOT NULL,
    PRIMARY KEY (key, holder)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX facts_until ON greenconn.facts (until);
CREATE FUNCTION greenconn.limits(operations jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
    DECLARE
        operation jsonb;
        replies jsonb := '[]';
        reply jsonb;
        kind text;
        place text;
        own text;
        lease bigint;
        rate text;
        other text;
        was_held boolean;
        instant bigint;
        step bigint;
        level bigint;
        promise bigint;
        due bigint;
        pause bigint;
    BEGIN
        -- In one order, so that two calls never wait for each other.
        PERFORM pg_advisory_xact_lock(locked.number) FROM (
            SELECT DISTINCT hashtextextended(each, 0) AS number
            FROM jsonb_array_elements(operations) AS asked,
                LATERAL (VALUES (asked->>1), (asked->>4)) AS keys (each)
            WHERE each <> '' ORDER BY 1
        ) AS locked;
        instant := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
        FOR operation IN SELECT asked FROM jsonb_array_elements(operations) AS asked LOOP
            kind := operation->>0;
            place := operation->>1;
            own := operation->>2;
            lease := operation->>3;
            rate := operation->>4;
            reply := 'null';
            pause := 0;
            DELETE FROM greenconn.facts WHERE key IN (place, rate) AND until <= instant;
            IF kind = 'give' THEN
                DELETE FROM greenconn.facts WHERE key = place AND holder = own;
            ELSIF kind = 'read' THEN
                SELECT jsonb_build_array(instant, max(holder)) INTO reply
                FROM greenconn.facts WHERE key = place;
            ELSIF kind = 'note' THEN
                SELECT max(holder) INTO other FROM greenconn.facts WHERE key = place;
                IF other IS NULL OR own COLLATE "C" >= other THEN
                    DELETE FROM greenconn.facts WHERE key = place;
                    INSERT INTO greenconn.facts VALUES (place, own, instant + lease);
                END IF;
            ELSE
                SELECT bool_or(holder = own), min(holder) INTO was_held, other
                FROM greenconn.facts WHERE key = place;
                was_held := coalesce(was_held, false);
                IF kind = 'take' THEN
                    IF place <> '' AND NOT was_held AND (
                        SELECT count(*) FROM greenconn.facts WHERE key = place
                    ) >= (operation->>5)::bigint THEN
                        reply := jsonb_build_array(false, 0, other);
                    ELSIF rate <> '' THEN
                        SELECT coalesce(max(until) FILTER (WHERE holder = 'full'), instant),
                            coalesce(max(until) FILTER (WHERE holder = 'promised'), instant)
                        INTO level, promise FROM greenconn.facts WHERE key = rate;
                        step := operation->>6;
                        due := greatest(instant, level - ((operation->>7)::bigint - 1) * step);
                        IF ((operation->>8)::boolean OR promise <= instant)
                            AND due - instant <= (operation->>9)::bigint THEN
                            pause := due - instant;
                            INSERT INTO greenconn.facts VALUES (rate, 'full', level + step)
                            ON CONFLICT (key, holder) DO UPDATE SET until = excluded.until;
                        ELSE
                            IF promise > instant THEN
                                promise := promise + step;
                            END IF;
                            promise := least(
                                greatest(promise, due), instant + (operation->>10)::bigint
                            );
                            INSERT INTO greenconn.facts VALUES (rate, 'promised', promise)
                            ON CONFLICT (key, holder) DO UPDATE SET until = excluded.until;
                            reply := jsonb_build_array(false, promise - instant, null);
                        END IF;
                    END IF;
                    IF reply = 'null' THEN
                        reply := jsonb_build_array(true, pause, null);
                    ELSE
                        place := '';
                    END IF;
                ELSE
                    reply := to_jsonb(was_held);
                    IF kind = 'renew' AND NOT was_held THEN
                        place := '';
                    END IF;
                END IF;
                IF place <> '' THEN
                    INSERT INTO greenconn.facts VALUES (place, own, instant + lease)
                    ON CONFLICT (key, holder) DO UPDATE SET until = excluded.until;
                END IF;
            END IF;
            replies := replies || jsonb_build_array(reply);
        END LOOP;
        -- What was never asked for again, now and then.
        IF random() < 0.02 THEN
            DELETE FROM greenconn.facts WHERE (key, holder) IN (
                SELECT key, holder FROM greenconn.facts WHERE until <= instant
                ORDER BY until LIMIT 1000 FOR UPDATE SKIP LOCKED
            );
        END IF;
        RETURN replies;
    END
$$;
""",
    # Those that announce notify: see ``greenconn.transport.postgresql.queues``.  ``put`` stores one
    # message and notifies, and ``consume`` notes a consumer and looks for what comes by time, each in
    # one round trip; after the commit.
    """
CREATE FUNCTION greenconn.next_due() RETURNS float8 LANGUAGE sql AS $$
    SELECT extract(epoch FROM least(
        (SELECT min(due) FROM greenconn.messages WHERE due IS NOT NULL),
        (SELECT min(expires) FROM greenconn.messages
            WHERE expires IS NOT NULL AND holder IS NULL AND due IS NULL),
        (SELECT min(idle_until) FROM greenconn.queues WHERE idle_until IS NOT NULL)
    ) - clock_timestamp())::float8
$$;
CREATE FUNCTION greenconn.notify(link text, numbers bigint[]) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        -- A notification has room for 7,999 bytes.
        PERFORM pg_notify('greenconn_' || link, string_agg(number::text, ' '))
        FROM unnest(numbers) WITH ORDINALITY AS named (number, place) GROUP BY place / 390;
    END
$$;
CREATE FUNCTION greenconn.announce(numbers bigint[], link text) RETURNS bigint[] LANGUAGE plpgsql AS $$
    DECLARE
        notified text;
        ready bigint[];
    BEGIN
        -- Nearly always none waits: consumers are busy.
        IF NOT EXISTS (SELECT 1 FROM greenconn.consumers
            WHERE queue = ANY (numbers) AND armed = 1 AND owner <> link)
        THEN
            RETURN '{}';
        END IF;
        FOR notified, ready IN
            WITH chosen AS MATERIALIZED (
                SELECT q.id, waiting.owner FROM greenconn.queues q, LATERAL (
                    SELECT c.owner FROM greenconn.consumers c
                    WHERE c.queue = q.id AND c.armed = 1 AND c.owner <> link AND NOT EXISTS (
                        SELECT 1 FROM greenconn.consumers w
                        WHERE w.queue = q.id AND w.armed = 2 AND w.owner <> link
                    ) AND (NOT q.is_single OR c.owner = (
                        SELECT f.owner FROM greenconn.consumers f
                        WHERE f.queue = q.id ORDER BY f.since, f.owner LIMIT 1
                    ))
                    ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED
                ) AS waiting WHERE q.id = ANY (numbers)
            ), woken AS (
                UPDATE greenconn.consumers c SET armed = 2 FROM chosen
                WHERE c.queue = chosen.id AND c.owner = chosen.owner RETURNING c.owner, c.queue
            )
            SELECT owner, array_agg(queue) FROM woken GROUP BY owner
        LOOP
            PERFORM greenconn.notify(notified, ready);
        END LOOP;
        RETURN ARRAY (SELECT DISTINCT c.queue
            FROM greenconn.consumers c JOIN greenconn.queues q ON q.id = c.queue
            WHERE c.queue = ANY (numbers) AND c.armed = 1 AND c.owner <> link AND NOT q.is_single);
    END
$$;
CREATE FUNCTION greenconn.announce_rest(numbers bigint[], link text) RETURNS bigint[]
LANGUAGE plpgsql AS $$
    DECLARE
        rest bigint[] := ARRAY (SELECT number FROM unnest(numbers) AS asked (number)
            WHERE EXISTS (SELECT 1 FROM greenconn.messages
                WHERE queue = number AND holder IS NULL AND due IS NULL OFFSET 0));
    BEGIN
        UPDATE greenconn.consumers SET armed = 0 WHERE (queue, owner) IN (
            SELECT queue, owner FROM greenconn.consumers
            WHERE queue = ANY (rest) AND armed = 2 FOR UPDATE SKIP LOCKED
        );
        RETURN greenconn.announce(rest, link);
    END
$$;
CREATE TABLE greenconn.lengths (
    queue bigint NOT NULL,
    backend integer NOT NULL,
    messages bigint,
    bytes bigint,
    PRIMARY KEY (queue, backend)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
CREATE FUNCTION greenconn.add_length(number bigint, more bigint, size bigint) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO greenconn.lengths AS known VALUES (number, pg_backend_pid(), more, size)
    ON CONFLICT (queue, backend) DO UPDATE
        SET messages = known.messages + excluded.messages, bytes = known.bytes + excluded.bytes
$$;
CREATE FUNCTION greenconn.count_message() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'TRUNCATE' THEN
            UPDATE greenconn.lengths SET messages = NULL WHERE backend = 0;
        ELSIF TG_OP = 'DELETE' THEN
            -- Who counts holds it until that is committed; one version, however many are deleted.
            PERFORM 1 FROM greenconn.lengths WHERE queue = OLD.queue AND backend = 0 FOR UPDATE;
            UPDATE greenconn.lengths SET messages = NULL
            WHERE queue = OLD.queue AND backend = 0 AND messages IS NOT NULL;
        ELSIF TG_OP = 'UPDATE' AND OLD.holder IS NULL AND OLD.due IS NULL THEN
            PERFORM greenconn.add_length(NEW.queue, -1, -length(NEW.body));
        ELSE
            PERFORM greenconn.add_length(NEW.queue, 1, length(NEW.body));
        END IF;
        RETURN NULL;
    END
$$;
CREATE TRIGGER count_stored AFTER INSERT ON greenconn.messages FOR EACH ROW
    WHEN (NEW.is_counted AND NEW.holder IS NULL AND NEW.due IS NULL)
    EXECUTE FUNCTION greenconn.count_message();
CREATE TRIGGER count_changed AFTER UPDATE OF holder, due ON greenconn.messages FOR EACH ROW
    WHEN (NEW.is_counted AND (OLD.holder IS NULL AND OLD.due IS NULL)
        <> (NEW.holder IS NULL AND NEW.due IS NULL))
    EXECUTE FUNCTION greenconn.count_message();
CREATE TRIGGER count_deleted AFTER DELETE ON greenconn.messages FOR EACH ROW
    WHEN (OLD.is_counted AND OLD.holder IS NULL AND OLD.due IS NULL)
    EXECUTE FUNCTION greenconn.count_message();
CREATE TRIGGER count_truncated AFTER TRUNCATE ON greenconn.messages
    EXECUTE FUNCTION greenconn.count_message();
CREATE FUNCTION greenconn.length_of(number bigint, OUT waiting bigint, OUT size bigint)
LANGUAGE plpgsql AS $$
    DECLARE
        sessions bigint;
        counted record;
        more bigint;
        more_bytes bigint;
    BEGIN
        -- Others that store in this queue wait, and this for those that delete: see count_message.
        PERFORM 1 FROM greenconn.queues WHERE id = number FOR NO KEY UPDATE;
        SELECT messages INTO counted FROM greenconn.lengths
        WHERE queue = number AND backend = 0 FOR UPDATE;
        SELECT count(*), coalesce(sum(messages), 0), coalesce(sum(bytes), 0)
        INTO sessions, waiting, size FROM greenconn.lengths WHERE queue = number;
        IF counted.messages IS NULL THEN
            -- One statement, so that what others commit meanwhile is in both sums, or in none.
            SELECT now.messages, now.bytes, now.messages - coalesce(sum(l.messages), 0),
                now.bytes - coalesce(sum(l.bytes), 0)
            INTO waiting, size, more, more_bytes
            FROM (
                SELECT count(*) AS messages, coalesce(sum(length(body)), 0) AS bytes
                FROM greenconn.messages WHERE queue = number AND holder IS NULL AND due IS NULL
            ) AS now LEFT JOIN greenconn.lengths l ON l.queue = number AND l.backend <> 0
            GROUP BY now.messages, now.bytes;
            INSERT INTO greenconn.lengths VALUES (number, 0, more, more_bytes)
            ON CONFLICT (queue, backend) DO UPDATE SET messages = more, bytes = more_bytes;
        ELSIF sessions > 64 THEN
            WITH ended AS (
                DELETE FROM greenconn.lengths WHERE queue = number AND backend IN (
                    SELECT backend FROM greenconn.lengths
                    WHERE queue = number AND backend <> 0 FOR UPDATE SKIP LOCKED
                ) RETURNING messages, bytes
            )
            SELECT coalesce(sum(messages), 0), coalesce(sum(bytes), 0) INTO more, more_bytes FROM ended;
            UPDATE greenconn.lengths SET messages = messages + more, bytes = bytes + more_bytes
            WHERE queue = number AND backend = 0;
        END IF;
    END
$$;
CREATE FUNCTION greenconn.has_room(number bigint, most bigint, most_bytes bigint, added bigint)
RETURNS boolean LANGUAGE sql AS $$
    SELECT (waiting < most) IS NOT FALSE AND (size + added <= most_bytes) IS NOT FALSE
    FROM greenconn.length_of(number)
$$;
CREATE PROCEDURE greenconn.put(
    INOUT stored bigint, INOUT others bigint[], link text, target text, known bigint,
    urgency smallint, delay float8, lifetime float8, written text, content bytea
) LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO greenconn.messages (queue, priority, due, expires, is_counted, envelope, body)
        SELECT id, urgency, now() + delay * interval '1 s', now() + lifetime * interval '1 s',
            is_bounded, written, content
        FROM greenconn.queues WHERE name = target
            AND (known IS NULL OR known = (SELECT version FROM greenconn.topology))
            AND CASE WHEN is_bounded
                THEN greenconn.has_room(id, max_length, max_length_bytes, length(content))
                ELSE true END
        RETURNING queue INTO stored;
        COMMIT;
        others := greenconn.announce(ARRAY[stored], link);
        IF delay IS NOT NULL OR lifetime IS NOT NULL THEN
            PERFORM pg_notify('greenconn_' || owner, '@' || least(delay, lifetime))
            FROM greenconn.consumers WHERE queue = stored AND owner <> link;
        END IF;
    END
$$;
CREATE PROCEDURE greenconn.consume(
    INOUT number bigint, INOUT declared text, INOUT accepted boolean, INOUT due_in float8,
    target text, link text, consumers integer, alone boolean
) LANGUAGE plpgsql AS $$
    BEGIN
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        -- No consumer outlives the server.
        SET LOCAL synchronous_commit = off;
        -- Two links that begin at once would not see each other.
        SELECT id, declaration INTO number, declared
        FROM greenconn.queues WHERE name = target FOR UPDATE;
        IF number IS NULL THEN
            RETURN;
        END IF;
        accepted := NOT EXISTS (SELECT 1 FROM greenconn.consumers
            WHERE queue = number AND owner <> link AND (exclusive OR alone));
        IF NOT accepted THEN
            RETURN;
        END IF;
        INSERT INTO greenconn.consumers (queue, owner, count, exclusive)
        VALUES (number, link, consumers, alone)
        ON CONFLICT (queue, owner) DO UPDATE SET count = excluded.count;
        UPDATE greenconn.queues SET idle_until = NULL WHERE id = number AND idle_until IS NOT NULL;
        COMMIT;
        due_in := greenconn.next_due();
    END
$$;
""",
)

#: What undoes each of them, with the messages.
REVERSALS: Final[Sequence[str]] = (
    """
DROP TABLE greenconn.consumers, greenconn.links, greenconn.topology, greenconn.bindings,
    greenconn.exchanges, greenconn.messages, greenconn.queues, greenconn.migrations
""",
    "DROP FUNCTION greenconn.limits(jsonb); DROP TABLE greenconn.facts",
    "DROP PROCEDURE greenconn.consume; DROP PROCEDURE greenconn.put; "
    "DROP FUNCTION greenconn.has_room; DROP FUNCTION greenconn.length_of; "
    "DROP FUNCTION greenconn.count_message CASCADE; DROP FUNCTION greenconn.add_length; "
    "DROP TABLE greenconn.lengths; "
    "DROP FUNCTION greenconn.next_due; DROP FUNCTION greenconn.announce_rest; "
    "DROP FUNCTION greenconn.announce; DROP FUNCTION greenconn.notify",
)

#: The version of a schema that this version of the library uses.
VERSION: Final = len(MIGRATIONS)

#: The advisory lock under which migrations are applied.
MIGRATION_LOCK: Final = 0x67634E4E

#: Ends a statement; the lines within a function are indented.
_BETWEEN: Final = re.compile(r";$(?=\n\S|\n*\Z)", re.MULTILINE)

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
        texts += [each.strip() for each in _BETWEEN.split(MIGRATIONS[number - 1]) if each.strip()]
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
