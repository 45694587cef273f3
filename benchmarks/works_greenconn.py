"""What is measured, on greenconn through its public API.  Each function does ``count`` messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from benchmarks.common import BODY, QUEUE, Measured, clean, measured
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.worker import spawn_consumer

PREFETCH = 100


def publish(url: str, count: int) -> Measured:
    """One greenlet, not confirmed; the clock stops when the broker has all."""
    with Connection(url) as connection:
        clean(connection)
        producer = connection.Producer()
        with measured() as figures:
            for _ in range(count):
                producer.publish(BODY, routing_key=QUEUE)
            connection.default_channel.queue_declare(QUEUE, passive=True)
        return figures


def publish_pool(url: str, count: int) -> Measured:
    """1,000 greenlets through a pool of 10 connections."""
    with Connection(url) as connection:
        clean(connection)
        pool = connection.Pool(10)

        def some() -> None:
            for _ in range(count // 1000):
                with pool.acquire(block=True) as pooled:
                    pooled.Producer(pooled.default_channel).publish(BODY, routing_key=QUEUE)

        with measured() as figures:
            gevent.joinall([gevent.spawn(some) for _ in range(1000)], raise_error=True)
        pool.force_close_all()
        return figures


def confirmed(url: str, count: int) -> Measured:
    """100 greenlets share one producer, each message confirmed."""
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        clean(connection)
        producer = connection.Producer()

        def some() -> None:
            for _ in range(count // 100):
                producer.publish(BODY, routing_key=QUEUE)

        with measured() as figures:
            gevent.joinall([gevent.spawn(some) for _ in range(100)], raise_error=True)
        return figures


def consume(url: str, count: int) -> Measured:
    """Prefetch 100, each message acknowledged."""
    return _consume(url, count, lambda message: message.ack(), prefetch_count=PREFETCH)


def consume_no_ack(url: str, count: int) -> Measured:
    """No acknowledgements."""
    return _consume(url, count, lambda message: None, no_ack=True)


def _consume(url: str, count: int, settle: Callable[[Any], None], **options: Any) -> Measured:
    fill(url, count)
    with Connection(url) as connection:
        seen = 0

        def callback(body: Any, message: Any) -> None:
            nonlocal seen
            seen += 1
            settle(message)

        consumer = connection.Consumer(
            [Queue(QUEUE, no_declare=True)], callbacks=[callback], **options
        )
        with measured() as figures:
            consumer.consume()
            while seen < count:
                connection.drain_events(timeout=10)
        consumer.cancel()
        return figures


def spawned(url: str, count: int) -> Measured:
    """``spawn_consumer`` with concurrency 100."""
    fill(url, count)
    done = Event()
    seen = 0

    def handler(body: Any, message: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            done.set()

    with Connection(url) as connection:
        with measured() as figures:
            consumer = spawn_consumer(
                QUEUE, handler, connection=connection, concurrency=100, prefetch_count=PREFETCH
            )
            done.wait(60)
        consumer.stop(10)
        return figures


def fill(url: str, count: int) -> None:
    """Put *count* messages into the queue, empty before."""
    with Connection(url) as connection:
        clean(connection)
        producer = connection.Producer()
        for _ in range(count):
            producer.publish(BODY, routing_key=QUEUE)
        connection.default_channel.queue_declare(QUEUE, passive=True)


WORKS: dict[str, Callable[[str, int], Measured]] = {
    "publish": publish,
    "publish-pool": publish_pool,
    "confirmed": confirmed,
    "consume": consume,
    "consume-no-ack": consume_no_ack,
    "spawned": spawned,
}
