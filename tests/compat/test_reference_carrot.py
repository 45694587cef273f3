"""The reference of ``carrot.connection``: a test for each statement; and carrot's other modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from copy import copy
from types import SimpleNamespace
from typing import Any

import pytest

from greenconn.compat.carrot.backends.base import BaseBackend
from greenconn.compat.carrot.connection import (
    AMQPConnectionException,
    BrokerConnection,
    ConnectionLimitExceeded,
    ConnectionPool,
    DjangoBrokerConnection,
    get_django_conninfo,
)
from greenconn.compat.carrot.messaging import Consumer, ConsumerSet, Messaging, Publisher
from greenconn.exceptions import AccessRefused
from greenconn.message import Message
from greenconn.transport import memory
from greenconn.url import parse_url
from tests.integration.processes import run

Make = Callable[..., BrokerConnection]


def _parts_of(url: str) -> dict[str, Any]:
    names = ("hostname", "userid", "password", "virtual_host", "port")
    return {name: parse_url(url)[name] for name in names}


@pytest.fixture(params=["memory", "amqp"])
def make(request: pytest.FixtureRequest, unique: str) -> Iterator[Make]:
    """Makes connections to each broker in turn, as carrot's programs do."""
    made: list[BrokerConnection] = []
    if request.param == "memory":
        parts: dict[str, Any] = {"hostname": "localhost", "virtual_host": unique}
        parts["backend_cls"] = "memory"
    else:
        parts = _parts_of(request.getfixturevalue("amqp_url"))

    def make(**kwargs: Any) -> BrokerConnection:
        made.append(BrokerConnection(**{**parts, **kwargs}))
        return made[-1]

    yield make
    for each in made:
        each.close()
    memory.reset(unique)


@pytest.fixture
def broker(make: Make) -> BrokerConnection:
    """One connection."""
    return make()


@pytest.fixture
def names(unique: str) -> dict[str, Any]:
    """Arguments that a publisher and a consumer share."""
    return {"exchange": unique, "routing_key": "letter", "auto_delete": True}


def keeper(got: list[Any]) -> Callable[[Any, Any], None]:
    """A callback that keeps the data and acknowledges."""

    def keep(data: Any, message: Any) -> None:
        got.append(data)
        message.ack()

    return keep


# carrot.connection


def test_the_arguments_and_their_defaults() -> None:
    signature = inspect.signature(BrokerConnection)
    assert list(signature.parameters) == [
        *("hostname", "userid", "password", "virtual_host", "port", "pool", "kwargs"),
    ]
    plain = BrokerConnection()
    assert (plain.hostname, plain.userid, plain.password) == (None, None, None)
    assert (plain.virtual_host, plain.port, plain.pool) == ("/", None, None)
    assert (plain.insist, plain.ssl, plain.backend_cls) == (False, False, None)
    assert plain.connect_timeout == 5  # the reference says none; carrot's code had five seconds
    given = BrokerConnection(
        *("host", "me", "secret", "vhost", 1234),
        insist=True,
        connect_timeout=1.5,
        ssl={"ca_certs": "ca.pem"},
        backend_cls="memory",
    )
    assert given.host == "host:1234"
    assert (given.userid, given.password, given.virtual_host) == ("me", "secret", "vhost")
    assert (given.insist, given.connect_timeout, given.ssl) == (True, 1.5, {"ca_certs": "ca.pem"})
    assert given.backend_cls == "memory"
    assert BrokerConnection(transport="memory").backend_cls == "memory"
    assert "secret" not in repr(given)


def test_connect_opens_and_close_closes(broker: BrokerConnection) -> None:
    assert not broker.connected
    opened = broker.connect()
    assert broker.connected
    assert broker.connected()
    assert broker.connection is opened
    broker.close()
    assert not broker.connected
    assert broker.connection is None
    with pytest.raises(AMQPConnectionException, match="call connect"):
        broker.get_channel()
    broker.connect()
    assert broker.connected


def test_channel_is_a_backend(broker: BrokerConnection) -> None:
    backend = broker.channel()
    assert isinstance(backend, BaseBackend)
    assert isinstance(backend, broker.get_backend_cls())
    assert backend is not broker.create_backend()
    assert backend.channel.is_open
    backend.close()
    backend.close()


def test_a_backend_declares_with_names_alone(broker: BrokerConnection, unique: str) -> None:
    channel = broker.channel()
    channel.exchange_declare(unique, auto_delete=True)
    channel.queue_declare(unique, durable=True, auto_delete=True)
    channel.queue_bind(unique, unique)
    assert channel.queue_exists(unique)
    channel.queue_delete(unique)
    channel.close()


