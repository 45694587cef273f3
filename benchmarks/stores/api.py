"""The works of a library that has kombu's API, over any store: one program, whatever it imports."""

from __future__ import annotations

from typing import Any

from benchmarks.clock import Clock, Figures
from benchmarks.rivals.kombu_api import many
from benchmarks.rivals.shape import PREFETCH, TIMEOUT
from benchmarks.stage import BODY
from benchmarks.stores.stage import StoreStage

#: Greenlets that publish at once.
PUBLISHERS = 1000
#: Connections that they share, where a connection is one greenlet's at a time.
POOL = 10


class StoreApi:
    """What is the same program on kombu and on greenconn.

    Arguments:
        api: the module, with ``Connection``, ``Queue`` and ``pools``.
        url: of the server.
        stage: where it takes place.
    """

    def __init__(self, api: Any, url: str, stage: StoreStage) -> None:
        self.api = api
        self.url = url
        self.stage = stage

    def close(self) -> None:
        """End the connections of the pools."""
        self.api.pools.reset()

    def sink(self, connection: Any) -> str:
        """A queue to publish to, with a message in it."""
        name = self.stage.name()
        self.api.Queue(name)(connection.default_channel).declare()
        connection.Producer().publish(BODY, routing_key=name)
        return name

    def publish(self, count: int) -> Figures:
        """One greenlet, each call returns when the server has the message."""
        with self.api.Connection(self.url) as connection:
            sink = self.sink(connection)
            producer = connection.Producer()
            with Clock() as clock:
                for _ in range(count):
                    producer.publish(BODY, routing_key=sink)
        return clock.per(count)

    def publish_many(self, count: int) -> Figures:
        """1,000 greenlets and a pool of 10."""
        with self.api.Connection(self.url) as connection:
            sink = self.sink(connection)
        self.api.pools.set_limit(POOL)
        producers = self.api.pools.producers[self.api.Connection(self.url)]

        def publish() -> None:
            with producers.acquire(block=True) as producer:
                producer.publish(BODY, routing_key=sink)

        many(POOL, POOL, publish)  # connects
        with Clock() as clock:
            count = many(PUBLISHERS, count, publish)
        return clock.per(count)

    def consume(self, count: int) -> Figures:
        """Prefetch 100, each message acknowledged."""
        source = self.stage.source(count)
        seen = 0

        def callback(body: Any, message: Any) -> None:
            nonlocal seen
            seen += 1
            message.ack()

        with self.api.Connection(self.url) as connection:
            queue = self.api.Queue(source, no_declare=True)
            consumer = connection.Consumer([queue], callbacks=[callback], prefetch_count=PREFETCH)
            with Clock() as clock:
                consumer.consume()
                while seen < count:
                    connection.drain_events(timeout=TIMEOUT)
                self.stage.wait_empty(source)
            consumer.cancel()
        return clock.per(count)
