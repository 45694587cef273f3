"""Consumers of the memory broker: what they are given, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from greenconn.broker.consuming import WINDOW
from greenconn.exceptions import (
    ConsumerCancelled,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from greenconn.message import Message
from greenconn.transport.memory import Channel
from greenconn.transport.memory.broker import Broker
from tests.integration.contract import Store

NOW = Deadline(0)


def send(channel: Channel, count: int, queue: str = "q", begin: int = 0) -> None:
    for n in range(begin, begin + count):
        channel.basic_publish(channel.prepare_message(str(n)), "", queue)


def waiting(broker: Broker, queue: str = "q") -> list[str]:
    return [each.envelope["body"] for each in broker.queues[queue].store]


def drain_all(channel: Channel) -> None:
    try:
        while True:
            channel.connection.drain(NOW)
    except TimeoutError:
        pass


@pytest.mark.parametrize("no_ack", [True, False])
def test_what_nobody_drained_goes_back_with_a_cancel(
    broker: Broker, channel: Channel, no_ack: bool
) -> None:
    channel.queue_declare("q")
    got: list[Message] = []
    channel.basic_consume("q", "tag", no_ack=no_ack, callback=got.append)
    send(channel, 5)
    channel.connection.drain(NOW)
    channel.connection.drain(NOW)
    assert waiting(broker) == []
    channel.basic_cancel("tag")
    assert waiting(broker) == ["2", "3", "4"]
    drain_all(channel)
    assert [each.body for each in got] == ["0", "1"]
    channel.close()
    assert waiting(broker) == (["2", "3", "4"] if no_ack else ["0", "1", "2", "3", "4"])


@pytest.mark.parametrize("end", ["channel", "link", "lost", "refused"])
def test_what_nobody_drained_goes_back_at_the_end(
    broker: Broker, open_channel: Callable[..., Channel], end: str
) -> None:
    keeper, channel = open_channel(), open_channel()
    keeper.queue_declare("q")
    got: list[Message] = []
    channel.basic_consume("q", "acks", callback=got.append)
    channel.basic_consume("q", "none", no_ack=True, callback=got.append)
    send(keeper, 6)
    channel.connection.drain(NOW)
    channel.connection.drain(NOW)
    assert [each.delivery_info["consumer_tag"] for each in got] == ["acks", "none"]
    link = channel.connection
    if end == "channel":
        channel.close()
    elif end == "refused":
        with pytest.raises(Exception, match="absent"):
            channel.queue_purge("absent")
    elif end == "link":
        link.close()
    else:
        link.end(RecoverableConnectionError("cut"))
    assert waiting(broker) == ["0", "2", "3", "4", "5"]
    assert [each.redelivered for each in broker.queues["q"].store] == [True] * 5
    assert link not in broker.links or link.is_open


def test_settled_before_it_was_drained(broker: Broker, channel: Channel) -> None:
    """An ack of many may reach what is still on its way to a callback."""
    channel.queue_declare("q")
    got: list[Message] = []
    channel.basic_consume("q", callback=got.append)
    send(channel, 3)
    channel.connection.drain(NOW)
    channel.basic_ack(0, multiple=True)
    drain_all(channel)
    assert [each.body for each in got] == ["0", "1", "2"]
    channel.close()
    assert waiting(broker) == []


def test_recover_drops_what_was_on_its_way(channel: Channel) -> None:
    channel.queue_declare("q")
    got: list[Message] = []
    channel.basic_consume("q", callback=got.append)
    send(channel, 3)
    channel.connection.drain(NOW)
    channel.basic_recover(requeue=True)
    drain_all(channel)
    assert [each.body for each in got] == ["0", "0", "1", "2"]
    for message in got[1:]:
        message.ack()


@pytest.mark.parametrize("how", ["ack", "nack", "recover"])
def test_acks_leave_alone_what_needs_none(broker: Broker, channel: Channel, how: str) -> None:
    channel.queue_declare("q")
    got: list[Message] = []
    channel.basic_consume("q", no_ack=True, callback=got.append)
    send(channel, 3)
    channel.connection.drain(NOW)
    if how == "ack":
        channel.basic_ack(0, multiple=True)
    elif how == "nack":
        channel.basic_nack(0, multiple=True)
    else:
        channel.basic_recover(requeue=True)
    drain_all(channel)
    assert [each.body for each in got] == ["0", "1", "2"]
    channel.close()
    assert waiting(broker) == []


@pytest.mark.parametrize("no_ack", [True, False])
def test_unbounded_callbacks_are_given_a_window(
    broker: Broker, channel: Channel, no_ack: bool
) -> None:
    channel.queue_declare("q")
    got: list[Message] = []
    channel.basic_consume("q", no_ack=no_ack, callback=got.append)
    send(channel, 3 * WINDOW)
    assert len(channel.connection.events) == WINDOW
    assert len(waiting(broker)) == 2 * WINDOW
    drain_all(channel)
    assert [each.body for each in got] == [str(n) for n in range(3 * WINDOW)]


def test_unbounded_sinks_are_given_a_window(broker: Broker, channel: Channel) -> None:
    channel.queue_declare("q")
    store = Store()
    channel.basic_consume("q", "tag", no_ack=True, sink=store)
    send(channel, 3 * WINDOW)
    assert len(store) == WINDOW
    got = [store.take().body for _ in range(3 * WINDOW)]
    assert got == [str(n) for n in range(3 * WINDOW)]
    channel.basic_cancel("tag")


def test_bounded_sinks_need_not_report(channel: Channel) -> None:
    channel.queue_declare("q")
    store = Store()
    channel.basic_qos(0, 5, False)
    channel.basic_consume("q", sink=store)
    assert store.taken is None
    send(channel, 10)
    assert len(store) == 5


def test_flow_stops_and_goes_on(channel: Channel) -> None:
    channel.queue_declare("q")
    store = Store()
    channel.basic_consume("q", sink=store)
    assert channel.flow(False) is False
    send(channel, 3)
    assert not store
    channel.flow(True)
    assert len(store) == 3


def test_raised_global_prefetch_counts_at_once(channel: Channel) -> None:
    channel.queue_declare("q")
    store = Store()
    channel.basic_qos(0, 1, True)
    channel.basic_consume("q", sink=store)
    send(channel, 5)
    assert len(store) == 1
    channel.basic_qos(0, 3, True)
    assert len(store) == 3
    channel.basic_qos(0, 0, True)
    assert len(store) == 5


def test_no_ack_consumers_are_not_held_by_prefetch(channel: Channel) -> None:
    channel.queue_declare("q")
    channel.queue_declare("other")
    channel.basic_qos(0, 1, True)
    channel.basic_qos(0, 1, False)
    held, free = Store(), Store()
    channel.basic_consume("q", sink=held)
    channel.basic_consume("other", no_ack=True, sink=free)
    send(channel, 3)
    send(channel, 3, "other")
    assert (len(held), len(free)) == (1, 3)


def test_many_idle_consumers_share_fairly(channel: Channel) -> None:
    channel.queue_declare("q")
    channel.basic_qos(0, 1, False)
    stores = [Store() for _ in range(10)]
    for store in stores:
        channel.basic_consume("q", sink=store)
    for _ in range(3):
        send(channel, 10)
        assert [len(store) for store in stores] == [1] * 10
        for store in stores:
            store.popleft().ack()


def test_rejecting_consumer_lets_others_go_first(channel: Channel) -> None:
    channel.queue_declare("q")
    channel.basic_qos(0, 1, False)
    first, second = Store(), Store()
    channel.basic_consume("q", sink=first)
    channel.basic_consume("q", sink=second)
    send(channel, 1)
    first.popleft().requeue()
    assert (len(first), len(second)) == (0, 1)
    assert second[0].delivery_info["redelivered"]
    second.popleft().requeue()
    assert (len(first), len(second)) == (1, 0)


def test_single_active_consumer_gets_what_comes_back_first(
    open_channel: Callable[..., Channel],
) -> None:
    keeper, one, two = open_channel(), open_channel(), open_channel()
    keeper.queue_declare("q", arguments={"x-single-active-consumer": True})
    first, second = Store(), Store()
    one.basic_qos(0, 2, False)
    one.basic_consume("q", sink=first)
    two.basic_consume("q", sink=second)
    send(keeper, 4)
    assert [each.body for each in first] == ["0", "1"]
    one.connection.end(RecoverableConnectionError("cut"))
    assert [each.body for each in second] == ["0", "1", "2", "3"]


def test_cancelled_queue_frees_the_channel(broker: Broker, channel: Channel) -> None:
    channel.queue_declare("q")
    channel.queue_declare("other")
    channel.basic_qos(0, 2, True)
    notified: list[str] = []
    channel.basic_consume("q", "tag", callback=print, on_cancel=notified.append)
    store = Store()
    channel.basic_consume("other", sink=store)
    send(channel, 5)
    send(channel, 5, "other")
    assert not store
    assert channel.queue_delete("q") == 3
    assert len(store) == 2
    drain_all(channel)
    assert notified == ["tag"]
    assert "tag" not in channel.consumers


def test_cancel_without_a_listener_raises_in_who_drains(channel: Channel) -> None:
    channel.queue_declare("q")
    channel.basic_consume("q", "tag", callback=print)
    channel.queue_delete("q")
    with pytest.raises(ConsumerCancelled, match="tag"):
        channel.connection.drain(NOW)


def test_sinks_learn_of_every_end(open_channel: Callable[..., Channel]) -> None:
    for end in ("channel", "link"):
        channel = open_channel()
        channel.queue_declare(end)
        store = Store()
        channel.basic_consume(end, sink=store)
        (channel if end == "channel" else channel.connection).close()
        (reason,) = store.lost
        assert isinstance(reason, (RecoverableChannelError, RecoverableConnectionError))


def test_acks_to_a_deleted_queue_are_taken(channel: Channel) -> None:
    channel.queue_declare(
        "q", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"}
    )
    send(channel, 3)
    messages: list[Any] = [channel.basic_get("q") for _ in range(3)]
    channel.queue_delete("q")
    messages[0].ack()
    messages[1].requeue()
    messages[2].reject()


def test_new_channel_takes_over(open_channel: Callable[..., Channel]) -> None:
    old, new = open_channel(), open_channel()
    old.basic_qos(0, 7, False)
    old.basic_qos(0, 9, True)
    old.events["basic_return"].add(print)
    new.take_over(old)
    assert (new.prefetch.count, new.prefetch.limit) == (7, 9)
    assert new.events["basic_return"] == {print}
