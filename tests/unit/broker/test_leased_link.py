"""The end of a link whose broker holds messages: what it leaves, and what the waiting ones get."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.link import StoreLink
from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import Deadline
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener, refused_elsewhere
from tests.unit.broker.fake_store import EachStore, FakeBroker
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_link import raising
from tests.unit.broker.test_publishing import channel_to, publish


@pytest.fixture
def link(connect: Opener) -> StoreLink:
    """A link."""
    return connect()


def test_other_threads_may_neither_flush_nor_close(link: StoreLink) -> None:
    calls: list[Callable[[], object]] = [lambda: link.flush(Deadline(1)), link.close]

    assert refused_elsewhere(calls) == [True, True]
    assert link.is_open


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
