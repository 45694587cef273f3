"""Consumers of one process, and what becomes of messages that need no answer."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.broker.consumers import ConsumerRegistry
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, publish


@pytest.fixture
def registry() -> ConsumerRegistry:
    """Who consumes."""
    return ConsumerRegistry()


def test_others_are_counted(registry: ConsumerRegistry) -> None:
    assert registry.other_consumers("q", "a") == 0
    assert registry.set_consumers("q", "a", 2, False)
    assert registry.set_consumers("q", "b", 3, False)
    assert registry.set_consumers("p", "b", 5, False)
    assert [registry.other_consumers("q", name) for name in ("a", "b", "c")] == [3, 2, 5]
    assert registry.set_consumers("q", "b", 1, False)
    assert registry.other_consumers("q", "a") == 1
    assert registry.set_consumers("q", "b", 0, False)
    assert registry.other_consumers("q", "a") == 0


def test_one_that_wants_to_be_alone(registry: ConsumerRegistry) -> None:
    assert registry.set_consumers("q", "a", 1, True)
    assert not registry.set_consumers("q", "b", 1, False)
    assert not registry.set_consumers("q", "b", 1, True)
    assert registry.set_consumers("q", "b", 0, True)  # who leaves is never refused
    assert registry.set_consumers("q", "a", 1, True)
    assert registry.set_consumers("p", "b", 1, True)
    assert registry.set_consumers("q", "a", 0, True)
    assert registry.set_consumers("q", "b", 1, False)
    assert not registry.set_consumers("q", "a", 1, True)
    assert registry.other_consumers("q", "a") == 1


def test_a_link_that_is_gone(registry: ConsumerRegistry) -> None:
    registry.set_consumers("q", "a", 1, True)
    registry.set_consumers("p", "a", 1, False)
    registry.set_consumers("p", "b", 1, False)
    registry.leave("a")
    assert (registry.other_consumers("q", "c"), registry.other_consumers("p", "c")) == (0, 1)
    assert registry.set_consumers("q", "b", 1, True)
    registry.leave("b")
    registry.leave("b")
    registry.set_consumers("q", "c", 0, False)
    assert not registry._queues


@pytest.mark.parametrize("no_ack", [True, False])
def test_an_event_that_was_drained(connect: Opener, fake_broker: FakeBroker, no_ack: bool) -> None:
    """Without acks it is done then, and not before."""
    channel = channel_to(connect)
    link = channel.connection
    channel.queue_declare("q")
    publish(channel, "x")
    got: list[Any] = []
    channel.basic_consume("q", no_ack=no_ack, callback=got.append)
    until(lambda: len(link.events))
    link.catch_up()
    assert fake_broker.bodies("q") == [b"x"]
    link.drain(10)
    link.catch_up()
    assert [each.body for each in got] == ["x"]
    assert fake_broker.bodies("q") == ([] if no_ack else [b"x"])
    assert len(channel.deliveries.unacked) == (not no_ack)


def test_an_event_of_a_consumer_that_left(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    link = channel.connection
    channel.queue_declare("q")
    publish(channel, "x")
    tag = channel.basic_consume("q", no_ack=True, callback=lambda message: None)
    until(lambda: len(link.events))
    channel.basic_cancel(tag)
    with pytest.raises(TimeoutError):
        link.drain(0)
    link.catch_up()
    assert [item.claim for item in fake_broker.items["q"]] == [0]


def test_a_sink_takes_what_needs_no_ack(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    publish(channel, "x")
    sink = Sink()
    channel.basic_consume("q", no_ack=True, sink=sink)
    sink.wait_for(1)
    channel.connection.catch_up()
    assert fake_broker.bodies("q") == [b"x"]
    assert sink.taken is not None
    sink.taken(sink[0])
    channel.connection.catch_up()
    assert fake_broker.bodies("q") == []


def test_a_sink_that_is_not_bound_gets_so_many(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    for number in range(300):
        publish(channel, f"{number}")
    sink = Sink()
    channel.basic_consume("q", sink=sink)
    sink.wait_for(256)
    channel.connection.catch_up()
    assert len(sink) == 256
    assert sink.taken is not None
    sink.taken(sink[0])
    sink.wait_for(257)
    assert len(channel.deliveries.unacked) == 257
