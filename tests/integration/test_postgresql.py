"""What only PostgreSQL has: its connections, notifications, schema, roles and standbys."""

from __future__ import annotations

import _socket
import re
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
import psycopg
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, Queue
from greenconn.exceptions import (
    AccessRefused,
    NotAllowed,
    PublishNacked,
    RecoverableConnectionError,
)
from greenconn.green import stream as connect
from greenconn.green.deadline import Deadline
from greenconn.transport.postgresql import schema
from greenconn.transport.postgresql.connection import LinkLost, Session, parsed
from greenconn.transport.postgresql.messages import EVERYTHING, Handle
from greenconn.transport.postgresql.queues import Lookups, announce, announce_all
from tests.brokers.postgresql import LOGIN
from tests.fix_postgresql import Database, PostgresServers
from tests.fix_wires import until
from tests.integration.bounded import storm

SOON = 30.0


@contextmanager
def opened(url: str) -> Iterator[Session]:
    """A session without a link."""
    session = Session(parsed(url), "here", "none", _ignore, _ignore)
    session.open(Deadline(SOON), SOON, SOON)
    yield session
    session.drop()


@pytest.fixture
def session(postgresql_server: str) -> Iterator[Session]:
    """A session without a link."""
    with opened(postgresql_server) as session:
        yield session


def _ignore(*args: Any) -> None:
    pass


def backends(database: Database, name: str) -> list[int]:
    """Return the processes of the server for connections of that name."""
    found = database.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s ORDER BY pid", (name,)
    )
    return [pid for (pid,) in found.fetchall()]  # type: ignore[misc]


def named(url: str, name: str) -> str:
    """Return an address whose connections have a name on the server."""
    return f"{url}&application_name={name}"


# -- waiting


def test_hub_turns_while_a_statement_runs(session: Session, postgresql: Database) -> None:
    postgresql.execute("SELECT pg_advisory_lock(4711)")
    waiting = gevent.spawn(session.call, session.fetch, "SELECT pg_advisory_lock(4711)")
    wait = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    until(lambda: postgresql.execute(wait).fetchone() != (0,), SOON)
    # Only a greenlet that runs meanwhile can release it.
    postgresql.execute("SELECT pg_advisory_unlock(4711)")
    assert waiting.get(timeout=SOON)


def test_who_is_killed_within_a_statement_ends_the_connection(
    session: Session, postgresql: Database
) -> None:
    postgresql.execute("SELECT pg_advisory_lock(4712)")
    ((pid,),) = session.call(session.fetch, "SELECT pg_backend_pid()")
    waiting = gevent.spawn(session.call, session.fetch, "SELECT pg_advisory_lock(4712)")
    behind = gevent.spawn(session.call, session.fetch, "SELECT 1")
    wait = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    until(lambda: postgresql.execute(wait).fetchone() != (0,), SOON)
    waiting.kill()
    with pytest.raises(LinkLost):
        behind.get(timeout=SOON)
    assert not session.is_open
    postgresql.execute("SELECT pg_advisory_unlock(4712)")
    gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    until(lambda: postgresql.execute(gone, (pid,)).fetchone() == (0,), SOON)


def test_who_waits_for_the_session_is_answered_by_one_statement(session: Session) -> None:
    asked: list[list[str]] = []
    gates = [Event() for _ in range(6)]

    def find(keys: Collection[str]) -> dict[str, str]:
        asked.append(sorted(keys))
        assert gates[len(asked) - 1].wait(SOON)
        if "refused" in keys:
            raise ValueError("refused")
        return {key: key.upper() for key in keys if key != "missing"}

    def begin(*names: str) -> list[Any]:
        greenlets = [gevent.spawn(names_of.get, name) for name in names]
        gevent.sleep(0)  # until each waits
        return greenlets

    names_of: Lookups[str] = Lookups(session, find)
    first, b, killed, missing, again = begin("first", "b", "killed", "missing", "b")
    killed.kill()
    gates[0].set()
    until(lambda: len(asked) == 2)
    (late,) = begin("b")  # what is read now may be old for it
    gates[1].set()
    gates[2].set()
    waiting = (first, b, missing, again, late)
    assert [each.get(timeout=SOON) for each in waiting] == ["FIRST", "B", None, "B", "B"]
    # A refusal is for who ran the statement; the others ask again.
    former, refused, other = begin("former", "refused", "b")
    for gate in gates[3:]:
        gate.set()
    with pytest.raises(ValueError, match="refused"):
        refused.get(timeout=SOON)
    assert (former.get(timeout=SOON), other.get(timeout=SOON)) == ("FORMER", "B")
    together = [["b", "killed", "missing"], ["b"], ["former"], ["b", "refused"], ["b"]]
    assert asked == [["first"], *together]


