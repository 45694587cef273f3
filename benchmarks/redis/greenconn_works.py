"""greenconn on Redis: kombu's API, and what it has of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent

import greenconn.pools
from benchmarks.clock import Clock, Figures, p50
from benchmarks.redis.kombu_api import RedisApi
from benchmarks.redis.stage import Stage
from benchmarks.rivals.greenconn_works import Counter
from benchmarks.rivals.kombu_api import latencies
from benchmarks.rivals.shape import CONSUMERS, TIMEOUT
from benchmarks.stage import BODY
from greenconn import spawn_consumer

#: Publishes that may be unanswered.
WINDOW = 16


class Works(RedisApi):
    """The works of greenconn, in a process that is not patched."""

    def __init__(self, url: str, stage: Stage) -> None:
        super().__init__(greenconn, url, stage)

    def publish_window(self, count: int) -> Figures:
        """One greenlet; the clock stops when the server has all."""
        sink = self.stage.sink()
        options = {"publish_window": WINDOW}
        with greenconn.Connection(self.url, transport_options=options) as connection:
            producer = connection.Producer()
            producer.publish(BODY, routing_key=sink)  # connects
            with Clock() as clock:
                for _ in range(count):
                    producer.publish(BODY, routing_key=sink)
                producer.channel.flush()
        return clock.per(count)

    def publish_many(self, count: int) -> Figures:
        """All share one producer."""
        sink = self.stage.sink()
        with greenconn.Connection(self.url) as connection:
            producer = connection.Producer()
            producer.publish(BODY, routing_key=sink)  # connects
            return self._timed(count, lambda: producer.publish(BODY, routing_key=sink))

    def consumers(self, count: int) -> Figures:
        """1,000 times ``spawn_consumer`` on one connection, which is one socket."""
        sources = self.stage.sources(CONSUMERS)
        counter = Counter(max(1, count // CONSUMERS) * CONSUMERS)
        feeder = self.stage.peer("feed", str(counter.awaited // CONSUMERS), *sources)
        with self._spawned(sources, counter.handler), Clock() as clock:
            self.stage.go(feeder)
            counter.wait()
        return clock.per(counter.awaited)

    def idle(self, count: int) -> Figures:
        """The same, and nothing comes for *count* seconds."""
        with self._spawned(self.stage.sources(CONSUMERS), print), Clock() as clock:
            gevent.sleep(count)
        figures = clock.per(1)
        return {**figures, "core": 100 * figures["cpu"] / figures["wall"]}

    @contextmanager
    def _spawned(self, sources: list[str], handler: Any) -> Iterator[None]:
        with greenconn.Connection(self.url) as connection:
            consumers = [spawn_consumer(each, handler, connection=connection) for each in sources]
            for consumer in consumers:
                consumer.wait_ready(TIMEOUT)
            gevent.sleep(0.2)  # for the answers to the first looks
            yield
            greenconn.stop_consumers(TIMEOUT)

    def latency(self, count: int) -> Figures:
        """``spawn_consumer``."""
        (source,) = self.stage.sources(1)
        took, callback = latencies()
        counter = Counter(count)

        def handler(body: Any, message: Any) -> None:
            callback(body, message)
            counter.handler(body, message)

        ticker = self.stage.peer("tick", str(count), source)
        with self._spawned([source], handler), Clock() as clock:
            self.stage.go(ticker)
            counter.wait()
        return clock.per(count, p50=p50(took))
