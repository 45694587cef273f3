"""Hundreds of consumers over a few connections: they start, work, survive a loss, and stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from greenconn import Connection, Queue, spawn_consumer
from tests.fix_wires import until

CAME = 120.0
CONSUMERS = 500
QUEUES = 50


@pytest.fixture(params=["amqp_url", "redis_url"])
def connections(request: pytest.FixtureRequest) -> Iterator[list[Connection]]:
    """Two connections to a broker."""
    url = request.getfixturevalue(request.param)
    with Connection(url) as one, Connection(url) as another:
        yield [one, another]


def test_many_consumers_share_few_connections(connections: list[Connection], unique: str) -> None:
    names = [f"{unique}-{number}" for number in range(QUEUES)]
    handled: Counter[str] = Counter()

    def handle(body: Any, message: Any) -> None:
        handled[body] += 1

    consumers = [
        spawn_consumer(Queue(names[number % QUEUES]), handle, connection=connections[number % 2])
        for number in range(CONSUMERS)
    ]
    until(lambda: all(each.lifecycle.is_confirmed for each in consumers), CAME, "all ready")
    producer = connections[0].Producer()

    def publish(what: str) -> None:
        for number in range(CONSUMERS):
            producer.publish(f"{what} {number}", routing_key=names[number % QUEUES])

    publish("first")
    until(lambda: len(handled) == CONSUMERS, CAME, "all handled")
    for connection in connections:
        connection.session.life.link.end(ConnectionResetError("cut"))
    gevent.sleep(0)
    until(lambda: all(each.lifecycle.is_confirmed for each in consumers), CAME, "all recovered")
    publish("second")
    until(lambda: len(handled) == 2 * CONSUMERS, CAME, "all handled")
    assert set(handled.values()) <= {1, 2}  # an ack may have been lost with the connection
    stopping = [gevent.spawn(consumer.stop, CAME) for consumer in consumers]
    gevent.joinall(stopping, timeout=CAME, raise_error=True)
    assert all(each.value for each in stopping)
    channel = connections[0].default_channel
    for name in names:
        channel.queue_delete(name)
