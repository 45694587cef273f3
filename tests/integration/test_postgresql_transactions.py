"""Messages that are published in a transaction of the program's own."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from gevent import Timeout
from gevent.queue import Queue as Inbox

import greenconn
from greenconn import App, Connection, Discard, Exchange, Queue, RetryLater
from greenconn.exceptions import PublishRefused, Unroutable
from tests.fix_postgresql import Database
from tests.fix_wires import until
from tests.integration.processes import ROOT, run, start

sqlalchemy = pytest.importorskip("sqlalchemy")
from sqlalchemy.orm import Session, scoped_session, sessionmaker  # noqa: E402

pytestmark = pytest.mark.halved

SOON = 30.0


@pytest.fixture
def connection(postgresql_url: str) -> Iterator[Connection]:
    """The broker."""
    with Connection(postgresql_url) as connection:
        yield connection


@pytest.fixture
def engine(postgresql_server: str) -> Iterator[Any]:
    """The database of the program."""
    url = postgresql_server.replace("postgresql://", "postgresql+psycopg://")
    engine = sqlalchemy.create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def program(postgresql_server: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the program, without autocommit."""
    with psycopg.connect(postgresql_server) as program:
        yield program


def waiting(connection: Connection, queue: str) -> int:
    return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


def test_committed_it_is_there_and_rolled_back_it_never_was(
    connection: Connection, program: psycopg.Connection[Any]
) -> None:
    queue = Queue("orders", channel=connection.default_channel)
    greenconn.publish(queue, 1, connection=connection, transaction=program)
    assert waiting(connection, "orders") == 0
    program.rollback()
    assert waiting(connection, "orders") == 0
    greenconn.publish(queue, 2, connection=connection, transaction=program)
    program.commit()
    assert waiting(connection, "orders") == 1
    message = queue.get()
    assert message is not None
    assert message.payload == 2
    message.ack()


def test_the_commit_wakes_a_consumer_that_waits(
    connection: Connection, program: psycopg.Connection[Any]
) -> None:
    inbox: Inbox[Any] = Inbox()
    with Connection(connection.as_uri(include_password=True)) as other:
        consumer = greenconn.spawn_consumer(
            Queue("orders"), lambda body, message: inbox.put(body), connection=other
        )
        assert consumer.wait_ready(SOON)
        for number in range(3):
            greenconn.publish("orders", number, connection=connection, transaction=program)
            assert inbox.empty()
            program.commit()
            assert inbox.get(timeout=SOON) == number
        greenconn.publish("orders", "later", connection=connection, transaction=program, delay=0.2)
        program.commit()
        assert inbox.get(timeout=SOON) == "later"
        assert consumer.stop(SOON)


def test_what_is_committed_after_its_queue_was_deleted_is_deleted(
    postgresql_url: str, program: psycopg.Connection[Any], postgresql: Database, unique: str
) -> None:
    with Connection(postgresql_url, transport_options={"lease": 0.3}) as connection:
        orders = Queue("orders")(connection.default_channel)
        orders.declare()
        greenconn.publish("kept", "kept", connection=connection, declare=True)
        consumer = greenconn.spawn_consumer(
            "other", lambda body, message: None, connection=connection
        )
        assert consumer.wait_ready(SOON)
        greenconn.publish("orders", "late", connection=connection, transaction=program)
        greenconn.publish("orders", "later", connection=connection, transaction=program, delay=0.2)
        orders.delete()
        program.commit()
        # The maintenance of a link that consumes.
        count = f'SELECT count(*) FROM "{unique}".messages'
        until(lambda: postgresql.execute(count).fetchone() == (1,), SOON)
        assert waiting(connection, "kept") == 1
        assert consumer.stop(SOON)


def by_session(engine: Any) -> Any:
    return Session(engine)


def by_scoped_session(engine: Any) -> Any:
    return scoped_session(sessionmaker(engine))


def by_connection(engine: Any) -> Any:
    return engine.connect()


@pytest.mark.parametrize("made", [by_session, by_scoped_session, by_connection])
def test_sqlalchemy(connection: Connection, engine: Any, made: Callable[[Any], Any]) -> None:
    queue = Queue("orders", channel=connection.default_channel)
    transaction = made(engine)
    try:
        greenconn.publish(queue, 1, connection=connection, transaction=transaction)
        transaction.rollback()
        transaction.execute(sqlalchemy.text("CREATE TEMPORARY TABLE rows (n int) ON COMMIT DROP"))
        greenconn.publish(queue, 2, connection=connection, transaction=transaction)
        assert waiting(connection, "orders") == 0
        transaction.commit()
    finally:
        getattr(transaction, "remove", transaction.close)()
    message = queue.get()
    assert message is not None
    assert message.payload == 2
    message.ack()
    assert queue.get() is None


