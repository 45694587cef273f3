"""The methods of the channel over a store: what they do by default, and what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.channel import StoreChannel
from greenconn.broker.entities import SupportedArguments
from greenconn.broker.link import StoreLink
from greenconn.exceptions import (
    AMQPNotImplementedError,
    MessageStateError,
    NotFound,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener, refused_elsewhere
from tests.unit.broker.fake_store import FakeBroker, FakeStore
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to_q, publish

Channel = StoreChannel[StoreLink]


@pytest.fixture
def channel(connect: Opener) -> Channel:
    """A channel with the queue ``q``."""
    return channel_to_q(connect)


def anew(channel: Channel) -> Channel:
    """Return another channel of the same connection."""
    return channel.connection.transport.create_channel(channel.connection)


def get(channel: Channel, queue: str = "q") -> Any:
    message = channel.basic_get(queue)
    assert message is not None
    return message


def deaf(message: Any) -> None:
    """Take a message, and do nothing."""


# -- exchanges and queues


# -- prefetch


def test_a_prefetch_in_bytes_is_refused(channel: Channel) -> None:
    with pytest.raises(AMQPNotImplementedError) as caught:
        channel.basic_qos(1, 10)
    assert caught.value.method_sig == (60, 10)  # basic.qos
    assert channel.prefetch.count == 0


# -- consumers


def test_a_consumer_whose_start_is_interrupted_leaves_nothing(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, may_go = Event(), Event()

    def set_consumers(*args: Any, **options: Any) -> bool:
        asked.set()
        return may_go.wait(30)

    with monkeypatch.context() as patched:
        patched.setattr(channel.connection.store, "set_consumers", set_consumers)
        caller = gevent.spawn(channel.basic_consume, "q", "mine", no_ack=True, sink=Sink())
        assert asked.wait(30)
        caller.kill()
        may_go.set()
    assert (channel.is_open, channel.consumers, channel.no_ack_consumers) == (True, {}, set())
    channel.basic_consume("q", "mine", sink=(sink := Sink()))
    publish(channel, "x")
    sink.wait_for(1)


def test_what_nobody_has_seen_goes_back_with_its_consumer(
    channel: Channel, fake_broker: FakeBroker
) -> None:
    seen: list[Any] = []
    tag = channel.basic_consume("q", callback=seen.append)
    for number in range(3):
        publish(channel, f"{number}")
    channel.connection.drain(10)
    until(lambda: len(channel.deliveries.unacked) == 3)
    channel.basic_cancel(tag)
    assert list(channel.deliveries.unacked) == [seen[0].delivery_tag]
    channel.flush_acks()
    assert [bool(item.claim) for item in fake_broker.items["q"]] == [True, False, False]


def test_a_channel_works_as_the_one_before_it(channel: Channel) -> None:
    channel.basic_qos(0, 4)
    channel.basic_qos(0, 6, apply_global=True)
    channel.events["basic_return"].add(deaf)
    successor = anew(channel)
    successor.events["basic_return"].add(print)
    successor.take_over(channel)
    assert (successor.prefetch.count, successor.prefetch.limit) == (4, 6)
    assert successor.events == {"basic_return": {deaf, print}}
    assert channel.events == {"basic_return": {deaf}}


# -- the end


def test_a_refusal_reaches_who_drains(channel: Channel) -> None:
    channel.basic_consume("q", callback=deaf)
    cause = NotFound("gone")
    channel.fail(cause)
    channel.fail(NotFound("again"))
    with pytest.raises(RecoverableChannelError, match=r"channel \d+ is closed \(.*gone") as caught:
        channel.connection.drain(10)
    assert caught.value.__cause__ is cause
    with pytest.raises(TimeoutError):
        channel.connection.drain(0)
    with pytest.raises(RecoverableChannelError, match=r"gone") as caught:
        channel.queue_purge("q")
    assert caught.value.__cause__ is cause


def test_the_child_of_a_fork_forgets_it(channel: Channel, fake_broker: FakeBroker) -> None:
    tag = channel.basic_consume("q", sink=(sink := Sink()))
    consumer = channel.consumers[tag]
    publish(channel, "x")
    sink.wait_for(1)
    link = channel.connection
    feeds = dict(link.feeds)
    channel.forget(cause := RecoverableConnectionError("the parent has it"))
    assert (channel.closed, channel.cause, channel.consumers) == (True, cause, {})
    assert (sink.lost, link.feeds, consumer.has_room()) == ([], feeds, False)
    channel.close()  # does nothing
    assert [bool(item.claim) for item in fake_broker.items["q"]] == [True]


def test_other_threads_are_refused(channel: Channel) -> None:
    calls: list[Callable[[], object]] = [
        channel.check_hub,
        channel.check_open,
        channel.close,
        channel.flush_acks,
        lambda: channel.queue_declare("q"),
    ]

    assert refused_elsewhere(calls) == [True] * len(calls)
    assert channel.is_open


def test_a_delay_is_a_header_where_the_store_obeys_it(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"a": 1}
    route = channel.delayed_route("x", "key", 1.5, headers, {})
    assert route == ("x", "key", {"a": 1, "x-delay": 1500})
    assert headers == {"a": 1}
    monkeypatch.setattr(StoreChannel, "supported_arguments", SupportedArguments())
    with pytest.raises(ValueError, match=r"cannot delay messages .*, got 1\.5"):
        channel.delayed_route("x", "key", 1.5, headers, {})


# -- a message in the place of another one


def delayed(channel: Channel, body: str = "new", **headers: Any) -> Any:
    """Return a message that is delayed for long."""
    return channel.prepare_message(body, headers={"x-delay": 600_000, **headers})


@pytest.fixture
def held(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A message that *channel* holds, of a store that can put another one in its place."""
    monkeypatch.setattr(FakeStore, "replaces_at_once", True)
    publish(channel, "old")
    return get(channel)


