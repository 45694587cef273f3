"""Producers and consumers on real connections to the memory broker, over its restarts."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue, maybe_declare
from greenconn.exceptions import RecoverableConnectionError
from greenconn.messaging import Consumer, Producer
from greenconn.transport import memory
from tests.receiving import Receiver, consumer_count
from tests.unit.fake_channel import outcome


@pytest.fixture
def connection() -> Iterator[Connection]:
    virtual_host = uuid.uuid4().hex
    with Connection(f"memory://localhost/{virtual_host}") as made:
        yield made
    memory.reset(virtual_host)


def restart(connection: Connection) -> None:
    """Restart the broker and wait until the connection is whole again."""
    back = Event()
    connection.session.on_recovered.append(back.set)
    memory.restart(connection.virtual_host)
    assert back.wait(30.0)
    connection.session.on_recovered.remove(back.set)


def test_exclusive_and_nameless_queues_come_back(connection: Connection) -> None:
    got = Receiver()
    exchange = Exchange("e", "fanout", durable=False)
    consumer = Consumer(
        connection.channel(),
        [
            Queue("", exchange, exclusive=True),
            Queue("own", exchange, exclusive=True, durable=False),
        ],
        callbacks=[got],
    )
    consumer.consume()
    names = [queue.name for queue in consumer.queues]
    restart(connection)
    assert consumer.queues[0].name != names[0]
    assert consumer.queues[1].name == "own"
    Producer(connection, exchange).publish("hello")
    connection.drain_events(timeout=30.0)
    connection.drain_events(timeout=30.0)
    assert got == ["hello", "hello"]
    consumer.cancel()


@pytest.mark.parametrize("options", [{}, {"retry": True}, {"timeout": 30.0}])
def test_a_monitoring_tool_wraps_each_publish(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Datadog's and New Relic's wrap ``_publish``, and know kombu's order of its arguments."""
    inner, seen = Producer._publish, []

    def traced(producer: Producer, *args: Any, **kwargs: Any) -> Any:
        seen.append((len(args[0]), args[6], args[9]))
        args[4]["traceparent"] = "00-1-2-01"
        return inner(producer, *args, **kwargs)

    monkeypatch.setattr(Producer, "_publish", traced)
    queue = Queue("q", Exchange("e"), "k")
    Producer(connection).publish(
        "hello", exchange=queue.exchange, routing_key="k", declare=[queue], **options
    )
    message = queue(connection).get(no_ack=True)
    assert message.payload == "hello"
    assert message.headers == {"traceparent": "00-1-2-01"}
    assert seen == [(5, "k", "e")]


def test_the_with_block_leaves_no_consumer_after_a_restart(connection: Connection) -> None:
    with pytest.raises(RecoverableConnectionError), Consumer(connection, Queue("q")):
        waiting = gevent.spawn(outcome, connection.drain_events, timeout=5.0)
        gevent.idle()
        restart(connection)
        raise waiting.get(timeout=30.0)
    assert consumer_count(connection, "q") == 0


def test_a_producer_shared_by_many_greenlets_over_a_restart(connection: Connection) -> None:
    queue = Queue("q", Exchange("e"), "k")
    maybe_declare(queue, connection)
    producer = Producer(connection, queue.exchange, "k")
    policy = {"max_retries": 5, "interval_start": 0, "interval_step": 0.01}

    def publish(number: int) -> None:
        for part in range(5):
            producer.publish([number, part], retry=True, retry_policy=policy)
            gevent.sleep(0)

    publishing = [gevent.spawn(publish, number) for number in range(50)]
    gevent.sleep(0)
    memory.restart(connection.virtual_host)
    gevent.joinall(publishing, timeout=10.0, raise_error=True)
    bound = queue(connection)
    got = []
    while (message := bound.get(no_ack=True)) is not None:
        got.append(tuple(message.payload))
    assert sorted(set(got)) == [(number, part) for number in range(50) for part in range(5)]


def test_declarations_are_forgotten_with_a_life(connection: Connection) -> None:
    exchange = Exchange("e", durable=False)
    assert maybe_declare(exchange, connection) is True
    assert maybe_declare(exchange, connection) is False
    memory.restart(connection.virtual_host)
    producer = Producer(connection, exchange)
    producer.publish("1")  # would close the channel if the exchange were taken for declared
    assert maybe_declare(exchange, connection) is False


def test_channels_make_producers_and_consumers(connection: Connection) -> None:
    got = Receiver()
    channel = connection.channel()
    with channel.Consumer(Queue("q"), callbacks=[got]):
        channel.Producer(routing_key="q").publish("1")
        connection.drain_events(timeout=30.0)
    assert got == ["1"]
