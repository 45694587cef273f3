"""A second declaration of a name in one process, with other arguments: as between two processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.common import maybe_declare
from greenconn.exceptions import BatchPublishError, PreconditionFailed, PublishRefused, Unroutable
from tests.integration.capabilities import Kind

SOON = 30.0


@pytest.fixture
def connection(broker_kind: Kind, kind_url: str, unique: str) -> Iterator[Connection]:
    """A connection over each transport in turn; the queue and the exchange ``unique`` are deleted."""
    with Connection(kind_url, transport_options=dict(broker_kind.options)) as connection:
        yield connection
        connection.channel().queue_delete(unique)
        connection.channel().exchange_delete(unique)


def refused(connection: Connection, target: Queue | Exchange, cause: str) -> None:
    """Publish to *target* in each way, which the broker refuses."""
    with pytest.raises(PublishRefused, match=cause) as caught:
        greenconn.publish(target, "b", connection=connection, timeout=SOON)
    assert isinstance(caught.value.__cause__, PreconditionFailed)
    with pytest.raises(BatchPublishError, match=cause):
        greenconn.publish_many(target, ["b"], connection=connection, timeout=SOON)
    producers: list[Callable[[], Any]] = [
        lambda: maybe_declare(target, connection),
        lambda: maybe_declare(target, connection, retry=True, max_retries=2),
        lambda: connection.Producer().publish("b", routing_key="no", declare=[target]),
        lambda: connection.Producer().publish("b", routing_key="no", declare=[target], retry=True),
    ]
    if isinstance(target, Exchange):
        producers.append(lambda: connection.Producer(exchange=target).publish("b"))
    for publish in producers:
        with pytest.raises(PreconditionFailed, match=cause):
            publish()


@pytest.mark.parametrize("differing", ["durable", "arguments"])
def test_a_queue(connection: Connection, unique: str, differing: str) -> None:
    first = Queue(unique)
    other = {
        "durable": Queue(unique, durable=False),
        "arguments": Queue(unique, queue_arguments={"x-dead-letter-exchange": "dead"}),
    }[differing]
    cause = {"durable": "'durable'", "arguments": "'x-dead-letter-exchange'"}[differing]
    greenconn.publish(first, "a", connection=connection, timeout=SOON)
    assert maybe_declare(first, connection) in (True, False)
    refused(connection, other, f"inequivalent arg {cause}")
    greenconn.publish(Queue(unique), "a", connection=connection, timeout=SOON)
    assert not maybe_declare(Queue(unique), connection)
    refused(connection, other, f"inequivalent arg {cause}")
    bound = first(connection)
    assert [message.payload for message in iter(lambda: bound.get(no_ack=True), None)] == ["a", "a"]


@pytest.mark.parametrize("differing", ["type", "durable"])
def test_an_exchange(connection: Connection, unique: str, differing: str) -> None:
    first = Exchange(unique, "direct")
    other = {
        "type": Exchange(unique, "topic"),
        "durable": Exchange(unique, "direct", durable=False),
    }[differing]
    greenconn.publish(first, "a", connection=connection, mandatory=False, timeout=SOON)
    maybe_declare(first, connection)
    refused(connection, other, f"inequivalent arg '{differing}'")
    producer = connection.Producer(exchange=first)
    producer.publish("a")
    producer.exchange = other(connection)
    with pytest.raises(PreconditionFailed, match="inequivalent arg"):
        producer.publish("a")
    greenconn.publish(Exchange(unique), "a", connection=connection, mandatory=False, timeout=SOON)


def test_another_binding_is_made(connection: Connection, unique: str) -> None:
    exchange = Exchange(unique, "direct")
    for key in ("one", "two"):
        maybe_declare(Queue(unique, exchange, key), connection)
    with connection.Producer(exchange=exchange) as producer:
        producer.publish("1", routing_key="one")
        producer.publish("2", routing_key="two")
    queue = Queue(unique)(connection)
    assert sorted(each.payload for each in iter(lambda: queue.get(no_ack=True), None)) == ["1", "2"]
    assert not maybe_declare(Queue(unique, Exchange(unique, "direct"), "one"), connection)


def test_one_that_is_never_declared_stands_for_none_that_is(
    connection: Connection, unique: str
) -> None:
    maybe_declare(Queue(unique, no_declare=True), connection)
    maybe_declare(Queue(unique), connection)
    greenconn.publish(unique, "a", connection=connection, declare=False, timeout=SOON)


def test_what_was_deleted_is_forgotten_however_it_was_declared(
    connection: Connection, unique: str
) -> None:
    exchange = Exchange(unique, "direct")
    bound = [Queue(unique, exchange, key) for key in ("one", "two")]
    greenconn.publish(Queue(unique), "a", connection=connection, timeout=SOON)
    for queue in bound:
        greenconn.publish(queue, "a", connection=connection, timeout=SOON)
    connection.channel().queue_delete(unique)
    with suppress(Unroutable):  # by which it is known
        greenconn.publish(Queue(unique), "b", connection=connection, timeout=SOON)
    for queue in bound:
        greenconn.publish(queue, "b", connection=connection, timeout=SOON)
    for key in ("one", "two"):
        greenconn.publish(exchange, key, routing_key=key, connection=connection, timeout=SOON)
    queue = Queue(unique)(connection)
    found = [each.payload for each in iter(lambda: queue.get(no_ack=True), None)]
    assert sorted(found)[-4:] == ["b", "b", "one", "two"]
