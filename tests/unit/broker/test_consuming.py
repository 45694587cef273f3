"""Consumers over a store: room, order, leases, and what becomes of what nobody answers."""

from __future__ import annotations

import logging
from typing import Any

import gevent
import pytest

from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.exceptions import RecoverableConnectionError
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeStore, World
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, publish


def consume(channel: StoreChannel[StoreLink], sink: Sink, queue: str = "q", **options: Any) -> str:
    return channel.basic_consume(queue, sink=sink, **options)


def test_order_is_kept(connect: Opener, kind: type[FakeStore]) -> None:
    channel = channel_to(connect, kind)
    channel.queue_declare("q")
    sink = Sink(lambda message: message.ack())
    consume(channel, sink)
    for n in range(200):
        publish(channel, str(n))
    sink.wait_for(200)
    assert sink.bodies == [str(n) for n in range(200)]


def test_prefetch_bounds_what_is_claimed(
    connect: Opener, world: World, kind: type[FakeStore]
) -> None:
    channel = channel_to(connect, kind)
    channel.queue_declare("q")
    for n in range(20):
        publish(channel, str(n))
    channel.basic_qos(0, 3)
    sinks = [Sink(), Sink()]
    for sink in sinks:
        consume(channel, sink)
    for sink in sinks:
        sink.wait_for(3)
    gevent.sleep(0.02)
    assert [len(sink) for sink in sinks] == [3, 3]
    assert sum(1 for item in world.items["q"] if item.claim) == 6
    sinks[0][0].ack()
    sinks[0].wait_for(4)
    assert world.bodies("q")[0] != b"0"


