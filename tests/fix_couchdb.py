"""What speaks CouchDB's protocol: the user's, or a pouchdb-server of this process.

With ``--servers older`` all are CouchDB 1.6.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.brokers.couchdb_server import KIND
from tests.brokers.environment import COUCHDB_URL
from tests.brokers.pouchdb import CouchServer
from tests.fix_brokers import Brokers, mended

CouchFactory = Callable[..., CouchServer]


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
        return brokers.start(KIND).url


@pytest.fixture(scope="session")
def couchdb_url(couchdb_server: str) -> str:
    """The address of a database of this process."""
    return f"{couchdb_server}/greenconn-test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def couchdb_new_url(couchdb_server: str, unique: str) -> str:
    """The address of a database of the test's own, which is not there yet."""
    return f"{couchdb_server}/{unique}"


@pytest.fixture(scope="session")
def own_couchdb_process(brokers: Brokers) -> Iterator[CouchServer]:
    """The process behind :func:`own_couchdb`."""
    with unlimited():
        broker = brokers.start(KIND, is_kept=True)
    yield broker
    broker.close()


@pytest.fixture
def own_couchdb(own_couchdb_process: CouchServer) -> Iterator[CouchServer]:
    """A server with data on disk that the test may stop, kill or freeze; mended after the test."""
    yield from mended(own_couchdb_process)


@pytest.fixture
def couchdb_with(brokers: Brokers) -> Iterator[CouchFactory]:
    """Start a server of the test's own with ``couchdb_with(option...)``; ended after the test."""
    servers: list[CouchServer] = []

    def start(**options: object) -> CouchServer:
        with unlimited():
            servers.append(brokers.start(KIND, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
