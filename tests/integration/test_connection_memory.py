"""Connections over the memory broker, with everything that stands on them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import RecoverableConnectionError
from greenconn.session.session import SessionState
from greenconn.transport import memory
from tests.fix_wires import until

CAME = 30.0


@pytest.fixture
def url(unique: str) -> Iterator[str]:
    """The URL of a broker that no other test uses."""
    yield f"memory:///{unique}"
    memory.reset(unique)


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """A connection to it."""
    with Connection(url) as connection:
        yield connection
    gevent.sleep(0)


def test_one_connection_for_a_thousand_greenlets(connection: Connection, url: str) -> None:
    queue = Queue("many")
    producer = connection.Producer()

    def publish(number: int) -> None:
        producer.publish(number, routing_key="many", declare=[queue])

    publishing = [gevent.spawn(publish, number) for number in range(1000)]
    received: list[int] = []

    def take(body: int, message: Any) -> None:
        received.append(body)
        message.ack()

    with connection.Consumer(queue, callbacks=[take]):
        gevent.joinall(publishing, timeout=CAME, raise_error=True)
        while len(received) < 1000:
            connection.drain_events(timeout=CAME)
    assert sorted(received) == list(range(1000))
    assert connection.session.generation == 1


def test_the_loss_is_raised_once_then_draining_goes_on(connection: Connection, unique: str) -> None:
    received: list[str] = []
    queue = Queue("durable", durable=True)
    connection.Consumer(
        queue, callbacks=[lambda body, message: received.append(body)], no_ack=True
    ).consume()
    errors: list[BaseException] = []

    def drain() -> None:
        while len(received) < 2:
            try:
                connection.drain_events(timeout=CAME)
            except connection.connection_errors as exc:
                errors.append(exc)

    draining = gevent.spawn(drain)
    gevent.sleep(0.01)
    connection.Producer().publish("before", routing_key="durable")
    until(lambda: received)
    memory.restart(unique)
    connection.Producer().publish("after", routing_key="durable", retry=True)
    draining.join(timeout=CAME)
    assert received == ["before", "after"]
    assert len(errors) == 1


def test_pools_share_and_release(url: str) -> None:
    with Connection(url) as source:
        pool = source.Pool(2)
        with pool.acquire() as one, pool.acquire() as two:
            assert one.__eqhash__() == two.__eqhash__() == source.__eqhash__()
            one.default_channel.queue_declare(queue="q")
            two.Producer().publish("x", routing_key="q")
            message = one.default_channel.basic_get("q")
            assert message.payload == "x"
            message.ack()
        with pool.acquire_channel(block=True) as (connection, channel):
            assert channel is connection.default_channel
        pool.force_close_all()


def test_ensure_and_autoretry_over_a_restart(connection: Connection, unique: str) -> None:
    calls: list[int] = []

    def declare(channel: Any) -> str:
        calls.append(1)
        if len(calls) == 1:
            memory.restart(unique)
        return str(channel.queue_declare(queue="q").queue)

    name, channel = connection.autoretry(declare, connection.channel())()
    assert name == "q"
    assert channel is connection.default_channel
    assert len(calls) == 2


def test_killing_anywhere_leaks_nothing(url: str, unique: str, long: bool) -> None:
    """Greenlets that use one connection in every way are killed at random moments."""
    rounds = 2000 if long else 150
    chance = random.Random(rounds)
    with Connection(url) as connection:
        queue = Queue("q", durable=True)

        def use() -> None:
            for _ in range(3):
                connection.ensure_connection(max_retries=3, interval_start=0.001)
                connection.default_channel.queue_declare(queue="q", durable=True)
                publish = connection.ensure(
                    producer, producer.publish, interval_start=0.001, interval_max=0.001
                )
                publish("x", routing_key="q")
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.001)

        producer = connection.Producer()
        producer.maybe_declare(queue)
        for _ in range(rounds):
            users = [gevent.spawn(use) for _ in range(5)]
            if chance.random() < 0.3:
                memory.restart(unique)
            gevent.sleep(chance.random() * 0.004)
            gevent.killall(users)
            for user in users:
                if isinstance(user.exception, RecoverableConnectionError):
                    continue  # a loss between two steps of its own
                assert user.exception is None or isinstance(user.value, gevent.GreenletExit), (
                    user.exception
                )
        # Whoever comes now finds everything in order.
        users = [gevent.spawn(use) for _ in range(20)]
        gevent.joinall(users, timeout=CAME, raise_error=True)
        assert connection.session.state is SessionState.OPEN
