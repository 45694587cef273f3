"""pika's ``BlockingConnection``."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from time import monotonic_ns, perf_counter
from typing import Any
from uuid import uuid4

import pika

from benchmarks.clock import Clock, Figures, p50
from benchmarks.memory import Growth
from benchmarks.rivals.load import Calls, under_load
from benchmarks.rivals.shape import CONSUMERS, PREFETCH
from benchmarks.stage import BODY, LARGE, Stage


class Works:
    """The works of pika: a program with one thread, which serialises by itself."""

    def __init__(self, url: str, stage: Stage) -> None:
        self.stage = stage
        self.url = url
        self.connection = self._connect()
        self.channel = self.connection.channel()

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    def publish(self, count: int) -> Figures:
        """One after the other."""
        sink = self.stage.sink()
        with Clock() as clock:
            for _ in range(count):
                self._publish(sink, json.dumps(BODY).encode())
            self.channel.queue_declare(self.stage.mark, passive=True)
        return clock.per(count)

    def confirmed(self, count: int) -> Figures:
        """One at a time."""
        sink = self.stage.sink()
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        took = []
        with Clock() as clock:
            for _ in range(count):
                began = perf_counter()
                self._publish(sink, json.dumps(BODY).encode())
                took.append(perf_counter() - began)
        return clock.per(count, p50=p50(took))

    def consume(self, count: int) -> Figures:
        """Prefetch 100, each message acknowledged."""
        return self._consume(count, self.stage.source(count))

    def consume_no_ack(self, count: int) -> Figures:
        """No acknowledgements."""
        return self._consume(count, self.stage.source(count), no_ack=True)

    def large_consume(self, count: int) -> Figures:
        """1 MiB each."""
        return self._consume(count, self.stage.large_source(count), load=len)

    def _consume(
        self,
        count: int,
        source: str,
        *,
        no_ack: bool = False,
        load: Callable[[bytes], Any] = json.loads,
    ) -> Figures:
        callback = self._counting(count, no_ack=no_ack, load=load)
        self.channel.basic_qos(prefetch_count=PREFETCH)
        with Clock() as clock:
            self.channel.basic_consume(source, callback, auto_ack=no_ack)
            self.channel.start_consuming()
        return clock.per(count)

    def _counting(
        self, count: int, *, no_ack: bool = False, load: Callable[[bytes], Any] = json.loads
    ) -> Callable[[Any, Any, Any, bytes], None]:
        seen = 0

        def callback(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            nonlocal seen
            seen += 1
            load(body)
            if not no_ack:
                channel.basic_ack(method.delivery_tag)
            if seen == count:
                channel.stop_consuming()

        return callback

    def consumers(self, count: int) -> Figures:
        """1,000 consumers on one channel."""
        sources = self.stage.sources(CONSUMERS)
        each = max(1, count // CONSUMERS)
        feeder = self.stage.peer("feed", str(each), *sources)
        callback = self._counting(each * CONSUMERS)
        self.channel.basic_qos(prefetch_count=PREFETCH)
        self.channel.basic_consume(sources[0], callback)  # what the first one loads is not counted
        with Growth() as growth:
            for source in sources[1:]:
                self.channel.basic_consume(source, callback)
        with Clock() as clock:
            self.stage.go(feeder)
            self.channel.start_consuming()
        return clock.per(each * CONSUMERS, memory=growth.per(CONSUMERS - 1))

    def rpc(self, count: int) -> Figures:
        """Publish, then process events until the reply is there."""
        requests, replies = self.stage.server(), f"greenconn-benchmark-{uuid4()}"
        awaited, reply = "", None

        def callback(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            nonlocal reply
            if properties.correlation_id == awaited:
                reply = json.loads(body)

        self.channel.queue_declare(replies, exclusive=True)
        self.channel.basic_consume(replies, callback, auto_ack=True)
        with Clock() as clock:
            for _ in range(count):
                awaited, reply = str(uuid4()), None
                self._publish(
                    requests, json.dumps(BODY).encode(), reply_to=replies, correlation_id=awaited
                )
                while reply is None:
                    self.connection.process_data_events(time_limit=None)
        return clock.per(count)

    def large_publish(self, count: int) -> Figures:
        """1 MiB each."""
        sink = self.stage.sink(length=2)
        with Clock() as clock:
            for _ in range(count):
                self.channel.basic_publish("", sink, LARGE)
            self.channel.queue_declare(self.stage.mark, passive=True)
        return clock.per(count)

    def loaded_publish(self, count: int) -> Figures:
        """One caller."""
        sink = self.stage.sink()
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()

        def run(count: int, rate: float) -> tuple[list[float], float]:
            took = []
            began = perf_counter()
            with closing(Calls(count, rate)) as calls:
                while calls.left:
                    for due in calls.come():
                        self._publish(sink, json.dumps(BODY).encode())
                        took.append(perf_counter() - due)
            return took, perf_counter() - began

        return under_load(run, count)

    def loaded_delivery(self, count: int) -> Figures:
        """A consumer that gets a stream."""

        def run(count: int, rate: float) -> tuple[list[float], float]:
            clock, took = self._listen(count, "stream", str(rate))
            return took, clock.per(1)["wall"] / 1e6

        return under_load(run, count)

    def latency(self, count: int) -> Figures:
        """A consumer that waits."""
        clock, took = self._listen(count, "tick")
        return clock.per(count, p50=p50(took))

    def _listen(self, count: int, role: str, *arguments: str) -> tuple[Clock, list[float]]:
        (source,) = self.stage.sources(1)
        took: list[float] = []

        def callback(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            took.append((monotonic_ns() - json.loads(body)["sent"]) / 1e9)
            channel.basic_ack(method.delivery_tag)
            if len(took) == count:
                channel.stop_consuming()

        ticker = self.stage.peer(role, str(count), source, *arguments)
        self.channel.basic_qos(prefetch_count=PREFETCH)
        tag = self.channel.basic_consume(source, callback)
        with Clock() as clock:
            self.stage.go(ticker)
            self.channel.start_consuming()
        self.channel.basic_cancel(tag)
        return clock, took

    def connect(self, count: int) -> Figures:
        """Connect and close."""
        with Clock() as clock:
            for _ in range(count):
                self._connect().close()
        return clock.per(count)

    def _connect(self) -> Any:
        return pika.BlockingConnection(pika.URLParameters(self.url))

    def _publish(self, queue: str, body: bytes, **properties: str) -> None:
        made = pika.BasicProperties(
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=2,
            **properties,
        )
        self.channel.basic_publish("", queue, body, made)
