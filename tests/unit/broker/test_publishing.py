"""What many greenlets publish leaves together, and each learns what became of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.exceptions import (
    NotFound,
    PublishNacked,
    PublishTimeout,
    RecoverableConnectionError,
    Unroutable,
)
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import EachStore, FakeStore, World


def channel_to(
    connect: Opener, kind: type[FakeStore] = FakeStore, **options: Any
) -> StoreChannel[StoreLink]:
    link = connect(kind, **options)
    return link.transport.create_channel(link)


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


def test_what_comes_meanwhile_leaves_together(connect: Opener, world: World) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    may_go = Event()
    world.before = lambda method, argument: method == "put" and may_go.wait()
    first = gevent.spawn(publish, channel, "0")
    gevent.sleep(0)
    gevent.sleep(0)
    others = [gevent.spawn(publish, channel, str(n)) for n in range(1, 51)]
    gevent.sleep(0)
    may_go.set()
    gevent.joinall([first, *others], raise_error=True)
    assert [len(argument) for method, argument in world.calls if method == "put"] == [1, 50]
    assert world.bodies("q") == [str(n).encode() for n in range(51)]


def test_limits_of_a_call(connect: Opener, world: World) -> None:
    channel = channel_to(connect, EachStore)
    channel.queue_declare("q")
    calls = []
    now = 0

    def before(method: str, argument: Any) -> None:
        nonlocal now
        if method == "put":
            now += 1
            calls.append((len(argument), now))
            gevent.sleep(0)
            now -= 1

    world.before = before
    gevent.joinall([gevent.spawn(publish, channel, str(n)) for n in range(65)], raise_error=True)
    assert max(size for size, _ in calls) == 10  # put_limit
    assert max(at_once for _, at_once in calls) <= 4  # put_calls
    world.calls.clear()
    big = "x" * (EachStore.put_bytes // 2)
    gevent.joinall([gevent.spawn(publish, channel, big) for _ in range(3)], raise_error=True)
    assert [len(argument) for method, argument in world.calls if method == "put"] == [1, 1, 1]


def test_each_gets_its_own_outcome(connect: Opener, world: World) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
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


def test_queue_that_went_is_no_route(connect: Opener, world: World) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    del world.queues["q"]  # somebody else
    with pytest.raises(Unroutable):
        publish(channel, "x", mandatory=True)
    publish(channel, "x")


def test_no_such_exchange(connect: Opener) -> None:
    channel = channel_to(connect)
    with pytest.raises(NotFound):
        channel.basic_publish(channel.prepare_message("x"), "absent", "key")
    assert not channel.is_open


def test_killed_publisher_leaves_nothing(connect: Opener, world: World) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    may_go = Event()
    world.before = lambda method, argument: method == "put" and may_go.wait()
    first = gevent.spawn(outcome, channel, "on its way")
    gevent.sleep(0)
    gevent.sleep(0)
    waiting = gevent.spawn(outcome, channel, "not yet")
    gevent.sleep(0)
    gevent.killall([first, waiting])
    may_go.set()
    publish(channel, "next")
    assert world.bodies("q") == [b"on its way", b"next"]
    assert not channel.connection.putting.is_busy


def test_deadline_says_what_may_be(connect: Opener, world: World) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    may_go = Event()
    world.before = lambda method, argument: method == "put" and may_go.wait()
    with pytest.raises(PublishTimeout) as caught:
        publish(channel, "x", timeout=0.01)
    assert caught.value.maybe_delivered
    may_go.set()


def test_deadline_covers_the_routing(connect: Opener, world: World) -> None:
    channel = channel_to(connect)
    channel.exchange_declare("x")
    world.before = lambda method, argument: Event().wait() if method == "find_queue" else None
    with pytest.raises(TimeoutError, match=r"not done within 0\.01 s"):
        publish(channel, "x", "unknown", timeout=0.01)
    assert world.count("put") == 0
    world.before = lambda method, argument: None
    assert channel.is_open


def test_store_without_answer_ends_the_link(connect: Opener, world: World) -> None:
    channel = channel_to(connect, reply_timeout=0.01)
    channel.queue_declare("q")
    world.before = lambda method, argument: method == "put" and Event().wait()
    with pytest.raises(RecoverableConnectionError, match=r"no answer within 0\.01 s"):
        publish(channel, "x")
    assert channel.connection.lost is not None


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), ZeroDivisionError("a bug")])
def test_store_that_fails_ends_the_link(connect: Opener, world: World, error: Exception) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    may_go = Event()

    def before(method: str, argument: Any) -> None:
        if method == "put":
            may_go.wait()
            raise error

    world.before = before
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


def test_refusal_of_one_store_call_is_its_publishers(connect: Opener, world: World) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")

    def put(entries: Sequence[Any]) -> Sequence[Exception | None]:
        return [
            ValueError("not this one") if e.envelope["body"] == b"bad" else None for e in entries
        ]

    channel.connection.store.put = put  # type: ignore[method-assign]
    good, bad = gevent.spawn(outcome, channel, "good"), gevent.spawn(outcome, channel, "bad")
    gevent.joinall([good, bad])
    assert good.value is None
    assert isinstance(bad.value, ValueError)
    assert channel.is_open
