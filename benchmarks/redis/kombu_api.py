"""The works on Redis of a library that has kombu's API: one program, whatever it imports."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from benchmarks.clock import Clock, Figures, p99
from benchmarks.redis.stage import Stage
from benchmarks.rivals.kombu_api import acknowledging, many, publish_exchange
from benchmarks.rivals.shape import CONSUMERS, PREFETCH
from benchmarks.stage import BODY

#: Connections of a pool.
POOL = 10
#: Greenlets that publish at once.
PUBLISHERS = 1000


class RedisApi:
    """What is the same program on kombu and on greenconn.

    Arguments:
        api: the module, with ``Connection``, ``Queue`` and ``pools``.
        url: of the server.
        stage: where it takes place.
    """

    def __init__(self, api: Any, url: str, stage: Stage) -> None:
        self.api = api
        self.url = url
        self.stage = stage

    def close(self) -> None:
        """End the connections of the pools."""
        self.api.pools.reset()

    def publish(self, count: int) -> Figures:
        """One greenlet, each call returns when the server has the message."""
        sink = self.stage.sink()
        with self.api.Connection(self.url) as connection:
            producer = connection.Producer()
            producer.publish(BODY, routing_key=sink)  # connects
            with Clock() as clock:
                for _ in range(count):
                    producer.publish(BODY, routing_key=sink)
        return clock.per(count)

    def publish_exchange(self, count: int) -> Figures:
        """The same to a direct exchange, to which one queue is bound."""
        return publish_exchange(self.api, self.url, self.stage.sink(), count)

    def publish_pool(self, count: int) -> Figures:
        """1,000 greenlets, one acquire a message."""
        sink = self.stage.sink()
        self.api.pools.set_limit(POOL)
        producers = self.api.pools.producers[self.api.Connection(self.url)]

        def publish() -> None:
            with producers.acquire(block=True) as producer:
                producer.publish(BODY, routing_key=sink)

        held = [producers.acquire(block=True) for _ in range(POOL)]
        for producer in held:
            producer.publish(BODY, routing_key=sink)  # connects
            producer.release()
        return self._timed(count, publish)

    def _timed(self, count: int, publish: Callable[[], None]) -> Figures:
        """1,000 greenlets, each with one message after the other."""
        took: list[float] = []

        def timed() -> None:
            began = perf_counter()
            publish()
            took.append(perf_counter() - began)

        with Clock() as clock:
            count = many(PUBLISHERS, count, timed)
        return clock.per(count, p99=p99(took))

    def consume(self, count: int) -> Figures:
        """Prefetch 100, each message acknowledged."""
        source = self.stage.source(count)
        callback, wait = acknowledging()

        with self.api.Connection(self.url) as connection:
            queue = self.api.Queue(source, no_declare=True)
            consumer = connection.Consumer([queue], callbacks=[callback], prefetch_count=PREFETCH)
            with Clock() as clock:
                consumer.consume()
                wait(connection, count)
            consumer.cancel()
        return clock.per(count)

    def queues(self, count: int) -> Figures:
        """One Consumer of 1,000 queues."""
        sources = self.stage.sources(CONSUMERS)
        awaited = max(1, count // CONSUMERS) * CONSUMERS
        feeder = self.stage.peer("feed", str(awaited // CONSUMERS), *sources)
        callback, wait = acknowledging()

        def work(connection: Any) -> Clock:
            with Clock() as clock:
                self.stage.go(feeder)
                wait(connection, awaited)
            return clock

        return self._consuming(sources, callback, work).per(awaited)

    def _consuming(self, sources: list[str], callback: Any, work: Callable[[Any], Clock]) -> Clock:
        with self.api.Connection(self.url) as connection:
            queues = [self.api.Queue(each, durable=True) for each in sources]
            consumer = connection.Consumer(queues, callbacks=[callback], prefetch_count=PREFETCH)
            consumer.consume()
            return work(connection)
