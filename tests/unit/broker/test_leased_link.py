"""The end of a link whose broker holds messages: what it leaves, and what the waiting ones get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.link import StoreLink
from greenconn.broker.queues import is_lost
from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import Deadline
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener, refused_elsewhere
from tests.unit.broker.fake_store import EachStore, FakeBroker, Item
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, publish


@pytest.fixture
def link(connect: Opener) -> StoreLink:
    """A link."""
    return connect()


def raising(exc: BaseException) -> Any:
    def function(*args: Any) -> None:
        raise exc

    return function


def test_other_threads_may_neither_flush_nor_close(link: StoreLink) -> None:
    calls: list[Callable[[], object]] = [lambda: link.flush(Deadline(1)), link.close]

    assert refused_elsewhere(calls) == [True, True]
    assert link.is_open


def test_the_error_says_what_went_wrong(link: StoreLink) -> None:
    cause = ZeroDivisionError("a bug")
    with pytest.raises(RecoverableConnectionError, match="asking failed") as caught:
        link.ask("asking", raising(cause))
    assert caught.value.__cause__ is cause
    with pytest.raises(RecoverableConnectionError, match="asking failed"):
        link.ping()


def test_a_call_that_is_killed_is_not_hidden(link: StoreLink) -> None:
    with pytest.raises(RecoverableConnectionError, match="asking failed: GreenletExit"):
        link.ask("asking", raising(gevent.GreenletExit()))
    assert not link.is_open


def test_all_who_wait_learn_of_the_end(link: StoreLink) -> None:
    waiting = [
        gevent.spawn(link.ask, "waiting", Event().wait, deadline=Deadline(60)) for _ in range(2)
    ]
    until(lambda: len(link._calls) == 2)
    calls = list(link._calls)
    link.end(cause := RecoverableConnectionError("cut"))
    for each in waiting:
        with pytest.raises(
            RecoverableConnectionError, match=r"connection is closed \(cut\)"
        ) as got:
            each.get(timeout=30)
        assert got.value.__cause__ is cause
    gevent.joinall(calls, timeout=30)
    assert all(each.dead for each in calls)


def test_the_child_of_a_fork_stops_all_and_tells_nobody(
    link: StoreLink, fake_broker: FakeBroker
) -> None:
    channel = link.transport.create_channel(link)
    channel.queue_declare("q")
    publish(channel, "x")
    channel.basic_consume("q", sink=(sink := Sink()))
    sink.wait_for(1)
    assert not link.is_inherited
    calls = len(fake_broker.calls)
    link.forget(RecoverableConnectionError("the parent has it"))
    assert (link.is_inherited, link.is_open, sink.lost) == (True, False, [])
    assert not link.store.is_open  # type: ignore[attr-defined]
    gevent.sleep(0)
    assert len(fake_broker.calls) == calls
    assert [bool(item.claim) for item in fake_broker.items["q"]] == [True]


def test_a_link_that_has_ended_waits_for_nothing(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    link = channel.connection
    channel.queue_declare("q")
    publish(channel, "x")
    channel.basic_consume("q", sink=(sink := Sink()))
    sink.wait_for(1)
    fake_broker.calls.clear()
    sink[0].ack()  # leaves at the end of this turn
    link.end(RecoverableConnectionError("cut"))
    gevent.sleep(0)
    gevent.sleep(0)
    assert fake_broker.count("settle") == 0
    assert [bool(item.claim) for item in fake_broker.items["q"]] == [True]


def test_closing_sends_the_last_settlements(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    link = channel.connection
    channel.queue_declare("q")
    for number in range(2):
        publish(channel, f"{number}")
    messages = [channel.basic_get("q") for _ in range(2)]
    assert messages[0] is not None
    messages[0].ack()
    link.close()
    assert [(item.claim, item.deliveries) for item in fake_broker.items["q"]] == [(0, 1)]
    assert fake_broker.bodies("q") == [b"1"]
    assert [name for name, _ in fake_broker.calls][-2:] == ["settle", "close"]


def test_a_claimer_of_one_queue_ends_with_its_consumers(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel = channel_to(connect, EachStore)
    link = channel.connection
    for name in ("p", "q"):
        channel.queue_declare(name)
        channel.basic_consume(name, name, sink=Sink())
    until(lambda: fake_broker.count("claim") == 2)
    claimers = dict(link._claimers)
    channel.basic_cancel("q")
    until(lambda: claimers["q"].claiming.greenlet is None)
    assert list(link._claimers) == ["p"]
    assert claimers["p"].claiming.greenlet is not None
    channel.basic_consume("q", sink=(sink := Sink()))
    publish(channel, "x")
    sink.wait_for(1)


def limited(connect: Opener) -> Any:
    """Return a channel with a queue whose messages are delivered twice at most."""
    channel = channel_to(connect, dead_letter_queue="dead")
    channel.queue_declare("dead")
    channel.queue_declare("q", arguments={"x-delivery-limit": 2})
    publish(channel, "x")
    return channel


@pytest.mark.parametrize(("deliveries", "comes"), [(0, True), (1, True), (2, False), (3, False)])
def test_a_message_that_was_delivered_too_often(
    connect: Opener, fake_broker: FakeBroker, deliveries: int, comes: bool
) -> None:
    channel = limited(connect)
    item: Item = fake_broker.items["q"][0]
    item.deliveries = deliveries
    message = channel.basic_get("q")
    assert (message is not None) is comes
    if not comes:
        channel.connection.catch_up()
        (dead,) = fake_broker.items["dead"]
        assert dead.entry.envelope["headers"]["x-death"][0]["reason"] == "delivery_limit"
        assert fake_broker.bodies("q") == []


def test_an_expired_message_is_a_dead_letter(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = limited(connect)
    fake_broker.items["q"][0].dies_at = 0.0
    assert channel.basic_get("q") is None
    channel.connection.catch_up()
    (dead,) = fake_broker.items["dead"]
    assert dead.entry.envelope["headers"]["x-death"][0]["reason"] == "expired"


def test_each_life_has_an_owner_of_its_own(link: StoreLink, connect: Opener) -> None:
    assert link.store.owner == link.owner
    assert link.topology is link.store.topology
    assert connect().store.owner != link.owner


def test_the_owner_is_known_to_be_lost_after_the_end(link: StoreLink) -> None:
    assert not is_lost(link.owner)
    link.end(RecoverableConnectionError("cut"))
    assert is_lost(link.owner)


def test_what_its_channels_hold(link: StoreLink) -> None:
    channels = [link.transport.create_channel(link) for _ in range(2)]
    channels[0].queue_declare("q")
    for body in "ab":
        publish(channels[0], body)
    held: list[Any] = [channel.basic_get("q") for channel in channels]
    link.channels[99] = object()  # type: ignore[assignment]  # a channel that holds nothing
    assert list(link.held()) == held
    del link.channels[99]
    channels[0].close()
    assert list(link.held()) == held[1:]


@pytest.mark.parametrize("closed", [False, True])
def test_the_owner_learns_of_an_end_that_is_no_close(link: StoreLink, closed: bool) -> None:
    lost: list[BaseException] = []
    link.on_lost = lost.append
    exc = RecoverableConnectionError("cut")
    if closed:
        link.end(exc, closed=True)
    else:
        link.end(exc)
    for _ in range(3):
        gevent.sleep(0)
    assert lost == ([] if closed else [exc])


def test_no_lease_is_renewed_after_the_end(link: StoreLink) -> None:
    assert link.leases._ticker is not None
    link.end(RecoverableConnectionError("cut"))
    assert link.leases._ticker is None
