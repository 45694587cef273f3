"""MongoDB: the user's, or the stand-in, which is not one (see :mod:`tests.brokers.mongodb`).

With ``--servers older`` all are MongoDB 3.6.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import pymongo
import pytest
from pymongo import common, database

from tests.brokers.environment import MONGODB_URL
from tests.brokers.mongodb_server import KIND, MongoServer
from tests.fix_brokers import Brokers, Servers, mended

MongoFactory = Servers[MongoServer]
Database = database.Database[dict[str, Any]]


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
def mongodb_servers(brokers: Brokers, quick_monitors: None) -> Iterator[MongoFactory]:
    """Starts servers that live as long as the tests."""
    with Servers(brokers, KIND) as servers:
        yield servers


@pytest.fixture(scope="session")
def mongodb_server(mongodb_servers: MongoFactory) -> str:
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
def mongodb_set(mongodb_servers: MongoFactory) -> MongoServer:
    """The only member of a replica set; never stop it."""
    return mongodb_servers(replica_set="rs0")


@pytest.fixture
def mongodb_set_url(mongodb_set: MongoServer, unique: str) -> str:
    """The address of a database of the test's own, on a replica set."""
    return f"{mongodb_set.url}/{unique}?replicaSet=rs0"


@pytest.fixture
def mongodb_with(brokers: Brokers, quick_monitors: None) -> Iterator[MongoFactory]:
    """Start a server of the test's own with ``mongodb_with(option...)``; ended after the test."""
    with Servers(brokers, KIND) as servers:
        yield servers


@pytest.fixture(scope="session")
def own_mongodb_process(mongodb_servers: MongoFactory) -> MongoServer:
    """The process behind :func:`own_mongodb`."""
    return mongodb_servers(is_durable=True)


@pytest.fixture
def own_mongodb(own_mongodb_process: MongoServer) -> Iterator[MongoServer]:
    """A lone server that keeps its data, which the test may stop, kill or freeze; mended after it."""
    yield from mended(own_mongodb_process)
