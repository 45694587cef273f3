"""The attributes of the broker for Dramatiq that programs use beside its methods."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("dramatiq")

import dramatiq
import gevent
from dramatiq.errors import ConnectionClosed, ConnectionFailed, QueueJoinTimeout
from gevent import socket

from greenconn.contrib.dramatiq import GreenconnBroker, dead_letter_name
from greenconn.contrib.dramatiq.broker import GreenconnConsumer
from greenconn.exceptions import NotFound
from tests.unit.fake_channel import outcome


def is_connected(broker: GreenconnBroker) -> bool:
    return broker.connection.connected


def test_its_channel_looks_at_queues_and_changes_them(broker: GreenconnBroker, actor: Any) -> None:
    actor.send()
    actor.send()
    assert broker.channel.queue_declare("work", passive=True).message_count == 2
    assert broker.channel.queue_purge("work") == 2
    assert broker.get_queue_message_counts("work") == (0, 0, 0)
    broker.channel.queue_delete(dead_letter_name("work"))
    with pytest.raises(NotFound):
        broker.channel.queue_declare(dead_letter_name("work"), passive=True)
    assert broker.channel.is_open  # another one, as the error closed the former


def test_channel_and_connection_may_be_deleted_at_any_time(
    broker: GreenconnBroker, actor: Any
) -> None:
    del broker.channel
    del broker.connection
    del broker.connection
    actor.send()
    channel = broker.channel
    assert broker.channel is channel
    del broker.channel
    del broker.channel
    assert not channel.is_open
    assert is_connected(broker)
    del broker.connection
    assert not is_connected(broker)
    actor.send()
    assert is_connected(broker)
    assert broker.get_queue_message_counts("work") == (2, 0, 0)


def test_closing_while_it_connects_fails_the_message() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        broker = GreenconnBroker(f"amqp://127.0.0.1:{silent.getsockname()[1]}//")
        sending = gevent.spawn(outcome, broker.enqueue, dramatiq.Message("q", "a", (), {}, {}))
        peer, _ = silent.accept()
        with peer:
            broker.connection.close()
            error = sending.get(timeout=30.0)
            assert isinstance(error, ConnectionFailed)
            assert isinstance(error, ConnectionClosed)
        broker.close()


def test_an_argument_of_another_library_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no argument 'host': put host"):
        GreenconnBroker(host="127.0.0.1")  # type: ignore[call-arg]


def test_join_returns_when_the_timeout_finds_the_queue_empty(
    broker: GreenconnBroker, actor: Any
) -> None:
    broker.join("work", timeout=0)
    actor.send()
    with pytest.raises(QueueJoinTimeout):
        broker.join("work", timeout=1)


def test_join_waits_for_messages_that_workers_hold(broker: GreenconnBroker, actor: Any) -> None:
    actor.send()
    consumer = GreenconnConsumer(broker, "work", 1, 30_000)
    message = next(consumer)
    assert message is not None
    assert consumer.outstanding_message_count == 1
    assert broker.get_queue_message_counts("work") == (0, 0, 0)
    with pytest.raises(QueueJoinTimeout):
        broker.join("work", timeout=1)
    consumer.ack(message)
    broker.join("work", min_successes=1, timeout=30_000)
    assert consumer.outstanding_message_count == 0
    consumer.close()


def test_a_queue_is_declared_at_once_on_demand(broker: GreenconnBroker) -> None:
    broker.declare_queue("work")
    with pytest.raises(NotFound):
        broker.channel.queue_declare("work", passive=True)
    broker.declare_queue("work", ensure=True)
    assert broker.channel.queue_declare("work", passive=True).message_count == 0
    assert broker.get_declared_queues() == broker.queues == {"work"}


def test_arguments_of_queues_may_be_replaced(virtual_host: str) -> None:
    class Longer(GreenconnBroker):
        def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
            return {**super()._build_queue_arguments(queue_name), "x-max-length": 1}

    broker = Longer(f"memory://localhost/{virtual_host}", dead_message_ttl=5000)
    dead_letters, queue = broker.entities("work")
    assert queue.queue_arguments == {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "work.XQ",
        "x-max-length": 1,
    }
    assert dead_letters.queue_arguments == {"x-message-ttl": 5000}
    broker.close()


def test_a_method_that_declares_is_called_once_in_the_life_of_a_connection(
    virtual_host: str,
) -> None:
    calls = []

    class Noting(GreenconnBroker):
        def _declare_queue(self, queue_name: str) -> Any:
            calls.append(queue_name)
            return self.channel.queue_declare(queue_name, durable=True, auto_delete=False)

    broker = Noting(f"memory://localhost/{virtual_host}")
    for _ in range(2):
        broker.enqueue(dramatiq.Message("work", "a", (), {}, {}))
    assert calls == ["work"]
    del broker.connection
    broker.enqueue(dramatiq.Message("work", "a", (), {}, {}))
    assert calls == ["work", "work"]
    broker.close()


def test_a_method_that_declares_has_the_time_of_the_broker(virtual_host: str) -> None:
    class Stuck(GreenconnBroker):
        def _declare_xq_queue(self, queue_name: str) -> Any:
            gevent.sleep(3600)

    broker = Stuck(f"memory://localhost/{virtual_host}", timeout=0.1)
    with pytest.raises(ConnectionFailed, match=r"declaring 'work.XQ' took longer than 0.1 s"):
        broker.declare_queue("work", ensure=True)
    broker.close()
