"""The broker in the place of Dramatiq's ``RabbitmqBroker``."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("dramatiq")

import dramatiq
from dramatiq.errors import ConnectionClosed

from greenconn.contrib.dramatiq import RabbitmqBroker
from greenconn.exceptions import RecoverableConnectionError

LOGIN = SimpleNamespace(username="ada", password="pw")
MESSAGE: Any = dramatiq.Message("work", "a", (), {}, {})


@pytest.fixture
def rabbitmq(virtual_host: str) -> Iterator[RabbitmqBroker]:
    broker = RabbitmqBroker(url=f"memory://localhost/{virtual_host}")
    yield broker
    broker.close()


def uri(broker: RabbitmqBroker) -> str:
    return broker.connection.as_uri(include_password=True)


def states(broker: RabbitmqBroker) -> tuple[bool, bool]:
    return broker.connection.is_open, broker.connection.is_closed


def test_it_takes_the_arguments_of_dramatiqs_broker() -> None:
    broker = RabbitmqBroker(
        host="rabbit", port=5673, credentials=LOGIN, heartbeat=5, blocked_connection_timeout=3,
        max_priority=10, confirm_delivery=True, timeout=7.0,
        transport_options={"confirm_timeout": 4},
    )  # fmt: skip
    assert uri(broker) == "amqp://ada:pw@rabbit:5673//"
    assert broker.connection.heartbeat == 5
    assert broker.connection.transport_options == {"blocked_timeout": 3, "confirm_timeout": 4}
    assert (broker.confirm_delivery, broker.max_priority) == (True, 10)
    assert uri(RabbitmqBroker()) == "amqp://guest:guest@localhost:5672//"


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "amqp://a", "host": "a"},
        {"url": "amqp://a", "parameters": [{"host": "a"}]},
        {"host": "a", "parameters": [{"host": "a"}]},
    ],
)
def test_arguments_that_exclude_each_other(arguments: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="only one of url, parameters and pika's parameters"):
        RabbitmqBroker(**arguments)
    with pytest.raises(TypeError, match="no argument 'nothing'"):
        RabbitmqBroker(nothing=1)


def test_queues_are_those_of_dramatiqs_broker() -> None:
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work.XQ"}
    assert RabbitmqBroker().entities("work").queue.queue_arguments == arguments
    quorum = RabbitmqBroker(quorum=True).entities("work").queue.queue_arguments
    assert quorum == {**arguments, "x-queue-type": "quorum"}
    with_priorities = RabbitmqBroker(max_priority=5).entities("work").queue.queue_arguments
    assert with_priorities == {**arguments, "x-max-priority": 5}


def test_connection_and_channel_have_pikas_attributes(rabbitmq: RabbitmqBroker) -> None:
    assert states(rabbitmq) == (False, True)
    assert not vars(rabbitmq.state)
    rabbitmq.enqueue(MESSAGE)
    assert states(rabbitmq) == (True, False)
    assert vars(rabbitmq.state) == {"connection": rabbitmq.connection}
    reply = rabbitmq.channel.queue_declare("work", passive=True)
    assert reply.method.message_count == 1
    assert rabbitmq.state.channel is rabbitmq.channel
    rabbitmq.connection.close()
    assert states(rabbitmq) == (False, True)
    assert not vars(rabbitmq.state)
    rabbitmq.enqueue(MESSAGE)
    assert states(rabbitmq) == (True, False)


class Failing(RabbitmqBroker):
    """One that fails to declare a queue as often as the test says."""

    error: Any = RecoverableConnectionError("lost")
    failures = 1

    def _declare_queue(self, queue_name: str) -> Any:
        if self.failures:
            self.failures -= 1
            raise self.error
        return super()._declare_queue(queue_name)


@pytest.mark.parametrize("library", ["greenconn", "pika"])
def test_a_queue_is_declared_again_after_a_lost_connection(virtual_host: str, library: str) -> None:
    broker = Failing(url=f"memory://localhost/{virtual_host}")
    if library == "pika":
        broker.error = pytest.importorskip("pika.exceptions").AMQPConnectionError("lost")
    broker.enqueue(MESSAGE)
    assert broker.get_queue_message_counts("work") == (1, 0, 0)
    del broker.connection
    broker.failures = 3
    with pytest.raises(ConnectionClosed, match="lost"):
        broker.enqueue(MESSAGE)
    assert broker.failures == 1
    broker.close()
