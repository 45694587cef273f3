"""Consumers of one queue on a real Redis: what they know of each other, and what that costs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import pytest
from gevent.queue import Queue as GreenQueue

import greenconn
from greenconn import Connection
from greenconn.transport.redis.claiming import RedisFeed, Watch
from greenconn.transport.redis.maintenance import SWEEPS
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.integration.processes import start
from tests.integration.redis_clients import Control

#: Seconds.
LEASE = 0.5

REGISTERED = "greenconn.consumers.q"

#: Consumes until it is killed.
RIVAL = f"""
import sys
import greenconn

connection = greenconn.Connection(sys.argv[1], transport_options={{"lease": {LEASE}}})
consumer = greenconn.spawn_consumer("q", print, connection=connection, prefetch_count=1)
consumer.wait_ready(30)
print("ready", flush=True)
consumer.join()
"""


class Subject:
    """A consumer that gets one message after the other."""

    def __init__(self, connection: Connection, came: GreenQueue[Any]) -> None:
        self._connection = connection
        self._came = came

    @property
    def feed(self) -> RedisFeed:
        feed: RedisFeed = self._connection.connection.feeds["q"]
        return feed

    @property
    def owner(self) -> bytes:
        """The name under which it is registered."""
        owner: str = self._connection.connection.commands.owner
        return owner.encode()

    def get(self, number: int) -> None:
        """Publish messages, each when the server is to tell of the next one."""
        for each in range(number):
            until(lambda: self.feed.watching is Watch.ARMED)
            greenconn.publish("q", each, connection=self._connection)
            assert self._came.get(timeout=SOON) == each
        until(lambda: self.feed.watching is Watch.ARMED)

    def has_rivals(self, number: int) -> bool:
        """Look for a message; whether there are so many rivals."""
        self.feed.wake()
        until(lambda: self.feed.watching is Watch.ARMED)
        return self.feed.rivals == number


@contextmanager
def subject(url: str, prefetch: int = 1, lease: float = LEASE) -> Iterator[Subject]:
    came: GreenQueue[Any] = GreenQueue()
    with Connection(url, transport_options={"lease": lease}) as connection:
        consumer = greenconn.spawn_consumer(
            "q",
            lambda body, message: came.put(body),
            connection=connection,
            concurrency=1,
            prefetch_count=prefetch,
        )
        assert consumer.wait_ready(SOON)
        yield Subject(connection, came)
        assert consumer.stop(SOON)


@pytest.mark.parametrize("prefetch", [1, 10, 100])
def test_single_consumer_sends_nothing_for_rivals(
    own_redis: RedisServer, at_server: Control, prefetch: int
) -> None:
    """It counts none, and looks once for the next message: who backs off looks a second time."""
    messages, lease = 40, 30.0
    with subject(own_redis.url, prefetch, lease) as alone:
        alone.get(1)
        at_server("CONFIG", "RESETSTAT")
        began = monotonic()
        alone.get(messages)
        # They are counted a few times in a lease, by a script that reads them.
        assert at_server.calls("hkeys") <= 1 + SWEEPS * (monotonic() - began) / lease
        assert at_server.calls("exists") < 1.5 * messages


def test_rivals_are_counted_when_one_joins_or_leaves(
    own_redis: RedisServer, at_server: Control
) -> None:
    lease = 10_000.0  # so that they are not counted again because of the time
    with subject(own_redis.url, lease=lease) as first:
        assert first.has_rivals(0)
        with subject(own_redis.url, lease=lease) as second:
            until(lambda: first.has_rivals(1) and second.has_rivals(1))
        until(lambda: first.has_rivals(0))


def test_killed_rival_counts_until_its_lease_ends(
    own_redis: RedisServer, at_server: Control
) -> None:
    """It stays registered: its queue may end because of it."""
    with subject(own_redis.url) as survivor:
        assert survivor.has_rivals(0)
        rival = start("-c", RIVAL, own_redis.url)
        try:
            assert rival.line() == "ready"
            until(lambda: survivor.has_rivals(1))
            rival.signal(signal.SIGKILL)
        finally:
            rival.end()
        until(lambda: survivor.has_rivals(0), 60 * LEASE)
        (owner,) = set(at_server("HKEYS", REGISTERED)) - {survivor.owner}
        # As if it had only been paused: it renews its lease.
        at_server("ZADD", "greenconn.owners", "+inf", owner)
        until(lambda: survivor.has_rivals(1), 60 * LEASE)
        at_server("ZREM", "greenconn.owners", owner)
