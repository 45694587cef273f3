"""Producers, consumers and simple queues, over the loss of their connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue, maybe_declare
from greenconn.exceptions import NotFound, RecoverableChannelError, RecoverableConnectionError
from greenconn.messaging import Consumer, Producer
from greenconn.simple import SimpleBuffer, SimpleQueue
from greenconn.transport import memory
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_wires import until
from tests.receiving import Receiver, consumer_count
from tests.unit.fake_channel import outcome

Name = Callable[[str], str]


@dataclass(frozen=True)
class Broker:
    """A broker that the test may have close all connections."""

    url: str
    cut: Callable[[], object]


@pytest.fixture(params=["memory", "amqp"])
def broker(request: pytest.FixtureRequest, unique: str) -> Iterator[Broker]:
    """The memory broker and a RabbitMQ, in turn."""
    if request.param == "memory":
        yield Broker(f"memory://localhost/{unique}", lambda: memory.restart(unique))
        memory.reset(unique)
        return
    rabbitmq: RabbitMQ = request.getfixturevalue("own_rabbitmq")
    yield Broker(rabbitmq.url, lambda: rabbitmq.close_connections("by the test"))


@pytest.fixture
def connection(broker: Broker) -> Iterator[Connection]:
    with Connection(broker.url) as made:
        yield made


@pytest.fixture
def name(unique: str) -> Name:
    """Names that no other test uses."""
    return lambda text: f"{unique}.{text}"


def cut_and_wait(broker: Broker, connection: Connection) -> None:
    """Have the broker close all connections, and wait until *connection* is whole again."""
    back = Event()
    connection.session.on_recovered.append(back.set)
    broker.cut()
    assert back.wait(20.0)
    connection.session.on_recovered.remove(back.set)


def test_a_program_that_rebuilds_itself_ends_with_one_consumer(
    broker: Broker, connection: Connection, name: Name
) -> None:
    got = Receiver()
    queue = Queue(name("q"), auto_delete=True)
    consumer = Consumer(connection, queue, callbacks=[got])
    consumer.consume()

    def loop() -> None:
        while len(got) < 2:
            try:
                connection.drain_events(timeout=20.0)
            except connection.connection_errors:
                connection.ensure_connection(max_retries=10)
                consumer.revive(connection.channel())
                consumer.consume()

    looping = gevent.spawn(loop)
    producer = Producer(connection)
    producer.publish("1", queue.name)
    until(lambda: got)  # the queue goes with its consumer
    cut_and_wait(broker, connection)
    producer.publish("2", queue.name, retry=True)
    looping.get(timeout=20.0)
    assert got == ["1", "2"]
    assert consumer_count(connection, queue.name) == 1
    consumer.cancel()


def test_shared_producer(broker: Broker, connection: Connection, name: Name) -> None:
    queue = Queue(name("q"), Exchange(name("e")), "k")
    maybe_declare(queue, connection)
    producer = Producer(connection, queue.exchange, "k")
    policy = {"max_retries": 20, "interval_start": 0, "interval_step": 0.1}
    done: list[int] = []

    def publish(number: int) -> None:
        for part in range(20):
            producer.publish([number, part], retry=True, retry_policy=policy, timeout=20.0)
            gevent.sleep(0.02)
        done.append(number)

    publishing = [gevent.spawn(publish, number) for number in range(20)]
    gevent.sleep(0.05)
    broker.cut()
    gevent.joinall(publishing, timeout=30.0, raise_error=True)
    assert sorted(done) == list(range(20))
    assert queue(connection).purge() > 0
    queue(connection).delete()


def test_channel_errors(connection: Connection, name: Name) -> None:
    got = Receiver()
    queue = Queue(name("q"), auto_delete=True)
    consumer = Consumer(connection, queue, callbacks=[got])
    consumer.consume()
    with pytest.raises(NotFound):
        connection.default_channel.queue_declare(name("unknown"), passive=True)
    with pytest.raises(RecoverableChannelError):
        connection.drain_events(timeout=30.0)
    consumer.consume()
    Producer(connection).publish("1", queue.name)
    connection.drain_events(timeout=30.0)
    assert got == ["1"]
    consumer.cancel()


def test_simple_queues(broker: Broker, connection: Connection, name: Name) -> None:
    with SimpleQueue(connection, name("s")) as simple:
        simple.put({"a": 1})
        message = simple.get(timeout=30.0)
        assert message.payload == {"a": 1}
        message.ack()
        waiting = gevent.spawn(outcome, simple.get, timeout=20.0)
        gevent.sleep(0.05)
        broker.cut()
        assert isinstance(waiting.get(timeout=20.0), RecoverableConnectionError)
        simple.put("2", retry=True)
        message = simple.get(timeout=20.0)
        assert message.payload == "2"
        message.ack()
        simple.put("3")
        simple.put("4")
        simple.get(timeout=30.0).ack()
    with gevent.Timeout(20.0):
        while len(simple) != 1:  # what was given back is counted a little later
            gevent.sleep(0.01)
    assert simple.get_nowait().payload == "4"
    simple.queue.delete()
    with SimpleBuffer(connection, name("b")) as buffer:
        buffer.put([1])
        assert buffer.get(timeout=30.0).payload == [1]