def test_a_delayed_message_in_the_place_of_a_held_one(
    channel: Channel, fake_broker: FakeBroker, held: Any
) -> None:
    publishes = fake_broker.count("put")
    assert held.replace(delayed(channel), "q")
    with pytest.raises(MessageStateError):
        held.ack()
    channel.flush()
    assert fake_broker.bodies("q") == [b"new"]
    assert fake_broker.count("put") == publishes
    channel.close()
    assert [bool(item.claim) for item in fake_broker.items["q"]] == [False]


def test_it_makes_room_for_the_next_one(channel: Channel, held: Any) -> None:
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume("q", sink=(sink := Sink()))
    publish(channel, "a")
    publish(channel, "b")
    sink.wait_for(1)
    assert sink[0].replace(delayed(channel), "q")
    sink.wait_for(2)


@pytest.mark.parametrize(
    "why", ["no such step", "no delay", "copies", "another queue", "closed", "lost", "settled"]
)
def test_a_message_that_is_not_replaced(
    channel: Channel, fake_broker: FakeBroker, held: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    later, queue = delayed(channel), "q"
    if why == "no such step":
        monkeypatch.setattr(FakeStore, "replaces_at_once", False)
    elif why == "no delay":
        later = channel.prepare_message("new")
    elif why == "copies":
        channel.queue_declare("other")
        later = delayed(channel, CC=["other"])
    elif why == "another queue":
        channel.queue_declare(queue := "other")
    elif why == "closed":
        channel.close()
    elif why == "lost":
        channel.connection.end(ConnectionResetError("cut"))
    else:
        channel.basic_ack(held.delivery_tag)
    assert not held.replace(later, queue)
    assert not held.acknowledged
    if why in ("closed", "lost"):
        return
    channel.flush()
    assert fake_broker.bodies("q") == ([] if why == "settled" else [b"old"])


def test_a_message_that_is_settled_while_it_is_replaced(
    channel: Channel, fake_broker: FakeBroker, held: Any
) -> None:
    """The store is asked for the queue, and meanwhile the channel is closed: the message is back."""
    channel.connection.directory.forget("q")
    later = delayed(channel)

    def close(method: str, argument: Any) -> None:
        if method == "find_queue":
            fake_broker.before = lambda method, argument: None
            channel.close()

    fake_broker.before = close
    with pytest.raises(RecoverableChannelError):
        held.replace(later, "q")
    assert not held.acknowledged
    assert get(anew(channel)).body == "old"