@pytest.mark.parametrize("is_alone", [False, True])
def test_the_victim_of_a_deadlock_is_repeated(
    session: Session, postgresql_server: str, postgresql: Database, is_alone: bool
) -> None:
    """A transaction, also one behind a look, and a statement that is one of its own."""
    first, both = "SELECT pg_advisory_xact_lock(%b)", "SELECT pg_advisory_xact_lock(%b), "
    both += "pg_advisory_xact_lock(%b)"
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    holds = Event()

    def alone() -> None:
        session.fetch("SELECT 1")
        session.fetch(both, (4711, 4712))

    def in_steps() -> None:
        session.read("SELECT 1")
        with session.transaction():
            session.fetch(first, (4711,))
            session.fetch(first, (4712,))

    def opposed() -> None:
        with other.transaction():
            other.fetch(first, (4712,))
            if not holds.is_set():
                holds.set()
                until(lambda: postgresql.execute(waits).fetchone() != (0,), SOON)
            other.fetch(first, (4711,))

    with opened(postgresql_server) as other:
        # Who began to wait first looks for a deadlock first, and is its victim.
        opposing = gevent.spawn(other.call, opposed)
        assert holds.wait(SOON)
        session.call(alone if is_alone else in_steps)
        opposing.get(timeout=SOON)


def test_a_reply_that_comes_in_the_turn_in_which_the_connection_is_closed(
    session: Session, postgresql: Database
) -> None:
    """libpq has freed what psycopg's generator would read it into: the process would crash."""
    postgresql.execute("SELECT pg_advisory_lock(4714)")
    waiting = gevent.spawn(session.call, session.fetch, "SELECT pg_advisory_lock(4714)")
    wait = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    until(lambda: postgresql.execute(wait).fetchone() != (0,), SOON)
    connection: Any = session._connection
    take = connection._reader.callback

    def take_and_drop() -> None:
        take()
        session.drop()

    connection._reader.callback = take_and_drop
    postgresql.execute("SELECT pg_advisory_unlock(4714)")
    with pytest.raises(LinkLost, match="the connection was closed"):
        waiting.get(timeout=SOON)


def test_server_that_is_silent_for_too_long_is_lost(
    postgresql_server: str, postgresql: Database
) -> None:
    session = Session(parsed(postgresql_server), "here", "none", _ignore, _ignore)
    session.open(Deadline(SOON), SOON, SOON)
    session.call(session.fetch, "SET statement_timeout = 0")
    postgresql.execute("SELECT pg_advisory_lock(4713)")
    connection: Any = session._connection
    connection.reply_timeout = (
        0.2  # since now: a busy server may need longer for the statement above
    )
    with pytest.raises(LinkLost, match=r"here: no reply within 0\.2 s"):
        session.call(session.fetch, "SELECT pg_advisory_lock(4713)")
    assert not session.is_open
    postgresql.execute("SELECT pg_advisory_unlock(4713)")


def test_transaction_of_a_process_that_stands_still_ends_with_its_lease(
    postgresql_server: str, postgresql: Database
) -> None:
    lost = Event()

    def note(exc: Exception) -> None:
        lost.set()

    session = Session(parsed(postgresql_server), "here", "none", _ignore, note)
    session.open(Deadline(SOON), SOON, 0.3)

    def stand_still() -> None:
        with session.transaction():
            session.fetch("SELECT pg_advisory_xact_lock(4714)")
            assert lost.wait(SOON)

    with pytest.raises(LinkLost):
        session.call(stand_still)
    assert _first(postgresql, "SELECT pg_try_advisory_xact_lock(4714)") == (True,)


