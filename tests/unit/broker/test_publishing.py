"""What many greenlets publish leaves together, and each learns what became of its own."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import gevent
import pytest
from gevent.event import Event

from greenconn.broker import publishing
from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.broker.port import NoQueue, QueueFull
from greenconn.broker.publishing import OVERHEAD, CopyOutcomes, KnownRoutes, RoutedOutcome
from greenconn.exceptions import (
    PublishNacked,
    PublishTimeout,
    RecoverableConnectionError,
    Unroutable,
)
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from tests.fix_interrupts import Signal, SignalInLibrary
from tests.fix_leaks import HubErrors
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import EachStore, FakeBroker, FakeStore


def channel_to(
    connect: Opener, kind: type[FakeStore] = FakeStore, **options: Any
) -> StoreChannel[StoreLink]:
    link = connect(kind, **options)
    return link.transport.create_channel(link)


def channel_to_q(
    connect: Opener, kind: type[FakeStore] = FakeStore, **options: Any
) -> StoreChannel[StoreLink]:
    """Open a channel, and declare the queue ``q``."""
    channel = channel_to(connect, kind, **options)
    channel.queue_declare("q")
    return channel


def publish(channel: StoreChannel[StoreLink], body: str, queue: str = "q", **options: Any) -> None:
    message = channel.prepare_message(body, content_type="text/plain")
    channel.basic_publish_confirm(message, "", queue, **options)


def outcome(
    channel: StoreChannel[StoreLink], body: str, queue: str = "q", **options: Any
) -> Exception | None:
    """Publish, and return what was raised."""
    try:
        publish(channel, body, queue, **options)
    except Exception as exc:
        return exc
    return None


def sizes_of(fake_broker: FakeBroker) -> list[int]:
    """Return how many messages each call has stored."""
    return [len(argument) for method, argument in fake_broker.calls if method == "put"]


def begun(*arguments: Any) -> gevent.Greenlet[..., Any]:
    """Call in a greenlet, and return when what it publishes is on its way."""
    greenlet = gevent.spawn(*arguments)
    gevent.sleep(0)
    gevent.sleep(0)
    return greenlet


def test_what_comes_meanwhile_leaves_together(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to_q(connect)
    may_go = fake_broker.hold("put")
    first = begun(publish, channel, "0")
    others = [gevent.spawn(publish, channel, str(n)) for n in range(1, 51)]
    gevent.sleep(0)
    may_go.set()
    gevent.joinall([first, *others], raise_error=True)
    assert sizes_of(fake_broker) == [1, 50]
    assert fake_broker.bodies("q") == [str(n).encode() for n in range(51)]


def test_limits_of_a_call(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to_q(connect, EachStore)
    calls = []
    now = 0

    def before(method: str, argument: Any) -> None:
        nonlocal now
        if method == "put":
            now += 1
            calls.append((len(argument), now))
            gevent.sleep(0)
            now -= 1

    fake_broker.before = before
    gevent.joinall([gevent.spawn(publish, channel, str(n)) for n in range(65)], raise_error=True)
    assert max(size for size, _ in calls) == 10  # put_limit
    assert max(at_once for _, at_once in calls) <= 4  # put_calls
    fake_broker.calls.clear()
    big = "x" * (EachStore.put_bytes // 2)
    gevent.joinall([gevent.spawn(publish, channel, big) for _ in range(3)], raise_error=True)
    assert sizes_of(fake_broker) == [1, 1, 1]


def test_each_gets_its_own_outcome(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to_q(connect)
    channel.queue_declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    publish(channel, "fits", "full")
    greenlets = [
        gevent.spawn(outcome, channel, "good"),
        gevent.spawn(outcome, channel, "too many", "full"),
        gevent.spawn(outcome, channel, "nowhere", "absent"),
        gevent.spawn(outcome, channel, "mandatory", "absent", mandatory=True),
    ]
    gevent.joinall(greenlets)
    kinds = [type(each.value) for each in greenlets]
    assert kinds == [type(None), PublishNacked, type(None), Unroutable]


def test_killed_publisher_leaves_nothing(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to_q(connect)
    may_go = fake_broker.hold("put")
    first = begun(outcome, channel, "on its way")
    waiting = gevent.spawn(outcome, channel, "not yet")
    gevent.sleep(0)
    gevent.killall([first, waiting])
    may_go.set()
    publish(channel, "next")
    assert fake_broker.bodies("q") == [b"on its way", b"next"]
    assert not channel.connection.put_batcher.is_busy


def test_deadline_says_what_may_be(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to_q(connect)
    may_go = fake_broker.hold("put")
    with pytest.raises(PublishTimeout) as caught:
        publish(channel, "x", timeout=0.01)
    assert caught.value.maybe_delivered
    may_go.set()


def test_store_without_reply_ends_the_link(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to_q(connect, reply_timeout=0.2)
    fake_broker.hold("put")
    with pytest.raises(RecoverableConnectionError, match=r"no reply within 0\.2 s"):
        publish(channel, "x")
    assert channel.connection.lost is not None


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), ZeroDivisionError("a bug")])
def test_store_that_fails_ends_the_link(
    connect: Opener, fake_broker: FakeBroker, error: Exception
) -> None:
    channel = channel_to_q(connect)
    may_go = Event()

    def before(method: str, argument: Any) -> None:
        if method == "put":
            may_go.wait()
            raise error

    fake_broker.before = before
    publishers = [gevent.spawn(outcome, channel, str(n)) for n in range(3)]
    gevent.sleep(0)
    gevent.sleep(0)
    publishers += [gevent.spawn(outcome, channel, str(n)) for n in range(3)]
    gevent.sleep(0)
    may_go.set()
    gevent.joinall(publishers)
    assert channel.connection.lost is not None
    for each in publishers:
        assert isinstance(each.value, (OSError, RecoverableConnectionError))


def put(fake_broker: FakeBroker) -> list[Any]:
    """Return all entries that were stored, in order."""
    return [entry for method, each in fake_broker.calls if method == "put" for entry in each]


def test_what_is_stored(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    channel.exchange_declare("x", "topic")
    channel.queue_declare("q")
    channel.queue_bind("q", "x", "#")
    message = channel.prepare_message(
        "t\xe9xt",
        content_type="text/plain",
        content_encoding="latin-1",
        headers={"h": 1, "BCC": ["bcc"], "CC": ["q"]},
        properties={"delivery_info": {"own": 1}},
    )
    for _ in range(2):
        channel.basic_publish(message, "x", "key")
    first, second = put(fake_broker)
    assert first.envelope["body"] == b"t\xe9xt"
    assert first.envelope["headers"] == {"h": 1, "CC": ["q"]}
    assert (first.envelope["content-type"], first.envelope["content-encoding"]) == (
        "text/plain",
        "latin-1",
    )
    properties = first.envelope["properties"]
    assert properties["delivery_info"] == {"own": 1, "exchange": "x", "routing_key": "key"}
    assert properties["body_encoding"] is None
    assert properties["delivery_tag"] != second.envelope["properties"]["delivery_tag"]
    assert message["headers"]["BCC"] == ["bcc"]


def test_bodies_as_text(
    connect: Opener, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeStore, "body_encoding", "base64")
    channel = channel_to_q(connect)
    publish(channel, "x")
    message = channel.prepare_message("\xe9", content_encoding="no-such-encoding")
    channel.basic_publish(message, "", "q")
    bodies = [entry.envelope["body"] for entry in put(fake_broker)]
    assert bodies == ["eA==", "w6k="]
    assert put(fake_broker)[0].envelope["properties"]["body_encoding"] == "base64"


def test_the_head_of_a_message_whose_body_is_kept_apart(
    connect: Opener, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeStore, "keeps_body_apart", True)
    channel = channel_to_q(connect)
    channel.queue_declare("other")
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"delivery_mode": 2, "priority": 0}, {}, "q"),
        ({"delivery_mode": 2, "priority": 0}, {}, "q"),
        ({"priority": 2, "delivery_mode": 0}, {}, "q"),
        ({"delivery_mode": 2, "priority": 0}, {}, "other"),
        ({"delivery_mode": 2, "priority": False}, {}, "q"),
        ({"delivery_mode": 2, "priority": 0}, {"h": "\ud800"}, "q"),
        ({"delivery_mode": 2, "priority": 0, "expiration": "9000"}, {}, "q"),
    ]
    for number, (properties, headers, queue) in enumerate(cases):
        message = channel.prepare_message(str(number), None, "a/b", None, headers, properties)
        channel.basic_publish(message, "", queue)
    stored = put(fake_broker)
    for number, (entry, case) in enumerate(zip(stored, cases, strict=True)):
        info = {"exchange": "", "routing_key": case[2]}
        assert entry.envelope["body"] == b"%d" % number
        head = json.loads(entry.head)
        assert head == {
            "content-type": "a/b",
            "content-encoding": "utf-8",
            "headers": case[1],
            "properties": {**case[0], "delivery_info": info},
        }
        assert head["properties"]["priority"].__class__ is case[0]["priority"].__class__
        assert entry.envelope == {**head, "body": entry.envelope["body"]}
    assert stored[0].head is stored[1].head
    for headers, properties in (({"h": object()}, {}), ({}, {"p": object()})):
        message = channel.prepare_message("x", headers=headers, properties=properties)
        with pytest.raises(
            ValueError, match=r"'[hp]': a value of type object cannot be sent as JSON"
        ):
            channel.basic_publish(message, "", "q")


@pytest.mark.parametrize(("given", "delay"), [(1500, 1.5), ("20", 0.02), (-5, 0.0), (None, 0.0)])
def test_a_delay_is_milliseconds(
    connect: Opener, fake_broker: FakeBroker, given: Any, delay: float
) -> None:
    channel = channel_to_q(connect)
    channel.basic_publish(channel.prepare_message("x", headers={"x-delay": given}), "", "q")
    assert [entry.delay for entry in put(fake_broker)] == [delay]


@pytest.mark.parametrize("delay", ["soon", float("nan"), float("inf"), 1e300, 10**400, [], {}])
def test_a_delay_that_is_none(connect: Opener, delay: Any) -> None:
    channel = channel_to_q(connect)
    message = channel.prepare_message("x", headers={"x-delay": delay})
    with pytest.raises(ValueError, match="x-delay must be a number of milliseconds, at most "):
        channel.basic_publish(message, "", "q")
    assert channel.is_open


def test_a_message_for_several_queues(connect: Opener, fake_broker: FakeBroker) -> None:
    """It is stored where it can be; one queue that is full refuses it, absent ones do not."""
    channel = channel_to(connect)
    channel.exchange_declare("x", "fanout")
    for name in ("a", "b", "c"):
        channel.queue_declare(name)
        channel.queue_bind(name, "x")
    message = channel.prepare_message("x")
    for name in ("c", "b"):
        del fake_broker.queues[name]
        channel.begin_publish(message, "x").wait()
    assert [len(fake_broker.bodies(name)) for name in ("a", "b", "c")] == [2, 1, 0]
    del fake_broker.queues["a"]
    channel.begin_publish(message, "x").wait()
    with pytest.raises(Unroutable):
        channel.begin_publish(message, "x", mandatory=True).wait()


def test_one_full_queue_of_several_refuses(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    channel.exchange_declare("x", "fanout")
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    for name, arguments in (("free", {}), ("full", full)):
        channel.queue_declare(name, arguments=arguments)
        channel.queue_bind(name, "x")
    message = channel.prepare_message("x")
    channel.begin_publish(message, "x").wait()
    with pytest.raises(PublishNacked, match="a queue is full and refused the message"):
        channel.begin_publish(message, "x").wait()
    channel.basic_publish(message, "x")  # nobody wants to know
    assert [len(fake_broker.bodies(name)) for name in ("free", "full")] == [3, 1]


def test_a_store_that_accepts_nothing_now_refuses_without_a_confirm_too(connect: Opener) -> None:
    channel = channel_to_q(connect)
    message = channel.prepare_message("x")
    error = PublishNacked("no memory left")
    with patch.object(channel.connection.store, "put", lambda entries: [error] * len(entries)):
        for publish_one in (channel.basic_publish, channel.basic_publish_confirm):
            with pytest.raises(PublishNacked, match="no memory left"):
                publish_one(message, "", "q")
    assert channel.is_open
    channel.basic_publish(message, "", "q")


def test_what_no_queue_takes_goes_to_the_last_resort(
    connect: Opener, fake_broker: FakeBroker
) -> None:
    channel = channel_to(connect, deadletter_queue="lost")
    channel.exchange_declare("x")
    message = channel.prepare_message("x")
    for _ in range(2):
        with pytest.warns(match="lost"):
            channel.basic_publish(message, "x", "key")
    assert fake_broker.queues["lost"].durable
    assert fake_broker.bodies("lost") == [b"x", b"x"]
    with pytest.raises(Unroutable):
        channel.begin_publish(message, "x", "key", mandatory=True).wait()
    assert len(fake_broker.bodies("lost")) == 2
    with pytest.warns(match="lost"):
        channel.basic_publish(message)  # to no queue at all
    assert len(fake_broker.bodies("lost")) == 3


def test_a_killed_publisher_is_the_last_one(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to_q(connect)
    may_go = fake_broker.hold("put")
    first = begun(outcome, channel, "on its way")
    killed = [gevent.spawn(outcome, channel, "not yet") for _ in range(2)]
    gevent.sleep(0)
    gevent.killall(killed)
    may_go.set()
    assert first.get(timeout=10) is None
    until(lambda: not channel.connection.put_batcher.is_busy)
    assert fake_broker.count("put") == 1


@pytest.mark.parametrize(("more", "sizes"), [(0, [1, 2, 1]), (1, [1, 1, 1, 1])])
def test_one_call_stores_so_many_bytes(
    connect: Opener,
    fake_broker: FakeBroker,
    monkeypatch: pytest.MonkeyPatch,
    more: int,
    sizes: list[int],
) -> None:
    monkeypatch.setattr(FakeStore, "put_bytes", 2 * (1000 + OVERHEAD))
    channel = channel_to_q(connect)
    may_go = fake_broker.hold("put")
    first = begun(publish, channel, "0")
    others = [gevent.spawn(publish, channel, "x" * (1000 + more)) for _ in range(3)]
    gevent.sleep(0)
    may_go.set()
    gevent.joinall([first, *others], raise_error=True)
    assert sizes_of(fake_broker) == sizes


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_deadline_covers_the_queues_of_copies(
    connect: Opener, fake_broker: FakeBroker, header: str
) -> None:
    channel = channel_to_q(connect)
    may_go = fake_broker.hold("find_queue")
    message = channel.prepare_message("x", headers={header: ["unknown"]})
    with pytest.raises(TimeoutError, match=r"took longer than 0\.01 s"):
        channel.basic_publish(message, "", "q", timeout=0.01)
    assert fake_broker.count("put") == 0
    assert channel.is_open
    may_go.set()


def test_a_copy_of_a_message_that_has_begun_to_leave_leaves(
    connect: Opener, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeStore, "put_limit", 1)
    channel = channel_to(connect)
    channel.exchange_declare("x", "fanout")
    for name in ("a", "b"):
        channel.queue_declare(name)
        channel.queue_bind(name, "x")
    may_go = fake_broker.hold("put")
    message = channel.prepare_message("m")
    publisher = gevent.spawn(channel.basic_publish, message, "x")
    until(lambda: fake_broker.count("put"))
    assert channel.connection.put_batcher.is_busy is True
    publisher.kill()
    may_go.set()
    until(lambda: not channel.connection.put_batcher.is_busy)
    assert (fake_broker.bodies("a"), fake_broker.bodies("b")) == ([b"m"], [b"m"])
    assert channel.connection.put_batcher.is_busy is False


def test_an_interruption_of_the_store_ends_the_link_and_goes_on(
    connect: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = channel_to(connect).connection

    def interrupt(entries: Any) -> None:
        raise KeyboardInterrupt

    entries = link.entries({"body": b"x", "properties": {}}, ["q"])
    monkeypatch.setattr(link.store, "put", interrupt)
    monkeypatch.setattr(publishing, "spawn", lambda name, function: function())
    done: Slot[Any] = Slot()
    with pytest.raises(KeyboardInterrupt):
        link.put_batcher.put(entries, done)
    assert isinstance(done.wait(Deadline(30)), RecoverableConnectionError)
    assert "storing messages failed: KeyboardInterrupt()" in str(link.lost)


_ABSENT, _FULL, _OTHER = NoQueue(), QueueFull(), ValueError("no")


@pytest.mark.parametrize(
    ("errors", "outcome"),
    [
        ([None], None),
        ([_ABSENT], _ABSENT),
        ([None, _ABSENT], None),
        ([_ABSENT, None], None),
        ([_ABSENT, _ABSENT], _ABSENT),
        ([_ABSENT, _FULL, None], _FULL),
        ([_OTHER, _FULL], _OTHER),
        ([None, _OTHER, _ABSENT], _OTHER),
    ],
)
def test_a_message_is_stored_when_some_queue_has_it_and_none_refuses(
    errors: list[Exception | None], outcome: Exception | None
) -> None:
    slot: Slot[Any] = Slot()
    outcomes = CopyOutcomes(len(errors), slot)
    for each in errors:
        assert not slot.is_filled
        outcomes.offer(each)
    assert slot.value is outcome


# What was sent by what was known of the exchanges.


class Outcome:
    """What a publisher waits for."""

    has_left = False

    def __init__(self) -> None:
        self.values: list[Any] = []

    def offer(self, value: Any) -> bool:
        self.values.append(value)
        return True


def sent_by(routes: KnownRoutes, version: int, again: Any = None) -> tuple[RoutedOutcome, Outcome]:
    """A message on its way, and what its publisher waits for; it is stale where it is told "stale"."""
    done = Outcome()
    return RoutedOutcome(routes, version, lambda value: value == "stale", again, done), done


def test_what_is_sent_by_another_version_waits() -> None:
    routes = KnownRoutes()
    assert not routes.must_wait(0)
    first, second = sent_by(routes, 1), sent_by(routes, 1)
    assert (routes.must_wait(1), routes.must_wait(2), routes.must_wait(0)) == (False, True, True)
    waiting = [gevent.spawn(routes.wait, version) for version in (2, 0)]
    first[0].offer(None)
    gevent.sleep(0)
    assert not any(each.ready() for each in waiting)
    second[0].offer(QueueFull())
    gevent.joinall(waiting, timeout=10, raise_error=True)
    assert all(each.ready() for each in waiting)
    assert first[1].values == [None]
    assert isinstance(second[1].values[0], QueueFull)


def test_what_is_routed_again_goes_in_order_and_ends_then() -> None:
    routes, order = KnownRoutes(), []
    may_go = Event()

    def again(done: Outcome) -> None:
        order.append(done)
        may_go.wait(10)
        done.offer("again")

    sent = [sent_by(routes, 1, again) for _ in range(3)]
    for outcome, _ in sent:
        outcome.offer("stale")
    waiting = gevent.spawn(routes.wait, 2)
    until(lambda: order)
    assert not waiting.ready()
    may_go.set()
    waiting.get(timeout=10)
    assert order == [done for _, done in sent]
    assert [done.values for _, done in sent] == [["again"]] * 3


def test_who_waits_for_a_message_that_was_never_sent_goes_on() -> None:
    routes = KnownRoutes()
    lost = sent_by(routes, 1)
    waiting = gevent.spawn(routes.wait, 2)
    gevent.sleep(0)
    assert not waiting.ready()
    del lost
    waiting.get(timeout=10)


@pytest.mark.parametrize("problem", [ValueError("no"), Signal()], ids=["error", "interrupted"])
def test_routing_again_that_fails_holds_up_no_other(
    hub_errors: HubErrors, problem: BaseException
) -> None:
    routes = KnownRoutes()

    def fail(done: Outcome) -> None:
        raise problem

    sent = [sent_by(routes, 1, fail), sent_by(routes, 1, lambda done: done.offer("again"))]
    for outcome, _ in sent:
        outcome.offer("stale")
    with gevent.Timeout(10):
        routes.wait(2)
    kind = ValueError if isinstance(problem, ValueError) else PublishNacked
    assert isinstance(sent[0][1].values[0], kind)
    assert sent[1][1].values == ["again"]
    hub_errors.clear()


def test_a_signal_amid_the_storing_leaves_no_publisher_waiting(
    connect: Opener, kind: type[FakeStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *args: None)
    channel, number, has_struck = channel_to_q(connect, kind), 1, True
    while has_struck:
        if not channel.is_open:
            channel = channel_to_q(connect, kind)
        signal = SignalInLibrary(number, within=("broker/publishing",), between_calls=False)
        signal.begin()
        # Two at once, so that they may be stored together.
        publishers = [gevent.spawn(outcome, channel, f"{number}") for _ in range(2)]
        gevent.joinall(publishers, 30)
        signal.end()
        has_struck, number = signal.left <= 0, number + 1
        for each in publishers:
            assert each.dead
            assert isinstance(each.value, RecoverableConnectionError | None)
