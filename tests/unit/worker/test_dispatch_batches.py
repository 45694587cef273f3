"""Handlers that take several messages at once."""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.options import Retry
from tests.fix_wires import until
from tests.unit.worker.conftest import CAME, Broker, Spawn


@pytest.fixture(autouse=True)
def queues(broker: Broker) -> None:
    """``q`` with a dead-letter queue ``dead``."""
    broker.declare("dead")
    broker.declare("q", **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})


class Batches:
    """A handler of batches."""

    def __init__(self) -> None:
        self.all: list[list[Any]] = []
        self.messages: list[list[Any]] = []
        self.at: list[float] = []
        self.gate = Event()
        self.gate.set()
        self.failures = 0

    def __call__(self, bodies: list[Any], messages: list[Any]) -> None:
        self.all.append(list(bodies))
        self.messages.append(messages)
        self.at.append(monotonic())
        self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise ValueError("no")

    @property
    def flat(self) -> list[Any]:
        """All bodies."""
        return [body for batch in self.all for body in batch]


@pytest.fixture
def batches() -> Batches:
    """A handler."""
    return Batches()


def test_full_batches_come_at_once(spawn: Spawn, broker: Broker, batches: Batches) -> None:
    broker.publish("q", *range(30))
    consumer = spawn("q", batches, batch_size=10, batch_interval=30)
    until(lambda: len(batches.all) == 3)
    assert batches.all == [list(range(10)), list(range(10, 20)), list(range(20, 30))]
    assert all(each.acknowledged for messages in batches.messages for each in messages)
    until(lambda: consumer.stats()["handled"] == 30)
    assert consumer.stop(CAME)
    assert broker.ready("q") == 0


def test_what_does_not_fill_a_batch_waits_for_the_interval(
    spawn: Spawn, broker: Broker, batches: Batches
) -> None:
    began = monotonic()
    broker.publish("q", *range(13))
    spawn("q", batches, batch_size=10, batch_interval=0.05)
    until(lambda: len(batches.all) == 2)
    assert batches.all[1] == [10, 11, 12]
    assert batches.at[1] - began >= 0.045
    broker.publish("q", 13)
    until(lambda: len(batches.all) == 3)
    assert batches.all[2] == [13]


def test_a_batch_fails_as_one(spawn: Spawn, broker: Broker, batches: Batches) -> None:
    batches.failures = 1
    broker.publish("q", *range(4))
    consumer = spawn("q", batches, batch_size=4)
    until(lambda: broker.ready("dead") == 4)
    assert consumer.stats()["failed"] == 4
    assert consumer.stats()["rejected"] == 4


def test_a_batch_is_retried_as_one(spawn: Spawn, broker: Broker, batches: Batches) -> None:
    batches.failures = 2
    broker.publish("q", *range(4))
    consumer = spawn("q", batches, batch_size=4, retry=Retry(delay=0.01))
    until(lambda: consumer.stats()["handled"] == 4)
    assert batches.all == [[0, 1, 2, 3]] * 3
    assert consumer.stats()["retried"] == 8
    assert consumer.stop(CAME)
    assert broker.ready("q") == 0


def test_what_a_handler_settled_leaves_its_batch(spawn: Spawn, broker: Broker) -> None:
    calls: list[list[Any]] = []

    def handler(bodies: list[Any], messages: list[Any]) -> None:
        calls.append(bodies)
        messages[0].ack()
        if len(calls) < 3:
            raise ValueError

    broker.publish("q", *range(4))
    consumer = spawn("q", handler, batch_size=4, retry=Retry(delay=0.01))
    until(lambda: len(calls) == 3)
    assert calls == [[0, 1, 2, 3], [1, 2, 3], [2, 3]]
    assert consumer.stop(CAME)
    assert broker.ready("q") == 0


def test_the_judge_gets_each_message(spawn: Spawn, broker: Broker, batches: Batches) -> None:
    judged: list[Any] = []

    def judge(message: Any, exc: BaseException) -> None:
        judged.append(message.payload)
        if message.payload % 2:
            message.ack()

    batches.failures = 1
    broker.publish("q", *range(4))
    spawn("q", batches, batch_size=4, on_error=judge)
    until(lambda: judged == [0, 1, 2, 3])
    until(lambda: broker.ready("dead") == 2)


def test_what_cannot_be_decoded_leaves_its_batch(
    spawn: Spawn, broker: Broker, batches: Batches
) -> None:
    broker.publish("q", 0, 1)
    broker.connection.Producer().publish(b"{", routing_key="q", content_type="application/json")
    broker.publish("q", 3)
    spawn("q", batches, batch_size=4, batch_interval=30)
    until(lambda: batches.all == [[0, 1, 3]])
    until(lambda: broker.ready("dead") == 1)


def test_nothing_that_can_be_decoded(spawn: Spawn, broker: Broker, batches: Batches) -> None:
    for _ in range(2):
        broker.connection.Producer().publish(b"{", routing_key="q", content_type="application/json")
    spawn("q", batches, batch_size=2)
    until(lambda: broker.ready("dead") == 2)
    assert not batches.all


@pytest.mark.parametrize("how", ["stop", "pause", "kill"])
def test_what_is_gathered_is_requeued(
    spawn: Spawn, broker: Broker, batches: Batches, how: str
) -> None:
    broker.publish("q", *range(7))
    batches.gate.clear()
    consumer = spawn("q", batches, batch_size=5, batch_interval=30, prefetch_count=20)
    until(lambda: len(batches.all) == 1)
    assert consumer.stats()["in_flight"] == 5
    ending = gevent.spawn(getattr(consumer, how))
    until(lambda: broker.ready("q") == (7 if how == "kill" else 2))
    batches.gate.set()
    ending.join(CAME)
    assert batches.all == [[0, 1, 2, 3, 4]]
    if how == "pause":
        consumer.resume()
        until(lambda: consumer.stats()["received"] == 9)
        assert consumer.stop(CAME)
        assert broker.ready("q") == 2


def test_a_batch_that_waits_for_its_retry_is_requeued(
    spawn: Spawn, broker: Broker, batches: Batches
) -> None:
    batches.failures = 1
    broker.publish("q", *range(4))
    consumer = spawn("q", batches, batch_size=4, retry=Retry(delay=30))
    until(lambda: consumer.stats()["retried"] == 4)
    assert consumer.stats()["in_flight"] == 4
    assert consumer.stop(CAME)
    assert broker.ready("q") == 4


def test_without_ack_stop_does_not_wait_for_a_full_batch(
    spawn: Spawn, broker: Broker, batches: Batches
) -> None:
    broker.publish("q", *range(7))
    consumer = spawn("q", batches, batch_size=5, batch_interval=30, no_ack=True)
    until(lambda: consumer.stats()["received"] == 7)
    assert consumer.stop(CAME)
    assert batches.all == [[0, 1, 2, 3, 4], [5, 6]]


def test_an_exit_puts_the_batch_back(spawn: Spawn, broker: Broker) -> None:
    calls: list[Any] = []

    def handler(bodies: list[Any], messages: list[Any]) -> None:
        calls.append(bodies)
        if len(calls) == 1:
            messages[1].ack()
            raise gevent.GreenletExit

    broker.publish("q", *range(3))
    consumer = spawn("q", handler, batch_size=3, batch_interval=0.05)
    until(lambda: len(calls) == 2)
    assert calls[1] == [0, 2]
    assert consumer.stats()["requeued"] == 2
