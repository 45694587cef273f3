"""Settlements to a store whose calls wait: they leave together, and who waits for them is told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.broker.port import Settlement, SettleRequest
from greenconn.exceptions import ChannelError, RecoverableConnectionError
from greenconn.green import supervisor
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker, FakeStore
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, publish


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


def test_one_call_tells_so_many(
    connect: Opener, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeStore, "settle_limit", 2)
    channel, got = taken(connect, 5)
    for each in got:
        each.ack()
    channel.connection.catch_up()
    assert [len(each) for each in settled(fake_broker)] == [2, 2, 1]
    handles = [answer.handle for each in settled(fake_broker) for answer in each]
    assert handles == [each.handle for each in got]
    assert {answer.settlement for each in settled(fake_broker) for answer in each} == {
        Settlement.ACK
    }


def test_after_a_refusal_each_is_sent_alone(connect: Opener, fake_broker: FakeBroker) -> None:
    channel, got = taken(connect, 5)
    bad = fake_broker.items["q"][1].number

    def refuse(method: str, argument: Any) -> None:
        if method == "settle" and any(answer.handle[1] == bad for answer in argument):
            raise ChannelError("not this one")

    fake_broker.before = refuse
    for each in got[:4]:
        each.ack()
    gevent.sleep(0)
    got[4].ack()
    channel.connection.catch_up()
    assert [len(each) for each in settled(fake_broker)] == [4, 1, 1, 1, 1, 1]
    for _ in range(2):
        publish(channel, "more")
    for each in [channel.basic_get("q") for _ in range(2)]:
        assert each is not None
        each.ack()
    channel.connection.catch_up()
    assert [len(each) for each in settled(fake_broker)][6:] == [2]


def test_what_is_given_back_is_delivered_again(connect: Opener, fake_broker: FakeBroker) -> None:
    channel, got = taken(connect, 2)
    sink = Sink()
    channel.basic_consume("q", sink=sink)
    channel.connection.catch_up()
    got[1].requeue()
    sink.wait_for(1)
    got[0].requeue()
    sink.wait_for(2)
    assert [(each.body, each.deliveries) for each in sink] == [("1", 1), ("0", 1)]


def test_settlements_that_come_too_late_are_counted(
    connect: Opener, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, got = taken(connect, 1)
    notified: list[int] = []
    channel.events["lease_lost"].add(notified.append)
    monkeypatch.setattr(channel.connection.store, "settle", lambda answers: len(answers))
    got[0].ack()
    channel.connection.catch_up()
    assert (notified, channel.connection.leases.lost) == ([1], 1)


def test_a_link_that_ends_with_the_reply_fails_no_greenlet(
    connect: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store's reply and the end of the connection may come in the same turn of the hub."""
    channel, got = taken(connect, 3)
    link = channel.connection
    has_ended = Event()

    def settle(requests: Any) -> None:
        link.end(RecoverableConnectionError("cut"))
        has_ended.set()

    monkeypatch.setattr(link.store, "settle", settle)
    for each in got:
        each.ack()
    assert has_ended.wait(30)
    until(lambda: not link.settler.is_busy)


@pytest.mark.parametrize(("limit", "stays"), [(None, True), (2, True), (1, False)])
def test_a_delivery_limit_ends_what_is_given_back(
    connect: Opener, fake_broker: FakeBroker, limit: int | None, stays: bool
) -> None:
    arguments = {} if limit is None else {"x-delivery-limit": limit}
    channel, got = taken(connect, 1, arguments=arguments)
    got[0].requeue()
    channel.connection.catch_up()
    assert fake_broker.bodies("q") == ([b"0"] if stays else [])


