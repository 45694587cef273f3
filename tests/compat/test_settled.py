"""What the design settled where the texts leave a question open."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn import Connection, Consumer, Producer, Queue, exceptions
from greenconn.transport import get_transport_cls, memory, resolve_transport
from greenconn.transport.amqp.transport import Transport as AmqpTransport


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


def test_an_unknown_alias_names_the_nearest() -> None:
    with pytest.raises(KeyError, match="Did you mean amqplib"):
        get_transport_cls("amqlib")
    with pytest.raises(KeyError, match="Did you mean memory"):
        Connection("memori://localhost")


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
