"""Settlements to a store whose calls wait: they leave together, and who waits for them is told."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.broker.port import Settlement, SettleRequest
from greenconn.exceptions import ChannelError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, channel_to_q, publish


def settled(fake_broker: FakeBroker) -> list[list[SettleRequest]]:
    """Return the answers of each call."""
    return [argument for method, argument in fake_broker.calls if method == "settle"]


def taken(connect: Opener, count: int, **queue: Any) -> tuple[StoreChannel[StoreLink], list[Any]]:
    """Return a channel, and so many messages that it got from ``q``."""
    channel = channel_to(connect)
    channel.queue_declare("q", **queue)
    for number in range(count):
        publish(channel, f"{number}")
    return channel, [channel.basic_get("q") for _ in range(count)]


def test_a_dead_letter_that_fails_is_tried_after_a_lease(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    channel, got = taken(connect, 1, arguments=arguments)

    def refuse(method: str, argument: Any) -> None:
        if method == "find_queue" and argument == "dead":
            raise ChannelError("you may not look at it")

    fake_broker.before = refuse
    got[0].reject()
    channel.connection.catch_up()
    ((answer,),) = settled(fake_broker)
    assert answer == SettleRequest(got[0], Settlement.REQUEUE, delay=30.0)


def test_a_waiter_is_woken_when_its_settlements_are_stored(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel, got = taken(connect, 2)
    link = channel.connection
    link.settlements.wait(Deadline(0))  # there is nothing to wait for
    may_go = fake_broker.hold("settle")
    got[0].ack()
    until(lambda: settled(fake_broker))
    first = gevent.spawn(link.settlements.wait, Deadline(10))
    gevent.sleep(0)
    got[1].ack()
    second = gevent.spawn(link.settlements.wait, Deadline(10))
    gevent.sleep(0)
    with pytest.raises(TimeoutError):
        link.settlements.wait(Deadline(0.01))
    fake_broker.hold("settle")
    may_go.set()
    first.get(timeout=10)
    assert not second.ready()
    assert link.settlements.is_busy
    link.end(RecoverableConnectionError("cut"))
    with pytest.raises(RecoverableConnectionError):
        second.get(timeout=10)
    until(lambda: not link.settlements.is_busy)


@pytest.mark.parametrize("exc", [ChannelError("not now"), ConnectionResetError("cut")])
def test_a_renewal_that_fails_is_logged_or_ends_the_link(
    connect: Opener, fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture, exc: Exception
) -> None:
    channel, _ = taken(connect, 1)
    link = channel.connection

    def refuse(method: str, argument: Any) -> None:
        if method == "renew":
            raise exc

    fake_broker.before = refuse
    link.leases.renew()
    if isinstance(exc, ChannelError):
        until(lambda: "renewing leases: " in caplog.text)
        assert link.lost is None
        assert len(caplog.records) == 1
    else:
        until(lambda: link.lost is exc)


@pytest.mark.parametrize("exc", [ChannelError("not now"), ConnectionResetError("cut")])
def test_a_lease_is_not_confirmed_by_a_renewal_that_fails(
    connect: Opener, fake_broker: FakeBroker, exc: Exception
) -> None:
    channel, got = taken(connect, 1)
    link = channel.connection

    def refuse(method: str, argument: Any) -> None:
        if method == "renew":
            raise exc

    assert link.leases.confirm(got[0].handle, Deadline(10.0))
    fake_broker.before = refuse
    with pytest.raises(type(exc)) as caught:
        link.leases.confirm(got[0].handle, Deadline(10.0))
    assert caught.value is exc


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_a_settlement_that_is_refused(
    connect: Opener, fake_broker: FakeBroker, refused: int
) -> None:
    channel = channel_to_q(connect)
    for number in range(3):
        publish(channel, f"{number}")
    got = [channel.basic_get("q") for _ in range(3)]
    held = fake_broker.items["q"][refused].number

    def refuse(method: str, argument: Any) -> None:
        if method == "settle" and any(answer.message.handle[1] == held for answer in argument):
            raise ChannelError("not this one")

    fake_broker.before = refuse
    for each in got:
        assert each is not None
        each.ack()
    channel.connection.catch_up()
    assert channel.connection.lost is None
    assert fake_broker.bodies("q") == [str(refused).encode()]
    fake_broker.before = lambda method, argument: None
    publish(channel, "more")
    more = channel.basic_get("q", no_ack=True)
    assert more is not None
    channel.connection.catch_up()
    assert fake_broker.bodies("q") == [str(refused).encode()]


def test_acks_of_a_turn_leave_together(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to_q(connect)
    for n in range(50):
        publish(channel, str(n))
    sink = Sink()
    channel.basic_consume("q", sink=sink)
    sink.wait_for(50)
    fake_broker.calls.clear()
    for message in sink:
        message.ack()
    channel.connection.catch_up()
    assert [len(argument) for method, argument in fake_broker.calls if method == "settle"] == [50]


def test_settlements_that_are_interrupted_end_the_link(
    connect: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, got = taken(connect, 1)
    link = channel.connection

    def settle(requests: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(link.store, "settle", settle)
    with monkeypatch.context() as patched:
        patched.setattr(gevent.get_hub(), "handle_error", lambda *args: None)
        got[0].ack()
        until(lambda: link.lost is not None)
    assert "settling messages failed: KeyboardInterrupt()" in str(link.lost)
