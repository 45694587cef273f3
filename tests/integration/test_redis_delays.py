"""Delayed messages on Redis: where they wait, and who moves them."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.queue import Queue as GreenQueue

import greenconn
from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue

pytestmark = pytest.mark.halved

SOON = 30.0
DELAYED = "greenconn.delayed"


@pytest.fixture
def connection(redis_url: str, unique: str) -> Any:
    options = {"lease": 1.0, "global_keyprefix": f"{unique}."}
    with Connection(redis_url, transport_options=options) as connection:
        yield connection


def consumed(connection: Connection, queue: Any) -> tuple[Any, GreenQueue[Any]]:
    came: GreenQueue[Any] = GreenQueue()
    consumer = greenconn.spawn_consumer(
        queue, lambda body, message: came.put(body), connection=connection
    )
    assert consumer.wait_ready(SOON)
    return consumer, came


def test_what_a_dead_publisher_has_left_is_found(
    connection: Connection, redis_url: str, unique: str
) -> None:
    consumer, came = consumed(connection, unique)
    options = dict(connection.transport_options)
    with Connection(redis_url, transport_options=options) as publisher:
        greenconn.publish(unique, "left", connection=publisher, delay=0.3)
        assert publisher.default_channel.client.zcard(DELAYED) == 1
    assert came.get(timeout=SOON) == "left"
    assert connection.default_channel.client.exists(DELAYED) == 0
    assert consumer.stop(SOON)


def brought_by_another(url: str, options: dict[str, Any], queue: str, **delayed: float) -> None:
    """Publish delayed messages from a connection that ends at once."""
    with Connection(url, transport_options=options) as publisher:
        for body, delay in delayed.items():
            greenconn.publish(queue, body, connection=publisher, delay=delay)


@pytest.mark.parametrize("kind", ["alone", "cluster", "RESP2"])
def test_earlier_one_of_a_publisher_that_has_ended_is_in_time(
    kind: str, request: pytest.FixtureRequest, unique: str
) -> None:
    if kind == "RESP2":
        url = request.getfixturevalue("redis_with")("--rename-command", "HELLO", "").url
    else:
        url = request.getfixturevalue("redis_cluster_url" if kind == "cluster" else "redis_url")
    # The sweepers look a few times in a lease, which is far too late here.
    options: dict[str, Any] = {"lease": 600.0, "global_keyprefix": f"{unique}."}
    with Connection(url, transport_options=options) as connection:
        consumer, came = consumed(connection, unique)
        if kind != "RESP2":  # the server cannot tell one that waits for none
            brought_by_another(url, options, unique, first=0.3)
            assert came.get(timeout=SOON) == "first"
        greenconn.publish(unique, "last", connection=connection, delay=3600)
        brought_by_another(url, options, unique, third=0.6, second=0.3)
        assert came.get(timeout=SOON) == "second"
        assert came.get(timeout=SOON) == "third"
        brought_by_another(url, options, unique, fourth=0.3)
        assert came.get(timeout=SOON) == "fourth"
        assert consumer.stop(SOON)


def test_publisher_that_waits_moves_what_another_one_brings(redis_url: str, unique: str) -> None:
    options: dict[str, Any] = {"global_keyprefix": f"{unique}."}
    with Connection(redis_url, transport_options=options) as connection:
        channel = connection.channel()
        Queue(unique)(channel).declare()
        brought_by_another(redis_url, options, unique, before=0.3)
        greenconn.publish(unique, "own", connection=connection, delay=3600)
        with gevent.Timeout(SOON):
            while channel.client.llen(unique) < 1:
                gevent.sleep(0.01)
            brought_by_another(redis_url, options, unique, after=0.3)
            while channel.client.llen(unique) < 2:
                gevent.sleep(0.01)


def test_many_are_moved_in_their_order(connection: Connection, unique: str) -> None:
    consumer, came = consumed(connection, unique)
    bodies = list(range(500))
    for start in range(0, 500, 100):
        # Equal times would be ordered by their texts.
        greenconn.publish_many(
            unique, bodies[start : start + 100], connection=connection, delay=0.2 + start / 1000
        )
    got = [came.get(timeout=SOON) for _ in bodies]
    assert sorted(got) == bodies
    assert [each // 100 for each in got] == [each // 100 for each in bodies]
    assert consumer.stop(SOON)


def test_message_to_a_queue_that_has_ended_is_dropped(connection: Connection, unique: str) -> None:
    channel = connection.channel()
    Queue(unique, auto_delete=True)(channel).declare()
    greenconn.publish(unique, "x", connection=connection, delay=0.3)
    channel.queue_delete(unique)
    client = channel.client
    with gevent.Timeout(SOON):
        while client.exists(DELAYED):
            gevent.sleep(0.01)
    assert client.exists(unique) == 0


def test_key_of_another_kind_holds_up_no_other(connection: Connection, unique: str) -> None:
    consumer, came = consumed(connection, unique)
    client = connection.channel().client
    client.set(f"{unique}-wrong", "text")
    producer = connection.Producer()
    producer.publish("stuck", routing_key=f"{unique}-wrong", delay=0.1)
    producer.publish("good", routing_key=unique, delay=0.2)
    assert came.get(timeout=SOON) == "good"
    assert client.zcard(DELAYED) == 1
    assert consumer.stop(SOON)


def test_broadcast_is_refused(connection: Connection, unique: str) -> None:
    exchange = Exchange(unique, "fanout")
    consumer, _ = consumed(connection, Queue(f"{unique}-q", exchange))
    with pytest.raises(ValueError, match="delay must be None for fan-out exchange"):
        greenconn.publish(exchange, "x", connection=connection, delay=1)
    assert consumer.stop(SOON)


def test_keys_hold_any_bytes(connection: Connection, unique: str) -> None:
    name = f"{unique}:1:2:ü\n%d"
    consumer, came = consumed(connection, name)
    greenconn.publish(name, "ü\0", connection=connection, delay=0.05, priority=9)
    assert came.get(timeout=SOON) == "ü\0"
    assert consumer.stop(SOON)