def test_a_refused_login_is_an_error_of_the_connection(amqp_url: str) -> None:
    broker = BrokerConnection(**{**_parts_of(amqp_url), "password": "wrong"})
    for opens in (broker.connect, broker.get_channel, broker.ensure_connection):
        with pytest.raises(BrokerConnection.ConnectionException, match="ACCESS_REFUSED") as caught:
            opens()
        assert isinstance(caught.value, AccessRefused)
        assert caught.value.reply_code == 403
    broker.close()


# carrot.connection.ConnectionPool


def test_a_pool_opens_its_least_and_makes_more(make: Make) -> None:
    source = make()
    pool = ConnectionPool(source, min=2, max=3)
    assert source.pool is pool
    assert source.connected
    held = [pool.acquire() for _ in range(3)]
    assert source in held
    assert [bool(each.connected) for each in held] == [True, True, False]
    with pytest.raises(ConnectionLimitExceeded):
        pool.acquire()
    with pytest.raises(ConnectionLimitExceeded):
        pool.acquire(block=True, timeout=0.01)
    held.pop().release()
    again = pool.acquire(connect_timeout=7)
    assert again.connect_timeout == 7
    for each in (*held, again):
        pool.release(each)
        pool.release(each)  # nothing happens
    for each in (*held, again):
        each.close()


# Django

SETTINGS = {
    "BROKER_HOST": "rabbit.example.org",
    "BROKER_USER": "me",
    "BROKER_PASSWORD": "secret",
    "BROKER_VHOST": "/mine",
    "BROKER_PORT": 1234,
}


def test_get_django_conninfo_reads_the_settings() -> None:
    assert get_django_conninfo(SimpleNamespace(**SETTINGS, CARROT_BACKEND="memory")) == {
        "hostname": "rabbit.example.org",
        "userid": "me",
        "password": "secret",
        "virtual_host": "/mine",
        "port": 1234,
        "backend_cls": "memory",
    }
    assert get_django_conninfo(SimpleNamespace()) == {"backend_cls": None}


def test_django_connections_take_the_settings_and_arguments_win() -> None:
    settings = SimpleNamespace(**SETTINGS)
    found = DjangoBrokerConnection(settings=settings)
    assert found.host == "rabbit.example.org:1234"
    assert (found.userid, found.password, found.virtual_host) == ("me", "secret", "/mine")
    given = DjangoBrokerConnection("other", None, port=99, settings=settings)
    assert (given.host, given.userid) == ("other:99", "me")
    plain = DjangoBrokerConnection(settings=SimpleNamespace(BROKER_HOST="h"))
    assert plain.info()["port"] == 5672
    assert copy(given).info() == given.info()


def test_it_imports_without_django() -> None:
    text = (
        "import sys; sys.modules['django'] = None\n"
        "from greenconn.compat.carrot.connection import *\n"
        "try: get_django_conninfo()\n"
        "except ImportError as exc: print('ImportError')\n"
    )
    outcome = run("-W", "error", "-c", text)
    assert (outcome.code, outcome.output, outcome.errors) == (0, "ImportError\n", "")


# carrot.messaging


def test_messages_are_sent_and_fetched(
    broker: BrokerConnection, unique: str, names: dict[str, Any]
) -> None:
    with (
        Consumer(broker, queue=unique, **names) as consumer,
        Publisher(broker, **names) as publisher,
    ):
        assert consumer.fetch() is None
        publisher.send({"to": "ada"})
        publisher.send("text", delivery_mode="non-persistent", priority=3)
        publisher.send(b"\x00", content_type="application/data", content_encoding="binary")
        publisher.send("nobody", routing_key="else")
        publisher.backend.queue_declare(unique, durable=True, exclusive=False, auto_delete=True)
        first = consumer.fetch()
        assert (first.payload, first.acknowledged) == ({"to": "ada"}, False)
        assert first.backend is consumer.backend
        assert first.properties["delivery_mode"] == 2
        first.ack()
        second = consumer.fetch(auto_ack=True)
        assert (second.payload, second.acknowledged) == ("text", True)
        assert (second.properties["delivery_mode"], second.properties["priority"]) == (1, 3)
        third = consumer.fetch(no_ack=True)
        assert third.payload == b"\x00"
        assert consumer.fetch() is None