def test_many_at_once_to_a_topic(connection: Connection, program: psycopg.Connection[Any]) -> None:
    exchange = Exchange("events", type="topic")
    channel = connection.default_channel
    queues = [
        Queue(name, exchange, routing_key=key, channel=channel)
        for name, key in (("all", "#"), ("users", "user.*"))
    ]
    for queue in queues:
        queue.declare()
    count = greenconn.publish_many(
        exchange,
        ({"n": n} for n in range(1200)),
        connection=connection,
        transaction=program,
        routing_key="user.new",
        headers={"h": 1},
        priority=3,
    )
    assert count == 1200
    assert waiting(connection, "all") == 0
    program.commit()
    assert waiting(connection, "all") == waiting(connection, "users") == 1200
    messages = [queues[1].get() for _ in range(3)]
    assert [message.payload["n"] for message in messages if message is not None] == [0, 1, 2]
    assert all(
        m is not None and m.headers["h"] == 1 and m.properties["priority"] == 3 for m in messages
    )


def test_a_queue_that_is_not_there_and_one_with_a_maximum_length(
    connection: Connection, program: psycopg.Connection[Any]
) -> None:
    with pytest.raises(Unroutable, match="'nosuch' does not exist"):
        greenconn.publish("nosuch", 1, connection=connection, transaction=program)
    bounded = Queue("bounded", max_length=3)
    with pytest.raises(PublishRefused, match="maximum length"):
        greenconn.publish(bounded, 1, connection=connection, transaction=program)
    program.rollback()


def test_what_is_no_transaction(connection: Connection, postgresql_server: str) -> None:
    queue = Queue("orders")

    def refused(transaction: Any, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=text):
            greenconn.publish(queue, 1, connection=connection, transaction=transaction)

    refused(5, TypeError, "transaction must be a connection of psycopg, .* got int")
    with psycopg.connect(postgresql_server, autocommit=True) as program:
        refused(program, ValueError, "must have begun")
        with program.transaction():
            greenconn.publish(queue, 1, connection=connection, transaction=program)
    assert waiting(connection, "orders") == 1
    with sqlalchemy.create_engine("sqlite://").connect() as other:
        refused(other, ValueError, r"got sqlite\+pysqlite")
    with (
        psycopg.connect(postgresql_server, autocommit=True) as program,
        program.transaction(),
        pytest.raises(ValueError, match="got memory://"),
    ):
        greenconn.publish(queue, 1, connection="memory://", transaction=program)


def test_an_error_of_the_transaction_is_raised_once_as_it_is(
    connection: Connection, program: psycopg.Connection[Any]
) -> None:
    queue = Queue("orders")
    with pytest.raises(psycopg.errors.DivisionByZero):
        program.execute("SELECT 1 / 0")
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        greenconn.publish(queue, 1, connection=connection, transaction=program)
    program.rollback()
    with pytest.raises(psycopg.OperationalError):
        program.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(psycopg.OperationalError):
        greenconn.publish(queue, 1, connection=connection, transaction=program)
    greenconn.publish(queue, 2, connection=connection)
    assert waiting(connection, "orders") == 1


#: Writes a row and a message in one transaction, again and again; some are rolled back.
PROGRAM = """
import sys
import psycopg
import greenconn

broker, database, table, begin = sys.argv[1:]
greenconn.configure(broker)
with psycopg.connect(database) as program:
    print("started", flush=True)
    for number in range(int(begin), int(begin) + 100_000):
        program.execute(f"INSERT INTO {table} VALUES (%s)", (number,))
        greenconn.publish("orders", number, transaction=program)
        (program.rollback if number % 5 == 0 else program.commit)()
        if number % 50 == 0:
            print(number, flush=True)
"""