def test_idle_consumer_sends_nothing_until_it_is_notified(
    postgresql_url: str, postgresql: Database, unique: str
) -> None:
    last = "SELECT state, query_start FROM pg_stat_activity WHERE application_name = %s"
    idle_name, busy_name = f"{unique}-idle", f"{unique}-busy"
    got: list[Any] = []
    with (
        Connection(named(postgresql_url, idle_name)) as idle,
        Connection(named(postgresql_url, busy_name)) as busy,
    ):
        consumer = greenconn.spawn_consumer(
            "idle", lambda body, message: got.append(body), connection=idle
        )
        assert consumer.wait_ready(SOON)
        armed = f'SELECT bool_and(armed = 1) FROM "{unique}".consumers'
        until(lambda: postgresql.execute(armed).fetchone() == (True,), SOON)
        # The last look is behind the arming.
        looked = "state = 'idle' AND query LIKE '%%picked%%'"
        until(lambda: _first(postgresql, f"{last} AND {looked}", idle_name) is not None, SOON)
        before = _first(postgresql, last, idle_name)
        for number in range(20):
            greenconn.publish("busy", number, connection=busy, declare=True)
        for _ in range(20):
            message = Queue("busy")(busy).get()
            assert message is not None
            message.ack()
        assert _first(postgresql, last, idle_name) == before
        greenconn.publish("idle", "now", connection=busy)
        until(lambda: got == ["now"], SOON)
        assert consumer.stop(SOON)


def _first(database: Database, statement: Any, *values: Any) -> Any:
    return database.execute(statement, values).fetchone()


def test_many_publish_in_one_statement(
    postgresql_url: str, postgresql: Database, unique: str
) -> None:
    with Connection(postgresql_url) as connection:
        greenconn.publish("many", 0, connection=connection, declare=True)
        senders = [
            gevent.spawn(greenconn.publish, "many", number, connection=connection)
            for number in range(1, 200)
        ]
        gevent.joinall(senders, raise_error=True, timeout=SOON)
    # What one statement has stored has one transaction.
    found = postgresql.execute(
        f'SELECT count(*), count(DISTINCT xmin::text) FROM "{unique}".messages'
    ).fetchone()
    assert found is not None
    count, transactions = found
    assert count == 200
    assert isinstance(transactions, int)
    assert transactions <= 5


# -- lost connections


def test_terminated_connections_come_back(
    postgresql_url: str, postgresql: Database, unique: str
) -> None:
    got: set[int] = set()
    with (
        Connection(named(postgresql_url, unique)) as consuming,
        Connection(named(postgresql_url, unique)) as publishing,
    ):
        consumer = greenconn.spawn_consumer(
            "work", lambda body, message: got.add(body), connection=consuming
        )
        assert consumer.wait_ready(SOON)
        for number in range(10):
            greenconn.publish("work", number, connection=publishing, timeout=SOON)
            for pid in backends(postgresql, unique):
                postgresql.execute("SELECT pg_terminate_backend(%s)", (pid,))
        until(lambda: got == set(range(10)), SOON)
        assert consumer.stop(SOON)


def test_claims_without_a_reply_come_back_at_once(
    postgresql_url: str, postgresql: Database, unique: str
) -> None:
    with Connection(postgresql_url, transport_options={"lease": 3600.0}) as connection:
        channel = connection.default_channel
        channel.queue_declare(unique)
        channel.basic_publish_confirm(channel.prepare_message("x"), "", unique)
        link: Any = connection.session.link()
        store = link.store
        ((number,),) = store.session.call(
            store.session.fetch,
            "UPDATE greenconn.messages SET holder = %b, deliveries = 1 RETURNING holder",
            (store.session.call(store._register),),
        )
        assert store.unconfirmed_claims() == [("", Handle(EVERYTHING, number))]
        store.lost(LinkLost("cut"))
        until(lambda: Queue(unique)(connection).get() is not None, SOON)


