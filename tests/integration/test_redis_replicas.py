"""Publishes that are confirmed when replicas have them (``replicas``)."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

import gevent
import pytest

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.exceptions import PublishTimeout
from tests.brokers.redis_server import RedisServer
from tests.fix_brokers import RedisFactory
from tests.integration.redis_clients import control

SOON = 60.0


@pytest.fixture
def pair(redis_with: RedisFactory) -> tuple[RedisServer, RedisServer]:
    """A master and its replica."""
    master = redis_with()
    return master, redis_with("--replicaof", "127.0.0.1", str(master.port))


@pytest.fixture
def connection(pair: tuple[RedisServer, RedisServer]) -> Iterator[Connection]:
    """A connection to the master whose publishes wait for the replica."""
    with Connection(pair[0].url, transport_options={"replicas": 1}) as connection:
        yield connection


def test_a_publish_waits_for_the_replica(
    pair: tuple[RedisServer, RedisServer], connection: Connection
) -> None:
    replica = pair[1]
    greenconn.publish(Queue("q"), "there", connection=connection, timeout=SOON)
    replica.pause()
    with pytest.raises(PublishTimeout) as late:
        greenconn.publish(Queue("q"), "alone", connection=connection, timeout=0.5)
    assert late.value.maybe_delivered
    waiting = gevent.spawn(
        greenconn.publish, Queue("q"), "waiting", connection=connection, timeout=SOON
    )
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.3):
        waiting.join()
    replica.resume()
    waiting.get(timeout=SOON)
    channel = connection.channel()
    bodies = [channel.basic_get("q", no_ack=True).decode() for _ in range(3)]
    assert bodies == ["there", "alone", "waiting"], "each is sent once"
    assert channel.basic_get("q") is None


def test_consumers_go_on_while_publishers_wait(
    pair: tuple[RedisServer, RedisServer], connection: Connection
) -> None:
    for number in range(20):
        greenconn.publish(Queue("q"), number, connection=connection, timeout=SOON)
    pair[1].pause()
    waiting = gevent.spawn(
        greenconn.publish, Queue("other"), "x", connection=connection, timeout=SOON
    )
    got: list[int] = []
    consumer = greenconn.spawn_consumer(
        "q", lambda body, message: got.append(body), connection=connection, prefetch_count=1
    )
    end = monotonic() + SOON
    while len(got) < 20:
        assert monotonic() < end
        gevent.sleep(0.01)
    assert not waiting.dead
    pair[1].resume()
    waiting.get(timeout=SOON)
    assert consumer.stop(SOON)


def test_many_publishers_wait_together(connection: Connection) -> None:
    exchange = Exchange("x", "topic")
    queues = [Queue(f"q{number}", exchange, "a.#") for number in range(3)]
    channel = connection.channel()
    for each in queues:
        each.bind(channel).declare()
    publishers = [
        gevent.spawn(
            greenconn.publish,
            exchange,
            number,
            routing_key="a.b",
            connection=connection,
            timeout=SOON,
        )
        for number in range(500)
    ]
    gevent.joinall(publishers, timeout=SOON, raise_error=True)
    assert [channel.queue_declare(each.name, passive=True)[1] for each in queues] == [500] * 3
    large = "x" * 2 * 1024 * 1024
    greenconn.publish(Queue("q0"), large, connection=connection, timeout=SOON)
    assert channel.queue_declare("q0", passive=True)[1] == 501


def publish_without_confirm(
    connection: Connection, replica: RedisServer
) -> gevent.Greenlet[..., None]:
    """Publish, and wait for a replica that is paused."""
    greenconn.publish(Queue("q"), "x", connection=connection, timeout=SOON)
    replica.pause()
    channel = connection.channel()
    message = channel.prepare_message("y")
    waiting = gevent.spawn(channel.basic_publish_confirm, message, "", "q")
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.3):
        waiting.join()
    return waiting


def test_a_master_that_is_killed_ends_the_wait(
    pair: tuple[RedisServer, RedisServer], connection: Connection
) -> None:
    master, replica = pair
    waiting = publish_without_confirm(connection, replica)
    master.kill()
    with pytest.raises(connection.recoverable_connection_errors):
        waiting.get(timeout=SOON)
    replica.resume()


def test_a_master_that_is_demoted_ends_the_wait(
    pair: tuple[RedisServer, RedisServer], connection: Connection
) -> None:
    """It says so to WAIT, which is no refusal of the message."""
    master, replica = pair
    waiting = publish_without_confirm(connection, replica)
    with control(master.url) as admin:
        admin("REPLICAOF", "127.0.0.1", replica.port)
    with pytest.raises(connection.recoverable_connection_errors, match="no master any more"):
        waiting.get(timeout=SOON)
    replica.resume()


def test_a_window_is_refused(pair: tuple[RedisServer, RedisServer]) -> None:
    options = {"replicas": 1, "publish_window": 8}
    with pytest.raises(ValueError, match="publish_window"):
        Connection(pair[0].url, transport_options=options).connect()
