"""Producers and consumers on real connections to the memory broker, over its restarts."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.messaging import Consumer, Producer
from greenconn.transport import memory


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


def consumer_count(connection: Connection, queue: str) -> int:
    """How many consumers the broker knows for *queue*."""
    with connection.channel() as channel:
        return int(channel.queue_declare(queue, passive=True).consumer_count)


class Receiver(list[Any]):
    """Acknowledges messages and keeps their bodies."""

    def __call__(self, body: Any, message: Any) -> None:
        self.append(body)
        message.ack()


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