@pytest.mark.full
def test_many_queues_of_one_link_are_announced_at_once(
    postgresql_url: str, postgresql: Database, unique: str
) -> None:
    """Their numbers are longer than a notification may be."""
    with Connection(postgresql_url) as connection, Connection(postgresql_url) as publishing:
        publishing.connect()
        postgresql.execute(f'ALTER TABLE "{unique}".queues ALTER id RESTART WITH {2**62}')
        names = [f"q{number}" for number in range(450)]
        declare = connection.default_channel.queue_declare
        for name in names:
            declare(name)
        got: list[object] = []
        consumers = [
            greenconn.spawn_consumer(
                name, lambda body, message: got.append(body), connection=connection
            )
            for name in names
        ]
        assert all(consumer.wait_ready(SOON) for consumer in consumers)
        armed = f'SELECT count(*) FROM "{unique}".consumers WHERE armed = 1'
        until(lambda: postgresql.execute(armed).fetchone() == (len(names),), SOON)

        link, store = connection.session.link(), publishing.session.link().store
        numbers = [each for (each,) in postgresql.execute(f'SELECT id FROM "{unique}".queues')]
        for function in (announce, announce_all):
            store.session.call(function, store.session, numbers, store.owner)
            # All have looked again.
            until(lambda: postgresql.execute(armed).fetchone() == (len(names),), SOON)
        publish = partial(gevent.spawn, greenconn.publish, connection=publishing)
        gevent.joinall([publish(name, name) for name in names], raise_error=True, timeout=SOON)
        until(lambda: len(got) == len(names), SOON)
        assert connection.session.link() is link
        for consumer in consumers:
            consumer.stop(0)


def test_the_lease_does_not_wait_for_what_is_asked_before(
    postgresql_url: str, postgresql: Database
) -> None:
    """As where thousands of consumers start at once."""
    with Connection(postgresql_url, transport_options={"lease": 3600.0}) as connection:
        link: Any = connection.session.link()
        store = link.store
        order: list[str] = []

        def call(name: str, statement: str) -> None:
            store.session.call(store.session.fetch, statement)
            order.append(name)

        def renew() -> None:
            store.renew(())
            order.append("renewed")

        store.session.call(store._register)
        postgresql.execute("SELECT pg_advisory_lock(4715)")
        calls: list[Any] = [gevent.spawn(call, "running", "SELECT pg_advisory_lock(4715)")]
        wait = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: postgresql.execute(wait).fetchone() != (0,), SOON)
        calls += [gevent.spawn(call, "waiting", "SELECT 1") for _ in range(3)]
        calls.append(gevent.Greenlet.spawn(renew))
        gevent.sleep(0)
        postgresql.execute("SELECT pg_advisory_unlock(4715)")
        gevent.joinall(calls, raise_error=True, timeout=SOON)
        assert order == ["running", "renewed", *["waiting"] * 3]


# -- consumers


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_of_exclusive_consumers_that_begin_at_once_one_may(
    postgresql_url: str, postgresql: Database, unique: str, isolation: str
) -> None:
    with ExitStack() as stack:
        stores: list[Any] = []
        for _ in range(4):
            connection = stack.enter_context(Connection(postgresql_url))
            connection.default_channel.queue_declare(unique)
            link: Any = connection.session.link()
            stores.append(link.store)
            session = link.store.session
            session.call(session.fetch, f"SET default_transaction_isolation = '{isolation}'")
            session.call(link.store._register)
        # All wait for the queue, and have begun.
        with postgresql.transaction():
            postgresql.execute(f'SELECT 1 FROM "{unique}".queues FOR UPDATE')
            begun = [
                gevent.spawn(store.set_consumers, unique, 1, exclusive=True) for store in stores
            ]
            with psycopg.connect(postgresql_url.partition("?")[0], autocommit=True) as other:
                wait = (
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE wait_event_type = 'Lock' AND query LIKE %s"
                )
                mark = f'%"{unique}".consume(%'
                until(lambda: other.execute(wait, (mark,)).fetchone() == (len(stores),), SOON)
        gevent.joinall(begun, raise_error=True, timeout=SOON)
        assert [each.value for each in begun].count(True) == 1


