"""Consumers of one process, and what becomes of messages that need no answer."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.consuming import Consumer, Feed, StoreSubscriptions
from greenconn.broker.errors import Method
from greenconn.broker.port import ConsumerRegistry
from greenconn.exceptions import AccessRefused, NotFound, RecoverableChannelError
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import EachStore, FakeBroker
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_feed import Channel, Source
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


def test_an_absent_queue_is_not_consumed(connect: Opener) -> None:
    channel = channel_to(connect)
    with pytest.raises(NotFound):
        channel.basic_consume("q", sink=Sink())
    assert channel.connection.feeds == {}


def test_an_exclusive_consumer_is_the_only_one(connect: Opener) -> None:
    one, other = channel_to(connect), channel_to(connect)
    beside = one.connection.transport.create_channel(one.connection)
    one.queue_declare("q")
    tag = one.basic_consume("q", exclusive=True, sink=Sink())
    for channel in (beside, other):
        with pytest.raises(AccessRefused, match=r"queue 'q' in vhost '.*' in exclusive use"):
            channel.basic_consume("q", sink=Sink())
        assert not channel.is_open
    assert list(one.connection.feeds) == ["q"]
    one.basic_cancel(tag)
    one.connection.catch_up()
    another = one.connection.transport.create_channel(one.connection)
    another.basic_consume("q", sink=Sink())
    with pytest.raises(AccessRefused):
        one.basic_consume("q", exclusive=True, sink=Sink())


def test_the_store_knows_how_many_there_are(connect: Opener) -> None:
    channel, other = channel_to(connect), channel_to(connect)
    channel.queue_declare("q")
    tags = [channel.basic_consume("q", sink=Sink()) for _ in range(3)]
    counts = [other.connection.store.other_consumers("q")]
    for tag in tags:
        channel.basic_cancel(tag)
        channel.connection.catch_up()
        counts.append(other.connection.store.other_consumers("q"))
    assert counts == [3, 2, 1, 0]
    assert channel.connection.feeds == {}


@pytest.mark.parametrize("is_auto_delete", [True, False])
def test_an_auto_delete_queue_goes_with_its_last_consumer(
    connect: Opener, fake_broker: FakeBroker, is_auto_delete: bool
) -> None:
    channel, other = channel_to(connect), channel_to(connect)
    channel.queue_declare("q", auto_delete=is_auto_delete)
    tags = [channel.basic_consume("q", sink=Sink()) for _ in range(2)]
    others = other.basic_consume("q", sink=Sink())
    for tag in tags:
        channel.basic_cancel(tag)
        channel.connection.catch_up()
        assert "q" in fake_broker.queues
    other.basic_cancel(others)
    other.connection.catch_up()
    assert ("q" in fake_broker.queues) is not is_auto_delete


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


def test_get(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    with pytest.raises(NotFound):
        channel.basic_get("q")
    channel = channel.connection.transport.create_channel(channel.connection)
    channel.queue_declare("q")
    assert channel.basic_get("q") is None
    publish(channel, "0")
    publish(channel, "1")
    first, second = channel.basic_get("q"), channel.basic_get("q")
    assert first is not None
    assert second is not None
    assert [(each.body, each.delivery_info["message_count"]) for each in (first, second)] == [
        ("0", 1),
        ("1", 0),
    ]
    assert first.delivery_tag != second.delivery_tag
    assert channel.basic_get("q") is None


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


def test_get_takes_one(
    connect: Opener, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a store gives more than it was asked for."""
    channel = channel_to(connect)
    channel.queue_declare("q")
    for number in range(3):
        publish(channel, f"{number}")
    store = channel.connection.store
    claim = store.claim
    monkeypatch.setattr(store, "claim", lambda wanted, wait: claim({"q": 3}, wait))
    message = channel.basic_get("q")
    assert message is not None
    assert message.body == "0"
    channel.connection.catch_up()
    assert [(item.claim > 0, item.deliveries) for item in fake_broker.items["q"]] == [
        (True, 1),
        (False, 0),
        (False, 0),
    ]


