"""A Redis whose clock is set, while its clients' go on."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection
from greenconn.wire.resp import pack
from tests.brokers.redis_server import SteppedRedis
from tests.fix_wires import until
from tests.integration.contract import SOON, collecting
from tests.integration.processes import start
from tests.integration.redis_clients import control
from tests.integration.test_faults_contract import HOLDER

pytestmark = pytest.mark.full

#: Without types.
kombu: Any = pytest.importorskip("kombu")

#: Seconds.
LEASE = 1.0
HOUR = 3600


@pytest.fixture
def connection(stepped_redis: SteppedRedis) -> Iterator[Connection]:
    with Connection(stepped_redis.url, transport_options={"lease": LEASE}) as connection:
        yield connection


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_living_consumers_keep_what_they_hold(
    stepped_redis: SteppedRedis, connection: Connection, step: int
) -> None:
    got: Counter[int] = Counter()
    is_over = gevent.event.Event()

    def hold(body: int, message: Any) -> None:
        got[body] += 1
        assert is_over.wait(SOON)

    other = Connection(stepped_redis.url, transport_options={"lease": LEASE})
    with other:
        consumers = [
            greenconn.spawn_consumer("q", hold, connection=each, concurrency=5, prefetch_count=5)
            for each in (connection, other)
        ]
        for body in range(10):
            greenconn.publish("q", body, connection=connection, declare=True)
        until(lambda: len(got) == 10)
        stepped_redis.set_clock(step)
        sweepers = [each.connection.placement.partition("").sweeper for each in (connection, other)]
        with control(stepped_redis.url) as at_server:
            time = pack("ZSCORE", "greenconn.owners", "clock")
            server = connection.connection
            began = float(server.commands.call(time) or 0)
            # They look again and again, for three leases of the time that they count.
            until(lambda: float(server.commands.call(time) or 0) > began + 3000 * LEASE, 30 * LEASE)
            assert at_server("ZCARD", "unacked_index") == 10
        assert got == dict.fromkeys(range(10), 1)
        assert [each.requeued for each in sweepers] == [0, 0]
        is_over.set()
        assert all(each.stop(SOON) for each in consumers)
        assert [each.connection.leases.lost for each in (connection, other)] == [0, 0]


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_what_the_killed_held_comes_back_at_once(
    stepped_redis: SteppedRedis, connection: Connection, step: int
) -> None:
    got: list[int] = []
    options = json.dumps({"lease": LEASE})
    holder = start("-c", HOLDER, stepped_redis.url, options, "q", "10", "1000")
    try:
        for body in range(10):
            greenconn.publish("q", body, connection=connection, declare=True)
        assert sorted(int(holder.line()) for _ in range(10)) == list(range(10))
        consumer = collecting(connection, "q", got)
        stepped_redis.set_clock(step)
        holder.signal(signal.SIGKILL)
        until(lambda: len(got) == 10, 15 * LEASE)
        assert sorted(got) == list(range(10))
        assert consumer.stop(SOON)
    finally:
        holder.end()


def test_what_programs_of_kombu_hold_is_theirs(
    stepped_redis: SteppedRedis, connection: Connection
) -> None:
    """Kombu marks what it holds with the time of its own machine, and so do we."""
    greenconn.publish("q", "held", connection=connection, declare=True)
    with kombu.Connection(stepped_redis.url) as theirs, control(stepped_redis.url) as at_server:
        message = theirs.SimpleQueue("q").get(timeout=SOON)
        stepped_redis.set_clock(2 * HOUR)
        consumer = greenconn.spawn_consumer("other", print, connection=connection)
        assert consumer.wait_ready(SOON)
        sweeper = connection.connection.placement.partition("").sweeper
        assert sweeper.sweep() == 0
        assert at_server("HLEN", "unacked") == 1
        message.ack()
        assert consumer.stop(SOON)


def test_an_exclusive_queue_is_its_owners(
    stepped_redis: SteppedRedis, connection: Connection
) -> None:
    connection.default_channel.queue_declare("own", exclusive=True)
    with Connection(stepped_redis.url, transport_options={"lease": LEASE}) as other:
        stepped_redis.set_clock(HOUR)
        with pytest.raises(greenconn.exceptions.ResourceLocked):
            other.channel().queue_declare("own", exclusive=True)
        assert other.connection.placement.partition("").sweeper.sweep() == 0
        with pytest.raises(greenconn.exceptions.ResourceLocked):
            other.channel().queue_declare("own", exclusive=True)
