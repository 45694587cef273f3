"""What becomes of messages whose consumer is stopped or suspended."""

from __future__ import annotations

import signal
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.integration.processes import start
from tests.integration.redis_clients import Control

pytestmark = pytest.mark.full

#: Seconds.
LEASE = 1.0


def test_stopped_consumer_requeues_to_the_head_at_once(
    own_redis: RedisServer, at_server: Control
) -> None:
    with Connection(own_redis.url) as first, Connection(own_redis.url) as second:
        for body in range(6):
            greenconn.publish("q", body, connection=second, declare=True)
        taken: list[int] = []

        def hold(body: int, message: Any) -> None:
            taken.append(body)
            gevent.sleep(1000)

        consumer = greenconn.spawn_consumer(
            "q", hold, connection=first, prefetch_count=4, concurrency=2
        )
        until(lambda: at_server("HLEN", "unacked") == 4 and len(taken) == 2)
        consumer.kill()
        first.close()
        channel = second.default_channel
        messages = [channel.basic_get("q") for _ in range(6)]
        assert [each.payload for each in messages] == list(range(6))
        counts = [each.delivery_count for each in messages]
        assert counts[:2] == [1, 1]
        assert not any(counts[4:])


def test_late_ack_of_a_frozen_consumer_is_reported(
    own_redis: RedisServer, at_server: Control
) -> None:
    """A process that was stopped for longer than its lease acks what another one has."""
    program = f"""
import logging, sys
import greenconn
from gevent.event import AsyncResult
logging.basicConfig(format="%(message)s", stream=sys.stdout)
connection = greenconn.Connection(sys.argv[1], transport_options={{"lease": {LEASE}}})
channel = connection.default_channel
lost = AsyncResult()
channel.events["lease_lost"].add(lost.set)
message = channel.basic_get("q")
print("holds", message.payload, flush=True)
sys.stdin.readline()
message.ack()
print("lost", lost.get(timeout=30), flush=True)
"""
    with Connection(own_redis.url, transport_options={"lease": LEASE}) as connection:
        greenconn.publish("q", 1, connection=connection, declare=True)
        frozen = start("-c", program, own_redis.url)
        try:
            assert frozen.line() == "holds 1"
            frozen.signal(signal.SIGSTOP)
            got: list[Any] = []
            may_end = Event()

            def keep(body: int, message: Any) -> None:
                got.append(body)
                may_end.wait()

            consumer = greenconn.spawn_consumer("q", keep, connection=connection)
            until(lambda: got == [1])
            frozen.signal(signal.SIGCONT)
            outcome = frozen.outcome(b"\n")
        finally:
            frozen.end()
        assert "lost 1" in outcome.output
        assert "lease_lost" in outcome.output
        assert at_server("HLEN", "unacked") == 1  # it is still ours
        may_end.set()
        until(at_server.is_settled)
        assert got == [1]
        assert consumer.stop(SOON)
