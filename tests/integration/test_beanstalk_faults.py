"""What only beanstalkd has: drain mode, buried jobs, two sockets for all."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection, Queue
from greenconn.exceptions import PublishNacked, RecoverableChannelError
from tests.fix_beanstalk import BeanstalkFactory
from tests.fix_relay import RelayFactory
from tests.fix_wires import until
from tests.integration.beanstalk_clients import SOON

pytestmark = pytest.mark.full


def test_rejected_messages_stay_as_long_as_the_server_drains(
    beanstalk_with: BeanstalkFactory, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In drain mode (SIGUSR1) nothing new is stored, dead letters neither."""
    server = beanstalk_with(is_durable=True)
    dead = Queue(f"{unique}-dead")
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name}
    queue = Queue(unique, queue_arguments=arguments)
    options = {"lease": 1.0}
    numbers = set(range(10))
    with Connection(server.url, transport_options=options) as connection:
        dead(connection).declare()
        queue(connection).declare()
        for number in numbers:
            greenconn.publish(queue, number, connection=connection)
        server.drain()
        seen: Counter[int] = Counter()

        def refuse(body: int, message: Any) -> None:
            seen[body] += 1
            message.reject()

        consumer = greenconn.spawn_consumer(queue, refuse, connection=connection)
        until(lambda: set(seen) == numbers)
        logged = f"a dead letter for queue {dead.name!r} could not be stored"
        until(lambda: caplog.text.count(logged) >= len(numbers))
        assert "drain mode" in caplog.text
        server.stop()  # which ends that mode
        server.start()
        got: set[int] = set()
        collector = greenconn.spawn_consumer(
            dead, lambda body, message: got.add(body), connection=connection
        )
        until(lambda: got == numbers, SOON)
        assert consumer.stop(SOON)
        assert collector.stop(SOON)


@pytest.mark.parametrize("retry", [False, True])
def test_publishers_learn_that_the_server_drains(
    beanstalk_with: BeanstalkFactory, unique: str, retry: bool
) -> None:
    server = beanstalk_with()
    with Connection(server.url) as connection, connection.SimpleQueue(unique) as simple:
        generation, producer = connection.session.generation, connection.Producer()
        publish = partial(producer.publish, "refused", routing_key=unique, retry=retry)
        server.drain()
        with pytest.raises(PublishNacked, match="drain mode"):
            until(publish)  # None, as long as the signal has not come
        with pytest.raises(PublishNacked, match="drain mode"):
            simple.put("refused")
        for declare in (Queue(f"{unique}-new")(connection).declare, partial(simple_of, connection)):
            with pytest.raises(RecoverableChannelError, match="drain mode"):
                declare()
        assert connection.session.generation == generation


def simple_of(connection: Connection) -> None:
    """Declare a queue, an exchange and a binding."""
    connection.SimpleQueue("new")


def test_hundred_consumers_share_two_sockets(
    beanstalk_url: str, relay_to: RelayFactory, unique: str
) -> None:
    relay = relay_to(beanstalk_url)
    got: Counter[str] = Counter()
    names = [f"{unique}.{number}" for number in range(100)]
    with Connection(relay.url) as connection, Connection(beanstalk_url) as sending:

        def handle(body: str, message: Any) -> None:
            got[body] += 1

        consumers = [
            greenconn.spawn_consumer(name, handle, connection=connection) for name in names
        ]
        assert all(each.wait_ready(20) for each in consumers)
        for _ in range(3):
            for name in random.sample(names, 100):
                greenconn.publish(name, name, connection=sending)
        until(lambda: got == dict.fromkeys(names, 3), 20)
        assert relay.accepted == 2
        stops = [gevent.spawn(each.stop, SOON) for each in consumers]
        assert all(each.get() for each in stops)
        channel = sending.default_channel
        for name in names:
            channel.queue_delete(name)


def test_rejected_ones_are_kicked(beanstalk_url: str, unique: str) -> None:
    with Connection(beanstalk_url) as connection, connection.channel() as channel:
        queue: Any = Queue(unique, durable=False)(channel)
        queue.declare()
        for body in "abc":
            connection.Producer().publish(body, routing_key=unique, serializer="json")
        for _ in range(3):
            queue.get().reject()
        assert queue.get() is None
        assert channel.kick(unique, 2) == 2
        assert channel.kick(unique) == 1
        messages = [queue.get() for _ in range(3)]
        assert [each.payload for each in messages] == ["a", "b", "c"]
        assert all(each.delivery_info["redelivered"] for each in messages)
        for each in messages:
            each.ack()
        queue.delete()


def test_nothing_is_taken_for_a_consumer_that_left(beanstalk_url: str, unique: str) -> None:
    with Connection(beanstalk_url) as connection, connection.channel() as channel:
        queue: Any = Queue(unique, durable=False)(channel)
        queue.declare()
        for number in range(20):
            got: list[int] = []

            def handle(body: int, message: Any, got: list[int] = got) -> None:
                got.append(body)

            consumer = greenconn.spawn_consumer(unique, handle, connection=connection)
            greenconn.publish(unique, number, connection=connection)
            until(lambda got=got, number=number: got == [number])  # type: ignore[misc]
            assert consumer.stop(SOON)
            greenconn.publish(unique, "later", connection=connection)
            message = queue.get()
            assert message is not None
            assert message.payload == "later"
            message.ack()
        queue.delete()
