"""Beanstalk servers: a shared one, and private ones that a test may kill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from tests.brokers.beanstalk import Beanstalkd
from tests.brokers.environment import BEANSTALK_URL, are_required
from tests.brokers.packages import NoBroker
from tests.fix_brokers import Brokers

#: Bytes of a job that the shared server takes.
LARGE = 1024 * 1024


class BeanstalkFactory:
    """Starts servers with options of their own: ``beanstalk_with("-z", "1048576")``."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers
        self._servers: list[Beanstalkd] = []
        self._reason: str | None = None

    def __call__(self, *options: str, is_durable: bool = False) -> Beanstalkd:
        if self._reason is not None:
            self._skip(self._reason)
        try:
            server = Beanstalkd(self._brokers.keeper, options, is_durable=is_durable)
            self._servers.append(server)
            server.start()
        except NoBroker as error:
            self._skip(f"no beanstalkd: {error}")
        return server

    def _skip(self, reason: str) -> NoReturn:
        self._reason = reason
        if are_required():
            pytest.fail(reason)
        pytest.skip(reason)

    def close(self) -> None:
        """End them, whatever they do."""
        for server in self._servers:
            server.kill()
            server.close()
        self._servers.clear()


@pytest.fixture(scope="session")
def beanstalk_servers(brokers: Brokers) -> Iterator[BeanstalkFactory]:
    """Starts servers that live as long as the tests."""
    factory = BeanstalkFactory(brokers)
    yield factory
    factory.close()


@pytest.fixture(scope="session")
def beanstalk_url(beanstalk_servers: BeanstalkFactory) -> str:
    """The address of a beanstalkd that takes large jobs; never stop it."""
    return os.environ.get(BEANSTALK_URL) or beanstalk_servers("-z", str(LARGE)).url


@pytest.fixture
def beanstalk_with(brokers: Brokers) -> Iterator[BeanstalkFactory]:
    """Start a beanstalkd of the test's own with ``beanstalk_with(option...)``; ended after the test."""
    factory = BeanstalkFactory(brokers)
    yield factory
    factory.close()


@pytest.fixture(scope="session")
def own_beanstalk_process(beanstalk_servers: BeanstalkFactory) -> Beanstalkd:
    """The process behind :func:`own_beanstalk`."""
    return beanstalk_servers("-z", str(LARGE), is_durable=True)


@pytest.fixture
def own_beanstalk(own_beanstalk_process: Beanstalkd) -> Iterator[Beanstalkd]:
    """A durable beanstalkd that the test may stop, kill or freeze; mended after the test."""
    server = own_beanstalk_process
    if not server.is_running:
        server.start()
    yield server
    server.resume()
