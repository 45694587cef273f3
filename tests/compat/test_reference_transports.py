"""The guide *Connections and transports* of kombu's first releases: a test for each statement."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn import BrokerConnection, Exchange, Queue
from greenconn.transport import (
    get_transport_cls,
    memory,
    pyamqplib,
    resolve_transport,
)
from greenconn.transport.amqp.transport import Transport as AmqpTransport

# Basics


def test_the_default_transport_is_amqplib() -> None:
    connection = BrokerConnection("amqp://guest:guest@localhost:5672//")
    assert isinstance(connection.transport, get_transport_cls("amqplib"))
    assert isinstance(BrokerConnection().transport, pyamqplib.Transport)
    assert resolve_transport(None) is get_transport_cls("amqplib")


# URLs


def test_a_url_of_the_transport_alone_takes_the_keywords() -> None:
    connection = BrokerConnection(
        "amqp://", userid="me", password="secret", virtual_host="v", port=1234
    )
    assert connection.as_uri(include_password=True) == "amqp://me:secret@localhost:1234/v"


@pytest.mark.parametrize(
    ("url", "virtual_host"),
    [
        ("amqp://localhost//foo", "/foo"),
        ("amqp://localhost/foo", "foo"),
        ("amqp://localhost//", "/"),
        ("amqp://localhost/", "/"),
        ("amqp://localhost", "/"),
        ("amqp://localhost/%2Ffoo", "/foo"),
        ("amqp://", "/"),
    ],
)
def test_what_follows_the_first_slash_is_the_virtual_host(url: str, virtual_host: str) -> None:
    assert BrokerConnection(url).virtual_host == virtual_host
    assert BrokerConnection(url).info()["virtual_host"] == virtual_host


@pytest.mark.parametrize("form", ["url", "keyword"])
def test_redis_takes_the_virtual_host_for_its_database(
    redis_url: str, unique: str, form: str
) -> None:
    parts = BrokerConnection(redis_url).info()
    there = {name: parts[name] for name in ("hostname", "port")}
    if form == "url":
        connection = BrokerConnection("redis://{hostname}:{port}/15".format(**there))
    else:
        connection = BrokerConnection(transport="redis", virtual_host="15", **there)
    with connection, connection.SimpleQueue(unique) as queue:
        queue.put("x")
        with BrokerConnection(redis_url) as other, other.SimpleQueue(unique) as empty:
            assert len(empty) == 0
            empty.queue.delete()
        assert queue.get(timeout=30).payload == "x"
        queue.clear()
        queue.queue.delete()


# Keyword arguments


def test_defaults_for_what_the_url_does_not_have() -> None:
    given: dict[str, Any] = {"userid": "u", "password": "p", "virtual_host": "v", "port": 9}
    for name, value in given.items():
        assert getattr(BrokerConnection("amqp://h", **given), name) == value
    url = "amqp://x:y@h:7/z"
    assert BrokerConnection(url, **given).as_uri(True) == "amqp://x:y@h:7/z"
    assert BrokerConnection("amqp://x@h", **given).as_uri(True) == "amqp://x:p@h:9/v"
    assert BrokerConnection(hostname="h", **given).as_uri(True) == "amqp://u:p@h:9/v"


@pytest.mark.parametrize(
    ("transport", "expected"),
    [
        ("kombu.transport.pyamqplib.Transport", AmqpTransport),
        ("kombu.transport.pyamqp:Transport", AmqpTransport),
        ("amqplib", AmqpTransport),
        ("pika", AmqpTransport),
        ("librabbitmq", AmqpTransport),
        ("pyamqp", AmqpTransport),
        ("amqp", AmqpTransport),
        ("qpid", AmqpTransport),
        ("kombu.transport.memory.Transport", memory.Transport),
        ("memory", memory.Transport),
        (memory.Transport, memory.Transport),
    ],
)
def test_transport_is_an_alias_a_class_or_its_path(transport: Any, expected: Any) -> None:
    connection = BrokerConnection("localhost", transport=transport)
    assert type(connection.transport) is expected
    assert connection.get_transport_cls() is expected


@pytest.mark.parametrize("transport", ["amqplib", "pika", "kombu.transport.pyamqplib.Transport"])
def test_the_old_names_connect(transport: str, amqp_url: str, unique: str) -> None:
    parts = BrokerConnection(amqp_url).info()
    connection = BrokerConnection(
        hostname=parts["hostname"],
        userid=parts["userid"],
        password=parts["password"],
        virtual_host=parts["virtual_host"],
        port=parts["port"],
        transport=transport,
        insist=True,
        ssl=False,
        connect_timeout=9,
        transport_options={"client_properties": {"made": "here"}},
    )
    with connection:
        with connection.SimpleQueue(unique) as queue:
            queue.put("x")
            message = queue.get(timeout=30)
            assert message.payload == "x"
            message.ack()
            queue.queue.delete()
            queue.queue.exchange.delete()
        assert connection.connected()
        assert connection.insist is True


# The table of transports


@pytest.mark.parametrize("transport", ["amqplib", "pika", "redis", "memory"])
@pytest.mark.parametrize("kind", ["direct", "topic", "fanout"])
def test_the_table_holds(
    transport: str, kind: str, request: pytest.FixtureRequest, unique: str
) -> None:
    """A message reaches the queues that an exchange of each kind chooses."""
    source = {"redis": "redis_url", "memory": "memory_url"}.get(transport, "amqp_url")
    parts = BrokerConnection(request.getfixturevalue(source)).info()
    given = {name: parts[name] for name in ("hostname", "userid", "password", "port")}
    connection = BrokerConnection(transport=transport, virtual_host=parts["virtual_host"], **given)
    exchange = Exchange(unique, type=kind, durable=False, auto_delete=True)
    key = {"direct": "a.b", "topic": "a.*", "fanout": ""}[kind]
    with connection:
        queues = [
            Queue(f"{unique}-{number}", exchange, routing_key=binding, exclusive=True)
            for number, binding in enumerate((key, key, key and "else"))
        ]
        came: list[tuple[Any, str]] = []
        consumer = connection.Consumer(queues, no_ack=True)
        consumer.register_callback(
            lambda body, message: came.append((body, message.delivery_info["consumer_tag"]))
        )
        with consumer:
            connection.Producer().publish("x", exchange=exchange, routing_key="a.b")
            expected = 3 if kind == "fanout" else 2
            while len(came) < expected:
                connection.drain_events(timeout=30)
            assert len({tag for _, tag in came}) == expected
        for queue in queues:
            queue(connection).delete()
