"""What the design settled where the texts leave a question open."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn import BrokerConnection, Connection, Consumer, Producer, Queue, exceptions
from greenconn.transport import TRANSPORT_ALIASES, get_transport_cls, memory, resolve_transport
from greenconn.transport.amqp import Transport as AmqpTransport


def test_connected_is_a_plain_bool(url: str) -> None:
    with Connection(url) as connection:
        answers: list[Any] = [connection.connected]
        connection.connect()
        answers.append(connection.connected)
    assert [type(each) for each in answers] == [bool, bool]
    assert answers == [False, True]
    with pytest.raises(TypeError):
        answers[0]()


def test_connected_of_a_broker_connection_may_be_called(url: str) -> None:
    with BrokerConnection(url) as connection:
        answers: list[Any] = [connection.connected]
        connection.connect()
        answers.append(connection.connected)
    assert answers == [False, True]
    assert [each() for each in answers] == [False, True]
    assert [bool(each) for each in answers] == [False, True]
    assert [str(each) for each in answers] == ["False", "True"]
    assert [repr(each) for each in answers] == ["False", "True"]
    assert f"{answers[1]}" == "True"


def test_pools_and_copies_keep_the_class(url: str) -> None:
    with BrokerConnection(url) as connection:
        copies = [connection.clone(), copy.copy(connection), pickle.loads(pickle.dumps(connection))]
        pool = connection.Pool(1)
        with pool.acquire() as pooled:
            copies.append(pooled)
            assert not pooled.connected()
        pool.force_close_all()
        assert [isinstance(each, BrokerConnection) for each in copies] == [True] * 4


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("amqplib", AmqpTransport),
        ("pika", AmqpTransport),
        ("qpid", AmqpTransport),
        ("kombu.transport.pyamqplib.Transport", AmqpTransport),
        ("kombu.transport.pyamqplib:Transport", AmqpTransport),
        ("kombu.transport.amqplib.Transport", AmqpTransport),
        ("kombu.transport.librabbitmq.Transport", AmqpTransport),
        ("carrot.backends.pyamqplib.Backend", AmqpTransport),
        ("carrot.backends.queue.Backend", memory.Transport),
        ("kombu.transport.memory.Transport", memory.Transport),
        ("greenconn.transport.pyamqplib.Transport", AmqpTransport),
        ("greenconn.transport.memory:Transport", memory.Transport),
    ],
)
def test_old_names_and_paths_of_transports(path: str, expected: type) -> None:
    assert resolve_transport(path) is expected
    assert Connection(transport=path).get_transport_cls() is expected


def test_kombus_other_aliases_are_its_own_classes() -> None:
    pytest.importorskip("kombu")
    cls = Connection("zookeeper://localhost").get_transport_cls()
    assert cls.hosted_cls.__module__ == "kombu.transport.zookeeper"


def test_aliases_may_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSPORT_ALIASES, "house", "kombu.transport.memory:Transport")
    assert Connection("house://localhost").get_transport_cls() is memory.Transport


def test_an_unknown_alias_names_the_nearest() -> None:
    with pytest.raises(KeyError, match="Did you mean amqplib"):
        get_transport_cls("amqlib")
    with pytest.raises(KeyError, match="Did you mean memory"):
        Connection("memori://localhost")


def test_an_empty_text_comes_back_as_text(url: str, unique: str) -> None:
    got: list[Any] = []
    with Connection(url) as connection:
        queue = Queue(unique, exclusive=True)(connection.default_channel)
        queue.declare()
        for body in ("", b""):
            Producer(connection).publish(body, unique)
        with Consumer(
            connection, [queue], no_ack=True, callbacks=[lambda body, message: got.append(body)]
        ):
            for _ in range(2):
                connection.drain_events(timeout=30)
    assert got == ["", b""]


def test_force_close_all_closes_channels_in_use(url: str) -> None:
    with Connection(url) as connection:
        pool = connection.ChannelPool(2)
        held = pool.acquire()
        queue = Queue("", exclusive=True, durable=False)(connection.default_channel)
        queue.declare()
        Consumer(held, [queue(held)], on_message=print, auto_declare=False).consume()
        assert queue.queue_declare(passive=True).consumer_count == 1
        pool.force_close_all()
        with pytest.raises(exceptions.OperationalError):
            held.close()
        # The last consumer took the queue along.
        with pytest.raises(exceptions.NotFound):
            queue(connection.channel()).queue_declare(passive=True)
        assert connection.default_channel.is_open  # it was not the pool's


def test_nobody_has_to_drive_a_connection(url: str) -> None:
    with Connection(url) as connection:
        assert connection.is_evented is False
        connection.connect()
        assert connection.is_evented is False


def test_a_loop_is_woken_when_an_event_waits(url: str, unique: str) -> None:
    watched: dict[int, Any] = {}
    got = Event()

    class Loop:
        def add_reader(self, descriptor: int, callback: Any) -> None:
            watched[descriptor] = gevent.get_hub().loop.io(descriptor, 1)
            watched[descriptor].start(gevent.spawn, callback)

        def remove_reader(self, descriptor: int) -> None:
            watcher = watched.pop(descriptor)
            watcher.stop()
            watcher.close()

    with Connection(url) as connection:
        connection.connect()
        connection.register_with_event_loop(Loop())
        queue = Queue(unique, exclusive=True)(connection.default_channel)
        with Consumer(connection, [queue], no_ack=True, on_message=lambda message: got.set()):
            Producer(connection).publish("x", unique)
            assert got.wait(30)
    assert watched == {}


def test_kombus_name_of_ensure_connection(url: str) -> None:
    with Connection(url) as connection:
        link = connection._ensure_connection(max_retries=0, reraise_as_library_errors=True)
        assert link is connection.connection
        assert connection._ensure_connection() is link
