"""PostgreSQL behind PgBouncer: sessions, and poolers that keep none."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from typing import Any

import gevent
import psycopg
import pytest
from gevent.queue import Queue as Inbox

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.exceptions import NotAllowed, ResourceLocked
from tests.brokers.pgbouncer import PgBouncer
from tests.brokers.postgresql import PostgresServer
from tests.fix_postgresql import PostgresServers
from tests.fix_wires import until

SOON = 60.0


@pytest.fixture(scope="module")
def server(postgresql_servers: PostgresServers) -> PostgresServer:
    """The server behind the poolers."""
    return postgresql_servers()


@pytest.fixture(scope="module")
def transaction_pooler(postgresql_servers: PostgresServers, server: PostgresServer) -> PgBouncer:
    """A pooler that lends each transaction one of three sessions; the test may kill it."""
    return postgresql_servers.pooled(server, "transaction", 3)


@pytest.fixture
def pooled(transaction_pooler: PgBouncer, unique: str) -> str:
    """The address of a schema of the test's own, through a pooler that keeps no session."""
    if not transaction_pooler.is_running:
        transaction_pooler.start()
    return f"{transaction_pooler.url}?schema={unique}&polling_interval=0.1"


def test_no_session_is_kept(
    pooled: str, server: PostgresServer, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    got: Counter[Any] = Counter()
    direct = f"{server.url}?schema={unique}"
    with (
        caplog.at_level(logging.WARNING, "greenconn"),
        Connection(pooled) as consuming,
        Connection(pooled) as publishing,
        Connection(direct) as other,
    ):
        # It comes by nothing but the poll.
        consumer = greenconn.spawn_consumer(
            "work", lambda body, message: got.update([body]), connection=consuming
        )
        assert consumer.wait_ready(SOON)
        sending = [
            gevent.spawn(greenconn.publish, "work", number, connection=connection)
            for number, connection in enumerate([publishing, other] * 50)
        ]
        gevent.joinall(sending, raise_error=True, timeout=SOON)
        greenconn.publish("work", "later", connection=publishing, delay=0.2)
        until(lambda: len(got) == 101, SOON)
        assert consumer.stop(SOON)
    assert set(got.values()) == {1}
    (warning,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert "keeps no session" in warning.getMessage()
    with psycopg.connect(server.url) as database:
        locks = database.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert locks.fetchone() == (0,)


def test_sessions_have_nothing_of_others(pooled: str, transaction_pooler: PgBouncer) -> None:
    with Connection(pooled) as connection:
        greenconn.publish("q", "x", connection=connection, declare=True)
        message = Queue("q")(connection).get()
        assert message is not None
        message.ack()
    with psycopg.connect(transaction_pooler.url, autocommit=True) as database:
        for _ in range(6):
            found = database.execute(
                "SELECT current_setting('enable_seqscan'), (SELECT count(*) FROM "
                "pg_prepared_statements)",
                prepare=False,
            )
            assert found.fetchone() == ("on", 0)


@pytest.mark.full
def test_the_pooler_dies_under_load(pooled: str, transaction_pooler: PgBouncer) -> None:
    got: set[Any] = set()
    with Connection(pooled) as consuming, Connection(pooled) as publishing:
        consumer = greenconn.spawn_consumer(
            "work", lambda body, message: got.add(body), connection=consuming
        )
        assert consumer.wait_ready(SOON)
        for number in range(60):
            if number in (20, 40):
                transaction_pooler.kill()
                transaction_pooler.start()
            greenconn.publish("work", number, connection=publishing, timeout=SOON)
        until(lambda: got == set(range(60)), SOON)
        assert consumer.stop(SOON)


def test_exclusive_queue_of_a_dead_link_goes_with_its_lease(pooled: str) -> None:
    dead = Connection(f"{pooled}&lease=1")
    with Connection(pooled) as other:
        queue = Queue("own", Exchange(""), exclusive=True)
        queue(dead).declare()
        with pytest.raises(ResourceLocked):
            Queue("own", exclusive=True)(other).declare()
        link: Any = dead.session.link()
        link.store.drop()

        def is_free() -> bool:
            try:
                Queue("own", exclusive=True)(other).declare()
            except ResourceLocked:
                return False
            return True

        until(is_free, SOON)
    dead.close()


def test_single_active_consumer_hands_on(pooled: str) -> None:
    got: list[tuple[str, Any]] = []
    queue = Queue("one", queue_arguments={"x-single-active-consumer": True})

    def handle(name: str, body: Any, message: Any) -> None:
        got.append((name, body))

    with Connection(pooled) as first, Connection(pooled) as second:
        consumers = []
        for name, connection in (("first", first), ("second", second)):
            consumer = greenconn.spawn_consumer(
                queue,
                partial(handle, name),
                connection=connection,
            )
            assert consumer.wait_ready(SOON)
            consumers.append(consumer)
        greenconn.publish(queue, 1, connection=second)
        until(lambda: got == [("first", 1)], SOON)
        assert consumers[0].stop(SOON)
        greenconn.publish(queue, 2, connection=first)
        until(lambda: got[1:] == [("second", 2)], SOON)
        assert consumers[1].stop(SOON)


def test_session_mode_is_as_no_pooler(
    postgresql_servers: PostgresServers,
    server: PostgresServer,
    unique: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f"{postgresql_servers.pooled(server, 'session').url}?schema={unique}"
    inbox: Inbox[Any] = Inbox()
    # The poll would come too late.
    with Connection(f"{url}&polling_interval=3600") as consuming, Connection(url) as publishing:
        consumer = greenconn.spawn_consumer(
            "work", lambda body, message: inbox.put(body), connection=consuming
        )
        assert consumer.wait_ready(SOON)
        for number in range(3):
            greenconn.publish("work", number, connection=publishing)
            assert inbox.get(timeout=SOON) == number
        assert consumer.stop(SOON)
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_statement_mode_is_refused(
    postgresql_servers: PostgresServers, server: PostgresServer
) -> None:
    url = postgresql_servers.pooled(server, "statement").url
    with (
        Connection(url) as connection,
        pytest.raises(NotAllowed, match=r"pool_mode = statement.*set it to session or transaction"),
    ):
        connection.connect()
