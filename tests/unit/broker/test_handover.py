"""What comes when a life of the connection is over is the next one's: nobody waits for a lease."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.link import StoreLink
from greenconn.exceptions import RecoverableConnectionError
from tests.fix_wires import until
from tests.forked import holds_in_child
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker, FakeStore
from tests.unit.broker.sink import SOON, Sink
from tests.unit.broker.test_publishing import channel_to_q, publish

#: The leases of a :class:`FakeBroker` never end by themselves.
Successor = Callable[[StoreLink], StoreLink]


@pytest.fixture
def succeed(request: pytest.FixtureRequest) -> Successor:
    """The next life of a link."""

    def open_next(link: StoreLink) -> StoreLink:
        made = link.transport.establish_connection()
        request.addfinalizer(made.close)
        return made

    return open_next


def ended_by(fake_broker: FakeBroker, method: str, link: StoreLink) -> None:
    """Let a link be lost as soon as a method has done its work."""

    def after(name: str, argument: Any) -> None:
        if name == method and argument:
            fake_broker.after = lambda name, argument: None
            link.end(RecoverableConnectionError("it is gone"))

    fake_broker.after = after


def got(link: StoreLink) -> list[tuple[str, bool]]:
    """All that waits in ``q``, and whether it is marked as redelivered."""
    channel = link.transport.create_channel(link)
    found = []
    while (message := channel.basic_get("q", no_ack=True)) is not None:
        found.append((message.body, message.redelivered))
    return found


def test_a_claim_that_comes_too_late_is_given_back(
    connect: Opener, fake_broker: FakeBroker, kind: type[FakeStore], succeed: Successor
) -> None:
    channel = channel_to_q(connect, kind)
    for number in range(3):
        publish(channel, f"{number}")
    sink = Sink()
    ended_by(fake_broker, "claim", channel.connection)
    channel.basic_consume("q", sink=sink)
    sink.wait_lost()
    assert not sink
    assert got(succeed(channel.connection)) == [(f"{number}", False) for number in range(3)]


def test_a_message_that_is_got_too_late_is_given_back(
    connect: Opener, fake_broker: FakeBroker, kind: type[FakeStore], succeed: Successor
) -> None:
    channel = channel_to_q(connect, kind)
    publish(channel, "x")
    ended_by(fake_broker, "claim", channel.connection)
    with pytest.raises(RecoverableConnectionError):
        channel.basic_get("q")
    assert got(succeed(channel.connection)) == [("x", False)]


def test_the_child_of_a_fork_gives_nothing_back(
    connect: Opener, fake_broker: FakeBroker, succeed: Successor
) -> None:
    channel = channel_to_q(connect)
    publish(channel, "x")
    link = channel.connection
    (claimed,) = link.store.claim({"q": 1}, 0.0)

    def gives_nothing() -> bool:
        link.settlements.requeue_unseen(claimed)
        return not link.transport.handover._requests

    assert holds_in_child(gives_nothing)


def test_closing_waits_for_what_nobody_waits_for(
    connect: Opener, fake_broker: FakeBroker, kind: type[FakeStore]
) -> None:
    channel = channel_to_q(connect, kind)
    publish(channel, "x")
    claims, may_go = Event(), Event()

    def before(method: str, argument: Any) -> None:
        if method == "claim":
            claims.set()
            assert may_go.wait(SOON)

    fake_broker.before = before
    getting = gevent.spawn(channel.basic_get, "q")
    assert claims.wait(SOON)
    getting.kill()
    closing = gevent.spawn(channel.connection.close)
    gevent.sleep(0)
    may_go.set()
    closing.get(timeout=SOON)
    fake_broker.before = lambda method, argument: None
    assert got(connect(kind)) == [("x", False)]


def test_lost_link_leaves_to_the_next(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to_q(connect)
    for n in range(3):
        publish(channel, str(n))
    sink = Sink()
    channel.basic_consume("q", sink=sink)
    sink.wait_for(3)
    link = channel.connection
    sink[0].ack()  # its settling is on its way when the link is lost
    link.end(ConnectionResetError("cut"))
    sink[1].ack()  # and this comes later
    assert sink.lost
    assert sorted(fake_broker.bodies("q")) == [b"0", b"1", b"2"]
    again = link.transport.establish_connection()
    try:
        again.catch_up()
        assert fake_broker.bodies("q") == [b"2"]
        other = link.transport.create_channel(again)
        message = other.basic_get("q", no_ack=True)
        assert message is not None
        assert (message.body, message.redelivered) == ("2", True)
    finally:
        again.close()


def test_what_no_handler_has_begun_with_keeps_its_count(
    connect: Opener, fake_broker: FakeBroker, succeed: Successor
) -> None:
    channel = channel_to_q(connect)
    channel.queue_declare("events")
    for name in ("begun", "waits"):
        publish(channel, name)
    publish(channel, "drained by nobody", "events")
    sink = Sink()
    channel.basic_consume("q", sink=sink)
    channel.basic_consume("events", callback=print)
    sink.wait_for(2)
    until(lambda: len(channel.connection.events))
    channel.connection.end(ConnectionResetError("cut"))
    sink[1].put_back()
    again = succeed(channel.connection)
    again.catch_up()
    assert [each.deliveries for each in fake_broker.items["q"]] == [1, 0]
    assert [each.deliveries for each in fake_broker.items["events"]] == [0]
    assert got(again) == [("begun", True), ("waits", True)]


def test_claims_that_end_with_the_connection_are_nobodys(
    connect: Opener, fake_broker: FakeBroker, succeed: Successor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeStore, "outlives_link", False)
    channel = channel_to_q(connect)
    for number in range(2):
        publish(channel, f"{number}")
    held: list[Any] = [channel.basic_get("q") for _ in range(2)]
    link = channel.connection
    link.end(RecoverableConnectionError("it is gone"))
    held[0].ack()
    link.settlements.requeue([held[0]])
    fake_broker.calls.clear()
    succeed(link).catch_up()
    assert fake_broker.count("settle") == 0


def test_what_may_have_been_claimed_goes_back_as_unseen(
    connect: Opener, fake_broker: FakeBroker, succeed: Successor, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = channel_to_q(connect)
    publish(channel, "x")
    link = channel.connection
    (claimed,) = link.store.claim({"q": 1}, 0.0)
    monkeypatch.setattr(link.store, "unconfirmed_claims", lambda: [("q", claimed.handle)])
    link.end(RecoverableConnectionError("it is gone"))
    assert got(succeed(link)) == [("x", False)]


def test_only_what_was_held_is_given_back(
    connect: Opener, fake_broker: FakeBroker, succeed: Successor
) -> None:
    channel = channel_to_q(connect)
    for number in range(3):
        publish(channel, f"{number}")
    taken: list[Any] = [channel.basic_get("q") for _ in range(3)]
    taken[0].is_held = False
    link = channel.connection
    link.end(RecoverableConnectionError("it is gone"))
    link.transport.handover.ack("unknown")
    taken[1].ack()
    link.transport.handover.ack(taken[1].delivery_tag)  # again: changes nothing
    fake_broker.calls.clear()
    following = succeed(link)
    following.catch_up()
    (answers,) = (argument for method, argument in fake_broker.calls if method == "settle")
    assert len(answers) == 2
    assert fake_broker.bodies("q") == [b"0", b"2"]
    assert [item.claim > 0 for item in fake_broker.items["q"]] == [True, False]
    # What the next life was left is not left to a third one.
    following.end(RecoverableConnectionError("it is gone too"))
    fake_broker.calls.clear()
    succeed(following).catch_up()
    assert fake_broker.count("settle") == 0