# -- the schema


def test_many_start_on_an_empty_database(postgresql_url: str, unique: str) -> None:
    connections = [Connection(postgresql_url) for _ in range(8)]
    opening = [gevent.spawn(each.connect) for each in connections]
    gevent.joinall(opening, raise_error=True, timeout=SOON)
    for each in connections:
        each.close()


def test_later_schema_is_refused(postgresql_url: str, postgresql: Database, unique: str) -> None:
    with Connection(postgresql_url) as connection:
        connection.connect()
    postgresql.execute(f'INSERT INTO "{unique}".migrations (version) VALUES (1000)')
    with (
        Connection(postgresql_url) as connection,
        pytest.raises(NotAllowed, match="later version of greenconn"),
    ):
        connection.connect()


@pytest.fixture
def role(postgresql: Database, unique: str) -> Iterator[str]:
    """A role that has no rights."""
    postgresql.execute(f'CREATE ROLE "{unique}" LOGIN')
    yield unique
    postgresql.execute(f'DROP OWNED BY "{unique}"')
    postgresql.execute(f'DROP ROLE "{unique}"')


def test_role_without_rights(
    postgresql_url: str, postgresql: Database, role: str, unique: str
) -> None:
    url = postgresql_url.replace("postgres@", f"{role}@")
    with Connection(url) as connection, pytest.raises(NotAllowed, match="grant it CREATE"):
        connection.connect()
    with Connection(postgresql_url) as connection:
        connection.connect()
    with Connection(url) as connection, pytest.raises(NotAllowed, match="grant it USAGE"):
        connection.connect()
    postgresql.execute(f'GRANT USAGE ON SCHEMA "{unique}" TO "{role}"')
    rights = "SELECT, INSERT, UPDATE, DELETE"
    postgresql.execute(f'GRANT {rights} ON ALL TABLES IN SCHEMA "{unique}" TO "{role}"')
    with Connection(url) as connection:
        greenconn.publish("q", "x", connection=connection, declare=True)
        message = Queue("q")(connection).get()
        assert message is not None
        message.ack()


def test_a_role_that_may_only_publish_leaves_what_is_due_to_others(
    postgresql_url: str, postgresql: Database, role: str, unique: str
) -> None:
    got = Event()
    with Connection(postgresql_url) as connection:
        Queue("q")(connection.default_channel).declare()
        for right in ("USAGE ON SCHEMA", "SELECT ON ALL TABLES IN SCHEMA"):
            postgresql.execute(f'GRANT {right} "{unique}" TO "{role}"')
        postgresql.execute(f'GRANT INSERT ON "{unique}".messages TO "{role}"')
        postgresql.execute(f'GRANT UPDATE ON "{unique}".consumers TO "{role}"')
        url = postgresql_url.replace("postgres@", f"{role}@")
        with Connection(url, transport_options={"lease": 0.1}) as publishing:
            greenconn.publish("q", 1, connection=publishing, delay=0.1)
            asked = "SELECT pid FROM pg_stat_activity WHERE usename = %s"
            first = postgresql.execute(asked, (role,)).fetchall()
            tried = f"{asked} AND query LIKE %s"
            until(lambda: postgresql.execute(tried, (role, "%late AS%")).fetchall() == first, SOON)
            greenconn.publish("q", 2, connection=publishing)
            assert postgresql.execute(asked, (role,)).fetchall() == first
            consumer = greenconn.spawn_consumer(
                "q", lambda body, message: got.set() if body == 1 else None, connection=connection
            )
            assert got.wait(SOON)
            assert consumer.stop(SOON)