@pytest.mark.programs
def test_programs_that_are_killed_leave_as_many_messages_as_rows(
    connection: Connection,
    postgresql_server: str,
    postgresql: psycopg.Connection[Any],
    unique: str,
    long: bool,
) -> None:
    table = f'"{unique}-rows"'
    postgresql.execute(f"CREATE TABLE {table} (number int)")
    channel = connection.default_channel
    queue = Queue("orders", channel=channel)
    queue.declare()
    broker = connection.as_uri(include_password=True)
    try:
        for life in range(100 if long else 4):
            program = start(
                "-c",
                PROGRAM,
                *(broker, postgresql_server, table, str(life * 100_000)),
                env={"PYTHONPATH": str(ROOT)},
            )
            assert program.line(SOON) == "started"
            for _ in range(1 + life % 3):
                program.line(SOON)
            program.signal(signal.SIGKILL)
            program.end()
        # The last transaction of a program may end after it.
        until(lambda: not _transactions(postgresql, table), SOON)
        rows = [number for (number,) in postgresql.execute(f"SELECT number FROM {table}")]
        published = []
        while (message := queue.get(no_ack=True)) is not None:
            published.append(message.payload)
    finally:
        postgresql.execute(f"DROP TABLE {table}")
    assert rows
    assert sorted(rows) == sorted(published)
    assert not any(number % 5 == 0 for number in published)


def _transactions(postgresql: psycopg.Connection[Any], table: str) -> int:
    found = postgresql.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE %s "
        "AND state <> 'idle'",
        (f"%{table.strip(chr(34))}%",),
    ).fetchone()
    assert found is not None
    return int(found[0])


def by_engine(engine: Any) -> Any:
    return engine


def by_sessionmaker(engine: Any) -> Any:
    return sessionmaker(engine)


class Ledger:
    """A table that handlers write to."""

    def __init__(self, postgresql: psycopg.Connection[Any], name: str) -> None:
        self._postgresql = postgresql
        self.name = f'"{name}-ledger"'
        postgresql.execute(f"CREATE TABLE {self.name} (number int)")
        self.insert = f"INSERT INTO {self.name} VALUES (:number)"

    def numbers(self) -> list[int]:
        return sorted(n for (n,) in self._postgresql.execute(f"SELECT number FROM {self.name}"))


@pytest.fixture
def ledger(postgresql: psycopg.Connection[Any], unique: str) -> Iterator[Ledger]:
    ledger = Ledger(postgresql, unique)
    yield ledger
    postgresql.execute(f"DROP TABLE {ledger.name}")


