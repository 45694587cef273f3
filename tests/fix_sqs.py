"""What speaks SQS' protocol: the user's, or moto's server, a stand-in, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenconn import Connection
from tests.brokers.environment import SQS_URL
from tests.brokers.moto import MotoServer
from tests.fix_brokers import Brokers, mended

Connect = Callable[..., Connection]


@pytest.fixture(scope="session")
def moto(brokers: Brokers) -> Iterator[MotoServer]:
    """A moto server that all tests share; never stop it."""
    server = brokers.start(MotoServer)
    yield server
    server.close()


@pytest.fixture(scope="session")
def sqs_url(request: pytest.FixtureRequest) -> str:
    """The address of an SQS."""
    given = os.environ.get(SQS_URL)
    if given:
        return given
    server: MotoServer = request.getfixturevalue("moto")
    return server.url


@pytest.fixture(scope="session")
def quick_sqs_url(sqs_url: str) -> str:
    """The same, with options that keep tests short."""
    return f"{sqs_url}?lease=5&get_wait_time=0"


@pytest.fixture(scope="session")
def own_moto_process(brokers: Brokers) -> Iterator[MotoServer]:
    """The process behind :func:`own_moto`."""
    server = brokers.start(MotoServer)
    yield server
    server.close()


@pytest.fixture
def own_moto(own_moto_process: MotoServer) -> Iterator[MotoServer]:
    """A moto server that the test may kill or freeze; mended after the test."""
    yield from mended(own_moto_process)


@pytest.fixture
def sqs_connect(sqs_url: str) -> Iterator[Connect]:
    """Makes connections that are closed after the test."""
    made: list[Connection] = []

    def make(url: str = sqs_url, **options: Any) -> Connection:
        options = {"get_wait_time": 0, "lease": 5, **options}
        made.append(Connection(url, transport_options=options))
        return made[-1]

    yield make
    for connection in made:
        connection.close()
