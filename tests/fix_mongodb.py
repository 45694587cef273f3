"""MongoDB: the user's, or the stand-in, which is not one (see :mod:`tests.brokers.mongodb`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pymongo
import pytest
from pymongo import common

from tests.brokers.environment import MONGODB_URL
from tests.brokers.mongodb_server import MongoStandin
from tests.fix_brokers import Brokers

MongoFactory = Callable[..., MongoStandin]
Database = pymongo.database.Database[dict[str, Any]]


class MongoServers:
    """Starts stand-ins, and ends them."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers
        self._servers: list[MongoStandin] = []

    def __call__(self, **options: Any) -> MongoStandin:
        server = MongoStandin(self._brokers.keeper, **options)
        self._servers.append(server)
        server.start()
        return server

    def close(self) -> None:
        """End them, whatever they do."""
        for server in self._servers:
            server.kill()
            server.close()
        self._servers.clear()


@pytest.fixture(scope="session")
def quick_monitors() -> Iterator[None]:
    """Let the helpers of pymongo's clients, which sleep in steps of half a second, end at once.

    They also tell all that they do, if anybody listens, which is a lot.
    """
    logging.getLogger("pymongo").setLevel(logging.INFO)
    before = common.MIN_HEARTBEAT_INTERVAL
    common.MIN_HEARTBEAT_INTERVAL = 0.01
    yield
    common.MIN_HEARTBEAT_INTERVAL = before


@pytest.fixture(scope="session")
def mongodb_servers(brokers: Brokers, quick_monitors: None) -> Iterator[MongoServers]:
    """Starts stand-ins that live as long as the tests."""
    servers = MongoServers(brokers)
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def mongodb_server(mongodb_servers: MongoServers) -> str:
    """The address of a lone server, with options but without a database; never stop it."""
    return os.environ.get(MONGODB_URL) or mongodb_servers().url


@pytest.fixture
def mongodb_url(mongodb_server: str, unique: str) -> Iterator[str]:
    """The address of a database of the test's own, on a lone server."""
    place, mark, options = mongodb_server.partition("?")
    yield f"{place.rstrip('/')}/{unique}{mark}{options}"
    if MONGODB_URL in os.environ:  # the stand-in ends with the tests
        client: pymongo.MongoClient[dict[str, Any]]
        client = pymongo.MongoClient(mongodb_server, serverMonitoringMode="poll")
        with client:
            client.drop_database(unique)


@pytest.fixture
def mongodb_database(mongodb_url: str, unique: str) -> Iterator[Database]:
    """The database as pymongo sees it."""
    client: pymongo.MongoClient[dict[str, Any]]
    client = pymongo.MongoClient(mongodb_url, serverMonitoringMode="poll")
    with client:
        yield client[unique]


@pytest.fixture(scope="session")
def mongodb_set(mongodb_servers: MongoServers) -> MongoStandin:
    """A stand-in for the only member of a replica set; never stop it."""
    return mongodb_servers(replica_set="rs0")


@pytest.fixture
def mongodb_set_url(mongodb_set: MongoStandin, unique: str) -> str:
    """The address of a database of the test's own, on a replica set."""
    return f"{mongodb_set.url}/{unique}?replicaSet=rs0"


@pytest.fixture
def mongodb_with(brokers: Brokers, quick_monitors: None) -> Iterator[MongoFactory]:
    """Start a stand-in of the test's own with ``mongodb_with(option...)``; ended after the test."""
    servers = MongoServers(brokers)
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def own_mongodb_process(mongodb_servers: MongoServers) -> MongoStandin:
    """The process behind :func:`own_mongodb`."""
    return mongodb_servers(is_durable=True)


@pytest.fixture
def own_mongodb(own_mongodb_process: MongoStandin) -> Iterator[MongoStandin]:
    """A lone server that keeps its data, which the test may stop, kill or freeze; mended after it."""
    server = own_mongodb_process
    if not server.is_running:
        server.start()
    yield server
    server.resume()
