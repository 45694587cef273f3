"""Beanstalk servers: a shared one, and private ones that a test may kill."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.brokers.beanstalk import Beanstalkd
from tests.brokers.environment import BEANSTALK_URL
from tests.fix_brokers import Brokers, Servers, mended

#: Bytes of a job that the shared server takes.
LARGE = 1024 * 1024


BeanstalkFactory = Servers[Beanstalkd]


@pytest.fixture(scope="session")
def beanstalk_servers(brokers: Brokers) -> Iterator[BeanstalkFactory]:
    """Starts servers that live as long as the tests."""
    with Servers(brokers, Beanstalkd) as servers:
        yield servers


@pytest.fixture(scope="session")
def beanstalk_url(beanstalk_servers: BeanstalkFactory) -> str:
    """The address of a beanstalkd that takes large jobs; never stop it."""
    return os.environ.get(BEANSTALK_URL) or beanstalk_servers("-z", str(LARGE)).url


@pytest.fixture
def beanstalk_with(brokers: Brokers) -> Iterator[BeanstalkFactory]:
    """Start a beanstalkd of the test's own with ``beanstalk_with(option...)``; ended after the test."""
    with Servers(brokers, Beanstalkd) as servers:
        yield servers


@pytest.fixture(scope="session")
def own_beanstalk_process(beanstalk_servers: BeanstalkFactory) -> Beanstalkd:
    """The process behind :func:`own_beanstalk`."""
    return beanstalk_servers("-z", str(LARGE), is_durable=True)


@pytest.fixture
def own_beanstalk(own_beanstalk_process: Beanstalkd) -> Iterator[Beanstalkd]:
    """A durable beanstalkd that the test may stop, kill or freeze; mended after the test."""
    yield from mended(own_beanstalk_process)
