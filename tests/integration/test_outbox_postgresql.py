"""Relays of an outbox in PostgreSQL, which are notified of commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import psycopg
import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import create_engine, event, make_url
from sqlalchemy.engine import Engine

from greenconn.contrib.outbox.relay import Relay
from greenconn.contrib.outbox.sqlalchemy import Outbox
from greenconn.testing import MemoryBroker
from greenconn.transport.postgresql.connection import Session
from tests.brokers.postgresql import PostgresServer
from tests.fix_postgresql import Database
from tests.fix_wires import until
from tests.unit.contrib.outbox.conftest import Box, of_django, of_sqlalchemy

pytestmark = pytest.mark.halved

#: Nothing is found by looking again.
NEVER = 10_000.0
SOON = 60.0

Start = Callable[..., Relay]


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker(declare_by_name=True) as broker:
        yield broker


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts relays that end with the test, and find nothing by looking again."""
    relays: list[Relay] = []

    def begin(make: Callable[..., Relay], **options: Any) -> Relay:
        relay = make(**{"poll_interval": NEVER, "lease": NEVER, **options})
        relays.append(relay)
        relay.start()
        return relay

    yield begin
    for each in relays:
        assert each.stop(SOON)


@pytest.fixture(autouse=True)
def as_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no commit of this process wake its relays."""
    for module in ("sqlalchemy", "django"):
        monkeypatch.setattr(f"greenconn.contrib.outbox.{module}.has_relays", lambda: False)


@pytest.fixture(params=[of_sqlalchemy, of_django], ids=["sqlalchemy", "django"])
def box(request: pytest.FixtureRequest, tmp_path: Path, postgresql_database: str) -> Iterator[Box]:
    """An empty outbox of each kind in PostgreSQL."""
    yield from request.param(tmp_path, with_driver(postgresql_database))


def with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def write(box: Box, *bodies: object) -> None:
    with box.begin() as opened:
        for body in bodies:
            box.publish(opened, "mail", body)


def is_listening(database: Database, name: str) -> bool:
    """Return whether a relay of the database *name* waits for notifications."""
    query = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND state = 'idle' AND query = %s"
    return bool(database.execute(query, (name, 'LISTEN "greenconn_outbox"')).fetchall())


def test_a_commit_is_relayed(
    box: Box, broker: MemoryBroker, start: Start, postgresql: Database, unique: str
) -> None:
    start(box.relay)
    until(lambda: is_listening(postgresql, unique), SOON)
    for number in range(1, 4):
        write(box, number)
        until(lambda: broker.count("mail") == number, SOON)  # noqa: B023
    with pytest.raises(LookupError), box.begin() as opened:
        box.publish(opened, "mail", "rolled back")
        raise LookupError
    write(box, 4, 5)
    until(lambda: not box.store.backlog().waiting, SOON)
    assert [each.payload for each in broker.messages("mail")] == [1, 2, 3, 4, 5]


@pytest.fixture
def engine(postgresql_database: str) -> Iterator[Engine]:
    engine = create_engine(with_driver(postgresql_database))
    yield engine
    engine.dispose()


@pytest.fixture
def outbox(engine: Engine) -> Outbox:
    outbox = Outbox()
    outbox.create_tables(engine)
    return outbox


def publish(outbox: Outbox, engine: Engine, body: object) -> None:
    with engine.begin() as connection:
        outbox.publish(connection, "mail", body)


def test_an_idle_relay_sends_no_statement(
    outbox: Outbox, engine: Engine, broker: MemoryBroker, start: Start
) -> None:
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    start(lambda **options: outbox.relay(engine, **options), poll_interval=0.01)

    def is_idle() -> bool:
        before = len(sent)
        gevent.sleep(0.5)  # fifty intervals
        return bool(before) and len(sent) == before

    until(is_idle, SOON)
    Outbox(name="another").create_tables(engine)
    before = len(sent)
    publish(Outbox(name="another"), engine, "of another relay")
    publish(outbox, engine, 1)
    until(lambda: broker.count("mail") == 1, SOON)
    until(is_idle, SOON)
    # Two of the program, a check, a mark, and perhaps a check for what came meanwhile.
    assert len(sent) - before <= 5


def test_a_row_that_was_refused_is_tried_again_in_time(
    outbox: Outbox, engine: Engine, broker: MemoryBroker, start: Start
) -> None:
    attempts: list[object] = []

    def refuse_once(*, body: object, **options: object) -> None:
        attempts.append(body)
        if len(attempts) == 1:
            raise LookupError("refused")

    start(lambda **options: outbox.relay(engine, publish=refuse_once, **options))
    publish(outbox, engine, 1)
    until(lambda: len(attempts) == 2, SOON)


def test_a_server_that_restarts(
    own_postgresql: PostgresServer, broker: MemoryBroker, start: Start
) -> None:
    engine = create_engine(with_driver(own_postgresql.url), pool_pre_ping=True)
    outbox = Outbox()
    outbox.messages.metadata.drop_all(engine)
    outbox.create_tables(engine)
    relay = start(lambda **options: outbox.relay(engine, **options))
    publish(outbox, engine, 1)
    until(lambda: broker.count("mail") == 1, SOON)
    own_postgresql.kill()
    own_postgresql.start()
    for number in (2, 3):
        with psycopg.connect(own_postgresql.url, autocommit=True) as database:
            until(lambda: is_listening(database, "postgres"), SOON)
        publish(outbox, engine, number)
        until(lambda: broker.count("mail") == number, SOON)  # noqa: B023
    assert relay.is_running
    assert relay.stop(SOON)
    with psycopg.connect(own_postgresql.url, autocommit=True) as database:
        until(lambda: not is_listening(database, "postgres"), SOON)
    outbox.messages.metadata.drop_all(engine)
    engine.dispose()


def test_without_a_connection_for_notifications_it_looks(
    outbox: Outbox,
    engine: Engine,
    broker: MemoryBroker,
    start: Start,
    unique: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with engine.begin() as connection:
        for statement in (
            f'CREATE ROLE "{unique}" LOGIN CONNECTION LIMIT 1',
            f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{unique}"',
        ):
            connection.exec_driver_sql(statement)
    url = make_url(engine.url).set(username=unique)
    limited = create_engine(url, pool_size=1, max_overflow=0)
    try:
        relay = start(lambda **options: outbox.relay(limited, **options), poll_interval=0.05)
        for number in (1, 2):
            publish(outbox, engine, number)
            until(lambda: broker.count("mail") == number, SOON)  # noqa: B023
        assert relay.stop(SOON)
    finally:
        limited.dispose()
        with engine.begin() as connection:
            connection.exec_driver_sql(f'DROP OWNED BY "{unique}"')
            connection.exec_driver_sql(f'DROP ROLE "{unique}"')
    (warning,) = [each for each in caplog.messages if "cannot listen for commits" in each]
    assert "too many connections for role" in warning


def test_a_pooler_loses_notifications(
    outbox: Outbox,
    engine: Engine,
    broker: MemoryBroker,
    start: Start,
    postgresql: Database,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetch = Session.fetch

    def through_pooler(session: Session, statement: str, values: Any = ()) -> Any:
        rows = fetch(session, statement, values)
        return [(0,)] if "pg_backend_pid" in statement else rows

    monkeypatch.setattr(Session, "fetch", through_pooler)
    start(lambda **options: outbox.relay(engine, **options), poll_interval=0.05)
    for number in (1, 2):
        publish(outbox, engine, number)
        until(lambda: broker.count("mail") == number, SOON)  # noqa: B023
    assert not is_listening(postgresql, unique)


def test_a_role_that_only_writes(
    outbox: Outbox, engine: Engine, broker: MemoryBroker, start: Start, unique: str
) -> None:
    with engine.begin() as connection:
        for statement in (
            f'CREATE ROLE "{unique}" LOGIN',
            f'GRANT INSERT ON greenconn_outbox TO "{unique}"',
            f'GRANT USAGE ON SEQUENCE greenconn_outbox_id_seq TO "{unique}"',
        ):
            connection.exec_driver_sql(statement)
    start(lambda **options: outbox.relay(engine, **options))
    writing = create_engine(make_url(engine.url).set(username=unique))
    try:
        publish(outbox, writing, 1)
        until(lambda: broker.count("mail") == 1, SOON)
    finally:
        writing.dispose()
        with engine.begin() as connection:
            connection.exec_driver_sql(f'DROP OWNED BY "{unique}"')
            connection.exec_driver_sql(f'DROP ROLE "{unique}"')