def test_a_role_that_may_only_publish_respects_a_maximum_length(
    postgresql_url: str, postgresql: Database, role: str, unique: str
) -> None:
    with Connection(postgresql_url) as connection:
        full = Queue("q", max_length=2, queue_arguments={"x-overflow": "reject-publish"})
        full(connection.default_channel).declare()
    for right in (
        *("USAGE ON SCHEMA {}", "SELECT ON ALL TABLES IN SCHEMA {}"),
        *("INSERT ON {}.messages", "UPDATE ON {}.consumers", "UPDATE ON {}.queues"),
        "INSERT, UPDATE, DELETE ON {}.lengths",
    ):
        granted = right.format(f'"{unique}"')
        postgresql.execute(f'GRANT {granted} TO "{role}"')
    with Connection(postgresql_url.replace("postgres@", f"{role}@")) as publishing:
        for body in (1, 2):
            greenconn.publish("q", body, connection=publishing)
        with pytest.raises(PublishNacked):
            greenconn.publish("q", 3, connection=publishing)


# -- maximum lengths


def lengths(database: Database, schema: str) -> tuple[Any, ...]:
    """Return the messages and bytes that wait in a bounded queue, as noted and as counted."""
    noted = f'SELECT sum(messages), sum(bytes) FROM "{schema}".lengths'
    counted = (
        f'SELECT count(*), coalesce(sum(length(body)), 0) FROM "{schema}".messages '
        "WHERE holder IS NULL AND due IS NULL"
    )
    found = database.execute(f"SELECT * FROM ({noted}) AS noted, ({counted}) AS counted").fetchone()
    assert found is not None
    return tuple(int(str(each)) for each in found)  # Decimal, too


@pytest.mark.parametrize("purges", [False, True])
def test_lengths_are_right_behind_a_storm(
    postgresql_url: str, postgresql: Database, unique: str, long: bool, purges: bool
) -> None:
    storm(postgresql_url, 200 if long else 25, purges=purges)
    messages, size, counted, counted_size = lengths(postgresql, unique)
    assert (messages, size) == (counted, counted_size)


def test_lengths_of_sessions_that_have_ended_are_added_up(
    postgresql_url: str, postgresql: Database, unique: str
) -> None:
    with Connection(postgresql_url) as connection:
        Queue("q", max_length=1000)(connection.default_channel).declare()
        for _ in range(3):
            greenconn.publish("q", "x" * 10, connection=connection)
        ended = "INSERT INTO {0}.lengths SELECT id, generate_series(-200, -1), {1} FROM {0}.queues"
        postgresql.execute(ended.format(f'"{unique}"', "1, 5"))
        before = lengths(postgresql, unique)[:2]
        greenconn.publish("q", "x" * 10, connection=connection)
        messages, size, *_ = lengths(postgresql, unique)
        assert (messages, size) == (before[0] + 1, before[1] + 10)
        count = postgresql.execute(f'SELECT count(*) FROM "{unique}".lengths').fetchone()
        assert count == (2,)


@pytest.mark.parametrize("statement", ["DELETE FROM {}.messages", "TRUNCATE {}.messages"])
def test_messages_that_are_deleted_by_hand_make_room(
    postgresql_url: str, postgresql: Database, unique: str, statement: str
) -> None:
    with Connection(postgresql_url) as connection:
        full = Queue("q", max_length=2, queue_arguments={"x-overflow": "reject-publish"})
        full(connection.default_channel).declare()
        for _ in range(2):
            for body in (1, 2):
                greenconn.publish("q", body, connection=connection)
            with pytest.raises(PublishNacked):
                greenconn.publish("q", 3, connection=connection)
            postgresql.execute(statement.format(f'"{unique}"'))


def test_what_counts_waits_for_what_deletes(
    postgresql_url: str, postgresql: Database, unique: str
) -> None:
    delete = f'DELETE FROM "{unique}".messages WHERE id = (SELECT min(id) FROM "{unique}".messages)'
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with Connection(postgresql_url) as connection:
        Queue("q", max_length=9)(connection.default_channel).declare()
        for body in ("one", "two"):
            greenconn.publish("q", body, connection=connection)
        postgresql.execute(delete)  # so the next one counts
        with postgresql.transaction():
            postgresql.execute(delete)
            publishing = gevent.spawn(greenconn.publish, "q", "three", connection=connection)
            until(lambda: publishing.ready() or postgresql.execute(waits).fetchone() != (0,), SOON)
            assert not publishing.ready()
        publishing.get(timeout=SOON)
        assert lengths(postgresql, unique) == (1, 5, 1, 5)


