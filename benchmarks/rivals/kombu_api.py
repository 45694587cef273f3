"""The works of a library that has kombu's API: one program, whatever it imports."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from time import monotonic, monotonic_ns, perf_counter
from typing import Any

import gevent
from gevent.queue import SimpleQueue
from gevent.socket import wait_read

from benchmarks.clock import Clock, Figures, p50, p99
from benchmarks.memory import Growth
from benchmarks.rivals.load import Calls, under_load
from benchmarks.rivals.shape import CALLERS, CONSUMERS, PREFETCH, TIMEOUT
from benchmarks.stage import BODY, HEADERS, LARGE, Stage


class KombuApi:
    """What is the same program on kombu and on greenconn.

    Arguments:
        api: the module, with ``Connection``, ``Queue`` and ``pools``.
        url: of the broker.
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
        """One greenlet; the clock stops when the broker has all."""
        return self._publish(count)

    def publish_headers(self, count: int) -> Figures:
        """The same with headers."""
        return self._publish(count, headers=HEADERS)

    def _publish(self, count: int, **options: Any) -> Figures:
        sink = self.stage.sink()
        with self.api.Connection(self.url) as connection:
            producer = connection.Producer()
            with Clock() as clock:
                for _ in range(count):
                    producer.publish(BODY, routing_key=sink, **options)
                connection.default_channel.queue_declare(self.stage.mark, passive=True)
        return clock.per(count)

    def publish_pool(self, count: int) -> Figures:
        """1,000 greenlets, one acquire a message."""
        return self._pooled(count, greenlets=1000, limit=10)

    def _pooled(self, count: int, *, greenlets: int, limit: int, **options: Any) -> Figures:
        sink = self.stage.sink()
        pools = self.api.pools
        pools.set_limit(limit)
        connection = self.api.Connection(self.url, **options)

        took: list[float] = []

        def publish() -> None:
            began = perf_counter()
            with pools.producers[connection].acquire(block=True) as producer:
                producer.publish(BODY, routing_key=sink)
            took.append(perf_counter() - began)

        def settle() -> None:
            producers = [pools.producers[connection].acquire(block=True) for _ in range(limit)]
            for producer in producers:
                producer.channel.queue_declare(self.stage.mark, passive=True)
                producer.release()

        settle()  # connects
        with Clock() as clock:
            count = many(greenlets, count, publish)
            settle()
        return clock.per(count, p99=p99(took))

    def acquire(self, count: int) -> Figures:
        """One greenlet, and nobody else wants one."""
        pool = self.api.pools.connections[self.api.Connection(self.url)]
        with pool.acquire(block=True) as connection:
            connection.connect()
        with Clock() as clock:
            for _ in range(count):
                with pool.acquire(block=True):
                    pass
        return clock.per(count)

    def confirmed(self, count: int) -> Figures:
        """One at a time."""
        sink = self.stage.sink()
        with self._confirming() as connection:
            producer = connection.Producer()
            took = []
            with Clock() as clock:
                for _ in range(count):
                    began = perf_counter()
                    producer.publish(BODY, routing_key=sink)
                    took.append(perf_counter() - began)
        return clock.per(count, p50=p50(took))

    def loaded_publish(self, count: int) -> Figures:
        """100 greenlets, of which a free one takes a call that is due."""
        sink = self.stage.sink()
        with self._publishing() as publish:

            def run(count: int, rate: float) -> tuple[list[float], float]:
                took: list[float] = []
                due_times: SimpleQueue[Any] = SimpleQueue()

                def caller() -> None:
                    for due in due_times:
                        publish(sink)
                        took.append(perf_counter() - due)

                began = perf_counter()
                callers = [gevent.spawn(caller) for _ in range(CALLERS)]
                with closing(Calls(count, rate)) as calls:
                    while calls.left:
                        wait_read(calls.fileno())
                        for due in calls.come():
                            due_times.put(due)
                for _ in callers:
                    due_times.put(StopIteration)
                gevent.joinall(callers, raise_error=True)
                return took, perf_counter() - began

            return under_load(run, count)

    def _publishing(self) -> AbstractContextManager[Callable[[str], None]]:
        """A function that publishes to a queue with confirm, for greenlets."""
        raise NotImplementedError

    def loaded_delivery(self, count: int) -> Figures:
        """A consumer that gets a stream."""

        def run(count: int, rate: float) -> tuple[list[float], float]:
            clock, took = self._listen(count, "stream", str(rate))
            return took, clock.per(1)["wall"] / 1e6

        return under_load(run, count)

    def _listen(self, count: int, role: str, *arguments: str) -> tuple[Clock, list[float]]:
        """Consume what another process sends; return how long each message was under way."""
        raise NotImplementedError

    def _confirming(self) -> Any:
        return self.api.Connection(self.url, transport_options={"confirm_publish": True})

    def consume(self, count: int) -> Figures:
        """Prefetch 100, each message acknowledged."""
        source = self.stage.source(count)
        return self._consume(count, source, lambda m: m.ack(), prefetch_count=PREFETCH)

    def consume_headers(self, count: int) -> Figures:
        """The same with headers, of which two are read."""

        def settle(message: Any) -> None:
            assert message.headers["task"], message.headers["id"]
            message.ack()

        source = self.stage.source_with_headers(count)
        return self._consume(count, source, settle, prefetch_count=PREFETCH)

    def consume_no_ack(self, count: int) -> Figures:
        """No acknowledgements."""
        return self._consume(count, self.stage.source(count), lambda m: None, no_ack=True)

    def large_consume(self, count: int) -> Figures:
        """1 MiB each."""
        source = self.stage.large_source(count)
        return self._consume(count, source, lambda m: m.ack(), prefetch_count=PREFETCH)

    def _consume(
        self, count: int, source: str, settle: Callable[[Any], None], **options: Any
    ) -> Figures:
        with self.api.Connection(self.url) as connection:
            seen = 0

            def callback(body: Any, message: Any) -> None:
                nonlocal seen
                seen += 1
                settle(message)

            queue = self.api.Queue(source, no_declare=True)
            consumer = connection.Consumer([queue], callbacks=[callback], **options)
            with Clock() as clock:
                consumer.consume()
                while seen < count:
                    connection.drain_events(timeout=TIMEOUT)
            consumer.cancel()
        return clock.per(count)

    def consumers(self, count: int) -> Figures:
        """One Consumer of 1,000 queues."""
        sources = self.stage.sources(CONSUMERS)
        each = max(1, count // CONSUMERS)
        feeder = self.stage.peer("feed", str(each), *sources)
        callback, wait = acknowledging()
        with self.api.Connection(self.url) as connection:
            consumer = connection.Consumer([], callbacks=[callback], prefetch_count=PREFETCH)

            def consume(queue: str) -> None:
                consumer.add_queue(self.api.Queue(queue, no_declare=True))
                consumer.consume()

            consume(sources[0])  # what the first one loads is not counted
            with Growth() as growth:
                for source in sources[1:]:
                    consume(source)
            with Clock() as clock:
                self.stage.go(feeder)
                wait(connection, each * CONSUMERS)
        return clock.per(each * CONSUMERS, memory=growth.per(CONSUMERS - 1))

    def large_publish(self, count: int) -> Figures:
        """1 MiB each."""
        sink = self.stage.sink(length=2)
        with self.api.Connection(self.url) as connection:
            producer = connection.Producer()
            with Clock() as clock:
                for _ in range(count):
                    producer.publish(LARGE, routing_key=sink)
                connection.default_channel.queue_declare(self.stage.mark, passive=True)
        return clock.per(count)

    def connect(self, count: int) -> Figures:
        """Connect and close."""
        with Clock() as clock:
            for _ in range(count):
                connection = self.api.Connection(self.url)
                connection.connect()
                connection.close()
        return clock.per(count)


def acknowledging() -> tuple[Callable[[Any, Any], None], Callable[[Any, int], None]]:
    """Return a callback that acknowledges, and what drains a connection until it was called so often."""
    seen = 0

    def callback(body: Any, message: Any) -> None:
        nonlocal seen
        seen += 1
        message.ack()

    def wait(connection: Any, count: int) -> None:
        while seen < count:
            connection.drain_events(timeout=TIMEOUT)

    return callback, wait


def latencies() -> tuple[list[float], Callable[[Any, Any], None]]:
    """Return a list of seconds, and the callback that fills it."""
    took: list[float] = []

    def callback(body: Any, message: Any) -> None:
        took.append((monotonic_ns() - body["sent"]) / 1e9)
        message.ack()

    return took, callback


def listen(
    api: Any, url: str, source: str, count: int, go: Callable[[], None]
) -> tuple[Clock, list[float]]:
    """Consume *count* messages that say when they left, and return how long each was under way.

    Arguments:
        go: has the sender begin.
    """
    took, callback = latencies()
    with api.Connection(url) as connection:
        queue = api.Queue(source, no_declare=True)
        consumer = connection.Consumer([queue], callbacks=[callback], prefetch_count=PREFETCH)
        with consumer, Clock() as clock:
            go()
            while len(took) < count:
                connection.drain_events(timeout=TIMEOUT)
    return clock, took


def drain(connection: Any, seconds: float) -> None:
    """Drain events for so many seconds.  May switch."""
    end = monotonic() + seconds
    while (left := end - monotonic()) > 0:
        with suppress(TimeoutError):
            connection.drain_events(timeout=left)


def many(greenlets: int, count: int, function: Callable[[], None]) -> int:
    """Call *function* about *count* times from *greenlets*; returns how often.  May switch."""
    each = max(1, count // greenlets)

    def run() -> None:
        for _ in range(each):
            function()

    gevent.joinall([gevent.spawn(run) for _ in range(greenlets)], raise_error=True)
    return greenlets * each


def publish_exchange(api: Any, url: str, name: str, count: int) -> Figures:
    """Publish to a direct exchange, to which one queue is bound, by one greenlet."""
    with api.Connection(url) as connection:
        api.Queue(name, api.Exchange(name), name)(connection.default_channel).declare()
        producer = connection.Producer()
        producer.publish(BODY, exchange=name, routing_key=name)  # connects
        with Clock() as clock:
            for _ in range(count):
                producer.publish(BODY, exchange=name, routing_key=name)
    return clock.per(count)
