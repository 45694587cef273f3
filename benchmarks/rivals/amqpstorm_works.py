"""amqpstorm, which reads in a thread of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from threading import Thread
from time import monotonic_ns, perf_counter
from typing import Any
from uuid import uuid4

from amqpstorm.uri_connection import UriConnection

from benchmarks.clock import Clock, Figures, p50
from benchmarks.memory import Growth
from benchmarks.rivals.shape import CALLERS, CONSUMERS, PREFETCH
from benchmarks.stage import BODY, LARGE, Stage


class Works:
    """The works of amqpstorm, which leaves serialising to the program."""

    def __init__(self, url: str, stage: Stage) -> None:
        self.stage = stage
        self.url = url
        self.connection: Any = UriConnection(url)
        self.channel: Any = self.connection.channel()

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    def publish(self, count: int) -> Figures:
        """One thread."""
        sink = self.stage.sink()
        with Clock() as clock:
            for _ in range(count):
                self._publish(sink)
            self._settle()
        return clock.per(count)

    def confirmed(self, count: int) -> Figures:
        """One at a time."""
        sink = self.stage.sink()
        self.channel = self.connection.channel()
        self.channel.confirm_deliveries()
        took = []
        with Clock() as clock:
            for _ in range(count):
                began = perf_counter()
                self._publish(sink)
                took.append(perf_counter() - began)
        return clock.per(count, p50=p50(took))

    def confirmed_shared(self, count: int) -> Figures:
        """100 threads share one channel."""
        sink, each = self.stage.sink(), max(1, count // CALLERS)
        self.channel = self.connection.channel()
        self.channel.confirm_deliveries()

        def run() -> None:
            for _ in range(each):
                self._publish(sink)

        threads = [Thread(target=run) for _ in range(CALLERS)]
        with Clock() as clock:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return clock.per(CALLERS * each)

    def consume(self, count: int) -> Figures:
        """Prefetch 100, each message acknowledged."""
        return self._consume(count, self.stage.source(count))

    def consume_no_ack(self, count: int) -> Figures:
        """No acknowledgements."""
        return self._consume(count, self.stage.source(count), no_ack=True)

    def large_consume(self, count: int) -> Figures:
        """1 MiB each."""
        return self._consume(count, self.stage.large_source(count), load=len, decode=False)

    def _consume(
        self,
        count: int,
        source: str,
        *,
        no_ack: bool = False,
        load: Callable[[Any], Any] = json.loads,
        decode: bool = True,
    ) -> Figures:
        callback = self._counting(count, no_ack=no_ack, load=load)
        self.channel.basic.qos(PREFETCH)
        with Clock() as clock:
            self.channel.basic.consume(callback, source, no_ack=no_ack)
            self.channel.start_consuming(auto_decode=decode)
        return clock.per(count)

    def _counting(
        self, count: int, *, no_ack: bool = False, load: Callable[[Any], Any] = json.loads
    ) -> Callable[[Any], None]:
        seen = 0

        def callback(message: Any) -> None:
            nonlocal seen
            seen += 1
            load(message.body)
            if not no_ack:
                message.ack()
            if seen == count:
                self.channel.stop_consuming()

        return callback

    def consumers(self, count: int) -> Figures:
        """1,000 consumers on one channel."""
        sources = self.stage.sources(CONSUMERS)
        each = max(1, count // CONSUMERS)
        feeder = self.stage.peer("feed", str(each), *sources)
        callback = self._counting(each * CONSUMERS)
        self.channel.basic.qos(PREFETCH)
        self.channel.basic.consume(callback, sources[0])  # what the first one loads is not counted
        with Growth() as growth:
            for source in sources[1:]:
                self.channel.basic.consume(callback, source)
        with Clock() as clock:
            self.stage.go(feeder)
            self.channel.start_consuming()
            clock.stop()  # before the consumers are cancelled
        return clock.per(each * CONSUMERS, memory=growth.per(CONSUMERS - 1))

    def rpc(self, count: int) -> Figures:
        """Publish, then process events until the reply is there."""
        requests, replies = self.stage.server(), f"greenconn-benchmark-{uuid4()}"
        awaited, reply = "", None

        def callback(message: Any) -> None:
            nonlocal reply
            if message.correlation_id == awaited:
                reply = json.loads(message.body)

        self.channel.queue.declare(replies, exclusive=True)
        self.channel.basic.consume(callback, replies, no_ack=True)
        with Clock() as clock:
            for _ in range(count):
                awaited, reply = str(uuid4()), None
                self._publish(requests, reply_to=replies, correlation_id=awaited)
                while reply is None:
                    self.channel.process_data_events()
        return clock.per(count)

    def large_publish(self, count: int) -> Figures:
        """1 MiB each."""
        sink = self.stage.sink(length=2)
        with Clock() as clock:
            for _ in range(count):
                self.channel.basic.publish(LARGE, sink)
            self._settle()
        return clock.per(count)

    def latency(self, count: int) -> Figures:
        """A consumer that waits."""
        (source,) = self.stage.sources(1)
        took: list[float] = []

        def callback(message: Any) -> None:
            took.append((monotonic_ns() - json.loads(message.body)["sent"]) / 1e9)
            message.ack()
            if len(took) == count:
                self.channel.stop_consuming()

        ticker = self.stage.peer("tick", str(count), source)
        self.channel.basic.consume(callback, source)
        with Clock() as clock:
            self.stage.go(ticker)
            self.channel.start_consuming()
        return clock.per(count, p50=p50(took))

    def connect(self, count: int) -> Figures:
        """Connect and close."""
        with Clock() as clock:
            for _ in range(count):
                UriConnection(self.url).close()
        return clock.per(count)

    def _settle(self) -> None:
        self.channel.queue.declare(self.stage.mark, passive=True)

    def _publish(self, queue: str, **properties: str) -> None:
        made = {
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "delivery_mode": 2,
            **properties,
        }
        self.channel.basic.publish(json.dumps(BODY), queue, properties=made)
