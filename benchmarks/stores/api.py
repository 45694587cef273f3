"""The works of a library that has kombu's API, over any store: one program, whatever it imports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.clock import Clock, Figures, p50, p99
from benchmarks.rivals.kombu_api import acknowledging, drain, listen, many, publish_exchange
from benchmarks.rivals.shape import CONSUMERS, PREFETCH
from benchmarks.stage import BODY
from benchmarks.stores.stage import StoreStage

#: Greenlets that publish at once.
PUBLISHERS = 1000
#: Connections that they share, where a connection is one greenlet's at a time.
POOL = 10
#: Queues to which an exchange sends each message.
FAN_OUT = 200
#: Seconds between two messages to an idle consumer, which no two polls are in step with.
TICK = 0.037
#: Seconds for which an idle consumer is watched.
IDLE = 20.0


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
        stage.api = api

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

    def publish_exchange(self, count: int) -> Figures:
        """The same to a direct exchange, to which one queue is bound."""
        return publish_exchange(self.api, self.url, self.stage.name(), count)

    def publish_200(self, count: int) -> Figures:
        """200 greenlets."""
        return self._publish_by(200, count)

    def publish_many(self, count: int) -> Figures:
        """1,000 greenlets."""
        return self._publish_by(PUBLISHERS, count)

    def _publish_by(self, greenlets: int, count: int) -> Figures:
        """Publish from greenlets that share a pool of 10."""
        with self.api.Connection(self.url) as connection:
            sink = self.sink(connection)
        self.api.pools.set_limit(POOL)
        producers = self.api.pools.producers[self.api.Connection(self.url)]

        def publish() -> None:
            with producers.acquire(block=True) as producer:
                producer.publish(BODY, routing_key=sink)

        many(POOL, POOL, publish)  # connects
        return self._timed_publish(greenlets, count, publish)

    def _timed_publish(self, greenlets: int, count: int, publish: Callable[[], None]) -> Figures:
        with Clock() as clock:
            count = many(greenlets, count, publish)
        return clock.per(count)

    def consume(self, count: int) -> Figures:
        """Prefetch 100, each message acknowledged."""
        source = self.stage.source(count)
        return self._consume([source], count)

    def queues(self, count: int) -> Figures:
        """One Consumer of 1,000 queues, to which another process publishes."""
        each = max(1, count // CONSUMERS)
        sources = [self.stage.source(0) for _ in range(CONSUMERS)]
        feeder = self.stage.peer("feed", self.api.__name__, str(each), *sources)
        return self._consume(sources, each * CONSUMERS, feeder)

    def fan_out(self, count: int) -> Figures:
        """An exchange sends each message to 200 queues, from which one connection consumes."""
        exchange = self.api.Exchange(self.stage.name(), "topic")
        queues = [self.api.Queue(self.stage.name(), exchange, "#") for _ in range(FAN_OUT)]
        count = max(FAN_OUT, count - count % FAN_OUT)
        callback, wait = acknowledging()

        with self.api.Connection(self.url) as connection:
            consumer = connection.Consumer(queues, callbacks=[callback])
            consumer.consume()
            producer = connection.Producer(exchange=exchange)
            with self.stage.counting() as counted, Clock() as clock:
                for due in range(FAN_OUT, count + 1, FAN_OUT):
                    producer.publish(BODY, routing_key="news")
                    wait(connection, due)
            consumer.cancel()
        return clock.per(count, **counted.per(count))

    def _consume(self, sources: list[str], count: int, feeder: Any = None) -> Figures:
        """Consume what is in queues, or what *feeder* publishes to them."""
        callback, wait = acknowledging()

        with self.api.Connection(self.url) as connection:
            queues = [self.api.Queue(each, no_declare=True) for each in sources]
            consumer = connection.Consumer(queues, callbacks=[callback], prefetch_count=PREFETCH)
            if feeder is not None:
                consumer.consume()
            with self.stage.counting() as counted, Clock() as clock:
                if feeder is None:
                    consumer.consume()
                else:
                    self.stage.go(feeder)
                wait(connection, count)
                self.stage.wait_empty(sources[-1])
            consumer.cancel()
        return clock.per(count, **counted.per(count))

    def latency(self, count: int) -> Figures:
        """A consumer that waits, and another process that publishes now and then."""
        source = self.stage.source(0)
        ticker = self.stage.peer("tick", self.api.__name__, str(count), str(TICK), source)
        clock, took = listen(self.api, self.url, source, count, lambda: self.stage.go(ticker))
        return clock.per(count, p50=p50(took) / 1e3, p99=p99(took))

    def idle(self, count: int) -> Figures:
        """A consumer that waits, and nothing comes."""
        source = self.stage.source(0)
        with self.api.Connection(self.url) as connection:
            queue = self.api.Queue(source, no_declare=True)
            with connection.Consumer([queue], callbacks=[print]):
                drain(connection, 2.0)  # for what the first look does
                with self.stage.counting() as counted, Clock() as clock:
                    drain(connection, IDLE)
        figures = clock.per(1)
        return {
            **figures,
            "core": 100 * figures["cpu"] / figures["wall"],
            **counted.per(IDLE / 60),
        }
