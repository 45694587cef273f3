"""The attributes of the broker for Dramatiq that programs use beside its methods."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("dramatiq")

import dramatiq
import gevent
from dramatiq.errors import ConnectionFailed
from gevent import socket

from greenconn.broker.channel import StoreChannel
from greenconn.contrib.dramatiq import GreenconnBroker, dead_letter_name
from greenconn.exceptions import NotFound
from greenconn.transport import memory
from tests.unit.fake_channel import outcome

make_actor: Any = dramatiq.actor


@pytest.fixture
def broker() -> Iterator[GreenconnBroker]:
    virtual_host = uuid.uuid4().hex
    broker = GreenconnBroker(f"memory://localhost/{virtual_host}")
    yield broker
    broker.close()
    memory.reset(virtual_host)


@pytest.fixture
def actor(broker: GreenconnBroker) -> Any:
    def work() -> None:
        raise AssertionError("it is done elsewhere")

    return make_actor(work, queue_name="work", broker=broker)


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


def test_sending_opens_a_connection_that_was_closed(broker: GreenconnBroker, actor: Any) -> None:
    actor.send()
    broker.connection.close()
    actor.send()
    assert is_connected(broker)


def test_closing_while_it_connects_fails_the_message() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        broker = GreenconnBroker(f"amqp://127.0.0.1:{silent.getsockname()[1]}//")
        sending = gevent.spawn(outcome, broker.enqueue, dramatiq.Message("q", "a", (), {}, {}))
        peer, _ = silent.accept()
        with peer:
            broker.connection.close()
            assert isinstance(sending.get(timeout=30.0), ConnectionFailed)
        broker.close()


def test_a_client_belongs_to_redis(broker: GreenconnBroker) -> None:
    with pytest.raises(AttributeError, match="only Redis has one"):
        _ = broker.client


def test_an_argument_of_another_library_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no argument 'host': put host"):
        GreenconnBroker(host="127.0.0.1")


def test_channel_that_is_deleted_while_two_ask_for_it(
    broker: GreenconnBroker, actor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor.send()
    connection = broker.connection
    open_channel, close = connection.channel, StoreChannel.close

    def slowly_opened() -> Any:
        gevent.sleep(0)
        return open_channel()

    def slowly_closed(channel: Any) -> None:
        gevent.sleep(0)
        del broker.channel
        close(channel)

    monkeypatch.setattr(connection, "channel", slowly_opened)
    asking = [gevent.spawn(lambda: broker.channel) for _ in range(2)]
    monkeypatch.setattr(StoreChannel, "close", slowly_closed)
    assert None not in [each.get(timeout=30.0) for each in asking]
