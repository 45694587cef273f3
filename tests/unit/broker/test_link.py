"""One life of a connection to a store: calls, their errors and deadlines, and its end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
import pytest
from gevent import GreenletExit
from gevent.event import Event
from msgspec.structs import replace

from greenconn.broker.link import StoreLink, StoreOptions
from greenconn.exceptions import (
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from tests.fix_wires import until
from tests.tiny_client import TinyClient
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker, FakeTransport
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, channel_to_q, publish


@pytest.fixture
def link(connect: Opener) -> StoreLink:
    """A link."""
    return connect()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[StoreLink], None]:
    """Let a link wait no longer for its store."""

    def shorten(link: StoreLink) -> None:
        monkeypatch.setattr(link, "options", StoreOptions(reply_timeout=0.02))

    return shorten


Impatient = Callable[[StoreLink], None]


def never(*args: Any) -> None:
    Event().wait()


def raising(exc: BaseException) -> Any:
    def function(*args: Any) -> None:
        raise exc

    return function


def test_an_opening_that_fails_leaves_nothing(connect: Opener, fake_broker: FakeBroker) -> None:
    def refuse(method: str, argument: Any) -> None:
        raise ConnectionRefusedError("nobody is there")

    fake_broker.before = refuse
    with pytest.raises(ConnectionRefusedError):
        connect()
    fake_broker.hold("open")
    transport = FakeTransport(TinyClient("fake:///late"), fake_broker)
    with pytest.raises(TimeoutError, match=r"no reply within 0\.02 s \(connecting\)"):
        transport.establish_connection(Deadline(0.02))
    assert not transport.made[0].is_open
    assert fake_broker.stores == []


def test_a_store_that_opens_when_its_link_has_ended_is_dropped(fake_broker: FakeBroker) -> None:
    begun, opening = Event(), Event()

    def open_late(method: str, argument: Any) -> None:
        if method == "open":
            begun.set()
            with suppress(GreenletExit):  # the reply is there before the kill
                Event().wait()
            opening.set()

    def connect() -> None:
        with pytest.raises(TimeoutError, match="the caller's"):
            transport.establish_connection(Deadline(30))

    fake_broker.before = open_late
    transport = FakeTransport(TinyClient("fake:///late"), fake_broker)
    caller = gevent.spawn(connect)
    assert begun.wait(10)
    caller.kill(TimeoutError("the caller's"))
    caller.get()
    assert opening.wait(10)
    assert not transport.made[0].is_open
    assert fake_broker.stores == []


def test_a_callers_deadline_is_his_alone(link: StoreLink) -> None:
    late: list[object] = []
    may_go = Event()
    with pytest.raises(TimeoutError, match=r"no reply within 0\.01 s \(asking\)"):
        link.ask("asking", may_go.wait, deadline=Deadline(0.01), on_abandoned=late.append)
    assert link.is_open
    may_go.set()
    until(lambda: late)
    assert late == [True]
    assert not link._calls


def test_a_store_that_is_silent_is_lost(link: StoreLink, impatient: Impatient) -> None:
    impatient(link)
    with pytest.raises(RecoverableConnectionError, match=r"asking: no reply within 0\.02 s"):
        link.ask("asking", never)
    assert link.lost is not None
    with pytest.raises(RecoverableConnectionError):
        link.ping()


def test_a_caller_who_is_killed_leaves_the_call(link: StoreLink) -> None:
    late: list[object] = []
    may_go = Event()

    def ask() -> None:
        link.ask("asking", may_go.wait, deadline=Deadline(10), on_abandoned=late.append)

    greenlet = gevent.spawn(ask)
    gevent.sleep(0)
    greenlet.kill()
    assert len(link._calls) == 1
    may_go.set()
    until(lambda: not link._calls)
    assert late == [True]


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_caller_who_is_killed_when_the_store_has_replied_abandons_the_result(
    link: StoreLink, is_wanted: bool
) -> None:
    late: list[object] = []

    def answer() -> str:
        caller.kill(block=False)
        return "late"

    caller: gevent.Greenlet[..., Any] = gevent.spawn(
        link.ask, "asking", answer, on_abandoned=late.append if is_wanted else None
    )
    until(caller.ready)
    assert isinstance(caller.value, gevent.GreenletExit)
    assert (late, link._calls) == (["late"] if is_wanted else [], {})


@pytest.mark.parametrize("exc", [ConnectionResetError("cut"), ZeroDivisionError("a bug")])
def test_a_failure_ends_the_link(
    link: StoreLink, exc: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = gevent.spawn(link.ask, "waiting", never, deadline=Deadline(10))
    gevent.sleep(0)
    gevent.sleep(0)
    is_known = isinstance(exc, OSError)
    with pytest.raises(type(exc) if is_known else RecoverableConnectionError) as caught:
        link.ask("asking", raising(exc))
    assert link.lost is not None
    assert str(exc) in str(caught.value)
    with pytest.raises(RecoverableConnectionError, match="connection is closed"):
        waiting.get(timeout=10)
    until(lambda: is_known or any("asking failed" in r.getMessage() for r in caplog.records))
    assert link.failed(ValueError("later"), "more").__cause__ is link.lost


def test_flushing(
    connect: Opener, fake_broker: FakeBroker, impatient: Impatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = channel_to(connect)
    link = channel.connection
    channel.queue_declare("q")
    publish(channel, "x")
    message = channel.basic_get("q")
    assert message is not None
    may_go = fake_broker.hold("settle")
    message.ack()
    with pytest.raises(TimeoutError, match="did not accept all acks and rejects in time"):
        link.flush(Deadline(0.01))
    impatient(link)
    with pytest.raises(TimeoutError, match="did not accept all acks and rejects in time"):
        link.flush_acks()
    assert link.is_open
    monkeypatch.undo()
    may_go.set()
    link.flush(Deadline(10))
    assert fake_broker.bodies("q") == []
    link.end(RecoverableConnectionError("cut"))
    link.flush_acks()
    with pytest.raises(RecoverableConnectionError):
        link.flush(Deadline(10))


def test_settlements_that_the_store_does_not_take_end_the_link(
    connect: Opener, fake_broker: FakeBroker, impatient: Impatient
) -> None:
    channel = channel_to_q(connect)
    publish(channel, "x")
    message = channel.basic_get("q")
    assert message is not None
    fake_broker.hold("settle")
    message.ack()
    impatient(channel.connection)
    with pytest.raises(RecoverableConnectionError, match="settling messages: no reply"):
        channel.queue_declare("q", passive=True)
    assert channel.connection.lost is not None


def test_entries(link: StoreLink) -> None:
    channel = link.transport.create_channel(link)
    channel.queue_declare("plain")
    channel.queue_declare("rules", arguments={"x-message-ttl": 2000, "x-max-priority": 5})

    def entries(**properties: Any) -> list[tuple[str, int, float, float | None]]:
        envelope = {"body": b"x", "properties": properties}
        found = link.entries(envelope, ["plain", "rules"], 1.5)
        assert all(each.envelope is envelope for each in found)
        return [(each.queue, each.priority, each.delay, each.lifetime) for each in found]

    assert entries() == [("plain", 0, 1.5, None), ("rules", 0, 1.5, 2.0)]
    assert entries(priority=9, expiration="500") == [("plain", 9, 1.5, 0.5), ("rules", 5, 1.5, 0.5)]
    assert entries(priority="3", expiration="9000") == [
        ("plain", 3, 1.5, 9.0),
        ("rules", 3, 1.5, 2.0),
    ]
    assert entries(priority=999, expiration="0")[0] == ("plain", 255, 1.5, 0.0)
    assert entries(priority=-1)[0] == ("plain", 0, 1.5, None)
    for none in ("high", float("inf"), None):
        assert entries(priority=none)[0] == ("plain", 0, 1.5, None)
    assert link.entries({"body": b"x", "properties": {}}, ["plain"])[0].delay == 0.0
    for wrong in ("soon", "-1", "", float("inf")):
        with pytest.raises(PreconditionFailed, match=f"invalid expiration {wrong!r}"):
            entries(expiration=wrong)


def test_messages_that_the_store_gives_up(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect, dead_letter_queue="dead")
    link = channel.connection
    for name in ("q", "dead"):
        channel.queue_declare(name)
    for number in range(2):
        publish(channel, f"{number}")
    found = link.store.claim({"q": 2}, 0.0)
    link.store.died([found[0], replace(found[1], dead="maxlen")])
    link.catch_up()
    letters = [channel.basic_get("dead", no_ack=True) for _ in range(2)]
    reasons = [each.headers["x-death"][0]["reason"] for each in letters if each is not None]
    assert reasons == ["expired", "maxlen"]


@pytest.mark.parametrize(
    "exc",
    [
        ConnectionResetError("cut"),
        RecoverableConnectionError("cut"),
        RecoverableChannelError("no room for what is given back"),
    ],
)
def test_a_closing_that_fails_is_over(
    connect: Opener, fake_broker: FakeBroker, exc: Exception
) -> None:
    link = connect()

    def fail(method: str, argument: Any) -> None:
        if method == "close":
            raise exc

    fake_broker.before = fail
    link.close()
    assert not link.is_open
    assert fake_broker.stores == []


def test_a_claim_that_does_not_return_is_ended_with_the_link(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel = channel_to_q(connect)
    fake_broker.hold("claim")
    channel.basic_consume("q", sink=Sink())
    until(lambda: fake_broker.count("claim"))
    (claimer,) = channel.connection._claimers.values()
    assert claimer.claiming.greenlet is not None
    channel.connection.end(RecoverableConnectionError("cut"))
    until(lambda: claimer.claiming.greenlet is None)


def test_a_publish_that_is_being_stored_ends_with_the_link(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel = channel_to(connect)
    link = channel.connection
    channel.queue_declare("q")
    fake_broker.hold("put")
    publisher = gevent.spawn(publish, channel, "x")
    until(lambda: fake_broker.count("put"))
    link.end(RecoverableConnectionError("cut"))
    with pytest.raises(RecoverableConnectionError, match=r"connection is closed \(cut\)"):
        publisher.get(timeout=30)
    until(lambda: not link.put_batcher.is_busy)
