"""What every transport does, through the public connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.threadpool import ThreadPool

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue, binding
from greenconn.exceptions import (
    NotFound,
    PublishNacked,
    RecoverableConnectionError,
    Unroutable,
    WrongHub,
)
from greenconn.importing import native
from greenconn.messaging import Consumer, Producer
from greenconn.publishing import publish
from greenconn.worker import spawn_consumer
from tests.integration.capabilities import Can, Kind, needs

SOON = 30.0


@pytest.fixture
def connection(kind_url: str) -> Iterator[Connection]:
    """A connection of each kind."""
    with Connection(kind_url) as connection:
        yield connection


@pytest.fixture
def confirming(broker_kind: Kind, kind_url: str) -> Iterator[Connection]:
    """The same, with the option ``confirm_publish``."""
    options = {**broker_kind.options, "confirm_publish": True}
    with Connection(kind_url, transport_options=options) as connection:
        yield connection


def bound(connection: Connection, exchange: Exchange, key: str, name: str) -> Any:
    """A declared queue."""
    queue = Queue(name, exchange, key, durable=False, expires=60)(connection.default_channel)
    queue.declare()
    return queue


@pytest.mark.parametrize(
    ("kind", "key", "sent", "expected"),
    [
        ("direct", "a", ["a", "b"], ["a"]),
        ("topic", "z.#", ["z", "z.a.b", "y.z"], ["z", "z.a.b"]),
        ("fanout", "", ["a", "b"], ["a", "b"]),
    ],
)
def test_entities(
    connection: Connection, unique: str, kind: str, key: str, sent: list[str], expected: list[str]
) -> None:
    exchange = Exchange(f"{unique}-x", kind, durable=False, auto_delete=True)
    queue = bound(connection, exchange, key, unique)
    got: list[Any] = []

    def take(body: Any, message: Any) -> None:
        got.append((body, message.delivery_info["routing_key"], message.headers))
        message.ack()

    with Consumer(connection.default_channel, [queue], callbacks=[take], accept=["json"]):
        producer = Producer(connection.default_channel, exchange)
        for routing_key in sent:
            producer.publish({"key": routing_key}, routing_key, headers={"n": 1})
        while len(got) < len(expected):
            connection.drain_events(timeout=SOON)
    assert got == [({"key": each}, each, {"n": 1}) for each in expected]
    assert queue.get() is None


def test_a_producer_with_confirms_raises_that_no_queue_has_a_message(
    confirming: Connection, unique: str
) -> None:
    with confirming.Producer() as producer:
        with pytest.raises(Unroutable):
            producer.publish("x", unique, mandatory=True)
        producer.publish("x", unique)


def test_a_producer_with_confirms_gives_a_message_that_no_queue_has_to_its_handler(
    confirming: Connection, unique: str
) -> None:
    returned: list[Any] = []

    def on_return(exc: Exception, exchange: str, routing_key: str, message: Any) -> None:
        returned.append((exc, exchange, routing_key, message.payload, message.headers))
        if message.payload == "raise":
            raise KeyError("mine")

    producer = confirming.Producer(on_return=on_return)
    for body in ("first", "second"):
        producer.publish(body, unique, mandatory=True, headers={"n": 1})
        exc, *what = returned.pop()
        assert isinstance(exc, Unroutable)
        assert what == ["", unique, body, {"n": 1}]
    with pytest.raises(KeyError, match="mine"):
        producer.publish("raise", unique, mandatory=True)
    producer.publish("not mandatory", unique)
    assert len(returned) == 1


@needs(Can.BOUNDS)
def test_a_producer_with_confirms_raises_that_a_full_queue_refuses_a_message(
    confirming: Connection, unique: str
) -> None:
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    queue = Queue(unique, queue_arguments=arguments, durable=False, expires=60)
    with confirming.Producer() as producer:
        producer.publish("fits", unique, declare=[queue])
        for mandatory in (False, True):
            with pytest.raises(PublishNacked):
                producer.publish("too much", unique, mandatory=mandatory)
    assert queue(confirming.default_channel).get(no_ack=True).payload == "fits"


def test_several_bindings(connection: Connection, unique: str) -> None:
    exchange = Exchange(f"{unique}-x", "direct", durable=False, auto_delete=True)
    queue = Queue(
        unique, bindings=[binding(exchange, "a"), binding(exchange, "b")], durable=False, expires=60
    )(connection.default_channel)
    queue.declare()
    producer = Producer(connection.default_channel, exchange)
    for key in "abc":
        producer.publish(key, key)
    bodies = []
    while (message := queue.get(no_ack=True)) is not None:
        bodies.append(message.payload)
    assert bodies == ["a", "b"]
    assert queue.delete() == 0


def test_simple_queue(connection: Connection, unique: str) -> None:
    with connection.SimpleQueue(unique, queue_opts={"durable": False}) as queue:
        for n in range(3):
            queue.put({"n": n})
        message = queue.get(timeout=SOON)
        assert message.payload == {"n": 0}
        message.ack()
        with pytest.raises(queue.Empty):
            while True:
                queue.get(block=False).ack()
        queue.queue.delete()


def test_channel_error_costs_only_the_channel(connection: Connection, unique: str) -> None:
    channel, other = connection.default_channel, connection.channel()
    with pytest.raises(NotFound):
        other.queue_declare(unique, passive=True)
    assert not other.is_open
    assert connection.default_channel is channel
    with pytest.raises(NotFound) as caught:
        Queue(unique)(channel).queue_declare(passive=True)
    assert isinstance(caught.value, connection.channel_errors)
    assert not isinstance(caught.value, connection.connection_errors)
    assert connection.connected
    assert connection.default_channel is not channel
    assert connection.default_channel.is_open


def test_returned_message(connection: Connection, unique: str) -> None:
    returned: list[Any] = []
    producer = connection.Producer(on_return=lambda *args: returned.append(args))
    producer.publish("x", unique, exchange="amq.direct", mandatory=True)
    connection.drain_events(timeout=SOON)
    exc, exchange, routing_key, message = returned[0]
    assert exc.reply_code == 312
    assert (exchange, routing_key) == ("amq.direct", unique)
    assert message.payload == "x"
    with pytest.raises(Unroutable):
        publish(Exchange("amq.direct"), "x", routing_key=unique, connection=connection)


def test_link_that_is_lost_is_opened_anew(connection: Connection, unique: str) -> None:
    got: list[Any] = []

    def handle(body: Any, message: Any) -> None:
        got.append(body)

    consumer = spawn_consumer(
        Queue(unique, durable=False, expires=60), handle, connection=connection
    )
    assert consumer.wait_ready(SOON)
    publish(unique, 1, connection=connection)
    link = connection.connection
    link.end(RecoverableConnectionError("cut by the test"))
    publish(unique, 2, connection=connection)
    with gevent.Timeout(SOON):
        # The first may come once more: its ack may not have left when the link was cut.
        while set(got) != {1, 2}:
            gevent.sleep(0.01)
    assert connection.connection is not link
    assert consumer.stop(SOON)
    link.close()


def test_connection_belongs_to_its_thread(connection: Connection) -> None:
    channel = connection.default_channel
    caught: list[Any] = []

    def use() -> None:
        try:
            connection.channel()
        except Exception as exc:
            caught.append(exc)

    pool = ThreadPool(1)
    try:
        pool.spawn(use).get()
    finally:
        pool.kill()
    assert isinstance(caught[0], WrongHub)
    assert not isinstance(caught[0], connection.connection_errors)
    assert channel.is_open


def test_kinds_of_exchanges(connection: Connection) -> None:
    for kind in ("direct", "topic", "fanout", "headers"):
        assert connection.supports_exchange_type(kind)
    assert not connection.supports_exchange_type("carrier")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("turns", [0, 1, 2, 4])
def test_a_blocked_hub_is_no_slow_server(kind_url: str, turns: int) -> None:
    """Whichever step of connecting another greenlet's computation comes to, that has all of its time."""
    if kind_url.startswith("mongodb") and monkey.is_module_patched("socket"):
        pytest.skip("pymongo waits by its own clock there")
    by_name = kind_url.replace("127.0.0.1", "localhost")
    with Connection(by_name, connect_timeout=4.0) as connection:
        connecting = gevent.spawn(connection.connect)
        for _ in range(turns):
            gevent.sleep(0.0005)
        native("time", "sleep")(4.5)
        connecting.get(timeout=SOON)
