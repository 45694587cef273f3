"""Queues that share messages by their key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

import greenconn
from greenconn import Message, Queue, in_order
from greenconn.testing import MemoryBroker
from tests.fix_wires import until

SOON = 60.0
LEDGER = Queue.sharded("ledger", 4, key=lambda body: body["account"])


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker() as broker:
        yield broker


def test_a_key_has_one_queue() -> None:
    assert [queue.name for queue in LEDGER] == [f"ledger-{number}" for number in range(4)]
    assert LEDGER.queue_of("ada") == LEDGER.queue_of(b"ada")
    assert LEDGER.queue_of(7) == LEDGER.queue_of("7")
    assert LEDGER.queue_of(UUID(int=7)) == LEDGER.queue_of(str(UUID(int=7)))
    assert {LEDGER.queue_of(key).name for key in range(100)} == {each.name for each in LEDGER}
    assert LEDGER.queue_of("ada").name == "ledger-1"  # as other programs compute it
    assert repr(LEDGER) == "<ShardedQueue 'ledger' of 4 shards>"


def test_messages_go_by_their_key(broker: MemoryBroker) -> None:
    handled: list[tuple[str, Any]] = []

    def book(body: Any, message: Message) -> None:
        handled.append((message.headers["x-greenconn-key"], body["amount"]))

    consumer = greenconn.spawn_consumer(LEDGER, book, concurrency=20)
    assert consumer.wait_ready(SOON)
    greenconn.publish(LEDGER, {"account": 1, "amount": 0}, headers={"x-own": 1})
    bodies = [{"account": number % 7, "amount": number} for number in range(1, 50)]
    assert greenconn.publish_many(LEDGER, iter(bodies)) == 49
    until(lambda: len(handled) == 50, SOON)
    for key in range(7):
        amounts = [amount for each, amount in handled if each == str(key)]
        assert amounts == sorted(amounts)


def test_who_publishes_otherwise_is_handled_in_the_order_of_the_shard(broker: MemoryBroker) -> None:
    handled: list[int] = []
    consumer = greenconn.spawn_consumer(
        LEDGER, lambda body, message: handled.append(body), concurrency=20
    )
    assert consumer.wait_ready(SOON)
    for number, key in enumerate([None, 5, "x" * 300, b"\xff", ["a"]]):
        headers = {} if key is None else {"x-greenconn-key": key}
        greenconn.publish("ledger-0", number, headers=headers)
    until(lambda: len(handled) == 5, SOON)
    assert handled == [0, 1, 2, 3, 4]


def test_errors_of_keys_are_raised_to_the_publisher(broker: MemoryBroker) -> None:
    LEDGER.declare(greenconn.defaults.publishing_connection(None).default_channel)
    with pytest.raises(KeyError, match="account"):
        greenconn.publish(LEDGER, {})
    with pytest.raises(TypeError, match="key of a message to queue 'ledger' must be text, bytes"):
        greenconn.publish(LEDGER, {"account": 1.5})
    with pytest.raises(ValueError, match="must have at most 255 characters"):
        greenconn.publish(LEDGER, {"account": "x" * 256})
    with pytest.raises(ValueError, match="routing_key must be None"):
        greenconn.publish(LEDGER, {"account": 1}, routing_key="2")
    with pytest.raises(TypeError, match="headers"):
        greenconn.publish(LEDGER, {"account": 1}, headers=["x"])  # type: ignore[arg-type]
    unserializable = [{"account": 1}, {"account": 2, "what": object()}, {"account": 3}]
    with pytest.raises(greenconn.exceptions.BatchPublishError) as caught:
        greenconn.publish_many(LEDGER, unserializable)
    assert list(caught.value.failed) == [1]
    assert sum(broker.count(each.name) for each in LEDGER) == 2


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="shards of queue 'x' must be a positive integer, got 0"):
        Queue.sharded("x", 0, key=str)
    with pytest.raises(ValueError, match="name of a sharded queue must be text that is not empty"):
        Queue.sharded("", key=str)
    with pytest.raises(
        TypeError, match="key of queue 'x' must be a function of the body, got 'id'"
    ):
        Queue.sharded("x", key="id")  # type: ignore[arg-type]
    ordered = in_order(lambda body, message: 1)(lambda body, message: None)
    with pytest.raises(TypeError, match="must not have in_order with a sharded queue"):
        greenconn.spawn_consumer(LEDGER, ordered)
    with pytest.raises(ValueError, match="batch_size must be None"):
        greenconn.spawn_consumer(LEDGER, lambda bodies, messages: None, batch_size=2)
