"""The reference of ``carrot.connection``: a test for each statement; and carrot's other modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from copy import copy
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.compat.carrot import backends, serialization
from greenconn.compat.carrot.backends.base import BaseBackend, QueueAlreadyExistsWarning
from greenconn.compat.carrot.connection import (
    AMQPConnectionException,
    BrokerConnection,
    ConnectionLimitExceeded,
    ConnectionPool,
    DjangoBrokerConnection,
    get_django_conninfo,
)
from greenconn.compat.carrot.messaging import Consumer, ConsumerSet, Messaging, Publisher
from greenconn.exceptions import AccessRefused, ContentDisallowed, NotFound, SerializerNotInstalled
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
        *("hostname", "userid", "password", "virtual_host", "port", "pool", "kwargs")
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


def test_info_reports_the_parameters() -> None:
    assert BrokerConnection("host", "me", "secret").info() == {
        "hostname": "host",
        "userid": "me",
        "password": "secret",
        "virtual_host": "/",
        "port": 5672,
        "insist": False,
        "ssl": False,
        "transport_cls": "amqplib",
        "backend_cls": "amqplib",
        "connect_timeout": 5,
    }


def test_copies_are_equal_and_closed(broker: BrokerConnection) -> None:
    broker.connect()
    copied = copy(broker)
    assert copied.info() == broker.info()
    assert not copied.connected


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


def test_connection_is_opened_when_it_is_needed(broker: BrokerConnection) -> None:
    assert broker.connection.connected
    with broker as entered:
        assert entered is broker
    assert broker.connection is None


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


def test_errors_are_those_of_the_transport(broker: BrokerConnection) -> None:
    assert issubclass(AMQPConnectionException, broker.connection_errors)
    assert issubclass(NotFound, broker.channel_errors)


def test_drain_events_takes_a_timeout(broker: BrokerConnection) -> None:
    with pytest.raises(TimeoutError):
        broker.drain_events(timeout=0.01)


def test_ensure_connection_connects(broker: BrokerConnection) -> None:
    assert broker.ensure_connection() is broker
    assert broker.connected


def test_ensure_connection_reports_each_failure_and_gives_up() -> None:
    signature = inspect.signature(BrokerConnection.ensure_connection)
    defaults = {name: each.default for name, each in signature.parameters.items()}
    assert defaults == {
        "self": inspect.Parameter.empty,
        "errback": None,
        "max_retries": None,
        "interval_start": 2,
        "interval_step": 2,
        "interval_max": 30,
    }
    nobody = BrokerConnection("127.0.0.1", port=1)
    notified: list[float] = []
    with pytest.raises(nobody.connection_errors):
        nobody.ensure_connection(
            lambda exc, interval: notified.append(interval),
            max_retries=3,
            interval_start=0.01,
            interval_step=0.01,
            interval_max=0.02,
        )
    assert notified == [0.01, 0.02, 0.02]


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


def test_a_pool_without_preload_opens_nothing(make: Make) -> None:
    source = make()
    pool = ConnectionPool(source, preload=False)
    assert not source.connected
    assert len({id(pool.acquire()) for _ in range(20)}) == 20  # no limit


def test_who_waits_for_a_pool_gets_what_is_released(make: Make) -> None:
    pool = ConnectionPool(make(), min=1, max=1)
    held = pool.acquire()
    waiting = gevent.spawn(pool.acquire, block=True, timeout=20)
    gevent.idle()
    held.release()
    assert waiting.get(timeout=20) is held
    held.release()


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


def test_get_django_conninfo_reads_newer_settings() -> None:
    found = get_django_conninfo(
        SimpleNamespace(
            BROKER_URL="redis://:pw@cache:6380/3",
            BROKER_PORT=6381,
            BROKER_USE_SSL=True,
            BROKER_CONNECTION_TIMEOUT=2,
            BROKER_HEARTBEAT=10,
            BROKER_TRANSPORT_OPTIONS={"visibility_timeout": 60},
        )
    )
    assert found["backend_cls"] == "redis"
    assert (found["hostname"], found["port"], found["virtual_host"]) == ("cache", 6381, "3")
    assert (found["ssl"], found["connect_timeout"], found["heartbeat"]) == (True, 2, 10)
    assert found["transport_options"] == {"visibility_timeout": 60}


def test_get_django_conninfo_warns_of_older_names() -> None:
    old = SimpleNamespace(AMQP_SERVER="old", AMQP_USER="me")
    with pytest.warns(DeprecationWarning, match="has been renamed to") as caught:
        found = get_django_conninfo(old)
    assert (found["hostname"], found["userid"]) == ("old", "me")
    assert ["AMQP_USER" in str(caught[0].message), "AMQP_SERVER" in str(caught[1].message)] == [
        *(True, True)
    ]


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


def test_iterqueue_takes_as_many_as_its_limit(
    broker: BrokerConnection, unique: str, names: dict[str, Any]
) -> None:
    with (
        Consumer(broker, queue=unique, auto_ack=True, **names) as consumer,
        Publisher(broker, **names) as publisher,
    ):
        for number in range(3):
            publisher.send(number)
        publisher.backend.queue_exists(unique)
        assert [each.payload for each in consumer.iterqueue(limit=2)] == [0, 1]
        assert [each.payload for each in consumer.iterqueue()] == [2]
        assert next(iter(consumer)) is None


def test_what_waits_is_discarded_all_or_by_a_filter(
    broker: BrokerConnection, unique: str, names: dict[str, Any]
) -> None:
    with (
        Consumer(broker, queue=unique, **names) as consumer,
        Publisher(broker, **names) as publisher,
    ):
        for number in range(4):
            publisher.send(number)
        publisher.backend.queue_exists(unique)
        assert consumer.discard_all(lambda message: message.decode() % 2) == 2
        left = [consumer.fetch(no_ack=True).payload for _ in range(2)]
        assert sorted(left) == [0, 2]
        publisher.send(5)
        publisher.backend.queue_exists(unique)
        assert consumer.discard_all() == 1
        consumer.auto_ack = True
        with pytest.raises(ValueError, match="no_ack must be False"):
            consumer.discard_all(lambda message: True)


def test_a_consumer_may_wait_again(
    broker: BrokerConnection, unique: str, names: dict[str, Any]
) -> None:
    got: list[Any] = []
    with (
        Consumer(broker, queue=unique, **names) as consumer,
        Publisher(broker, **names) as publisher,
    ):
        consumer.register_callback(keeper(got))
        for number in range(3):
            publisher.send(number)
        with gevent.Timeout(30):
            consumer.wait(limit=1)
            consumer.wait(limit=1)
            assert list(consumer.iterconsume(limit=1)) == [True]
        assert got == [0, 1, 2]


def test_messages_can_be_rejected_and_requeued(
    broker: BrokerConnection, unique: str, names: dict[str, Any]
) -> None:
    with (
        Consumer(broker, queue=unique, **names) as consumer,
        Publisher(broker, **names) as publisher,
    ):
        publisher.send("again")
        publisher.backend.queue_exists(unique)
        consumer.fetch().requeue()
        consumer.backend.queue_exists(unique)
        again = consumer.fetch()
        assert again.payload == "again"
        again.reject()
        with pytest.raises(again.MessageStateError):
            again.ack()
        consumer.backend.queue_exists(unique)
        assert consumer.fetch() is None


def test_settings_may_be_those_of_the_class(broker: BrokerConnection, unique: str) -> None:
    class Post(Publisher):
        exchange = f"{unique}.post"
        exchange_type = "topic"
        routing_key = "a.b"
        auto_delete = True
        delivery_mode = "non-persistent"

    class Box(Consumer):
        queue = unique
        exchange = f"{unique}.post"
        exchange_type = "topic"
        routing_key = "a.*"
        auto_delete = True
        auto_ack = True

    with Box(broker) as box, Post(broker) as post:
        assert post.delivery_mode == 1
        post.send("hello")
        post.backend.queue_exists(unique)
        assert box.fetch().payload == "hello"


def test_headers_exchanges_take_headers_for_routing_keys(
    broker: BrokerConnection, unique: str
) -> None:
    names: dict[str, Any] = {"exchange": unique, "exchange_type": "headers", "auto_delete": True}
    wanted = {"x-match": "all", "kind": "letter"}
    with (
        Consumer(broker, queue=unique, routing_key=wanted, **names) as consumer,
        Publisher(broker, **names) as publisher,
    ):
        publisher.send("bill", routing_key={"kind": "bill"})
        publisher.send("letter", routing_key={"kind": "letter"})
        publisher.backend.queue_exists(unique)
        assert consumer.fetch(no_ack=True).payload == "letter"
        assert consumer.fetch() is None


def test_a_consumer_warns_of_a_queue_that_exists(broker: BrokerConnection, unique: str) -> None:
    names: dict[str, Any] = {"exchange": unique, "auto_delete": True, "warn_if_exists": True}
    with Consumer(broker, queue=unique, **names) as consumer:
        with pytest.warns(QueueAlreadyExistsWarning, match="its settings are not changed"):
            Consumer(broker, queue=unique, **names).close()
        assert consumer.backend.queue_exists(unique)
        consumer.backend.queue_delete(unique)
        assert not consumer.backend.queue_exists(unique)


def test_exclusive_implies_auto_delete_and_nothing_is_declared_unasked(
    broker: BrokerConnection, unique: str
) -> None:
    consumer = Consumer(broker, queue=unique, exclusive=True, auto_declare=False)
    assert consumer.auto_delete
    assert not consumer.backend.queue_exists(unique)
    consumer.declare()
    assert consumer.backend.queue_exists(unique)
    consumer.qos(prefetch_count=1)
    consumer.close()


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


def test_each_greenlet_may_publish_over_one_connection(
    broker: BrokerConnection, unique: str, names: dict[str, Any]
) -> None:
    got: list[Any] = []
    done = Event()

    def keep(data: Any, message: Any) -> None:
        got.append(data)
        if len(got) == 50:
            done.set()

    def send(number: int) -> None:
        with Publisher(broker, **names) as publisher:
            publisher.send(number)

    with Consumer(broker, queue=unique, auto_ack=True, **names) as consumer:
        consumer.register_callback(keep)
        draining = gevent.spawn(consumer.wait)
        gevent.joinall([gevent.spawn(send, number) for number in range(50)], raise_error=True)
        assert done.wait(30)
        draining.kill()
    assert sorted(got) == list(range(50))


# carrot.backends, serialization, utils


def test_backends_by_name() -> None:
    default = backends.get_backend_cls()
    assert default.transport == "amqp"
    for name in ("amqp", "amqplib", "pyamqplib", "carrot.backends.pyamqplib"):
        assert backends.get_backend_cls(name) is default
    assert backends.get_backend_cls("carrot.backends.pyamqplib.Backend").transport == "amqp"
    assert backends.get_backend_cls("pika").transport == "amqp"
    for name in ("memory", "mem", "queue", "carrot.backends.queue"):
        assert backends.get_backend_cls(name).transport == "memory"
    assert backends.get_backend_cls(BaseBackend) is BaseBackend
    assert backends.resolve_backend("amqp!extra") == ("carrot.backends.pyamqplib", "extra")
    assert backends.resolve_backend() == ("carrot.backends.pyamqplib", None)
    assert backends.get_backend_cls("pyamqp").transport == "pyamqp"
    with pytest.raises(KeyError, match="nonsense"):
        backends.get_backend_cls("nonsense")


def test_data_is_encoded_and_decoded() -> None:
    assert serialization.encode({"a": 1}) == ("application/json", "utf-8", '{"a":1}')
    assert serialization.encode("é") == ("text/plain", "utf-8", "é".encode())
    assert serialization.encode(b"x", serializer="raw") == ("application/data", "binary", b"x")
    assert serialization.decode('{"a": 1}', "application/json", "utf-8") == {"a": 1}
    with pytest.raises(SerializerNotInstalled, match="nonsense"):
        serialization.encode(1, serializer="nonsense")
    kind, encoding, body = serialization.encode([1], serializer="pickle")
    with pytest.raises(ContentDisallowed):
        serialization.decode(body, kind, encoding)
    with pytest.raises(SerializerNotInstalled, match="nonsense"):
        serialization.set_default_serializer("nonsense")
    serialization.set_default_serializer("json")


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
