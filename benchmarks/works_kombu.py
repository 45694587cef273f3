"""The same work on kombu, in a process that gevent has patched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from kombu import Connection, Queue

from benchmarks.common import BODY, QUEUE, Measured, clean, measured

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
    """100 greenlets over 20 connections, since one cannot be shared; each message confirmed."""
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        clean(connection)
        pool = connection.Pool(20)

        def some() -> None:
            for _ in range(count // 100):
                with pool.acquire(block=True) as pooled:
                    pooled.Producer(pooled.default_channel).publish(BODY, routing_key=QUEUE)

        with measured() as figures:
            gevent.joinall([gevent.spawn(some) for _ in range(100)], raise_error=True)
        pool.force_close_all()
        return figures


def consume(url: str, count: int) -> Measured:
    """Prefetch 100, each message acknowledged."""
    return _consume(url, count, lambda message: message.ack(), prefetch_count=PREFETCH)


def consume_no_ack(url: str, count: int) -> Measured:
    """No acknowledgements."""
    return _consume(url, count, lambda message: None, no_ack=True)


def _consume(url: str, count: int, settle: Callable[[Any], None], **options: Any) -> Measured:
    publish(url, count)
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


WORKS: dict[str, Callable[[str, int], Measured]] = {
    "publish": publish,
    "publish-pool": publish_pool,
    "confirmed": confirmed,
    "consume": consume,
    "consume-no-ack": consume_no_ack,
}
