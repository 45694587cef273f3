"""PostgreSQL servers that fail over, are full, refuse connections, or show a certificate."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import gevent
import psycopg
import pytest

import greenconn
from greenconn import Connection, Queue
from greenconn.exceptions import PublishRefused, RecoverableConnectionError
from greenconn.transport.postgresql.connection import NotStored
from tests.brokers.postgresql import PostgresServer
from tests.brokers.tls import CERTS
from tests.fix_postgresql import PostgresServers
from tests.fix_wires import until

pytestmark = pytest.mark.halved

SOON = 60.0
PUBLISHERS = 4


def address(*servers: PostgresServer, role: str = "postgres", query: str = "") -> str:
    """Return the URL of a list of servers."""
    hosts = ",".join(urlsplit(each.url).netloc.rpartition("@")[2] for each in servers)
    return f"postgresql://{role}@{hosts}/postgres{query}"


class Load:
    """Publishers and a consumer, and what became of their messages.

    Attributes:
        confirmed: what was published.
        got: what was handled.
    """

    def __init__(self, url: str) -> None:
        self.confirmed: set[int] = set()
        self.got: set[int] = set()
        self._is_ending = False
        self._numbers = count()
        self._connections = [Connection(url) for _ in range(2)]
        consuming, publishing = self._connections
        self._consumer = greenconn.spawn_consumer("load", self._handle, connection=consuming)
        assert self._consumer.wait_ready(SOON)
        self._publishers = [gevent.spawn(self._publish, publishing) for _ in range(PUBLISHERS)]

    def _handle(self, body: int, message: Any) -> None:
        self.got.add(body)

    def _publish(self, connection: Connection) -> None:
        while not self._is_ending:
            number = next(self._numbers)
            greenconn.publish("load", number, connection=connection, timeout=SOON)
            self.confirmed.add(number)

    def run(self, messages: int) -> None:
        """Wait until so many more were published and handled."""
        target = len(self.confirmed & self.got) + messages
        until(lambda: len(self.confirmed & self.got) >= target, SOON)

    def end(self) -> None:
        """End the publishers, and see that all they have published is handled."""
        self._is_ending = True
        gevent.joinall(self._publishers, timeout=SOON, raise_error=True)
        until(lambda: self.confirmed <= self.got, SOON, "all that was published")
        assert self._consumer.stop(SOON)
        for connection in self._connections:
            connection.close()


def test_failover_to_a_promoted_replica_under_load(postgresql_with: PostgresServers) -> None:
    primary = postgresql_with("synchronous_standby_names = '*'")
    # Else it would wait for a replica of its own.
    replica = postgresql_with("synchronous_standby_names = ''", source=primary)
    load = Load(address(primary, replica))
    load.run(100)
    primary.kill()
    replica.promote()
    load.run(100)
    load.end()


def test_full_disk(postgresql_with: PostgresServers, caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    server = postgresql_with(disk=2)
    with psycopg.connect(server.url, autocommit=True) as database:
        database.execute(f"CREATE TABLESPACE small LOCATION '{server.disk}'")
        database.execute("ALTER DATABASE postgres SET default_tablespace = small")
    confirmed, got = set(), set()
    with Connection(server.url) as connection:
        Queue("full")(connection).declare()
        with pytest.raises(PublishRefused, match=r"No space left .*free some space") as full:
            for number in range(1000):
                text = os.urandom(3000).hex()
                greenconn.publish("full", [number, text], connection=connection)
                confirmed.add(number)
        assert isinstance(full.value.__cause__, NotStored)
        assert confirmed
        # It needs a row of its own.
        consumer = greenconn.spawn_consumer(
            "full", lambda body, message: got.add(body[0]), connection=connection
        )
        until(lambda: "cannot start yet" in caplog.text, SOON)
        server.enlarge_disk(64)
        until(lambda: confirmed <= got, SOON)
        greenconn.publish("full", [-1], connection=connection)
        until(lambda: -1 in got, SOON)
        assert consumer.stop(SOON)


def _take(url: str, taken: list[psycopg.Connection[Any]]) -> bool:
    with suppress(psycopg.OperationalError):
        taken.append(psycopg.connect(url))
    return bool(taken)


def test_no_connection_is_free(
    postgresql_with: PostgresServers, caplog: pytest.LogCaptureFixture
) -> None:
    server = postgresql_with("max_connections = 5", "superuser_reserved_connections = 3")
    with psycopg.connect(server.url, autocommit=True) as database:
        database.execute("CREATE ROLE shop LOGIN")
        database.execute("GRANT CREATE ON DATABASE postgres TO shop")
        url = address(server, role="shop")
        with Connection(url) as connection:
            greenconn.publish("q", 1, connection=connection, declare=True)
        # The last one that is not reserved; the server frees it a moment after it was closed.
        taken: list[psycopg.Connection[Any]] = []
        until(lambda: _take(url, taken), SOON)
        with Connection(url) as connection:
            with pytest.raises(RecoverableConnectionError, match="raise max_connections"):
                connection.connect()
            publishing = gevent.spawn(
                greenconn.publish, "q", 2, connection=connection, timeout=SOON
            )
            with caplog.at_level(logging.WARNING, "greenconn"):
                until(lambda: "raise max_connections" in caplog.text, SOON)
            assert not publishing.ready()
            taken.pop().close()
            publishing.get(timeout=SOON)
            queue = Queue("q")(connection)
            got = [queue.get(no_ack=True).payload for _ in range(2)]
            assert got == [1, 2]


def test_statement_timeout_of_a_role(
    postgresql_with: PostgresServers, caplog: pytest.LogCaptureFixture
) -> None:
    server = postgresql_with()
    with Connection(server.url) as connection:
        greenconn.publish("q", 1, connection=connection, declare=True)
    with psycopg.connect(server.url) as database:
        database.execute("ALTER ROLE postgres SET statement_timeout = '500ms'")
        database.commit()
        # A session of its own has the limit of ``reply_timeout``.
        with Connection(server.url) as connection:
            connection.connect()
            session = connection.session.link().store.session
            ((limit,),) = session.call(session.fetch, "SHOW statement_timeout")
            assert limit == "30s"
        # One that is shared has that of the role.
        pooled = postgresql_with.pooled(server, "transaction").url
        with Connection(pooled) as connection:
            greenconn.publish("q", 2, connection=connection)
            database.execute("LOCK TABLE greenconn.messages")
            with pytest.raises(PublishRefused, match=r"statement timeout .*statement_timeout"):
                greenconn.publish("q", 3, connection=connection, timeout=SOON)
            database.rollback()
            greenconn.publish("q", 4, connection=connection, timeout=SOON)
            # Acks wait for their turn.
            queue = Queue("q")(connection)
            messages = [queue.get() for _ in range(3)]
            assert [each.payload for each in messages] == [1, 2, 4]
            database.execute("LOCK TABLE greenconn.messages")
            for message in messages:
                message.ack()
            with caplog.at_level(logging.ERROR, "greenconn"):
                until(lambda: "acks and requeues are tried again" in caplog.text, SOON)
            database.rollback()
            count = "SELECT count(*) FROM greenconn.messages"
            until(lambda: database.execute(count).fetchone() == (0,), SOON)


def test_tls(postgresql_with: PostgresServers) -> None:
    server = postgresql_with()
    server.stop()
    server.show_certificate(CERTS / "server.pem", CERTS / "server.key")
    server.start()
    verified = "?sslmode=verify-full&sslrootcert={}"
    with Connection(address(server, query=verified.format(CERTS / "ca.pem"))) as connection:
        greenconn.publish("q", 1, connection=connection, declare=True)
        session = connection.session.link().store.session
        ((is_encrypted,),) = session.call(
            session.fetch, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        )
        assert is_encrypted
    with Connection(server.url, ssl={"ca_certs": str(CERTS / "ca.pem")}) as connection:
        assert Queue("q")(connection).get(no_ack=True).payload == 1
    with (
        Connection(address(server, query=verified.format(CERTS / "other-ca.pem"))) as connection,
        pytest.raises(RecoverableConnectionError, match=r"certificate verify failed .*sslrootcert"),
    ):
        connection.connect()
