"""Messages that are published in a transaction of the program's own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from gevent.queue import Queue as Inbox

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.exceptions import PublishRefused, Unroutable
from tests.fix_wires import until
from tests.integration.processes import ROOT, start

sqlalchemy = pytest.importorskip("sqlalchemy")
from sqlalchemy.orm import Session, scoped_session, sessionmaker  # noqa: E402

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
        for life in range(300 if long else 4):
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
