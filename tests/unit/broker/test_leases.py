"""Leases: what is held is renewed, and what was lost is told."""

from __future__ import annotations

import logging
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker import deliveries as leases
from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.exceptions import ChannelError
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, channel_to_q, publish


def holding(connect: Opener, count: int) -> tuple[StoreChannel[StoreLink], Sink]:
    """Return a channel that holds so many messages of ``q``, and where they are."""
    channel = channel_to_q(connect)
    for number in range(count):
        publish(channel, f"{number}")
    sink = Sink()
    channel.basic_consume("q", sink=sink)
    sink.wait_for(count)
    return channel, sink


def renewals(fake_broker: FakeBroker) -> list[int]:
    """Return the number of leases in each call."""
    return [len(argument) for method, argument in fake_broker.calls if method == "renew"]


def renew(link: StoreLink) -> None:
    """Tell the store what *link* holds, and wait for its word."""
    link.leases.renew()
    until(lambda: not link.leases._under_way)
    gevent.sleep(0)  # whoever is told has a greenlet


def test_lease_is_renewed(connect: Opener, fake_broker: FakeBroker) -> None:
    link = connect()
    link.leases.stop()
    link.store.lease = 0.03
    link.leases.start()
    channel = link.transport.create_channel(link)
    channel.queue_declare("q")
    publish(channel, "x")
    sink = Sink()
    channel.basic_consume("q", sink=sink)
    sink.wait_for(1)
    with gevent.Timeout(10):
        while fake_broker.count("renew") < 3:
            gevent.sleep(0.005)
    assert [argument for method, argument in fake_broker.calls if method == "renew"][-1] != []


def test_lost_lease_is_logged_once(
    connect: Opener, fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    link = connect()
    channel = link.transport.create_channel(link)
    channel.queue_declare("q")
    notified: list[int] = []
    channel.events["lease_lost"].add(notified.append)
    publish(channel, "x")
    sink = Sink()
    channel.basic_qos(0, 1)
    channel.basic_consume("q", sink=sink)
    sink.wait_for(1)
    fake_broker.expire_leases()
    other = channel_to(connect).basic_get("q")
    assert other is not None
    assert other.redelivered
    with caplog.at_level(logging.WARNING, "greenconn.broker"):
        for _ in range(2):
            link.leases.renew()
            until(lambda: not link.leases._under_way and notified)
    assert notified == [1]
    assert len(caplog.records) == 1
    assert sink[0].acknowledged, "it was dropped, as nobody had seen it"
    link.catch_up()
    assert fake_broker.bodies("q") == [b"x"]
    other.ack()
    other.channel.connection.catch_up()
    assert fake_broker.bodies("q") == []


def test_many_are_renewed_page_by_page(
    connect: Opener, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, sink = holding(connect, 5)
    monkeypatch.setattr(leases, "RENEWALS", 2)
    sink[1].ack()
    renew(channel.connection)
    assert renewals(fake_broker) == [2, 2]
    renewed = [handle for method, each in fake_broker.calls if method == "renew" for handle in each]
    assert renewed == [each.handle for each in sink if each is not sink[1]]


def test_what_is_settled_while_it_is_renewed_is_not_lost(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel, sink = holding(connect, 2)

    def before(method: str, argument: Any) -> None:
        if method == "renew":
            fake_broker.expire_leases()
            sink[0].ack()

    fake_broker.before = before
    renew(channel.connection)
    assert channel.connection.leases.lost == 1
    assert [each.is_held for each in sink[:2]] == [True, False]


def test_a_link_is_closed_behind_a_renewal(connect: Opener, fake_broker: FakeBroker) -> None:
    link = connect()
    begun, may_go_on = Event(), Event()

    def before(method: str, argument: Any) -> None:
        if method == "renew":
            begun.set()
            assert may_go_on.wait(10)

    fake_broker.before = before
    link.leases.renew()
    assert begun.wait(10)
    closing = gevent.spawn(link.close)
    gevent.sleep(0.02)
    assert not fake_broker.count("close")
    may_go_on.set()
    closing.join(10)
    assert closing.ready()
    assert fake_broker.count("close") == 1


def test_a_refusal_is_logged_and_tried_again(
    connect: Opener, fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    link = connect()

    def refuse(method: str, argument: Any) -> None:
        if method == "renew":
            raise ChannelError("not now")

    fake_broker.before = refuse
    for _ in range(2):
        link.leases._tick(0.0)
        until(lambda: not link.leases._under_way)
    assert len(renewals(fake_broker)) == 2
    assert link.lost is None
    until(lambda: any("renewing leases" in each.getMessage() for each in caplog.records))


def test_a_hub_that_was_blocked_is_logged(
    connect: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    link = connect()  # whose leases of 30 s are renewed each 10 s
    link.leases._tick(10.0)
    until(lambda: not link.leases._under_way)
    assert not [each for each in caplog.records if each.levelno == logging.WARNING]
    link.leases._tick(10.5)
    until(lambda: any(each.levelno == logging.WARNING for each in caplog.records))
    assert "the hub was blocked for 10.5 s" in caplog.records[-1].getMessage()
