"""A broker that waits for an answer no longer: who kept it waiting is told, the others go on.

RabbitMQ 4.3 has no timeout for classic queues; test_delivery_limit.py has that of its quorum queues.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.exceptions import RecoverableChannelError
from greenconn.worker import ConsumerGreenlet, spawn_consumer
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_wires import until

CAME = 30.0
#: Milliseconds.
TIMEOUT = 500


@pytest.fixture
def impatient(own_rabbitmq: RabbitMQ) -> Iterator[RabbitMQ]:
    """A broker whose new channels wait for answers half a second."""
    with Connection(own_rabbitmq.url) as connection:
        version = connection.connection.server_version
    if version is not None and version >= (4, 3):
        pytest.skip("RabbitMQ 4.3 has no consumer timeout for classic queues")
    before = "element(2, application:get_env(rabbit, consumer_timeout))"
    default = own_rabbitmq.evaluate(before)
    _set(own_rabbitmq, consumer_timeout=TIMEOUT, channel_tick_interval=100)
    yield own_rabbitmq
    _set(own_rabbitmq, consumer_timeout=default, channel_tick_interval=60000)


def _set(broker: RabbitMQ, **settings: object) -> None:
    sets = (f"application:set_env(rabbit, {name}, {value})" for name, value in settings.items())
    broker.evaluate(", ".join(sets))


@pytest.fixture
def connection(impatient: RabbitMQ) -> Iterator[Connection]:
    with Connection(impatient.url) as connection:
        yield connection


class Pair:
    """A consumer that takes its time and one that does not, on one channel."""

    def __init__(self, connection: Connection, unique: str, **options: Any) -> None:
        self.connection = connection
        self.slow_name, self.quick_name = f"{unique}-slow", f"{unique}-quick"
        self.seen: list[str] = []
        self.quick: list[Any] = []
        self.errors: list[BaseException] = []
        self.go_on = gevent.event.Event()
        self.consumers: list[ConsumerGreenlet] = [
            spawn_consumer(self.slow_name, self.be_slow, connection=connection, **options),
            spawn_consumer(
                self.quick_name,
                lambda body, message: self.quick.append(body),
                connection=connection,
            ),
        ]
        for consumer in self.consumers:
            assert consumer.wait_ready(CAME)

    def be_slow(self, body: Any, message: Any) -> None:
        if isinstance(message, list):
            message = message[0]
        self.seen.append("began")
        if len(self.seen) == 1:
            assert self.go_on.wait(CAME)
            try:
                message.ack()
            except Exception as exc:
                self.errors.append(exc)

    def publish(self, name: str, body: Any) -> None:
        self.connection.Producer().publish(body, routing_key=name)

    def end(self) -> None:
        for consumer in self.consumers:
            assert consumer.stop(CAME)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2, "batch_interval": 0.05}], ids=str)
def test_others_of_the_channel_go_on_and_the_culprit_is_reported(
    connection: Connection, unique: str, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    pair = Pair(connection, unique, **options)
    pair.publish(pair.quick_name, 1)
    pair.publish(pair.slow_name, "long")
    until(lambda: "for longer than the broker's consumer timeout" in caplog.text)
    (record,) = [each for each in caplog.records if "longer than" in each.msg]
    assert pair.slow_name in record.getMessage()
    assert "was in its handler" in record.getMessage()
    assert "raise consumer_timeout" in record.getMessage()
    # Both are back, the quick one at once.
    for consumer in pair.consumers:
        assert consumer.wait_ready(CAME)
    pair.publish(pair.quick_name, 2)
    until(lambda: pair.quick == [1, 2])
    assert connection.session.generation == 1
    pair.go_on.set()
    until(lambda: len(pair.seen) == 2)  # the message came again
    (error,) = pair.errors  # and its first handler was told that its answer is too late
    assert isinstance(error, RecoverableChannelError)
    assert "ack sooner" in str(error)
    pair.end()


@pytest.mark.full
def test_the_next_time_nobody_else_suffers(
    connection: Connection, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    never = gevent.event.Event()
    name = f"{unique}-slow"
    slow = spawn_consumer(name, lambda body, message: never.wait(), connection=connection)
    quick = spawn_consumer(f"{unique}-quick", print, connection=connection)
    assert slow.wait_ready(CAME)
    assert quick.wait_ready(CAME)
    connection.Producer().publish("long", routing_key=name)
    until(lambda: caplog.text.count("longer than the broker's consumer timeout") == 2)
    again = [each.getMessage() for each in caplog.records if "is restarted" in each.msg]
    assert sum(f"{unique}-quick" in each for each in again) <= 1
    slow.kill()
    assert quick.stop(CAME)


@pytest.mark.full
def test_a_message_that_waits_for_a_handler_counts_too(
    connection: Connection, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    handled: list[int] = []

    def handle(body: int, message: Any) -> None:
        handled.append(body)
        gevent.sleep(0.35)  # in time each, but not all ten that the broker has sent

    caplog.set_level("INFO")
    consumer = spawn_consumer(unique, handle, connection=connection)
    assert consumer.wait_ready(CAME)
    for body in range(4):
        connection.Producer().publish(body, routing_key=unique)
    until(lambda: "longer than the broker's consumer timeout" in caplog.text)
    assert connection.session.generation == 1
    consumer.kill()
