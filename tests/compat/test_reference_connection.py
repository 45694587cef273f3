"""The reference of ``kombu.connection``: a test for each statement."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from greenconn import Connection, Consumer, Exchange, Producer, Queue, exceptions
from greenconn.connection import (
    ChannelLimitExceeded,
    ChannelPool,
    ConnectionPool,
)


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """A connection to each broker in turn."""
    with Connection(url) as connection:
        yield connection


@pytest.fixture
def queue(connection: Connection, unique: str) -> Iterator[Queue]:
    """A queue that is declared."""
    queue = Queue(unique, Exchange(unique), unique)(connection)
    queue.declare()
    yield queue
    queue.delete()
    assert queue.exchange is not None
    queue.exchange.delete()


# The constructor


def test_ssl_may_be_a_dict_of_options() -> None:
    options = {
        "ca_certs": "/etc/pki/tls/certs/something.crt",
        "keyfile": "/etc/something/system.key",
        "certfile": "/etc/something/system.cert",
        "cert_reqs": ssl.CERT_REQUIRED,
    }
    connection = Connection("amqp://", login_method="EXTERNAL", ssl=options)
    assert connection.ssl == options
    assert connection.login_method == "EXTERNAL"
    assert connection.info()["port"] == 5671
    with pytest.raises(ValueError, match=r"ca_certs.*No such file"):  # the first of them
        connection.connect()
    connection.release()


# Pools


def test_example_of_channel_pool(connection: Connection) -> None:
    pool = connection.ChannelPool(2)
    assert isinstance(pool, ChannelPool)
    c1, c2 = pool.acquire(), pool.acquire()
    with pytest.raises(ChannelLimitExceeded, match="2"):
        pool.acquire()
    c1.release()
    c3 = pool.acquire()
    for each in (c2, c3):
        each.release()
    pool.force_close_all()
    assert connection.ChannelPool().limit is None


def test_example_of_pool(connection: Connection) -> None:
    pool = connection.Pool(2)
    assert isinstance(pool, ConnectionPool)
    c1, c2 = pool.acquire(), pool.acquire()
    with pytest.raises(exceptions.ConnectionLimitExceeded, match="2"):
        pool.acquire()
    c1.release()
    c3 = pool.acquire()
    for each in (c2, c3):
        each.release()
    pool.force_close_all()
    assert connection.Pool().limit is None


# Shortcuts


# Methods


def test_autoretry(connection: Connection) -> None:
    lost = connection.recoverable_connection_errors[0]
    used: list[Any] = []

    def publish_messages(number: int, channel: Any = None) -> int:
        used.append(channel)
        if len(used) == 1:
            raise lost("gone")
        return number

    channel = connection.channel()
    value, last = connection.autoretry(publish_messages, channel)(7)
    assert value == 7
    assert used[0] is channel
    assert last is used[-1]
    value, acquired = connection.autoretry(publish_messages)(8)
    assert value == 8
    assert acquired is connection.default_channel


def test_a_strategy_may_be_any_iterator_of_urls() -> None:
    def backwards(urls: list[str]) -> Iterator[str]:
        while True:
            yield from reversed(urls)

    connection = Connection("amqp://a;amqp://b;amqp://c", failover_strategy=backwards)
    connection.maybe_switch_next()
    assert connection.hostname == "b"
    connection.maybe_switch_next()
    assert connection.hostname == "a"


def test_the_declared_entities_are_forgotten_with_the_connection(
    connection: Connection, queue: Queue
) -> None:
    Producer(connection, queue.exchange).publish("x", queue.name)
    assert connection.declared_entities
    connection.close()
    connection.connect()
    assert not connection.declared_entities


def test_example_of_ensure(connection: Connection, queue: Queue) -> None:
    lost = connection.recoverable_connection_errors[0]
    producer = Producer(connection)
    heard: list[Any] = []
    fails = [lost("gone")]

    def publish(body: Any, **options: Any) -> None:
        if fails:
            raise fails.pop()
        producer.publish(body, **options)

    ensured = connection.ensure(
        producer,
        publish,
        errback=lambda exc, interval: heard.append((type(exc), interval)),
        max_retries=3,
    )
    ensured({"hello": "world"}, routing_key=queue.name)
    assert heard == [(lost, 0)]
    with Consumer(connection, [queue], no_ack=True, callbacks=[lambda body, _: heard.append(body)]):
        connection.drain_events(timeout=30)
    assert heard[1] == {"hello": "world"}


def test_management(connection: Connection, queue: Queue, unique: str) -> None:
    if connection.transport.driver_type != "amqp":
        binding = {"destination": unique, "source": unique, "routing_key": unique}
        assert connection.manager.get_bindings() == [binding]
        assert connection.get_manager().get_bindings() == [binding]
    else:
        with pytest.raises(exceptions.OperationalError, match="needs the plugin"):
            connection.get_manager(port=1).get_bindings()


def test_maybe_switch_next_and_switch() -> None:
    connection = Connection("amqp://a;amqp://b:9/v")
    connection.maybe_switch_next()
    assert connection.as_uri() == "amqp://guest:**@b:9/v"
    connection.switch("amqp://u@c//")
    assert connection.as_uri() == "amqp://u:**@c:5672//"
    assert not connection.connected  # does not reconnect
    connection.switch("plain.host")
    assert connection.hostname == "plain.host"


def test_what_the_transport_supports(connection: Connection) -> None:
    assert connection.supports_exchange_type("topic")
    assert not connection.supports_exchange_type("unheard-of")
    assert connection.qos_semantics_matches_spec is False
    assert connection.is_evented is False
    assert connection.supports_heartbeats is (connection.transport.driver_type == "amqp")


def test_revive_and_the_event_loop(connection: Connection) -> None:
    class Loop:
        def add_reader(self, descriptor: int, callback: Any) -> None:
            self.descriptor = descriptor

    connection.connect()
    connection.revive(connection.channel())
    loop = Loop()
    connection.register_with_event_loop(loop)
    assert loop.descriptor >= 0
