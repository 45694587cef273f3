"""Exchanges and queues that were declared here, and deleted by others: the next use declares them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import gevent
import pytest

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.common import maybe_declare
from greenconn.exceptions import NotFound, RecoverableChannelError
from tests.fix_wires import until
from tests.integration.capabilities import Kind

SOON = 30.0


@pytest.fixture
def connection(broker_kind: Kind, kind_url: str, unique: str) -> Iterator[Connection]:
    """A connection over each transport in turn; the queue and the exchange ``unique`` are deleted."""
    with Connection(kind_url, transport_options=dict(broker_kind.options)) as connection:
        yield connection
        connection.channel().queue_delete(unique)
        connection.channel().exchange_delete(unique)


def delete_exchange(connection: Connection, name: str) -> None:
    """Delete it over another connection."""
    with connection.clone() as other:
        other.channel().exchange_delete(name)


def with_confirms(connection: Connection) -> Connection:
    """Return a connection whose publishes wait for the broker."""
    options = {**(connection.transport_options or {}), "confirm_publish": True}
    return connection.clone(transport_options=options)


def payloads(connection: Connection, name: str) -> list[object]:
    """Take all messages of a queue."""
    queue = Queue(name)(connection.channel())
    return [message.payload for message in iter(lambda: queue.get(no_ack=True), None)]


def test_publish_declares_an_exchange_again(
    connection: Connection, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange(unique, "direct")

    def publish(body: str) -> None:
        greenconn.publish(exchange, body, connection=connection, timeout=SOON, mandatory=False)

    publish("a")
    for _ in range(2):
        delete_exchange(connection, unique)
        publish("b")
        Exchange(unique, passive=True)(connection.channel()).declare()
    delete_exchange(connection, unique)
    greenconn.publish_many(
        exchange, ["c", "d"], connection=connection, timeout=SOON, mandatory=False
    )
    until(lambda: f"exchange '{unique}' was deleted by others" in caplog.text)
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len([each for each in warnings if "was deleted by others" in each.getMessage()]) == 3


def test_a_producer_declares_again_what_it_needs(connection: Connection, unique: str) -> None:
    """The exchange alone, or by a queue that is bound to it: in the same call if it retries."""
    exchange = Exchange(unique, "direct")
    queue = Queue(unique, exchange, "k")
    with with_confirms(connection) as confirming, confirming.Producer() as producer:
        for number in range(3):
            if number:
                delete_exchange(connection, unique)
            producer.publish(
                number, "k", exchange=exchange, declare=[queue], retry=True, timeout=SOON
            )
        delete_exchange(connection, unique)
        producer.publish("no queue", exchange=exchange, declare=[exchange], retry=True)
        maybe_declare(queue, confirming)
        assert payloads(confirming, unique) == [0, 1, 2]


def test_the_next_publish_of_a_producer_that_does_not_retry(
    connection: Connection, unique: str
) -> None:
    exchange = Exchange(unique, "direct")
    with with_confirms(connection) as confirming:
        producer = confirming.Producer(exchange=exchange)
        producer.publish("a")
        delete_exchange(connection, unique)
        with pytest.raises(NotFound):
            producer.publish("b")
        producer.publish("c")
        Exchange(unique, passive=True)(confirming.channel()).declare()


def test_a_later_publish_of_a_producer_without_confirms(
    connection: Connection, unique: str
) -> None:
    """The refusal comes some time after the publish that it is about."""
    exchange = Exchange(unique, "direct")
    producer = connection.Producer(exchange=exchange)
    producer.publish("a")
    delete_exchange(connection, unique)

    def is_declared_again() -> bool:
        with suppress(NotFound, RecoverableChannelError):
            producer.publish("b")
        with suppress(NotFound):
            Exchange(unique, passive=True)(connection.channel()).declare()
            return True
        return False

    until(is_declared_again)


def test_an_exchange_that_is_never_declared_is_missing_still(
    connection: Connection, unique: str
) -> None:
    exchange = Exchange(unique, no_declare=True)
    with with_confirms(connection) as confirming, pytest.raises(NotFound):
        confirming.Producer().publish("a", exchange=exchange, declare=[exchange], retry=True)


def test_a_queue_that_was_missing_is_declared_again(connection: Connection, unique: str) -> None:
    queue = Queue(unique)
    assert maybe_declare(queue, connection)
    with connection.clone() as other:
        other.channel().queue_delete(unique)
    with pytest.raises(NotFound):
        connection.channel().queue_purge(unique)
    assert maybe_declare(queue, connection)


def test_a_simple_buffer_is_made_again(connection: Connection, unique: str) -> None:
    """What its consumer was asking for when it was cancelled keeps nothing of it."""
    for number in range(3):
        # An exchange that ends with its last binding may do so behind the next declaration.
        buffer = connection.SimpleBuffer(f"{unique}-b", exchange_opts={"auto_delete": False})
        buffer.put(number)
        assert buffer.get(timeout=SOON).payload == number
        buffer.close()


def test_a_queue_that_several_declare_at_once(connection: Connection, unique: str) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(connection.clone()).channel() for _ in range(4)]
        for number in range(5):
            name = f"{unique}-{number}"
            queue = Queue(name, Exchange(name, "direct"), routing_key="a")
            declaring = [gevent.spawn(queue(each).declare) for each in others]
            assert [each.get(timeout=SOON) for each in declaring] == [name] * len(others)
            queue(connection.channel()).delete()


def test_a_queue_that_several_delete_at_once(connection: Connection, unique: str) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(connection.clone()).channel() for _ in range(3)]
        for _ in range(3):
            Queue(unique)(connection.channel()).declare()
            deleting = [gevent.spawn(each.queue_delete, unique) for each in others]
            assert sum(each.get(timeout=SOON) for each in deleting) == 0