def test_callbacks_are_called(broker: BrokerConnection, unique: str, names: dict[str, Any]) -> None:
    got: list[Any] = []
    with (
        Consumer(broker, queue=unique, **names) as consumer,
        Publisher(broker, **names) as publisher,
    ):
        publisher.send(0)
        publisher.backend.queue_exists(unique)
        with pytest.raises(NotImplementedError, match="No consumer callbacks"):
            consumer.fetch(no_ack=True, enable_callbacks=True)
        consumer.register_callback(keeper(got))
        for number in range(1, 4):
            publisher.send(number)
        publisher.backend.queue_exists(unique)
        with pytest.warns(DeprecationWarning, match="fetch"):
            consumer.process_next()
        assert got == [1]
        consumer.wait(limit=2)
        assert got == [1, 2, 3]
        publisher.send(4)
        assert next(consumer.backend.consume(limit=1)) is True
        assert got[-1] == 4
        consumer.cancel()
        consumer.cancel()


def test_messaging_sends_and_receives(broker: BrokerConnection, unique: str) -> None:
    got: list[Any] = []
    with Messaging(broker, exchange=unique, queue=unique, routing_key="k") as messaging:
        messaging.send("hello")
        messaging.send("again", delivery_mode=1)
        messaging.publisher.backend.queue_exists(unique)
        assert messaging.fetch(no_ack=True).payload == "hello"
        with pytest.raises(NotImplementedError, match="No consumer callbacks"):
            messaging.receive("x", Message("x"))
        messaging.register_callback(lambda data, message: got.append(data))
        messaging.fetch(no_ack=True, enable_callbacks=True)
        assert got == ["again"]
        messaging.consumer.backend.queue_delete(unique)


def test_a_set_consumes_from_several_queues(broker: BrokerConnection, unique: str) -> None:
    options: dict[str, Any] = {"exchange": unique, "auto_delete": True}
    sets, own = list[Any](), list[Any]()
    first = Consumer(broker, queue=f"{unique}.1", routing_key="a", **options)
    first.register_callback(keeper(own))
    described = {f"{unique}.2": {**options, "binding_key": "b"}}
    several = ConsumerSet(broker, from_dict=described, consumers=[first], callbacks=[keeper(sets)])
    several.add_consumer_from_dict(f"{unique}.3", routing_key="c", **options)
    assert len(several.consumers) == 3
    with Publisher(broker, **options) as publisher:
        for key in "abc":
            publisher.send(key, routing_key=key)
        assert list(several.iterconsume(limit=3)) == [True] * 3
        assert own == ["a"]
        assert sorted(sets) == ["b", "c"]
        assert several.discard_all() == 0
        several.close()


# carrot.backends, serialization, utils


# import carrot


def test_programs_that_say_carrot_get_this() -> None:
    text = """
from greenconn.compat import install_as_carrot
install_as_carrot()
install_as_carrot()
import carrot
from carrot.connection import BrokerConnection
from carrot.messaging import Consumer, Publisher
import carrot.backends.queue, greenconn.compat.carrot.connection as ours
assert BrokerConnection is ours.BrokerConnection
assert carrot.VERSION == (0, 10, 7) and carrot.__version__ == "0.10.7"
conn = BrokerConnection(hostname="localhost", backend_cls="carrot.backends.queue")
consumer = Consumer(conn, queue="feed", exchange="feed", routing_key="importer")
publisher = Publisher(conn, exchange="feed", routing_key="importer")
publisher.send({"import_feed": "http://cnn.com/rss"})
message = consumer.fetch()
print(message.payload["import_feed"])
message.ack()
conn.close()
"""
    outcome = run("-W", "error", "-c", text)
    assert (outcome.code, outcome.output, outcome.errors) == (0, "http://cnn.com/rss\n", "")


def test_a_url_keeps_its_password() -> None:
    urls = "amqp://user:HUSH@localhost:1//;amqp://user:HUSH@localhost:2//"
    connection = BrokerConnection(urls)
    connection.close()
    with pytest.raises(BrokerConnection.ConnectionException, match="is closed") as caught:
        connection.get_channel()
    pool = ConnectionPool(connection, min=1, max=1, preload=False)
    pool.acquire()
    with pytest.raises(ConnectionLimitExceeded, match="user:\\*\\*@localhost:1") as full:
        pool.acquire()
    for text in (repr(connection), connection.host, str(caught.value), str(full.value)):
        assert "HUSH" not in text
