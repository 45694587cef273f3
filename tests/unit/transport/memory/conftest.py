"""A memory broker whose clock the tests move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenconn.transport import memory
from greenconn.transport.memory.broker import Broker
from greenconn.transport.memory.channel import Channel
from greenconn.transport.memory.link import MemoryLink
from tests.tiny_client import TinyClient


class MovedClock:
    """A clock that goes on only by ``move``."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._timers: dict[object, tuple[float, Callable[[], Any]]] = {}

    @property
    def armed(self) -> int:
        """How many timers run."""
        return len(self._timers)

    def now(self) -> float:
        """Seconds."""
        return self._now

    def call_later(self, delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* when the clock has moved by *delay* seconds."""
        key = object()
        self._timers[key] = (self._now + delay, function)
        return lambda: self._timers.pop(key, None)

    def move(self, seconds: float) -> None:
        """Let time go by; timers go off in order."""
        end = self._now + seconds
        while True:
            due = [(at, key) for key, (at, _) in self._timers.items() if at <= end]
            if not due:
                break
            at, key = min(due, key=lambda pair: pair[0])
            self._now = max(self._now, at)
            self._timers.pop(key)[1]()
        self._now = end


@pytest.fixture
def clock() -> MovedClock:
    """The clock of ``broker``."""
    return MovedClock()


@pytest.fixture
def broker(clock: MovedClock) -> Iterator[Broker]:
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