def test_who_leaves_is_not_asked_for_again(connect: Opener, fake_broker: FakeBroker) -> None:
    """Where each queue has a claim of its own, it ends with its last consumer."""
    channel = channel_to(connect, EachStore)
    channel.queue_declare("q")
    tag = channel.basic_consume("q", sink=Sink())
    until(lambda: fake_broker.count("claim"))
    channel.basic_cancel(tag)
    channel.connection.catch_up()
    claimers = channel.connection._claimers
    assert not claimers
    fake_broker.calls.clear()
    publish(channel, "x")
    assert fake_broker.count("claim") == 0


def test_a_queue_that_is_gone_is_consumed_no_more(connect: Opener) -> None:
    channel, other = channel_to(connect), channel_to(connect)
    channel.queue_declare("q")
    sinks = [Sink(), Sink()]
    for sink in sinks:
        channel.basic_consume("q", sink=sink)
    other.queue_delete("q")
    until(lambda: not channel.connection.feeds)
    for sink in sinks:
        sink.wait_lost()
    assert channel.is_open


def test_a_higher_limit_of_the_channel_is_used_at_once(connect: Opener) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    channel.basic_qos(0, 1, True)
    channel.basic_consume("q", sink=(sink := Sink()))
    for number in range(3):
        publish(channel, str(number))
    sink.wait_for(1)
    gevent.sleep(0.01)
    assert len(sink) == 1
    channel.basic_qos(0, 3, True)
    sink.wait_for(3)


class Consuming:
    """Asks nobody, and notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.feeds: dict[str, Feed[Any, Source]] = {}

    def check(self, queue: str, method: Method) -> None:
        self.calls.append(f"check {queue}")

    def feed(self, queue: str) -> Feed[Any, Source]:
        return self.feeds.setdefault(queue, Feed(queue, Source))

    def set_consumers(self, feed: Feed[Any, Source], *, exclusive: bool) -> bool:
        self.calls.append(f"set_consumers {exclusive}")
        return True

    def left(self, feed: Feed[Any, Source]) -> None:
        self.calls.append("left")

    def ended(self, feed: Feed[Any, Source]) -> None:
        self.calls.append("ended")

    def take(self, channel: Any, queue: str) -> Any:
        return f"of {queue}"


def test_what_is_asked_of_a_broker() -> None:
    consuming = Consuming()
    subscriptions: StoreSubscriptions[Any, Any] = StoreSubscriptions(consuming)
    feed = subscriptions.feed("q", Method.BASIC_CONSUME)
    assert (feed.queue, consuming.calls) == ("q", ["check q"])
    other = subscriptions.feed("p", Method.BASIC_CONSUME)
    channel = Channel()
    channel.check_open = lambda: None  # type: ignore[attr-defined]
    one, two = (
        Consumer(channel, feed, tag, "q", sink=Sink(), limit=1, exclusive=False) for tag in "ab"
    )
    for each in (one, two):
        subscriptions.start(each)
    assert consuming.calls[2:] == ["set_consumers False"] * 2
    assert (list(feed.consumers), feed.coming) == ([one, two], 0)
    subscriptions.left(one)
    subscriptions.left(one)  # again: does nothing
    assert (consuming.calls[4:], feed.source.calls) == (["left"], ["schedule"])
    feed.begin(0)
    subscriptions.serve(two)
    assert feed.source.calls == ["schedule"] * 2
    subscriptions.ended(two)
    subscriptions.ended(two)
    assert consuming.calls[5:] == ["ended"]
    assert feed.source.calls == ["schedule", "schedule", "retire"]
    assert subscriptions.get(channel, "q") == "of q"  # type: ignore[arg-type, comparison-overlap]
    assert not other.is_used
