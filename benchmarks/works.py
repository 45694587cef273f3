"""What is measured: the same program on every library that has kombu's API.

Each work does ``count`` messages through the public API and returns what that took.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from benchmarks.common import BODY, QUEUE, Measured, clean, measured

PREFETCH = 100


class Works:
    """The works of one library.

    Arguments:
        api: its module, with ``Connection`` and ``Queue``.
        url: of the broker.
    """

    #: Connections for the confirmed publishes of 100 greenlets: kombu cannot share one.
    confirming = 20

    def __init__(self, api: Any, url: str) -> None:
        self.api = api
        self.url = url

    def publish(self, count: int) -> Measured:
        """One greenlet, not confirmed; the clock stops when the broker has all."""
        with self.api.Connection(self.url) as connection:
            clean(connection)
            producer = connection.Producer()
            with measured() as figures:
                for _ in range(count):
                    producer.publish(BODY, routing_key=QUEUE)
                connection.default_channel.queue_declare(QUEUE, passive=True)
            return figures

    def publish_pool(self, count: int) -> Measured:
        """1,000 greenlets through a pool of 10 connections."""
        with self.api.Connection(self.url) as connection:
            return self._publish_pooled(connection, count, greenlets=1000, limit=10)

    def confirmed(self, count: int) -> Measured:
        """100 greenlets, each message confirmed."""
        options = {"confirm_publish": True}
        with self.api.Connection(self.url, transport_options=options) as connection:
            return self._publish_pooled(connection, count, greenlets=100, limit=self.confirming)

    def _publish_pooled(
        self, connection: Any, count: int, *, greenlets: int, limit: int
    ) -> Measured:
        clean(connection)
        pool = connection.Pool(limit)

        def some() -> None:
            for _ in range(count // greenlets):
                with pool.acquire(block=True) as pooled:
                    producer = self.api.Producer(pooled.default_channel)
                    producer.publish(BODY, routing_key=QUEUE)

        with measured() as figures:
            gevent.joinall([gevent.spawn(some) for _ in range(greenlets)], raise_error=True)
        pool.force_close_all()
        return figures

    def consume(self, count: int) -> Measured:
        """Prefetch 100, each message acknowledged."""
        return self._consume(count, lambda message: message.ack(), prefetch_count=PREFETCH)

    def consume_no_ack(self, count: int) -> Measured:
        """No acknowledgements."""
        return self._consume(count, lambda message: None, no_ack=True)

    def _consume(self, count: int, settle: Callable[[Any], None], **options: Any) -> Measured:
        self.publish(count)
        with self.api.Connection(self.url) as connection:
            seen = 0

            def callback(body: Any, message: Any) -> None:
                nonlocal seen
                seen += 1
                settle(message)

            queue = self.api.Queue(QUEUE, no_declare=True)
            consumer = connection.Consumer([queue], callbacks=[callback], **options)
            with measured() as figures:
                consumer.consume()
                while seen < count:
                    connection.drain_events(timeout=10)
            consumer.cancel()
            return figures


class OurWorks(Works):
    """What greenconn does in another way, or alone."""

    def confirmed(self, count: int) -> Measured:
        """100 greenlets share one producer, each message confirmed."""
        options = {"confirm_publish": True}
        with self.api.Connection(self.url, transport_options=options) as connection:
            clean(connection)
            producer = connection.Producer()

            def some() -> None:
                for _ in range(count // 100):
                    producer.publish(BODY, routing_key=QUEUE)

            with measured() as figures:
                gevent.joinall([gevent.spawn(some) for _ in range(100)], raise_error=True)
            return figures

    def spawned(self, count: int) -> Measured:
        """``spawn_consumer`` with concurrency 100."""
        self.publish(count)
        done = Event()
        seen = 0

        def handler(body: Any, message: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == count:
                done.set()

        with self.api.Connection(self.url) as connection:
            with measured() as figures:
                consumer = self.api.spawn_consumer(
                    QUEUE, handler, connection=connection, concurrency=100, prefetch_count=PREFETCH
                )
                if not done.wait(60):
                    raise TimeoutError(f"{seen} of {count} messages came")
            consumer.stop(10)
            return figures