def test_statements_make_the_schema(
    postgresql_url: str, postgresql: Database, role: str, unique: str
) -> None:
    for statement in schema.statements(unique):
        postgresql.execute(statement)
    with Connection(postgresql_url) as connection:
        connection.connect()


# -- logins


def test_wrong_password(postgresql_url: str, postgresql: Database) -> None:
    found = postgresql.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (LOGIN,)).fetchone()
    if found is None:
        postgresql.execute(f"CREATE ROLE {LOGIN} LOGIN SUPERUSER PASSWORD 'right-one'")
    url = postgresql_url.replace("postgres@", f"{LOGIN}:PASSWORD@")
    with Connection(url.replace("PASSWORD", "right-one")) as connection:
        connection.connect()
    with (
        Connection(url.replace("PASSWORD", "wr0ng-0ne")) as connection,
        pytest.raises(AccessRefused, match="password authentication failed") as caught,
    ):
        connection.connect()
    assert "wr0ng-0ne" not in str(caught.value)
    assert "wr0ng-0ne" not in repr(connection)


def test_unknown_database(postgresql_server: str) -> None:
    url = postgresql_server.rpartition("/")[0] + "/there-is-none"
    with Connection(url) as connection, pytest.raises(NotAllowed, match="create the database"):
        connection.connect()


@pytest.mark.parametrize(
    "url", ["postgresql://host/db?nonsense=1", "postgresql://u:s3cret@host:port/db"]
)
def test_malformed_url(url: str) -> None:
    with pytest.raises(ValueError, match="postgresql://") as caught, Connection(url) as connection:
        connection.connect()
    assert "s3cret" not in str(caught.value)


# -- standbys


def test_standby_is_passed_over(postgresql_with: PostgresServers, unique: str) -> None:
    primary = postgresql_with()
    standby = postgresql_with(source=primary)
    with (
        Connection(standby.url) as connection,
        pytest.raises(RecoverableConnectionError, match="standby or read-only"),
    ):
        connection.connect()
    hosts = ",".join(urlsplit(each.url).netloc.rpartition("@")[2] for each in (standby, primary))
    with Connection(f"postgresql://postgres@{hosts}/postgres") as connection:
        greenconn.publish(unique, "x", connection=connection, declare=True)
        assert Queue(unique)(connection).get() is not None
    with psycopg.connect(primary.url) as database:
        count = database.execute("SELECT count(*) FROM greenconn.messages").fetchone()
    assert count == (1,)


