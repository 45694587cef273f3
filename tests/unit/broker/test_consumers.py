"""Consumers of one process, and what becomes of messages that need no answer."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.port import ConsumerRegistry
from greenconn.exceptions import RecoverableChannelError
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, channel_to_q, publish


@pytest.fixture
def registry() -> ConsumerRegistry:
    """Who consumes."""
    return ConsumerRegistry()


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


def test_a_sink_that_is_not_bound_gets_so_many(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to_q(connect)
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


def test_a_queue_that_is_consumed_again_meanwhile_stays(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q", auto_delete=True)
    tag = channel.basic_consume("q", sink=Sink())
    channel.basic_cancel(tag)
    channel.connection.feed("q").coming += 1  # before the store was told
    channel.connection.catch_up()
    assert "q" in fake_broker.queues


def test_a_channel_that_is_closed_meanwhile_has_no_consumer(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel = channel_to(connect)
    link = channel.connection
    channel.queue_declare("q")
    asking, may_go = Event(), Event()
    set_consumers = link.store.set_consumers

    def slow(*args: Any, **kwargs: Any) -> bool:
        asking.set()
        may_go.wait()
        return set_consumers(*args, **kwargs)

    link.store.set_consumers = slow  # type: ignore[method-assign]
    consuming = gevent.spawn(channel.basic_consume, "q", sink=Sink())
    assert asking.wait(10)
    assert list(link.feeds) == ["q"]  # it stays for the one that is about to be
    channel.close()
    may_go.set()
    with pytest.raises(RecoverableChannelError):
        consuming.get(timeout=10)
    link.catch_up()
    assert link.feeds == {}
    assert link.store.registry.other_consumers("q", "") == 0


def test_who_is_killed_while_the_store_is_asked_is_not_counted_beside_others(
    connect: Opener,
) -> None:
    channel, other = channel_to(connect), channel_to(connect)
    link = channel.connection
    channel.queue_declare("q")
    channel.basic_consume("q", sink=Sink())
    was_asked = Event()
    ask = link.ask

    def ask_and_wait(what: str, *args: Any, **kwargs: Any) -> Any:
        outcome = ask(what, *args, **kwargs)
        if what == "consuming":
            was_asked.set()
            Event().wait()
        return outcome

    link.ask = ask_and_wait  # type: ignore[method-assign]
    consuming = gevent.spawn(channel.basic_consume, "q", sink=Sink())
    assert was_asked.wait(30)
    link.ask = ask  # type: ignore[method-assign]
    assert other.connection.store.other_consumers("q") == 2
    consuming.kill()
    link.catch_up()
    assert other.connection.store.other_consumers("q") == 1


def test_who_leaves_is_counted_until_the_store_has_what_a_claim_brings(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    """Else a single active consumer that follows would begin with what came after it."""
    channel, other = channel_to(connect), channel_to(connect)
    channel.queue_declare("q", arguments={"x-single-active-consumer": True})
    tag = channel.basic_consume("q", sink=Sink())
    claimed, may_go = Event(), Event()

    def slow(method: str, argument: Any) -> None:
        if method == "claim" and argument:
            claimed.set()
            may_go.wait(30)

    fake_broker.after = slow
    publish(other, "x")
    assert claimed.wait(30)
    channel.basic_cancel(tag)
    for _ in range(10):
        gevent.sleep(0)
    assert other.connection.store.other_consumers("q") == 1
    may_go.set()
    channel.connection.catch_up()
    assert other.connection.store.other_consumers("q") == 0
    message = other.basic_get("q")
    assert message is not None
    assert message.body == "x"


def test_get_passes_over_what_is_dead(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect, delivery_limit=2, dead_letter_queue="dead")
    for name in ("q", "dead"):
        channel.queue_declare(name)
    for number in range(3):
        publish(channel, f"{number}")
    fake_broker.items["q"][0].dies_at = 0.0
    fake_broker.items["q"][1].deliveries = 2
    message = channel.basic_get("q")
    assert message is not None
    assert message.body == "2"
    channel.connection.catch_up()
    letters = [channel.basic_get("dead", no_ack=True) for _ in range(2)]
    assert [
        (each.body, each.headers["x-death"][0]["reason"]) for each in letters if each is not None
    ] == [("0", "expired"), ("1", "delivery_limit")]


def test_a_higher_limit_of_the_channel_is_used_at_once(connect: Opener) -> None:
    channel = channel_to_q(connect)
    channel.basic_qos(0, 1, True)
    channel.basic_consume("q", sink=(sink := Sink()))
    for number in range(3):
        publish(channel, str(number))
    sink.wait_for(1)
    gevent.sleep(0.01)
    assert len(sink) == 1
    channel.basic_qos(0, 3, True)
    sink.wait_for(3)
