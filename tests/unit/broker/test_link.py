"""One life of a connection to a store: calls, their errors and deadlines, and its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.consuming import FeedState
from greenconn.broker.link import StoreLink
from greenconn.broker.queues import is_lost
from greenconn.broker.transport import StoreOptions
from greenconn.exceptions import (
    ChannelError,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from tests.fix_wires import until
from tests.tiny_client import TinyClient
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import EachStore, FakeBroker, FakeStore, FakeTransport
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, publish


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


def test_opening(link: StoreLink, fake_broker: FakeBroker) -> None:
    assert [method for method, _ in fake_broker.calls] == ["open"]
    assert link.is_open
    assert repr(link) == f"<connection {link.where} (open, 0 channels)>"
    link.transport.create_channel(link)
    link.close()
    assert repr(link) == f"<connection {link.where} (closed, 0 channels)>"
    assert link.where == link.transport.client.as_uri()


def test_an_opening_that_fails_leaves_nothing(connect: Opener, fake_broker: FakeBroker) -> None:
    def refuse(method: str, argument: Any) -> None:
        raise ConnectionRefusedError("nobody is there")

    fake_broker.before = refuse
    with pytest.raises(ConnectionRefusedError):
        connect()
    fake_broker.before = lambda method, argument: method == "open" and Event().wait()
    transport = FakeTransport(TinyClient("fake:///late"), fake_broker)
    with pytest.raises(TimeoutError, match=r"no reply within 0\.02 s \(connecting\)"):
        transport.establish_connection(Deadline(0.02))
    assert not transport.made[0].is_open
    assert fake_broker.stores == []


def test_asking(link: StoreLink) -> None:
    assert link.ask("asking", lambda a, b: a + b, 1, 2) == 3
    link.ping()
    with pytest.raises(ChannelError, match="not you"):
        link.ask("asking", raising(ChannelError("not you")))
    with pytest.raises(ValueError, match="not that"):
        link.ask("asking", raising(ValueError("not that")))
    with pytest.raises(TimeoutError, match="the store's own"):
        link.ask("asking", raising(TimeoutError("the store's own")), deadline=Deadline(10))


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


def test_a_result_is_abandoned_only_without_its_caller(link: StoreLink) -> None:
    late: list[object] = []
    assert link.ask("asking", lambda: 1, on_abandoned=late.append) == 1
    may_go = Event()
    with pytest.raises(TimeoutError):
        link.ask("asking", may_go.wait, deadline=Deadline(0.01))
    (call,) = link._calls
    may_go.set()
    call.join(30)
    assert (late, call.successful(), link.is_open) == ([], True, True)


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


def test_a_refusal_without_a_caller_is_logged(
    link: StoreLink, caplog: pytest.LogCaptureFixture
) -> None:
    exc = ChannelError("not you")
    assert link.failed(exc, "telling", is_raised=True) is exc
    gevent.sleep(0)
    assert not [each for each in caplog.records if each.levelno == logging.ERROR]
    assert link.failed(exc, "not telling") is exc
    until(lambda: [each for each in caplog.records if each.levelno == logging.ERROR])
    assert f"{link.where}: not telling: " in caplog.text
    assert link.is_open


def test_what_is_left_for_later_is_waited_for(link: StoreLink) -> None:
    done: list[int] = []

    def work() -> None:
        gevent.sleep(0)
        done.append(1)

    link.later("working", work)
    assert done == []
    link.catch_up()
    assert done == [1]


def test_what_fails_later_is_logged(link: StoreLink, caplog: pytest.LogCaptureFixture) -> None:
    link.later("cancelling a consumer", raising(ChannelError("no")))
    until(lambda: "cancelling a consumer" in caplog.text)
    assert link.is_open
    with pytest.raises(ChannelError):
        link.ask("asking", raising(ChannelError("not now")))
    link.catch_up()
    assert "not now" not in caplog.text


def test_flushing(
    connect: Opener, fake_broker: FakeBroker, impatient: Impatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = channel_to(connect)
    link = channel.connection
    channel.queue_declare("q")
    publish(channel, "x")
    message = channel.basic_get("q")
    assert message is not None
    may_go = Event()
    fake_broker.before = lambda method, argument: method == "settle" and may_go.wait()
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
    channel = channel_to(connect)
    channel.queue_declare("q")
    publish(channel, "x")
    message = channel.basic_get("q")
    assert message is not None
    fake_broker.before = lambda method, argument: method == "settle" and Event().wait()
    message.ack()
    impatient(channel.connection)
    with pytest.raises(RecoverableConnectionError, match="settling messages: no reply"):
        channel.queue_declare("q", passive=True)
    assert channel.connection.lost is not None


def test_deliveries_have_names_of_their_own(connect: Opener) -> None:
    one, other = connect(), connect()
    assert [one.take_tag(), one.take_tag()] == [(f"{one.owner}.1", 1), (f"{one.owner}.2", 2)]
    assert other.take_tag() == (f"{other.owner}.1", 1)
    assert one.owner != other.owner


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
    assert entries(priority=9, expiration="500") == [
        ("plain", 9, 1.5, 0.5),
        ("rules", 5, 1.5, 0.5),
    ]
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


def test_what_is_held(connect: Opener) -> None:
    link = connect()
    channels = [link.transport.create_channel(link) for _ in range(2)]
    channels[0].queue_declare("q")
    held = []
    for channel in channels:
        publish(channel, "x")
        held.append(channel.basic_get("q"))
    assert list(map(id, link.held())) == list(map(id, held))


def test_feeds(connect: Opener) -> None:
    link = connect()
    feed = link.feed("q")
    assert link.feed("q") is feed
    assert link.feed("p") is not feed
    feed.coming = 1
    link.retire(feed)
    assert link.feeds["q"] is feed
    feed.coming = 0
    link.retire(feed)
    assert list(link.feeds) == ["p"]
    again = link.feed("q")
    link.retire(feed)
    assert link.feeds["q"] is again


@pytest.mark.parametrize(("kind", "count"), [(FakeStore, 1), (EachStore, 2)])
def test_claimers(connect: Opener, kind: type[FakeStore], count: int) -> None:
    link = connect(kind)
    link.feed("p")
    link.feed("q")
    assert len(link._claimers) == count


def test_the_store_wakes_who_listens(connect: Opener, fake_broker: FakeBroker) -> None:
    link = connect()
    feeds = [link.feed(name) for name in ("p", "q")]

    def dry() -> list[bool]:
        found = [feed.state is FeedState.DRY for feed in feeds]
        for feed in feeds:
            feed.state = FeedState.DRY
        return found

    dry()
    link.store.wake("p")
    link.store.wake("unknown")
    assert dry() == [False, True]
    link.store.wake(None)
    assert dry() == [False, False]
    link.end(RecoverableConnectionError("cut"))
    link.feeds.update(p=feeds[0])
    link.store.wake(None)
    link.store.wake("p")
    assert dry() == [True, True]


def test_messages_that_the_store_gives_up(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect, dead_letter_queue="dead")
    link = channel.connection
    for name in ("q", "dead"):
        channel.queue_declare(name)
    for number in range(2):
        publish(channel, f"{number}")
    found = link.store.claim({"q": 2}, 0.0)
    link.store.died([found[0], found[1]._replace(dead="maxlen")])
    link.catch_up()
    letters = [channel.basic_get("dead", no_ack=True) for _ in range(2)]
    reasons = [each.headers["x-death"][0]["reason"] for each in letters if each is not None]
    assert reasons == ["expired", "maxlen"]


def test_a_queue_that_others_delete_is_forgotten(connect: Opener) -> None:
    link = connect()
    channel = link.transport.create_channel(link)
    channel.queue_declare("q")
    assert "q" in link.directory.declared
    link.store.gone("q")
    assert "q" not in link.directory.declared


def test_closing_gives_back_and_tells_the_store(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    link = channel.connection
    channel.queue_declare("q")
    channel.queue_declare("mine", exclusive=True)
    publish(channel, "0")
    channel.basic_consume("q", sink=(sink := Sink()))
    sink.wait_for(1)
    link.close()
    assert [item.claim for item in fake_broker.items["q"]] == [0]
    assert set(fake_broker.queues) == {"q"}
    assert [method for method, _ in fake_broker.calls][-1] == "close"
    assert not link.store.is_open  # type: ignore[attr-defined]
    assert not channel.is_open
    calls = len(fake_broker.calls)
    link.close()
    assert len(fake_broker.calls) == calls


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


def test_a_closing_that_is_refused_is_over_and_says_so(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    link = connect()

    def refuse(method: str, argument: Any) -> None:
        if method == "close":
            raise ChannelError("not you")

    fake_broker.before = refuse
    with pytest.raises(ChannelError, match="not you"):
        link.close()
    assert not link.is_open
    assert fake_broker.stores == []


def test_an_end_is_for_all(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    link = channel.connection
    channel.queue_declare("q")
    channel.basic_consume("q", sink=(sink := Sink()))
    cause = RecoverableConnectionError("cut")
    link.end(cause)
    link.end(RecoverableConnectionError("again"))
    assert sink.lost == [cause]
    assert is_lost(link.owner)
    assert not link.store.is_open  # type: ignore[attr-defined]
    assert (link.feeds, link.store.registry.other_consumers("q", "")) == ({}, 0)


def test_a_claim_ends_with_the_link(
    connect: Opener, kind: type[FakeStore], fake_broker: FakeBroker
) -> None:
    channel = channel_to(connect, kind)
    channel.queue_declare("q")
    channel.basic_consume("q", sink=Sink())
    claimers = list(channel.connection._claimers.values())
    until(lambda: fake_broker.count("claim"))
    channel.connection.end(RecoverableConnectionError("cut"))
    until(lambda: all(each.claiming.greenlet is None for each in claimers))


def test_no_claim_is_begun_after_the_end(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    link = channel.connection
    feed = link.feed("q")
    (claimer,) = link._claimers.values()
    link.end(RecoverableConnectionError("cut"))
    claimer.want(feed)
    assert claimer.claiming.greenlet is None


def test_a_claim_that_does_not_return_is_ended_with_the_link(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    fake_broker.before = lambda method, argument: method == "claim" and Event().wait()
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
    fake_broker.before = lambda method, argument: method == "put" and Event().wait()
    publisher = gevent.spawn(publish, channel, "x")
    until(lambda: fake_broker.count("put"))
    link.end(RecoverableConnectionError("cut"))
    with pytest.raises(RecoverableConnectionError, match=r"connection is closed \(cut\)"):
        publisher.get(timeout=30)
    until(lambda: not link.put_batcher.is_busy)


def test_links_of_a_process_count_each_others_consumers(connect: Opener) -> None:
    one, other = connect(), connect()
    assert one.store.registry is other.store.registry
    assert one.store.registry is one.transport.registry
