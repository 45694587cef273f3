"""Claims of a store whose calls wait: what it is asked for, and whose turn it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker import consuming
from greenconn.broker.channel import StoreChannel
from greenconn.broker.consuming import Feed, FeedState, StoreDelivery, StoreFeed
from greenconn.broker.link import StoreLink
from greenconn.broker.port import Claimed
from greenconn.exceptions import ChannelError
from greenconn.green import supervisor
from greenconn.green.supervisor import spawn
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker, FakeStore, WaitingStore
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, channel_to_q, publish


def consume(channel: StoreChannel[StoreLink], sink: Sink, queue: str = "q", **options: Any) -> str:
    return channel.basic_consume(queue, sink=sink, **options)


def test_idle_consumers_cost_nothing(connect: Opener, fake_broker: FakeBroker) -> None:
    link = connect()
    channel = link.transport.create_channel(link)
    for n in range(100):
        channel.queue_declare(f"q{n}")
        consume(channel, Sink(), f"q{n}")
    gevent.sleep(0.02)
    fake_broker.calls.clear()
    gevent.sleep(0.1)
    assert fake_broker.calls == []


def test_cancelled_consumer_gives_back_unseen(
    connect: Opener, fake_broker: FakeBroker, kind: type[FakeStore]
) -> None:
    """A claim that comes back after the consumer left is undone, as if it had never been."""
    channel = channel_to_q(connect, kind)
    tag = ""

    def after(method: str, argument: Any) -> None:
        if method == "claim" and argument:
            channel.basic_cancel(tag)

    fake_broker.after = after
    sink = Sink()
    tag = consume(channel, sink)
    publish(channel, "x")
    with gevent.Timeout(10):
        while not fake_broker.count("settle"):
            gevent.sleep(0.001)
    assert sink == []
    fake_broker.after = lambda method, argument: None
    message = channel.basic_get("q")
    assert message is not None
    assert not message.redelivered


def test_an_error_while_messages_are_passed_on_ends_the_link(
    connect: Opener,
    fake_broker: FakeBroker,
    kind: type[FakeStore],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Consumers whose claims nobody makes any more would wait without end."""
    channel = channel_to(connect, kind)
    link = channel.connection
    channel.queue_declare("q")
    for n in range(3):
        publish(channel, str(n))

    offer = Feed.offer

    def fail(feed: StoreFeed, claimed: Claimed) -> bool:
        if feed is link.feeds.get("q"):
            raise AttributeError("a defect")
        return offer(feed, claimed)

    monkeypatch.setattr(Feed, "offer", fail)
    consume(channel, Sink())
    until(lambda: link.lost is not None)
    assert "passing on claimed messages failed" in str(link.lost)
    until(lambda: "passing on claimed messages failed" in caplog.text)
    assert "AttributeError: a defect" in caplog.text
    successor, sink = link.transport.establish_connection(), Sink()
    consume(link.transport.create_channel(successor), sink)
    # Those behind it are not held until the lease ends.
    sink.wait_for(2)
    successor.close()


def claims(fake_broker: FakeBroker) -> list[dict[str, int]]:
    """Return what each claim wanted."""
    return [argument for method, argument in fake_broker.calls if method == "claim"]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 10])
def test_full_queues_get_as_much_of_the_limit_of_a_channel(connect: Opener, limit: int) -> None:
    count = 60
    channel = channel_to(connect)
    channel.basic_qos(0, limit, True)
    got: list[str] = []

    def take(message: Any) -> None:
        got.append(message.delivery_info["routing_key"])
        message.ack()

    for queue in ("a", "b", "c"):
        channel.queue_declare(queue)
        for number in range(count):
            publish(channel, f"{number}", queue)
    channel.flow(False)
    for queue in ("a", "b", "c"):
        consume(channel, Sink(take), queue)
    channel.flow(True)
    until(lambda: len(got) >= count)
    shares = [got[:count].count(queue) for queue in ("a", "b", "c")]
    assert max(shares) - min(shares) <= limit + 1, shares


def test_all_queues_share_the_bound_of_a_claim(
    connect: Opener, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeStore, "claim_limit", 5)
    channel = channel_to(connect)
    channel.basic_qos(0, 3)
    for queue in ("a", "b", "c"):
        channel.queue_declare(queue)
        consume(channel, Sink(), queue)
    until(lambda: all(each.state is FeedState.DRY for each in channel.connection.feeds.values()))
    fake_broker.calls.clear()
    channel.connection.store.wake(None)
    until(lambda: len(claims(fake_broker)) == 1)
    assert claims(fake_broker) == [{"a": 2, "b": 2, "c": 1}]


