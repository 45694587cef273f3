"""The guide *Connections and transports* of kombu's first releases: a test for each statement."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from greenconn import BrokerConnection, Exchange, Queue
from greenconn.exceptions import RecoverableConnectionError
from greenconn.transport import get_transport_cls, memory, pyamqplib, resolve_transport
from greenconn.transport.amqp import Transport as AmqpTransport

# Basics


def test_there_are_several_transports_to_choose_from(memory_url: str) -> None:
    assert get_transport_cls("amqplib") is AmqpTransport
    assert get_transport_cls("pika") is AmqpTransport
    assert get_transport_cls("memory") is memory.Transport


def test_you_can_create_your_own(memory_url: str) -> None:
    class Own(memory.Transport):
        driver_name = "own"

    with BrokerConnection(memory_url, transport=Own) as connection:
        connection.connect()
        assert type(connection.transport) is Own


def test_the_default_transport_is_amqplib() -> None:
    connection = BrokerConnection("amqp://guest:guest@localhost:5672//")
    assert isinstance(connection.transport, get_transport_cls("amqplib"))
    assert isinstance(BrokerConnection().transport, pyamqplib.Transport)
    assert resolve_transport(None) is get_transport_cls("amqplib")


def test_it_is_established_when_needed_or_asked(url: str) -> None:
    with BrokerConnection(url) as connection:
        assert not connection.connected()
        connection.connect()
        assert connection.connected() is True
        answer: Any = connection.connected
        assert answer == True  # noqa: E712 - as programs of today may ask
        connection.close()
        assert connection.connected() is False
        connection.default_channel  # noqa: B018 - needs it
        assert connection.connected()


def test_connecting_again_changes_nothing(url: str) -> None:
    with BrokerConnection(url) as connection:
        assert connection.connect() is connection.connect()
        connection.release()
        connection.close()  # both, in any order, and again
        connection.release()
        assert connection.connect()
        assert connection.connected()


def test_a_context_without_arguments() -> None:
    with BrokerConnection() as connection:
        assert not connection.connected()


def test_nothing_is_opened_before_it_is_needed() -> None:
    connection = BrokerConnection("amqp://no.such.host.example//")
    assert not connection.connected()
    assert connection.as_uri() == "amqp://guest:**@no.such.host.example:5672//"
    connection.release()


def test_closing_ends_it(url: str) -> None:
    connection = BrokerConnection(url)
    channel = connection.channel()
    connection.close()
    assert not connection.connected()
    with pytest.raises(RecoverableConnectionError):
        channel.queue_declare("x")


def test_releasing_closes_what_is_in_no_pool(url: str) -> None:
    connection = BrokerConnection(url)
    connection.connect()
    connection.release()
    assert not connection.connected()


def test_releasing_returns_what_is_in_a_pool(url: str) -> None:
    pool = BrokerConnection(url).Pool(1)
    connection = pool.acquire()
    link = connection.connect()
    connection.release()
    assert link.is_open
    again = pool.acquire()
    assert isinstance(again, BrokerConnection)
    assert again.connection is link
    assert again.connected()
    again.release()
    pool.force_close_all()
    assert not link.is_open


def test_it_can_be_used_as_a_context(url: str) -> None:
    with BrokerConnection(url) as connection:
        connection.connect()
        assert connection.connected()
    assert not connection.connected()


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


def test_the_query_sets_options() -> None:
    connection = BrokerConnection("amqp://localhost/myvhost?ssl=1")
    assert (connection.virtual_host, connection.ssl) == ("myvhost", True)
    assert connection.info()["port"] == 5671
    assert BrokerConnection("amqp://localhost/myvhost?ssl=0").ssl is False
    options = "insist=1&connect_timeout=2.5&login_method=AMQPLAIN&heartbeat=7"
    connection = BrokerConnection(f"amqp://localhost/myvhost?{options}")
    assert connection.insist is True
    assert connection.connect_timeout == 2.5
    assert connection.login_method == "AMQPLAIN"
    assert connection.heartbeat == 7


def test_options_of_the_query_work(amqp_url: str) -> None:
    with BrokerConnection(f"{amqp_url}?heartbeat=7&connect_timeout=9") as connection:
        connection.connect()
        assert connection.get_heartbeat_interval() == 7


def test_no_argument_means_the_default_url() -> None:
    explicit = BrokerConnection("amqp://guest:guest@localhost:5672//")
    assert BrokerConnection().info() == explicit.info()
    assert BrokerConnection().as_uri(True) == "amqp://guest:guest@localhost:5672//"
    assert BrokerConnection("amqp://").info() == explicit.info()


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


def test_ssl_is_off_by_default_and_on_when_asked() -> None:
    assert BrokerConnection("amqp://").ssl is False
    connection = BrokerConnection("amqp://", ssl=True)
    assert (connection.ssl, connection.info()["port"]) == (True, 5671)


def test_connect_timeout_bounds_connecting() -> None:
    silent = socket.socket()
    try:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host, port = silent.getsockname()
        connection = BrokerConnection(f"amqp://{host}:{port}//", connect_timeout=0.1)
        with pytest.raises(TimeoutError):
            connection.connect()
        connection.release()
    finally:
        silent.close()


def test_transport_options_go_to_the_transport(memory_url: str) -> None:
    options = {"max_message_size": 3}
    with BrokerConnection(memory_url, transport_options=options) as connection:
        assert connection.transport_options is options
        producer = connection.Producer()
        with pytest.raises(connection.channel_errors, match="max_message_size"):
            producer.publish("longer", "anywhere")


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