def test_what_the_store_does_not_hold_needs_no_ack(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel, got = taken(connect, 3)
    for each in got:
        each.is_held = False
    got[0].requeue()
    got[1].reject()
    got[2].ack()
    channel.connection.catch_up()
    assert settled(fake_broker) == []


DEAD = {"x-dead-letter-exchange": "x"}


def test_dead_letters_go_through_an_exchange(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    channel.exchange_declare("x", "fanout")
    for name in ("a", "b"):
        channel.queue_declare(name)
        channel.queue_bind(name, "x")
    sink = Sink()
    channel.basic_consume("b", sink=sink)
    channel.queue_declare("q", arguments=DEAD)
    publish(channel, "0")
    message = channel.basic_get("q")
    assert message is not None
    message.reject()
    sink.wait_for(1)  # without another word
    assert (fake_broker.bodies("q"), fake_broker.bodies("a")) == ([], [b"0"])
    assert sink[0].headers["x-death"][0]["reason"] == "rejected"


def test_dead_letters_without_their_exchange_are_dropped(
    connect: Opener, fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    channel, got = taken(connect, 1, arguments=DEAD)
    got[0].reject()
    channel.connection.catch_up()
    assert fake_broker.bodies("q") == []
    texts = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert len(texts) == 1
    assert "dead letters of queue 'q' are dropped: exchange 'x' does not exist" in texts[0]


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
    assert answer == SettleRequest(got[0].handle, Settlement.REQUEUE, delay=30.0)


def test_a_waiter_is_woken_when_its_settlements_are_stored(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel, got = taken(connect, 2)
    link = channel.connection
    link.settler.wait(Deadline(0))  # there is nothing to wait for
    may_go = Event()
    fake_broker.before = lambda method, argument: method == "settle" and may_go.wait()
    got[0].ack()
    until(lambda: settled(fake_broker))
    first = gevent.spawn(link.settler.wait, Deadline(10))
    gevent.sleep(0)
    got[1].ack()
    link.settlements.flush()
    second = gevent.spawn(link.settler.wait, Deadline(10))
    gevent.sleep(0)
    with pytest.raises(TimeoutError):
        link.settler.wait(Deadline(0.01))
    fake_broker.before = lambda method, argument: method == "settle" and Event().wait()
    may_go.set()
    first.get(timeout=10)
    assert not second.ready()
    assert link.settler.is_busy
    link.end(RecoverableConnectionError("cut"))
    with pytest.raises(RecoverableConnectionError):
        second.get(timeout=10)
    until(lambda: not link.settler.is_busy)


def test_each_part_is_reported_once_it_is_whole(
    connect: Opener, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one call to the store holds less, or more."""
    channel, got = taken(connect, 4)
    settler = channel.connection.settler
    outcomes: list[tuple[str, Any]] = []
    late = iter([1, None, 2])
    monkeypatch.setattr(FakeStore, "settle_limit", 2)
    monkeypatch.setattr(channel.connection.store, "settle", lambda answers: next(late))
    handles = [each.handle for each in got]
    settler.ack(handles[:3], lambda outcome: outcomes.append(("a", outcome)))
    settler.ack(handles[3:], lambda outcome: outcomes.append(("b", outcome)))
    settler.wait(Deadline(10))
    assert outcomes == [("a", 1), ("b", None)]
    settler.ack(handles[:1], lambda outcome: outcomes.append(("c", outcome)))
    settler.wait(Deadline(10))
    assert outcomes[2:] == [("c", 2)]
    for each in got:
        each.is_held = False


def test_a_lost_connection_ends_the_link(connect: Opener, fake_broker: FakeBroker) -> None:
    channel, got = taken(connect, 2)
    link = channel.connection

    def cut(method: str, argument: Any) -> None:
        if method == "settle":
            raise ConnectionResetError("cut")

    fake_broker.before = cut
    got[0].ack()
    until(lambda: link.lost is not None)
    fake_broker.before = lambda method, argument: None
    again = link.transport.establish_connection()
    again.catch_up()
    assert [(item.number, item.claim) for item in fake_broker.items["q"]] == [(2, 0)]
    again.close()


def test_renewals_are_sent_one_after_the_other(connect: Opener, fake_broker: FakeBroker) -> None:
    channel, got = taken(connect, 2)
    settler = channel.connection.settler
    gone: list[Any] = []
    may_go = Event()
    fake_broker.before = lambda method, argument: method == "renew" and may_go.wait()
    handles = [each.handle for each in got]
    for handle in handles:
        settler.renew([handle], gone.append)
    until(lambda: fake_broker.count("renew"))
    gevent.sleep(0)
    assert fake_broker.count("renew") == 1
    fake_broker.expire_leases()
    may_go.set()
    until(lambda: len(gone) == 2)
    assert gone == [[handles[0]], [handles[1]]]


def test_a_renewal_that_is_refused_has_lost_nothing(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel, got = taken(connect, 1)
    settler = channel.connection.settler
    gone: list[Any] = []

    def refuse(method: str, argument: Any) -> None:
        if method == "renew":
            raise ChannelError("not now")

    fake_broker.before = refuse
    settler.renew([got[0].handle], gone.append)
    until(lambda: gone)
    assert [list(each) for each in gone] == [[]]
    assert channel.connection.lost is None


@pytest.mark.parametrize("exc", [ChannelError("not now"), ConnectionResetError("cut")])
def test_a_renewal_that_fails_is_logged_or_ends_the_link(
    connect: Opener, fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture, exc: Exception
) -> None:
    channel, got = taken(connect, 1)
    link = channel.connection
    gone: list[Any] = []

    def refuse(method: str, argument: Any) -> None:
        if method == "renew":
            raise exc

    fake_broker.before = refuse
    link.settler.renew([got[0].handle], gone.append)
    if isinstance(exc, ChannelError):
        until(lambda: "renewing leases: " in caplog.text)
        assert link.lost is None
    else:
        until(lambda: link.lost is exc)


def test_what_the_store_says_of_leases(connect: Opener) -> None:
    link = connect()
    assert (link.settler.lease, link.settler.renewal_interval) == (30.0, 10.0)
    link.store.lease = None
    assert (link.settler.lease, link.settler.renewal_interval) == (None, None)
    assert link.settler.outlives_link
    assert link.settler.ack_limit == 100


def test_a_dead_letter_exchange_that_cannot_be_read(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel = channel_to(connect)
    channel.queue_declare(
        "q", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    )
    for number in range(3):
        publish(channel, f"{number}")

    def refuse(method: str, argument: Any) -> None:
        if method == "find_queue" and argument == "dead":
            raise ChannelError("you may not look at it")

    fake_broker.before = refuse
    got = [channel.basic_get("q") for _ in range(3)]
    assert all(got)
    for each in got:
        assert each is not None
        if each.body == "1":
            each.reject()
        else:
            each.ack()
    channel.connection.catch_up()
    assert channel.connection.lost is None
    assert fake_broker.bodies("q") == [b"1"]


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_a_settlement_that_is_refused(
    connect: Opener, fake_broker: FakeBroker, refused: int
) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    for number in range(3):
        publish(channel, f"{number}")
    got = [channel.basic_get("q") for _ in range(3)]
    held = fake_broker.items["q"][refused].number

    def refuse(method: str, argument: Any) -> None:
        if method == "settle" and any(answer.handle[1] == held for answer in argument):
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


def test_delivery_limit_and_dead_letters(
    connect: Opener, fake_broker: FakeBroker, kind: type[FakeStore]
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
    channel.basic_consume("q", sink=sink)
    sink.wait_for(2)
    dead_letters = Sink()
    channel.basic_consume("dead", sink=dead_letters)
    dead_letters.wait_for(1)
    assert len(sink) == 2
    assert dead_letters[0].headers["x-death"][0]["reason"] == "delivery_limit"
    assert fake_broker.bodies("q") == []


def test_acks_of_a_turn_leave_together(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
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


def test_an_error_stays_what_it_is(connect: Opener) -> None:
    exc = ValueError("refused")
    assert connect().settler.error(exc, "settling messages") is exc


def test_of_two_that_are_refused_together_each_is_sent_alone(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel, got = taken(connect, 2)
    bad = fake_broker.items["q"][0].number

    def refuse(method: str, argument: Any) -> None:
        if method == "settle" and any(answer.handle[1] == bad for answer in argument):
            raise ChannelError("not this one")

    fake_broker.before = refuse
    for each in got:
        each.ack()
    channel.connection.catch_up()
    assert [len(each) for each in settled(fake_broker)] == [2, 1, 1]
    assert fake_broker.bodies("q") == [b"0"]


def test_leases_are_renewed_again_and_again(connect: Opener, fake_broker: FakeBroker) -> None:
    channel, got = taken(connect, 1)
    settler = channel.connection.settler
    outcomes: list[Any] = []
    for count in (1, 2):
        settler.renew([got[0].handle], outcomes.append)
        until(lambda: len(outcomes) == count)  # noqa: B023 - it is called before the next one
        gevent.sleep(0)
    assert fake_broker.count("renew") == 2


def test_what_former_lives_held_goes_back(connect: Opener, fake_broker: FakeBroker) -> None:
    channel, got = taken(connect, 2)
    settler = channel.connection.settler
    settler.reclaim(got[:1], [], got[1:])
    channel.connection.catch_up()
    assert [(item.claim, item.deliveries) for item in fake_broker.items["q"]] == [(0, 1), (0, 0)]
    (answers,) = settled(fake_broker)
    assert [(each.settlement, each.is_unseen) for each in answers] == [
        (Settlement.REQUEUE, False),
        (Settlement.REQUEUE, True),
    ]
    for each in got:
        each.is_held = False


def test_settlements_that_are_interrupted_end_the_link(connect: Opener) -> None:
    link = connect()
    link.settler.interrupted(KeyboardInterrupt())
    assert link.lost is not None
    assert "settling messages failed: KeyboardInterrupt()" in str(link.lost)


def test_what_claims_may_have_taken_is_reported(
    connect: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = connect()
    monkeypatch.setattr(link.store, "unconfirmed_claims", lambda: [("q", "handle")])
    (claimed,) = link.settler.unconfirmed_claims()
    assert (claimed.queue, claimed.envelope, claimed.handle) == ("q", None, "handle")


def test_a_store_without_leases_requeues_at_once_what_cannot_be_settled(
    connect: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, got = taken(connect, 1)
    settler = channel.connection.settler
    assert settler.postpone(got[0]).delay == 30.0
    monkeypatch.setattr(channel.connection.store, "lease", None)
    assert settler.postpone(got[0]).delay == 0.0
    assert settler.postpone(got[0]).settlement is Settlement.REQUEUE


def test_a_renewal_after_the_end_is_not_made(connect: Opener, fake_broker: FakeBroker) -> None:
    channel, got = taken(connect, 1)
    link = channel.connection
    outcomes: list[Any] = []
    link.settler.renew([got[0].handle], outcomes.append)
    link.end(RecoverableConnectionError("cut"))
    for _ in range(3):
        gevent.sleep(0)
    assert (outcomes, fake_broker.count("renew")) == ([], 0)


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_caller_that_is_interrupted_does_not_let_the_store_be_called_twice(
    connect: Opener, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, has_begun: bool
) -> None:
    """The interruption comes when the greenlet is spawned and not noted yet."""
    channel, got = taken(connect, 2)
    settler = channel.connection.settler
    may_go = Event()
    outcomes: list[Any] = []

    def interrupted(name: str, function: Callable[[], None]) -> None:
        spawn(name, function)
        raise KeyboardInterrupt

    fake_broker.before = lambda method, argument: method == "settle" and may_go.wait()
    with monkeypatch.context() as patched:
        patched.setattr(supervisor, "spawn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            settler.ack([got[0].handle], outcomes.append)
    if has_begun:
        until(lambda: settled(fake_broker))
    settler.ack([got[1].handle], outcomes.append)
    until(lambda: settled(fake_broker))
    for _ in range(3):
        gevent.sleep(0)
    assert (len(settled(fake_broker)), settler.is_busy) == (1, True)
    may_go.set()
    settler.wait(Deadline(30))
    until(lambda: not settler.is_busy)
    handles = [answer.handle for each in settled(fake_broker) for answer in each]
    assert (handles, outcomes) == ([each.handle for each in got], [None, None])
    for each in got:
        each.is_held = False