def test_a_queue_with_many_messages_has_a_growing_share_of_a_claim(
    connect: Opener, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message of each of many queues takes few claims, and so do many messages of a few."""
    monkeypatch.setattr(FakeStore, "claim_limit", 12)
    channel = channel_to(connect)
    sinks = {queue: Sink(lambda message: message.ack()) for queue in ("a", "b", "c", "d")}
    for queue, count in zip(sinks, (1, 40, 0, 40), strict=True):
        channel.queue_declare(queue)
        for number in range(count):
            publish(channel, f"{number}", queue)
    channel.flow(False)
    for queue, sink in sinks.items():
        consume(channel, sink, queue)
    channel.flow(True)
    for queue, count in (("a", 1), ("b", 40), ("d", 40)):
        sinks[queue].wait_for(count)
    first, second, *rest = claims(fake_broker)
    assert first == {"a": 3, "b": 3, "c": 3, "d": 3}
    assert second == {"b": 6, "d": 6}
    assert rest[:2] == [{"b": 12}, {"d": 12}]


def test_what_is_said_while_a_claim_is_on_its_way_counts(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    """The claim may have looked before."""
    channel = channel_to_q(connect)
    said: list[str] = []

    def after(method: str, argument: Any) -> None:
        if method == "claim" and not said:
            said.append("more")
            channel.connection.store.wake("q")

    fake_broker.after = after
    consume(channel, Sink())
    until(lambda: len(claims(fake_broker)) == 2)
    until(lambda: channel.connection.feeds["q"].state is FeedState.DRY)
    assert len(claims(fake_broker)) == 2


def test_a_refused_claim_ends_the_channels_of_its_consumers(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel = channel_to(connect)
    link = channel.connection
    other = link.transport.create_channel(link)
    channel.queue_declare("q")
    channel.queue_declare("p")
    consume(other, spared := Sink(), "p")
    until(lambda: link.feeds["p"].state is FeedState.DRY)
    error = ChannelError("you may not")

    def refuse(method: str, argument: Any) -> None:
        if method == "claim" and "q" in argument:
            raise error

    fake_broker.before = refuse
    consume(channel, sink := Sink())
    sink.wait_lost()
    assert sink.lost == [error]
    assert (channel.is_open, other.is_open, link.lost) == (False, True, None)
    publish(other, "x", "p")
    spared.wait_for(1)


def test_a_waiting_claim_is_interrupted_for_another_queue(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel = channel_to(connect, WaitingStore)
    for queue in ("p", "q"):
        channel.queue_declare(queue)
    consume(channel, Sink(), "p")
    until(lambda: claims(fake_broker))
    consume(channel, sink := Sink(), "q")
    until(lambda: len(claims(fake_broker)) == 2)
    assert set(claims(fake_broker)[1]) == {"p", "q"}
    publish(channel, "x")
    sink.wait_for(1)


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_caller_that_is_interrupted_does_not_let_two_greenlets_claim(
    connect: Opener, monkeypatch: pytest.MonkeyPatch, has_begun: bool
) -> None:
    """The interruption comes when the greenlet is spawned and not noted yet."""

    def interrupted(name: str, function: Callable[[], None]) -> None:
        spawn(name, function)
        raise KeyboardInterrupt

    channel = channel_to(connect, FakeStore)
    link = channel.connection
    sinks = {"p": Sink(), "q": Sink()}
    for queue, sink in sinks.items():
        channel.queue_declare(queue)
        consume(channel, sink, queue)
    until(lambda: all(each.state is FeedState.DRY for each in link.feeds.values()))
    running: list[int] = []
    claim, may_go, begun = link.store.claim, Event(), Event()

    def slow_claim(*args: Any) -> Any:
        running.append(len(running))
        begun.set()
        may_go.wait()
        running.pop()
        return claim(*args)

    monkeypatch.setattr(link.store, "claim", slow_claim)
    with monkeypatch.context() as patched:
        patched.setattr(supervisor, "spawn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            link.wake("p")
    if has_begun:
        assert begun.wait(20.0)
    link.wake("q")
    assert begun.wait(20.0)
    for _ in range(3):
        gevent.sleep(0)
    assert running == [0]
    may_go.set()
    for queue, sink in sinks.items():
        publish(channel, queue, queue)
        sink.wait_for(1)


def test_no_queue_starves_under_the_limit_of_a_channel(
    connect: Opener, fake_broker: FakeBroker, kind: type[FakeStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one place for two queues; the one that waits has no messages."""
    monkeypatch.setattr(consuming, "SHORT_WAIT", 0.02)
    channel = channel_to(connect, kind)
    channel.basic_qos(0, 1, True)
    sinks = {}
    for queue in ("empty", "full"):
        channel.queue_declare(queue)
        sinks[queue] = Sink(lambda message: message.ack())
        consume(channel, sinks[queue], queue)
    for number in range(5):
        publish(channel, f"{number}", "full")
    sinks["full"].wait_for(5)
    publish(channel, "x", "empty")
    sinks["empty"].wait_for(1)
    channel.connection.catch_up()
    assert channel.prefetch.in_flight == 0


def test_a_consumer_is_notified_of_a_loss_and_not_of_a_refusal(
    connect: Opener, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = channel_to_q(connect)
    refused: list[BaseException] = []

    def cut(method: str, argument: Any) -> None:
        if method == "claim":
            monkeypatch.setattr(channel.connection.feeds["q"], "refuse", refused.append)
            raise ConnectionResetError("cut")

    fake_broker.before = cut
    consume(channel, sink := Sink())
    sink.wait_lost()
    gevent.sleep(0.01)
    assert refused == []


def test_what_cannot_be_read_is_raw(connect: Opener) -> None:
    channel = channel_to(connect)
    delivery = StoreDelivery(channel, "t", 1, Claimed("q", None, "handle", raw=b"\0"))
    assert delivery.body == b"\0"
    assert delivery.errors
