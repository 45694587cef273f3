"""Connections over RabbitMQ that is stopped, killed and started again."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.exceptions import NotFound
from greenconn.transport.amqp.message import DELIVERY_OVERHEAD
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_wires import until

CAME = 20.0


@pytest.fixture
def connection(own_rabbitmq: RabbitMQ) -> Iterator[Connection]:
    """A connection to a broker of one's own."""
    with Connection(own_rabbitmq.url) as connection:
        yield connection


def test_the_brokers_heartbeat_is_taken(amqp_url: str) -> None:
    with Connection(amqp_url) as connection:
        assert connection.get_heartbeat_interval() > 0
        connection.heartbeat_check()
    with Connection(amqp_url, heartbeat=0) as connection:
        assert connection.get_heartbeat_interval() == 0


def test_killing_anywhere_leaks_no_channel(amqp_url: str, unique: str, long: bool) -> None:
    """Greenlets that share one connection are killed at random moments; then all is in order."""
    rounds = 1000 if long else 60
    chance = random.Random(rounds)
    with Connection(amqp_url) as connection:
        producer = connection.Producer()

        def use() -> None:
            connection.default_channel.queue_declare(queue=unique, auto_delete=False)
            producer.publish("x", routing_key=unique, retry=True)
            with connection.channel() as channel:
                channel.queue_declare(queue=unique, passive=True)
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.001)

        for _ in range(rounds):
            users = [gevent.spawn(use) for _ in range(5)]
            if chance.random() < 0.2:
                connection.collect()
            gevent.sleep(chance.random() * 0.01)
            gevent.killall(users)
        users = [gevent.spawn(use) for _ in range(20)]
        gevent.joinall(users, timeout=CAME, raise_error=True)
        link = connection.connection
        numbers = [number for number, channel in link.channels.items() if number and channel]
        assert len(numbers) <= 2, numbers
        connection.default_channel.queue_delete(unique)


@pytest.mark.parametrize("ends", ["close", "collect", "loss"])
def test_a_connection_that_has_ended_needs_no_garbage_collector(amqp_url: str, ends: str) -> None:
    gc.collect()
    gc.disable()
    try:
        connection = Connection(amqp_url)
        connection.connect()
        link = connection.connection
        gone = weakref.ref(link)
        if ends == "loss":
            link.end(ConnectionResetError("cut"))
        else:
            getattr(link, ends)()
        del link
        connection.release()
        until(lambda: gone() is None)
    finally:
        gc.enable()


def test_what_a_simple_queue_loses_with_its_channel_is_counted_no_more(
    amqp_url: str, unique: str
) -> None:
    with Connection(amqp_url) as connection:
        simple = connection.SimpleQueue(unique, queue_opts={"expires": 300})
        for number in range(4):
            simple.put(number)
        assert [simple.get(timeout=CAME).payload for _ in range(2)] == [0, 1]
        budget = connection.session.life.link.budget
        until(lambda: budget.held > 2 * DELIVERY_OVERHEAD)  # it has no prefetch
        channel = simple.channel
        with pytest.raises(NotFound):
            channel.queue_declare(f"{unique}-absent", passive=True)
        assert budget.held == 0
        with connection.channel() as other:
            other.queue_delete(unique)