def test_many_consumers(connect: Opener, world: World, kind: type[FakeStore], long: bool) -> None:
    count = 1000 if long else 200
    link = connect(kind)
    channels = [link.transport.create_channel(link) for _ in range(count // 50)]
    sink = Sink(lambda message: message.ack())
    for n in range(count):
        channel = channels[n // 50]
        channel.queue_declare(f"q{n}")
        consume(channel, sink, f"q{n}")
    world.calls.clear()
    for n in range(count):
        publish(channels[0], str(n), f"q{n}")
    sink.wait_for(count)
    assert {int(body) for body in sink.bodies} == set(range(count))


def test_idle_consumers_cost_nothing(connect: Opener, world: World) -> None:
    link = connect()
    channel = link.transport.create_channel(link)
    for n in range(100):
        channel.queue_declare(f"q{n}")
        consume(channel, Sink(), f"q{n}")
    gevent.sleep(0.02)
    world.calls.clear()
    gevent.sleep(0.1)
    assert world.calls == []


def test_message_of_another_process(connect: Opener, kind: type[FakeStore]) -> None:
    consumer, publisher = channel_to(connect, kind), channel_to(connect, kind)
    consumer.queue_declare("q")
    sink = Sink(lambda message: message.ack())
    consume(consumer, sink)
    gevent.sleep(0.01)
    for n in range(3):
        publish(publisher, str(n))
        sink.wait_for(n + 1)


def test_what_was_not_answered_comes_back_when_the_channel_closes(
    connect: Opener, world: World, kind: type[FakeStore]
) -> None:
    channel = channel_to(connect, kind)
    channel.queue_declare("q")
    for n in range(3):
        publish(channel, str(n))
    sink = Sink()
    consume(channel, sink)
    sink.wait_for(3)
    sink[1].ack()
    channel.close()
    other = channel_to(connect, kind)
    got = [other.basic_get("q"), other.basic_get("q"), other.basic_get("q")]
    assert [None if each is None else (each.body, each.redelivered) for each in got] == [
        ("0", True),
        ("2", True),
        None,
    ]


def test_cancelled_consumer_gives_back_unseen(
    connect: Opener, world: World, kind: type[FakeStore]
) -> None:
    """A claim that comes back after the consumer left is undone, as if it had never been."""
    channel = channel_to(connect, kind)
    channel.queue_declare("q")
    tag = ""

    def after(method: str, argument: Any) -> None:
        if method == "claim" and argument:
            channel.basic_cancel(tag)

    world.after = after
    sink = Sink()
    tag = consume(channel, sink)
    publish(channel, "x")
    with gevent.Timeout(10):
        while not world.count("settle"):
            gevent.sleep(0.001)
    assert sink == []
    world.after = lambda method, argument: None
    message = channel.basic_get("q")
    assert message is not None
    assert not message.redelivered


def test_lease_is_renewed(connect: Opener, world: World) -> None:
    link = connect()
    link.leases.stop()
    link.store.lease = 0.03
    link.leases.start()
    channel = link.transport.create_channel(link)
    channel.queue_declare("q")
    publish(channel, "x")
    sink = Sink()
    consume(channel, sink)
    sink.wait_for(1)
    with gevent.Timeout(10):
        while world.count("renew") < 3:
            gevent.sleep(0.005)
    assert [argument for method, argument in world.calls if method == "renew"][-1] != []


def test_lost_lease_is_told_once(
    connect: Opener, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    link = connect()
    channel = link.transport.create_channel(link)
    channel.queue_declare("q")
    told: list[int] = []
    channel.events["lease_lost"].add(told.append)
    publish(channel, "x")
    sink = Sink()
    channel.basic_qos(0, 1)
    consume(channel, sink)
    sink.wait_for(1)
    world.expire_leases()
    other = channel_to(connect).basic_get("q")
    assert other is not None
    assert other.redelivered
    with caplog.at_level(logging.WARNING, "greenconn.broker"):
        for _ in range(2):
            link.leases.renew()
            until(lambda: not link.leases._under_way and told)
    assert told == [1]
    assert len(caplog.records) == 1
    sink[0].ack()  # too late: changes nothing
    link.catch_up()
    assert world.bodies("q") == [b"x"]
    other.ack()
    other.channel.connection.catch_up()
    assert world.bodies("q") == []


def test_delivery_limit_and_dead_letters(
    connect: Opener, world: World, kind: type[FakeStore]
) -> None:
    channel = channel_to(connect, kind)
    channel.queue_declare("dead")
    channel.queue_declare(
        "q",
        arguments={
            "x-delivery-limit": 2,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "dead",
        },
    )
    publish(channel, "x")
    sink = Sink(lambda message: message.requeue())
    consume(channel, sink)
    sink.wait_for(2)
    grave = Sink()
    consume(channel, grave, "dead")
    grave.wait_for(1)
    assert len(sink) == 2
    assert grave[0].headers["x-death"][0]["reason"] == "delivery_limit"
    assert world.bodies("q") == []


def test_acks_of_a_turn_leave_together(connect: Opener, world: World) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    for n in range(50):
        publish(channel, str(n))
    sink = Sink()
    consume(channel, sink)
    sink.wait_for(50)
    world.calls.clear()
    for message in sink:
        message.ack()
    channel.connection.catch_up()
    assert [len(argument) for method, argument in world.calls if method == "settle"] == [50]


def test_lost_link_leaves_to_the_next(connect: Opener, world: World) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    for n in range(3):
        publish(channel, str(n))
    sink = Sink()
    consume(channel, sink)
    sink.wait_for(3)
    link = channel.connection
    sink[0].ack()  # its settling is on its way when the link is lost
    link.end(ConnectionResetError("cut"))
    sink[1].ack()  # and this comes later
    assert sink.lost
    assert sorted(world.bodies("q")) == [b"0", b"1", b"2"]
    again = link.transport.establish_connection()
    try:
        again.catch_up()
        assert world.bodies("q") == [b"2"]
        other = link.transport.create_channel(again)
        message = other.basic_get("q", no_ack=True)
        assert message is not None
        assert (message.body, message.redelivered) == ("2", True)
    finally:
        again.close()


def test_what_came_when_the_link_was_over(connect: Opener, world: World) -> None:
    """The next life gives it back at once, as if nobody had claimed it."""
    link = connect()
    channel = link.transport.create_channel(link)
    channel.queue_declare("q")

    def cut(method: str, argument: object) -> None:
        if method == "claim":
            world.after = lambda method, argument: None
            link.end(RecoverableConnectionError("cut by the test"))

    publish(channel, "x")
    world.after = cut
    consume(channel, sink := Sink())
    until(lambda: any(item.claim for item in world.items["q"]))
    until(lambda: link.lost is not None)
    again = link.transport.establish_connection()
    again.catch_up()
    assert [(item.claim, item.deliveries) for item in world.items["q"]] == [(0, 0)]
    assert not sink.bodies
    again.close()
