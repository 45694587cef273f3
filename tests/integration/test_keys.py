"""Handlers that run by keys, and encrypted bodies, over brokers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import gevent
import pytest

pytest.importorskip("cryptography")

import greenconn
from greenconn import Connection, Message, Queue
from greenconn.contrib.encryption import generate_key, register_encryption
from greenconn.contrib.keys import in_order
from greenconn.serialization import unregister
from tests.fix_wires import until

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
