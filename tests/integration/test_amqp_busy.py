"""What a busy consumer does not do: receive in small pieces, switch greenlets for each message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import greenlet
import pytest
from gevent import Greenlet, getcurrent
from gevent.event import Event

from greenconn import Connection, Queue, spawn_consumer
from tests.fix_wires import until

MESSAGES = 2000


@pytest.fixture
def queue(amqp_url: str, unique: str) -> Iterator[str]:
    """The name of an empty queue."""
    with Connection(amqp_url) as connection:
        channel = connection.default_channel
        channel.queue_declare(unique, durable=True, auto_delete=False)
        yield unique
        channel.queue_delete(unique)


@contextmanager
def switches() -> Iterator[Counter[object]]:
    """Count the switches to each greenlet."""
    counted: Counter[object] = Counter()

    def trace(event: str, args: Any) -> None:
        if event in ("switch", "throw"):
            counted[args[1]] += 1

    before = greenlet.settrace(trace)
    try:
        yield counted
    finally:
        greenlet.settrace(before)


def filled(amqp_url: str, queue: str) -> None:
    """Publish, and wait until the broker has sent all it can."""
    with Connection(amqp_url) as connection:
        producer = connection.Producer()
        for number in range(MESSAGES):
            producer.publish({"number": number, "text": "x" * 200}, routing_key=queue)
        channel = connection.default_channel
        until(lambda: channel.queue_declare(queue, passive=True).message_count == 0)


def test_a_consumer_that_finds_messages_neither_switches_nor_receives_for_each(
    amqp_url: str, queue: str
) -> None:
    numbers: list[int] = []
    with Connection(amqp_url) as connection:
        with connection.Consumer(
            [Queue(queue, no_declare=True)],
            callbacks=[lambda body, message: numbers.append(body["number"])],
            no_ack=True,
        ):
            stream = connection.session.life.link.stream
            stream.pause()
            filled(amqp_url, queue)
            receives, received = stream.receives, stream.received
            stream.resume()
            with switches() as counted:
                while len(numbers) < MESSAGES:
                    connection.drain_events(timeout=30)
        assert numbers == list(range(MESSAGES))
        # Pieces below 64 KiB are the last ones, which came while it read.
        assert stream.receives - receives <= (stream.received - received) / 65536 + 10
        assert counted[getcurrent()] < MESSAGES / 20


def test_acks_of_a_busy_consumer_leave_together(amqp_url: str, queue: str) -> None:
    done = 0
    with Connection(amqp_url) as connection:

        def callback(body: Any, message: Any) -> None:
            nonlocal done
            done += 1
            message.ack()

        with connection.Consumer(
            [Queue(queue, no_declare=True)], callbacks=[callback], prefetch_count=MESSAGES
        ):
            stream = connection.session.life.link.stream
            stream.pause()
            filled(amqp_url, queue)
            sends = stream.writer.sends
            stream.resume()
            while done < MESSAGES:
                connection.drain_events(timeout=30)
            assert stream.writer.sends - sends < MESSAGES / 20


def test_the_handlers_of_a_busy_consumer_share_a_greenlet(amqp_url: str, queue: str) -> None:
    all_came = Event()
    ran_in: Counter[object] = Counter()

    def handler(body: Any, message: Any) -> None:
        ran_in[getcurrent()] += 1
        if ran_in.total() == MESSAGES:
            all_came.set()

    with Connection(amqp_url) as connection:
        consumer = spawn_consumer(
            queue, handler, connection=connection, concurrency=100, prefetch_count=MESSAGES
        )
        assert consumer.wait_ready(30)
        stream = connection.session.life.link.stream
        stream.pause()
        filled(amqp_url, queue)
        stream.resume()
        with switches() as counted:
            assert all_came.wait(30)
        assert all(isinstance(each, Greenlet) for each in ran_in)
        assert sum(counted[each] for each in ran_in) < MESSAGES / 20
        assert consumer.stop(10)
