"""Messages that are published with a delay, on every transport."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue as GreenQueue

import greenconn
from greenconn.connection import Connection
from greenconn.contrib.outbox import row_of
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import NotFound, Unroutable
from greenconn.transport import memory
from tests.integration.capabilities import connection_of_kind  # noqa: F401 - ``connection``

pytestmark = pytest.mark.halved

SOON = 30.0


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


@pytest.mark.sampled(3)
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


@pytest.mark.sampled(3)
def test_messages_with_other_delays_do_not_wait_for_one_another(
    connection: Connection, unique: str
) -> None:
    arrivals = Arrivals(connection, unique)
    for delay in (600, 1):
        greenconn.publish(unique, delay, connection=connection, delay=delay)
    assert arrivals.next()[0] == 1
    arrivals.stop()


@pytest.mark.sampled(3)
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


@pytest.mark.sampled(3)
def test_producers_delay_as_well(connection: Connection, unique: str) -> None:
    arrivals = Arrivals(connection, unique)
    began = monotonic()
    producer = connection.Producer()
    producer.publish("plain", routing_key=unique, delay=1)
    producer.publish("retried", routing_key=unique, delay=1, retry=True, timeout=SOON)
    assert {arrivals.next()[0], arrivals.next()[0]} == {"plain", "retried"}
    assert monotonic() - began >= 0.99
    arrivals.stop()


@pytest.mark.sampled(3)
def test_message_comes_at_a_time(connection: Connection, unique: str) -> None:
    arrivals = Arrivals(connection, unique)
    zone = timezone(timedelta(hours=9))
    past = datetime.now(zone) - timedelta(hours=1)
    greenconn.publish(unique, "past", connection=connection, at=past)
    connection.Producer().publish("past", routing_key=unique, at=past)
    assert [arrivals.next()[0] for _ in range(2)] == ["past", "past"]
    at = datetime.now(zone) + timedelta(seconds=2)
    greenconn.publish(unique, "one", connection=connection, at=at)
    greenconn.publish_many(unique, ["two"], connection=connection, at=at)
    connection.Producer().publish("three", routing_key=unique, at=at)
    assert {arrivals.next()[0] for _ in range(3)} == {"one", "two", "three"}
    assert datetime.now(timezone.utc) >= at - timedelta(milliseconds=10)
    arrivals.stop()


def test_time_that_passes_before_the_message_is_sent(connection: Connection, unique: str) -> None:
    arrivals = Arrivals(connection, unique)

    def bodies() -> Iterator[str]:
        gevent.sleep(0.2)
        yield "late"

    at = datetime.now(timezone.utc) + timedelta(seconds=0.1)
    greenconn.publish_many(unique, bodies(), connection=connection, at=at)
    assert arrivals.next()[0] == "late"
    arrivals.stop()


@pytest.mark.sampled(4)
def test_the_time_to_live_begins_when_a_delayed_message_is_due(
    connection: Connection, unique: str
) -> None:
    arrivals = Arrivals(connection, Queue(unique, message_ttl=5))
    greenconn.publish(unique, "delayed", connection=connection, delay=6)
    assert arrivals.next()[0] == "delayed"
    arrivals.stop()


@pytest.mark.parametrize("is_retried", [False, True], ids=["published", "retried"])
@pytest.mark.sampled(4)
def test_a_deleted_queue_does_not_come_back_with_a_delayed_message(
    connection: Connection, unique: str, is_retried: bool
) -> None:
    queue, other = Queue(f"{unique}-deleted"), Queue(f"{unique}-other")
    channel = connection.default_channel
    queue(channel).declare()
    if is_retried:
        has_come = Event()

        def handler(body: Any, message: Any) -> None:
            has_come.set()
            raise greenconn.RetryLater(1)

        with greenconn.spawn_consumer(queue, handler, connection=connection):
            greenconn.publish(queue, "dropped", connection=connection)
            assert has_come.wait(SOON)
    else:
        greenconn.publish(queue, "dropped", connection=connection, delay=1)
    arrivals = Arrivals(connection, other)
    queue(channel).delete()
    greenconn.publish(other, "later", connection=connection, delay=2)
    assert arrivals.next()[0] == "later"
    with connection.channel() as asking, pytest.raises(NotFound):
        asking.queue_declare(queue.name, passive=True)
    arrivals.stop()


def test_wrong_time(memory_url: str) -> None:
    now = datetime.now(timezone.utc)
    with Connection(memory_url) as connection:
        producer = connection.Producer()
        calls: list[Callable[..., Any]] = [
            lambda **options: greenconn.publish("q", 1, connection=connection, **options),
            lambda **options: greenconn.publish_many("q", [1], connection=connection, **options),
            lambda **options: producer.publish(1, routing_key="q", **options),
            lambda **options: row_of("q", 1, None, options),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=r"at must have a time zone, .*at\.astimezone\(\)"):
                call(at=now.replace(tzinfo=None))
            with pytest.raises(TypeError, match="at must be a datetime with a time zone"):
                call(at=now.timestamp())
            with pytest.raises(ValueError, match="at must be None with delay=3"):
                call(at=now, delay=3)
            with pytest.raises(ValueError, match="at must be at most"):
                call(at=datetime.max.replace(tzinfo=timezone.utc))


def test_delayed_message_needs_a_queue_now(connection: Connection, unique: str) -> None:
    with pytest.raises(Unroutable):
        greenconn.publish(unique, "x", connection=connection, delay=1, timeout=SOON)


@pytest.mark.parametrize("delay", [-1, "1", True, float("inf"), float("nan")])
def test_wrong_delay(memory_url: str, delay: Any) -> None:
    with Connection(memory_url) as connection:
        with pytest.raises(ValueError, match="delay must be a number of seconds"):
            greenconn.publish("q", 1, connection=connection, delay=delay, declare=True)
        with pytest.raises(ValueError, match="delay must be a number of seconds"):
            connection.Producer().publish(1, routing_key="q", delay=delay)


def test_expires_is_expiration(memory_url: str) -> None:
    with Connection(memory_url) as connection:
        greenconn.publish("q", 1, connection=connection, expires=60, declare=True)
        connection.Producer().publish(2, routing_key="q", expires=60)
        for _ in range(2):
            message = connection.default_channel.basic_get("q", no_ack=True)
            assert message.properties["expiration"] == "60000"
        with pytest.raises(ValueError, match="expires must be None with expiration"):
            greenconn.publish("q", 1, connection=connection, expires=1, expiration=1)
        with pytest.raises(ValueError, match="expires must be None with expiration"):
            connection.Producer().publish(1, routing_key="q", expires=1, expiration=1)


@pytest.fixture
def memory_url(unique: str) -> Iterator[str]:
    yield f"memory:///{unique}"
    memory.reset(unique)