# -- hosts that libpq finds


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are looked up in the hub; no other way finds them."""
    names: list[str] = []

    def look_up(host: str, port: int) -> list[tuple[Any, ...]]:
        names.append(host)
        return [(_socket.AF_INET, _socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(connect, "_look_up", look_up)
    return names


def test_hosts_of_a_service_and_of_the_environment_are_looked_up_in_the_hub(
    postgresql_server: str,
    unique: str,
    lookups: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = urlsplit(postgresql_server).port
    file = tmp_path / "services"
    file.write_text(f"[shop]\nhost=a.invalid,b.invalid\nport={port}\napplication_name={unique}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    url = "postgresql://postgres@/postgres"
    with Connection(f"{url}?service=shop") as connection:
        connection.connect()
        link: Any = connection.session.link()
        session = link.store.session
        ((name,),) = session.call(session.fetch, "SELECT current_setting('application_name')")
        assert name == unique
    assert lookups == ["a.invalid"]
    monkeypatch.setenv("PGHOST", "c.invalid")
    monkeypatch.setenv("PGPORT", str(port))
    with Connection(url) as connection:
        connection.connect()
    assert lookups == ["a.invalid", "c.invalid"]
    with (
        Connection(f"{url}?service=shpo") as connection,
        pytest.raises(NotAllowed, match=r'"shpo" not found .*PGSERVICEFILE'),
    ):
        connection.connect()


#: The server logs the plan of each statement, and how many rows each step of it has read.
PLANS = (
    "session_preload_libraries = 'auto_explain'",
    "auto_explain.log_min_duration = 0",
    "auto_explain.log_nested_statements = on",
    "auto_explain.log_analyze = on",
    "auto_explain.log_timing = off",
    "log_min_messages = log",
    "autovacuum = off",
)


@pytest.mark.parametrize("is_analyzed", [False, True], ids=["new", "analyzed"])
def test_no_statement_reads_a_backlog(postgresql_with: PostgresServers, is_analyzed: bool) -> None:
    """Plans that were made while a queue was nearly empty are good for a full one, too."""
    server = postgresql_with(*PLANS)
    url, backlog, held = server.url, 1500, 400
    handled: list[object] = []
    is_open, is_over = Event(), Event()
    is_open.set()

    def handle(body: object, message: greenconn.Message) -> None:
        assert is_open.wait(SOON)
        handled.append(body)
        if body == "again":
            raise greenconn.RetryLater(1)

    def hold(body: object, message: greenconn.Message) -> None:
        assert is_over.wait(2 * SOON)

    def work(connection: Connection) -> None:
        """Do what there is to do with queues, with few messages."""
        for number in range(10):
            greenconn.publish("q", number, connection=connection)
            greenconn.publish(f"idle-{number % 6}", number, connection=connection)
            greenconn.publish("other", number, connection=connection)
            message = connection.default_channel.basic_get("other")
            assert message is not None
            connection.default_channel.basic_ack(message.delivery_tag)
        greenconn.publish("q", "again", connection=connection)
        greenconn.publish("q", "delayed", connection=connection, delay=0.1)
        greenconn.publish("q", "short", connection=connection, expiration=60)

    options = {"lease": 1.5}
    names = ["q", *(f"idle-{number}" for number in range(6))]
    with (
        Connection(url, transport_options=options) as connection,
        Connection(url, transport_options=options) as publishing,
    ):
        for name in ("other", "held", *names):
            connection.default_channel.queue_declare(name)
        consumers = [
            greenconn.spawn_consumer(name, handle, connection=connection) for name in names
        ]
        consumers.append(
            greenconn.spawn_consumer(
                "held", hold, connection=connection, prefetch_count=held, concurrency=held
            )
        )
        work(publishing)
        until(lambda: handled.count("again") >= 2 and "delayed" in handled, SOON)
        is_open.clear()
        if is_analyzed:
            greenconn.publish_many("q", range(30), connection=publishing)
            with psycopg.connect(url) as database:
                # A large table with a small index of what waits: there a bitmap seems best.
                database.execute(
                    "INSERT INTO greenconn.messages (queue, holder, envelope, body) "
                    "SELECT 0, 0, 'none', convert_to(repeat('1', 1800), 'UTF8') "
                    "FROM generate_series(1, 9000)"
                )
                database.execute("DELETE FROM greenconn.messages WHERE envelope = 'none'")
                database.commit()
                database.execute("ANALYZE")
        greenconn.publish_many("held", range(held), connection=publishing)
        greenconn.publish_many("q", range(backlog), connection=publishing)
        until(lambda: consumers[-1].stats()["in_flight"] == held, SOON)
        log = server.directory / "output"
        begin = log.stat().st_size
        work(publishing)
        until(lambda: "AND EXISTS (SELECT 1 FROM" in log.read_text()[begin:], SOON, "a look")
        is_open.set()
        until(lambda: len(handled) > backlog, SOON)
        end = log.stat().st_size
        is_over.set()
        for consumer in consumers:
            assert consumer.stop(SOON)
    text = log.read_text()[begin:end]
    plans = re.findall(r"plan:\n(.*?)(?=\n\d{4}-\d\d-\d\d )", text, re.DOTALL)
    assert any("DELETE" in plan for plan in plans)
    for plan in plans:
        rows = re.findall(r"actual rows=([\d.]+) loops=(\d+)", plan)
        # The link asks for what it holds.
        most = max((float(each) * int(loops) for each, loops in rows), default=0)
        assert most <= held + 100, plan
        removed = re.findall(r"Rows Removed by \w[\w ]*: (\d+)", plan)
        assert max(map(int, removed), default=0) <= 100, plan
