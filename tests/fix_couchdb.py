"""What speaks CouchDB's protocol: the user's, or a pouchdb-server of this process."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.brokers.environment import COUCHDB_URL
from tests.brokers.pouchdb import PouchDB
from tests.fix_brokers import Brokers, mended

PouchFactory = Callable[..., PouchDB]


@contextmanager
def unlimited() -> Iterator[None]:
    """Stop the clock of the test that happens to come first: fetching takes a minute, once."""
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)


@pytest.fixture(scope="session")
def couchdb_server(brokers: Brokers) -> str:
    """The address of a server, without a database; nobody stops it."""
    url = os.environ.get(COUCHDB_URL)
    if url:
        return url.rstrip("/")
    with unlimited():
        return brokers.start(PouchDB).url


@pytest.fixture(scope="session")
def couchdb_url(couchdb_server: str) -> str:
    """The address of a database of this process."""
    return f"{couchdb_server}/greenconn-test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def couchdb_new_url(couchdb_server: str, unique: str) -> str:
    """The address of a database of the test's own, which is not there yet."""
    return f"{couchdb_server}/{unique}"


@pytest.fixture(scope="session")
def own_couchdb_process(brokers: Brokers) -> Iterator[PouchDB]:
    """The process behind :func:`own_couchdb`."""
    with unlimited():
        broker = brokers.start(PouchDB, is_kept=True)
    yield broker
    broker.close()


@pytest.fixture
def own_couchdb(own_couchdb_process: PouchDB) -> Iterator[PouchDB]:
    """A server with data on disk that the test may stop, kill or freeze; mended after the test."""
    yield from mended(own_couchdb_process)


@pytest.fixture
def pouchdb_with(brokers: Brokers) -> Iterator[PouchFactory]:
    """Start a server of the test's own with ``pouchdb_with(option...)``; ended after the test."""
    servers: list[PouchDB] = []

    def start(**options: object) -> PouchDB:
        with unlimited():
            servers.append(brokers.start(PouchDB, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
