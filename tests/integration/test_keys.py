"""Handlers that run by keys, and encrypted bodies, over brokers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import gevent
import pytest
from gevent.event import Event

pytest.importorskip("cryptography")

import greenconn
from greenconn import Connection, Message, Queue, in_order
from greenconn.contrib.encryption import generate_key, register_encryption
from greenconn.serialization import unregister
from tests.fix_relay import RelayFactory
from tests.fix_wires import until
from tests.integration.recovering import lose

SOON = 90.0
KEYS = "abcdefgh"
COUNT = 40


def test_the_order_of_each_key_is_kept(connection: Connection, unique: str) -> None:
    handled: dict[str, list[int]] = defaultdict(list)
    running: set[str] = set()

    @in_order(lambda body, message: body["key"], running=6)
    def work(body: Any, message: Message) -> None:
        assert body["key"] not in running
        running.add(body["key"])
        assert len(running) <= 6
        gevent.sleep(0.001 * (body["n"] % 3))
        running.discard(body["key"])
        handled[body["key"]].append(body["n"])

    register_encryption([generate_key()])
    queue = Queue(unique)
    try:
        bodies = [{"key": key, "n": number} for number in range(COUNT) for key in KEYS]
        greenconn.publish_many(queue, bodies, connection=connection, serializer="encrypted")
        consumer = greenconn.spawn_consumer(
            queue, work, connection=connection, concurrency=100, accept=["encrypted"]
        )
        until(lambda: sum(map(len, handled.values())) == COUNT * len(KEYS), SOON)
        assert consumer.stop(SOON)
        assert consumer.stats()["failed"] == 0
        assert handled == {key: list(range(COUNT)) for key in KEYS}
        connection.default_channel.queue_delete(unique)
    finally:
        unregister("encrypted")


WAITING = 30


@pytest.mark.parametrize("url", ["amqp_url", "redis_url"])
def test_messages_that_wait_are_dropped_with_their_connection(
    url: str,
    request: pytest.FixtureRequest,
    relay_to: RelayFactory,
    unique: str,
) -> None:
    begun: list[int] = []
    first, may_end = Event(), Event()

    @in_order(lambda body, message: "one")
    def work(body: Any, message: Message) -> None:
        begun.append(body)
        first.set()
        may_end.wait(SOON)

    relay = relay_to(request.getfixturevalue(url))
    with Connection(relay.url) as connection:
        greenconn.publish_many(Queue(unique), list(range(WAITING)), connection=connection)
        consumer = greenconn.spawn_consumer(
            Queue(unique), work, connection=connection, concurrency=3 * WAITING
        )
        assert first.wait(SOON)
        until(lambda: consumer.stats()["in_flight"] == WAITING, SOON)
        lose(relay, connection)
        until(lambda: consumer.stats()["received"] == 2 * WAITING, SOON)
        # The copies, which wait, and the handler that had begun.
        until(lambda: consumer.stats()["in_flight"] == WAITING + 1, SOON)
        assert begun == [0]
        may_end.set()
        until(lambda: consumer.stats()["handled"] == WAITING + 1, SOON)
        assert begun == [0, *range(WAITING)]
        assert consumer.stats()["failed"] == 0
        consumer.kill()
        connection.default_channel.queue_delete(unique)
