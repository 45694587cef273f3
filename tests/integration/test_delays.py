"""Messages that are published with a delay, on every transport."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest
from gevent.queue import Queue as GreenQueue

import greenconn
from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import Unroutable
from tests.integration.capabilities import Kind

SOON = 30.0


@pytest.fixture
def connection(broker_kind: Kind, kind_url: str) -> Iterator[Connection]:
    options = {name: each for name, each in broker_kind.options.items() if name != "fanout_lists"}
    with Connection(kind_url, transport_options=options) as connection:
        yield connection


class Arrivals:
    """What a consumer of *queue* is given, with the times."""

    def __init__(self, connection: Connection, queue: Any) -> None:
        self.queue: GreenQueue[tuple[Any, float, Any]] = GreenQueue()
        self.consumer = greenconn.spawn_consumer(queue, self._take, connection=connection)
        assert self.consumer.wait_ready(SOON)

    def _take(self, body: Any, message: Any) -> None:
        self.queue.put((body, monotonic(), message))

    def next(self) -> tuple[Any, float, Any]:
        return self.queue.get(timeout=SOON)

    def stop(self) -> None:
        assert self.consumer.stop(SOON)


def test_delayed_message_comes_when_it_is_due(connection: Connection, unique: str) -> None:
    arrivals = Arrivals(connection, unique)
    began = monotonic()
    greenconn.publish(unique, "later", connection=connection, delay=1, priority=3, headers={"a": 1})
    greenconn.publish(unique, "now", connection=connection, delay=0)
    assert arrivals.next()[0] == "now"
    body, at, message = arrivals.next()
    assert body == "later"
    assert at - began >= 0.99  # clocks of two machines, or of two kinds, may differ by some ms
    assert message.headers["a"] == 1
    assert message.delivery_info["routing_key"] == unique
    assert message.delivery_info["exchange"] == ""
    arrivals.stop()


def test_delay_to_an_exchange_of_any_type(connection: Connection, unique: str) -> None:
    exchange = Exchange(f"{unique}-x", "direct", durable=True)
    arrivals = Arrivals(connection, Queue(unique, exchange, "key"))
    assert (
        greenconn.publish_many(
            exchange, ["a", "b"], connection=connection, routing_key="key", delay=1
        )
        == 2
    )
    first, second = arrivals.next(), arrivals.next()
    assert {first[0], second[0]} == {"a", "b"}
    info = first[2].delivery_info
    assert (info["exchange"], info["routing_key"]) == (exchange.name, "key")
    arrivals.stop()


def test_producers_delay_as_well(connection: Connection, unique: str) -> None:
    arrivals = Arrivals(connection, unique)
    began = monotonic()
    producer = connection.Producer()
    producer.publish("plain", routing_key=unique, delay=1)
    producer.publish("retried", routing_key=unique, delay=1, retry=True, timeout=SOON)
    assert {arrivals.next()[0], arrivals.next()[0]} == {"plain", "retried"}
    assert monotonic() - began >= 0.99
    arrivals.stop()


def test_delayed_message_needs_a_queue_now(connection: Connection, unique: str) -> None:
    with pytest.raises(Unroutable):
        greenconn.publish(unique, "x", connection=connection, delay=1, timeout=SOON)
