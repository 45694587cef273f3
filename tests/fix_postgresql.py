"""PostgreSQL: the user's, or one that the tests start when one of them needs it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest

from tests.brokers.environment import POSTGRESQL_URL
from tests.brokers.pgbouncer import PgBouncer
from tests.brokers.postgresql import PostgresServer, UserServer
from tests.fix_brokers import Brokers

Database = psycopg.Connection[tuple[object, ...]]


class PostgresServers:
    """Starts servers, and ends them."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers
        self._servers: list[UserServer] = []

    def __call__(
        self, *settings: str, source: PostgresServer | None = None, disk: int = 0
    ) -> PostgresServer:
        """Start a server; skip the test, with the reason, when there is none."""
        with self._brokers.needed(PostgresServer, "PostgreSQL"):
            server = PostgresServer(self._brokers.keeper, settings, source, disk)
            self._servers.append(server)
            server.start()
        return server

    def pooled(self, server: PostgresServer, mode: str, size: int = 20) -> PgBouncer:
        """Start a PgBouncer before a server; skip the test, with the reason, when there is none."""
        with self._brokers.needed(PgBouncer, "PgBouncer"):
            pooler = PgBouncer(self._brokers.keeper, server, mode, size)
            self._servers.append(pooler)
            pooler.start()
        return pooler

    def close(self) -> None:
        """End them, whatever they do."""
        for server in self._servers:
            server.kill()
            server.close()
        self._servers.clear()


@pytest.fixture(scope="session")
def postgresql_servers(brokers: Brokers) -> Iterator[PostgresServers]:
    """Starts servers that live as long as the tests."""
    servers = PostgresServers(brokers)
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def postgresql_server(postgresql_servers: PostgresServers) -> str:
    """The address of a database, as a role that may create schemas; never stop it."""
    return os.environ.get(POSTGRESQL_URL) or postgresql_servers().url


@pytest.fixture
def postgresql(postgresql_server: str) -> Iterator[Database]:
    """The server as psycopg sees it, each statement a transaction of its own."""
    with psycopg.connect(postgresql_server, autocommit=True) as database:
        yield database


@pytest.fixture
def postgresql_url(postgresql_server: str, unique: str) -> Iterator[str]:
    """The address of a schema of the test's own; dropped after it."""
    yield f"{postgresql_server}?schema={unique}"
    with psycopg.connect(postgresql_server, autocommit=True) as database:
        database.execute("SET client_min_messages = warning")
        database.execute(f'DROP SCHEMA IF EXISTS "{unique}" CASCADE')


@pytest.fixture
def postgresql_database(postgresql_server: str, unique: str) -> Iterator[str]:
    """The address of a database of the test's own; dropped after it."""
    with psycopg.connect(postgresql_server, autocommit=True) as database:
        database.execute(f'CREATE DATABASE "{unique}"')
        yield f"{postgresql_server.rpartition('/')[0]}/{unique}"
        database.execute(f'DROP DATABASE "{unique}" WITH (FORCE)')


@pytest.fixture
def postgresql_with(brokers: Brokers) -> Iterator[PostgresServers]:
    """Start a server of the test's own with ``postgresql_with(setting...)``; ended after the test."""
    servers = PostgresServers(brokers)
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def own_postgresql_process(postgresql_servers: PostgresServers) -> PostgresServer:
    """The process behind :func:`own_postgresql`."""
    return postgresql_servers()


@pytest.fixture
def own_postgresql(own_postgresql_process: PostgresServer) -> Iterator[PostgresServer]:
    """A server that the test may stop, kill or freeze; mended after it."""
    server = own_postgresql_process
    if not server.is_running:
        server.start()
    yield server
    server.resume()
