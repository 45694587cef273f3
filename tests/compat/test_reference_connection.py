"""The reference of ``kombu.connection``: a test for each statement."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from itertools import cycle
from operator import itemgetter
from typing import Any

import pytest

from greenconn import Connection, Consumer, Exchange, Producer, Queue, exceptions
from greenconn.connection import ChannelLimitExceeded, ChannelPool, ConnectionPool
from greenconn.simple import SimpleBuffer, SimpleQueue
from greenconn.transport.amqp import Transport as AmqpTransport

#: Nobody listens there.
DEAD = "amqp://127.0.0.1:1//"
QUICK: dict[str, Any] = {"interval_start": 0.01, "interval_step": 0.01, "interval_max": 0.02}


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


def test_several_urls_and_a_strategy() -> None:
    connection = Connection("amqp://foo;amqp://bar", failover_strategy="round-robin")
    assert connection.alt == ["amqp://foo", "amqp://bar"]
    assert connection.hostname == "foo"
    assert Connection(["amqp://foo", "amqp://bar"]).alt == connection.alt
    assert connection.failover_strategy is cycle


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


def test_heartbeat_is_a_number_of_seconds() -> None:
    assert Connection("amqp://", heartbeat=7).heartbeat == 7
    assert Connection("amqp://", heartbeat=1.5).heartbeat == 1.5
    assert Connection("amqp://").heartbeat == 0


def test_the_url_and_the_hostname_keyword_are_one_argument() -> None:
    arguments: Any = {"hostname": "b"}
    with pytest.raises(TypeError):
        Connection("amqp://a", **arguments)
    assert Connection(hostname="amqp://a:1/v").as_uri() == "amqp://guest:**@a:1/v"


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


def test_consumer_and_producer(connection: Connection, queue: Queue) -> None:
    got: list[Any] = []
    channel = connection.channel()
    producer = connection.Producer(channel, serializer="json")
    assert isinstance(producer, Producer)
    assert producer.channel is channel
    assert isinstance(connection.Producer(), Producer)
    connection.Producer().publish({"a": 1}, queue.name)
    consumer = connection.Consumer([queue], channel, on_message=got.append)
    assert isinstance(consumer, Consumer)
    assert consumer.channel is channel
    with connection.Consumer(queue, on_message=got.append):
        connection.drain_events(timeout=30)
    assert got[0].payload == {"a": 1}
    got[0].ack()


def test_simple_queue_is_named_thrice(connection: Connection, unique: str) -> None:
    simple = connection.SimpleQueue(
        unique,
        no_ack=True,
        queue_opts={"durable": False},
        queue_args={"x-max-length": 2},
        exchange_opts={"type": "topic"},
    )
    assert isinstance(simple, SimpleQueue)
    declared = simple.queue
    assert declared.exchange is not None
    assert (declared.name, declared.exchange.name, declared.routing_key) == (unique,) * 3
    assert (simple.no_ack, declared.durable, declared.exchange.type) == (True, False, "topic")
    assert declared.queue_arguments == {"x-max-length": 2}
    declared.delete()
    declared.exchange.delete()
    simple.close()


def test_simple_buffer_is_ephemeral(connection: Connection, unique: str) -> None:
    with connection.SimpleBuffer(unique) as simple:
        assert isinstance(simple, SimpleBuffer)
        assert simple.no_ack is True
        assert simple.queue.durable is False
        simple.put(1)
        assert simple.get(timeout=30).payload == 1


# Methods


def test_as_uri() -> None:
    connection = Connection("amqp://u:secret@h:9/v")
    assert connection.as_uri() == "amqp://u:**@h:9/v"
    assert connection.as_uri(include_password=True) == "amqp://u:secret@h:9/v"
    assert connection.as_uri(mask="xx") == "amqp://u:xx@h:9/v"
    fields = itemgetter("port", "userid", "password", "virtual_host", "transport")
    assert connection.as_uri(getfields=fields) == connection.as_uri()


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


def test_errors_are_tuples_for_except(connection: Connection) -> None:
    connection_errors = connection.connection_errors
    assert issubclass(exceptions.ConnectionError, connection_errors)
    assert issubclass(exceptions.ChannelError, connection.channel_errors)
    for group in (connection.recoverable_connection_errors, connection.recoverable_channel_errors):
        assert all(issubclass(error, Exception) for error in group)
    with pytest.raises(connection.channel_errors):
        Queue("unheard-of")(connection.channel()).queue_declare(passive=True)


def test_clone(connection: Connection) -> None:
    clone = connection.clone()
    assert clone.info() == connection.info()
    assert clone is not connection
    assert connection.clone(userid="other").userid == "other"


def test_close_and_release_and_collect(connection: Connection) -> None:
    ends = (connection.close, connection.release, lambda: connection.collect(socket_timeout=0.1))
    for end in ends:
        assert connection.connect() is connection.connection
        end()
        assert not connection.connected
        end()


def test_completes_cycle() -> None:
    connection = Connection("amqp://a;amqp://b;amqp://c")
    completed = [connection.completes_cycle(retries) for retries in range(6)]
    assert completed == [False, False, True, False, False, True]


def test_cycle_gives_the_next_url() -> None:
    connection = Connection("amqp://a;amqp://b")
    assert connection.cycle is not None
    assert next(connection.cycle) == "amqp://b"


def test_a_strategy_may_be_any_iterator_of_urls() -> None:
    def backwards(urls: list[str]) -> Iterator[str]:
        while True:
            yield from reversed(urls)

    connection = Connection("amqp://a;amqp://b;amqp://c", failover_strategy=backwards)
    connection.maybe_switch_next()
    assert connection.hostname == "b"
    connection.maybe_switch_next()
    assert connection.hostname == "a"


def test_create_transport_and_its_class() -> None:
    connection = Connection("amqp://")
    assert connection.get_transport_cls() is AmqpTransport
    made = connection.create_transport()
    assert type(made) is AmqpTransport
    assert made is not connection.transport
    assert made.client is connection


def test_the_default_channel(connection: Connection, queue: Queue) -> None:
    channel = connection.default_channel
    assert connection.default_channel is channel
    connection.close()
    assert not channel.is_open
    # A connection in the place of a channel means it.
    assert Producer(connection).channel is connection.default_channel
    assert Queue("x")(connection).channel is connection.default_channel


def test_drain_events_waits_for_one_event(connection: Connection, queue: Queue) -> None:
    got: list[Any] = []
    with Consumer(connection, [queue], no_ack=True, on_message=got.append):
        for body in ("a", "b"):
            Producer(connection).publish(body, queue.name)
        connection.drain_events(timeout=30)
        assert len(got) == 1
        connection.drain_events(timeout=30)
        assert [each.payload for each in got] == ["a", "b"]
        with pytest.raises(TimeoutError):  # socket.timeout
            connection.drain_events(timeout=0.02)


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


def test_ensure_revives_and_gives_up(connection: Connection) -> None:
    class Sender:
        channels: list[Any] = []
        calls = 0

        def revive(self, channel: Any) -> None:
            self.channels.append(channel)

        def send(self) -> None:
            self.calls += 1
            raise connection.recoverable_connection_errors[0]("gone")

    sender = Sender()
    revived: list[Any] = []
    with pytest.raises(exceptions.OperationalError, match="gone"):
        connection.ensure(sender, sender.send, max_retries=2, on_revive=revived.append, **QUICK)()
    assert sender.calls == 3
    assert sender.channels == revived == [connection.default_channel] * 2


def test_ensure_connection(connection: Connection) -> None:
    assert connection.ensure_connection() is connection
    heard: list[Any] = []
    dead = Connection(DEAD, connect_timeout=1)
    with pytest.raises(exceptions.OperationalError):
        dead.ensure_connection(
            errback=lambda exc, interval: heard.append((exc, interval)), max_retries=2, **QUICK
        )
    assert [round(interval, 2) for _, interval in heard] == [0.01, 0.02]
    assert all(isinstance(exc, ConnectionRefusedError) for exc, _ in heard)
    dead.release()


def test_heartbeats(connection: Connection) -> None:
    connection.connect()
    assert connection.heartbeat_check(rate=2) is None
    if connection.supports_heartbeats:
        assert connection.get_heartbeat_interval() > 0
    else:
        assert connection.get_heartbeat_interval() == 0


def test_host_and_info() -> None:
    connection = Connection("amqp://u:p@h:9/v", heartbeat=3)
    assert connection.host == "h:9"
    info = connection.info()
    assert [info[name] for name in ("hostname", "port", "userid", "password")] == ["h", 9, "u", "p"]
    assert Connection(**info).info() == info


def test_management(connection: Connection, queue: Queue, unique: str) -> None:
    if connection.transport.driver_type != "amqp":
        binding = {"destination": unique, "source": unique, "routing_key": unique}
        assert connection.manager.get_bindings() == [binding]
        assert connection.get_manager().get_bindings() == [binding]
    else:
        with pytest.raises(exceptions.OperationalError, match="needs the plugin"):
            connection.get_manager(port=1).get_bindings()


def test_maybe_close_channel_ignores_errors(connection: Connection) -> None:
    channel = connection.channel()
    connection.maybe_close_channel(channel)
    connection.maybe_close_channel(channel)
    connection.close()
    connection.maybe_close_channel(channel)


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