@pytest.mark.parametrize("given", [by_engine, by_sessionmaker])
def test_what_a_handler_writes_is_committed_with_its_ack(
    connection: Connection,
    engine: Any,
    ledger: Ledger,
    given: Callable[[Any], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed: list[int] = []

    def handle(body: int, message: Any, session: Session) -> None:
        session.execute(sqlalchemy.text(ledger.insert), {"number": body})
        if body % 3 == 0 and failed.count(body) < 2:
            failed.append(body)
            raise ValueError(body)

    consumer = greenconn.spawn_consumer(
        Queue("orders"),
        handle,
        connection=connection,
        transaction=given(engine),
        concurrency=3,
        retry={"tries": 3, "delay": 0.01},
    )
    greenconn.publish_many(Queue("orders"), range(10), connection=connection)
    until(lambda: consumer.stats()["handled"] == 10, SOON)
    assert ledger.numbers() == list(range(10))
    assert consumer.stop(SOON)
    assert waiting(connection, "orders") == 0
    assert sorted(failed) == [0, 0, 3, 3, 6, 6, 9, 9]
    assert "lease_lost" not in caplog.text


def test_what_failed_for_good_is_a_dead_letter_and_leaves_nothing_else(
    connection: Connection, engine: Any, ledger: Ledger
) -> None:
    def handle(body: int, message: Any, session: Session) -> None:
        session.execute(sqlalchemy.text(ledger.insert), {"number": body})
        raise ValueError(body)

    consumer = greenconn.spawn_consumer(
        Queue("orders"), handle, connection=connection, transaction=engine
    )
    greenconn.publish(Queue("orders"), 1, connection=connection)
    until(lambda: consumer.stats()["rejected"] == 1, SOON)
    assert consumer.stop(SOON)
    assert ledger.numbers() == []
    assert waiting(connection, "orders.dead") == 1


def test_what_a_handler_chooses_comes_after_the_rollback(
    connection: Connection, engine: Any, ledger: Ledger
) -> None:
    calls: list[int] = []

    def handle(body: int, message: Any, session: Session) -> None:
        session.execute(sqlalchemy.text(ledger.insert), {"number": body})
        calls.append(body)
        if body == 1:
            raise Discard("not wanted")
        if calls.count(body) == 1:
            raise RetryLater(1)

    consumer = greenconn.spawn_consumer(
        Queue("orders"), handle, connection=connection, transaction=engine
    )
    greenconn.publish_many(Queue("orders"), [1, 2], connection=connection)
    until(lambda: consumer.stats()["handled"] == 1, SOON)
    assert consumer.stop(SOON)
    assert ledger.numbers() == [2]
    assert calls == [1, 2, 2]
    assert waiting(connection, "orders") == 0


def test_a_transaction_whose_message_went_to_another_is_rolled_back(
    connection: Connection,
    postgresql: psycopg.Connection[Any],
    engine: Any,
    ledger: Ledger,
    unique: str,
) -> None:
    calls: list[int] = []

    def handle(body: int, message: Any, session: Session) -> None:
        session.execute(sqlalchemy.text(ledger.insert), {"number": body})
        calls.append(body)
        if len(calls) == 1:  # as if its lease had ended
            postgresql.execute(f'UPDATE "{unique}".messages SET holder = NULL')
            greenconn.publish("orders", 2, connection=connection)

    consumer = greenconn.spawn_consumer(
        Queue("orders"), handle, connection=connection, transaction=engine
    )
    greenconn.publish(Queue("orders"), 1, connection=connection)
    until(lambda: ledger.numbers() == [1, 2], SOON)
    assert sorted(calls) == [1, 1, 2]
    assert consumer.stop(SOON)
    assert waiting(connection, "orders") == 0


@pytest.mark.parametrize("error", [psycopg.OperationalError("the reply is lost"), Timeout(None)])
@pytest.mark.parametrize("is_done", [True, False])
def test_a_commit_whose_reply_is_lost_is_looked_up(
    connection: Connection, engine: Any, ledger: Ledger, is_done: bool, error: BaseException
) -> None:
    calls: list[int] = []

    class Losing(Session):
        @contextmanager
        def begin(self) -> Iterator[None]:  # type: ignore[override]
            yield
            if is_done or len(calls) > 1:
                self.commit()
            else:
                self.rollback()
            if len(calls) == 1:
                raise error

    def handle(body: int, message: Any, session: Session) -> None:
        calls.append(body)
        session.execute(sqlalchemy.text(ledger.insert), {"number": body})

    consumer = greenconn.spawn_consumer(
        Queue("orders"),
        handle,
        connection=connection,
        transaction=sessionmaker(engine, class_=Losing),
        retry={"tries": 2, "delay": 0.01},
    )
    greenconn.publish(Queue("orders"), 1, connection=connection)
    until(lambda: consumer.stats()["handled"] == 1, SOON)
    assert consumer.stop(SOON)
    assert ledger.numbers() == [1]
    assert len(calls) == (1 if is_done else 2)
    assert waiting(connection, "orders") == 0


def test_an_application(connection: Connection, engine: Any, ledger: Ledger) -> None:
    app = App(connection.as_uri(include_password=True))

    @app.consumer(Queue("orders"), transaction=engine)
    def write(body: int, message: Any, session: Session) -> None:
        session.execute(sqlalchemy.text(ledger.insert), {"number": body})

    @app.around_handle
    def around(message: Any) -> Iterator[None]:
        assert not ledger.numbers()
        yield
        assert not ledger.numbers()

    app.start()
    with Session(engine) as session, session.begin():
        app.publish(Queue("orders"), 7, transaction=session)
    until(lambda: ledger.numbers() == [7], SOON)
    assert app.stop(SOON)
    assert app.connection is not None
    app.connection.release()
    assert waiting(connection, "orders") == 0


def test_what_begins_no_transaction(connection: Connection, engine: Any) -> None:
    def handle(body: Any, message: Any) -> None: ...

    def handle_in(body: Any, message: Any, session: Any) -> None: ...

    def refused(error: type[Exception], text: str, handler: Any, **options: Any) -> None:
        options = {"connection": connection, "transaction": engine, **options}
        with pytest.raises(error, match=text):
            greenconn.spawn_consumer("orders", handler, **options)

    refused(TypeError, "three arguments", handle)
    refused(TypeError, "transaction must be the alias", handle_in, transaction=5)
    refused(ValueError, "with no_ack", handle_in, no_ack=True)
    for url in ("memory://", "amqp://", "redis://"):
        refused(ValueError, f"got {url}", handle_in, connection=url)
        with pytest.raises(ValueError, match=f"got {url}"):
            greenconn.publish("orders", 1, connection=url, transaction=engine)


#: Consumes in transactions, in each of which a row is written.
CONSUMING = """
import sys
import gevent.monkey
gevent.monkey.patch_all()
import greenconn
from greenconn import Queue
from sqlalchemy import create_engine, text

broker, database, insert, lease = sys.argv[1:]
engine = create_engine(database)

def handle(body, message, session):
    session.execute(text(insert), {"number": body})
    if body % 20 == 0:
        print(body, flush=True)

connection = greenconn.Connection(broker, transport_options={"lease": float(lease)})
consumer = greenconn.spawn_consumer(
    Queue("orders"),
    handle,
    connection=connection,
    transaction=engine,
    concurrency=5,
    retry={"tries": 1000, "delay": 0.1},
)
consumer.wait_ready(60)
print("started", flush=True)
consumer.get()
"""


@pytest.mark.programs
def test_handlers_that_are_killed_write_exactly_once(
    connection: Connection,
    postgresql_server: str,
    postgresql: psycopg.Connection[Any],
    ledger: Ledger,
    long: bool,
) -> None:
    lives, each = (200, 200) if long else (3, 100)
    database = postgresql_server.replace("postgresql://", "postgresql+psycopg://")
    broker = connection.as_uri(include_password=True)
    arguments = (broker, database, ledger.insert, "1.0")
    environment = {"PYTHONPATH": str(ROOT)}
    greenconn.publish_many(Queue("orders"), range(lives * each), connection=connection)
    for life in range(lives):
        program = start("-c", CONSUMING, *arguments, env=environment, stderr=subprocess.DEVNULL)
        assert program.line(SOON) == "started"
        if len(ledger.numbers()) < lives * each - 50:
            program.line(SOON)
        if life % 2:
            # Its connections, the broker's and those of the transactions: it recovers by itself.
            postgresql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
            if len(ledger.numbers()) < lives * each - 50:
                program.line(SOON)
        program.signal(signal.SIGKILL)
        program.end()
    program = start("-c", CONSUMING, *arguments, env=environment, stderr=subprocess.DEVNULL)
    try:
        until(lambda: len(ledger.numbers()) >= lives * each, 20 * SOON)
        until(lambda: not waiting(connection, "orders"), SOON)
    finally:
        program.signal(signal.SIGKILL)
        program.end()
    assert ledger.numbers() == list(range(lives * each))


#: Publishes and consumes in transactions of Django's.
DJANGO = """
import sys
import gevent.monkey
gevent.monkey.patch_all()
from urllib.parse import urlsplit

from django.conf import settings
import django

broker, database, table = sys.argv[1:]
place = urlsplit(database)
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": place.path[1:], "USER": place.username,
    "PASSWORD": place.password or "", "HOST": place.hostname, "PORT": place.port,
}})
django.setup()

from django.db import connections, transaction
from gevent.event import Event
import greenconn
from greenconn import Queue

greenconn.configure(broker)
handled = Event()
calls = []

def write(number):
    with connections["default"].cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} VALUES (%s)", [number])

def handle(body, message):
    write(body)
    calls.append(body)
    if len(calls) == 1:
        raise ValueError("once")
    handled.set()

try:
    greenconn.publish(Queue("orders"), 0, transaction="default")
except ValueError as exc:
    print(exc)
try:
    with transaction.atomic():
        write(1)
        greenconn.publish(Queue("orders"), 1, transaction="default")
        raise KeyError
except KeyError:
    pass
with transaction.atomic():
    write(2)
    greenconn.publish_many(Queue("orders"), [3], transaction="default")
consumer = greenconn.spawn_consumer(
    Queue("orders"), handle, transaction="default", retry={"tries": 2, "delay": 0.01}
)
assert handled.wait(60)
assert consumer.stop(60)
print(calls)
"""


@pytest.mark.programs
def test_django(postgresql_url: str, postgresql_server: str, ledger: Ledger) -> None:
    outcome = run("-c", DJANGO, postgresql_url, postgresql_server, ledger.name)
    text, calls = outcome.output.splitlines()
    assert "publish within django.db.transaction.atomic()" in text
    assert calls == "[3, 3]"
    assert ledger.numbers() == [2, 3]
