"""A memory broker whose clock the tests move."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from greenconn.testing import ManualClock
from greenconn.transport import memory
from greenconn.transport.memory import Channel, MemoryLink
from greenconn.transport.memory.broker import Broker
from tests.tiny_client import TinyClient


@pytest.fixture
def clock() -> ManualClock:
    """The clock of ``broker``."""
    return ManualClock()


@pytest.fixture
def broker(clock: ManualClock) -> Iterator[Broker]:
    """A broker of the test's own."""
    broker = Broker("test", clock)
    yield broker
    broker.clear()


@pytest.fixture
def open_channel(broker: Broker) -> Callable[..., Channel]:
    """Opens a channel, on a link of its own unless one is given."""

    def open_channel(link: MemoryLink | None = None) -> Channel:
        return Channel(MemoryLink(TinyClient(), broker) if link is None else link)

    return open_channel


@pytest.fixture
def channel(open_channel: Callable[..., Channel]) -> Channel:
    """A channel to ``broker``."""
    return open_channel()


@pytest.fixture
def vhost(unique: str) -> Iterator[str]:
    """A virtual host of the process's brokers, emptied after the test."""
    yield unique
    memory.reset(unique)
