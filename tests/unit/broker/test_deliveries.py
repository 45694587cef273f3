"""The unacknowledged deliveries of a channel: what is sent to the broker, and the prefetch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import gevent
import pytest

from greenconn.broker.channel import StoreChannel
from greenconn.broker.consuming import Consumer, Prefetch
from greenconn.broker.deliveries import Deliveries
from greenconn.broker.link import StoreLink
from greenconn.exceptions import PreconditionFailed, RecoverableConnectionError, WrongHub
from tests.fix_interrupts import Signal
from tests.unit.broker.conftest import Opener


class Delivered:
    """A delivery with nothing in it."""

    def __init__(self, tag: str, consumer: Consumer | None) -> None:
        self.delivery_tag = tag
        self.consumer = consumer
        self.queue = "q"
        self.is_held = True


class Recorder:
    """An acknowledger that records its calls in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []

    def ack(self, delivery: Any) -> None:
        self.calls.append(("ack", [delivery.delivery_tag]))

    def ack_late(self, tag: Any) -> None:
        self.calls.append(("ack late", [tag]))

    def unhandled_late(self, tags: Iterable[Any]) -> None:
        self.calls.append(("unhandled late", sorted(tags)))

    def requeue(self, deliveries: Iterable[Any], unhandled: Collection[Any] = ()) -> None:
        self.calls.append(("requeue", [each.delivery_tag for each in deliveries]))
        if unhandled:
            self.calls.append(("unhandled", sorted(unhandled)))

    def requeue_unseen(self, delivery: Any) -> None:
        self.calls.append(("unseen", [delivery.delivery_tag]))

    def dead_letter(self, deliveries: Iterable[Any], reason: str) -> None:
        self.calls.append((reason, [each.delivery_tag for each in deliveries]))


class Feed:
    """A feed that counts how often it is resumed."""

    resumed = 0
    consumers: Sequence[Consumer] = ()

    def resume(self, consumer: Consumer) -> None:
        self.resumed += 1


class Bench:
    """A channel whose consumer has the deliveries ``a``, ``b`` and ``c``, up to its prefetch limit."""

    def __init__(self, channel: StoreChannel[StoreLink]) -> None:
        self.channel = channel
        self.acknowledger = Recorder()
        self.feed = Feed()
        self.deliveries = Deliveries(channel, self.acknowledger)
        self.consumer = Consumer(channel, self.feed, "tag", "q", limit=3)
        for tag in "abc":
            self.deliveries.hold(self.consumer, Delivered(tag, self.consumer))

    @property
    def held(self) -> str:
        """The tags of unacknowledged deliveries."""
        return "".join(self.deliveries.unacked)

    @property
    def in_flight(self) -> tuple[int, int]:
        """The numbers of unacked deliveries of the consumer and of the channel."""
        return self.consumer.unacked, self.channel.prefetch.in_flight


@pytest.fixture
def bench(connect: Opener) -> Bench:
    """A channel with deliveries and a recording acknowledger."""
    return Bench(StoreChannel(connect()))


@pytest.mark.parametrize(
    ("tag", "acked", "left"), [("b", "ab", "c"), ("c", "abc", ""), (0, "abc", "")]
)
def test_ack_of_many_ends_with_its_tag(bench: Bench, tag: Any, acked: str, left: str) -> None:
    bench.deliveries.ack(tag, True)
    assert bench.acknowledger.calls == [("ack", [each]) for each in acked]
    assert (bench.held, bench.in_flight) == (left, (len(left), len(left)))


@pytest.mark.parametrize("multiple", [False, True])
def test_an_unknown_tag_is_refused_and_changes_nothing(bench: Bench, multiple: bool) -> None:
    with pytest.raises(PreconditionFailed):
        bench.deliveries.ack("x", multiple)
    with pytest.raises(PreconditionFailed):
        bench.deliveries.reject("x", True, multiple=multiple)
    assert (bench.acknowledger.calls, bench.held, bench.in_flight) == ([], "abc", (3, 3))


def test_only_acks_are_passed_on_after_the_link_is_lost(bench: Bench) -> None:
    bench.channel.connection.end(RecoverableConnectionError("cut"))
    bench.deliveries.ack("a", False)
    bench.deliveries.reject("b", True)
    bench.deliveries.requeue_unseen("c")
    assert bench.acknowledger.calls == [("ack late", ["a"]), ("unhandled late", ["c"])]
    bench.deliveries.release(())
    assert bench.held == "abc"


def test_prefetch_of_a_channel_is_shared_and_reserved(bench: Bench) -> None:
    prefetch = bench.channel.prefetch
    assert prefetch.reserve(5) == 5  # without a limit nothing is reserved
    prefetch.limit = 10
    assert (prefetch.share(0), prefetch.share(1), prefetch.share(2), prefetch.share(9)) == (
        7,
        4,
        3,
        1,
    )
    assert (prefetch.reserve(5), prefetch.reserve(5), prefetch.reserve(5)) == (5, 2, 0)
    assert prefetch.share(0) == 0
    prefetch.release(6)
    assert prefetch.reserve(9) == 6
    prefetch.release(100)
    assert prefetch.reserved == 0


def test_another_thread_may_not_ack(bench: Bench) -> None:
    def ack() -> BaseException | None:
        try:
            bench.deliveries.ack("a", False)
        except WrongHub as exc:
            return exc
        return None

    assert isinstance(gevent.get_hub().threadpool.apply(ack), WrongHub)
    assert (bench.acknowledger.calls, bench.held) == ([], "abc")


def test_turns_count_messages_under_the_limit_of_a_channel() -> None:
    prefetch = Prefetch()
    prefetch.limit = 3
    assert [prefetch.next_turn(turn) for turn in (0, 1, 0)] == [1, 2, 1]
    for turn in range(2, 50):
        prefetch.next_turn(turn)
    # Its queue was empty meanwhile.
    assert prefetch.next_turn(1) == 48
    assert prefetch.next_turn(50) == 51


@pytest.mark.parametrize("requeue", [False, True])
def test_a_reject_that_fails_frees_the_prefetch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, requeue: bool
) -> None:
    def interrupt(deliveries: Iterable[Any], *reason: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.acknowledger, "requeue" if requeue else "dead_letter", interrupt)
    monkeypatch.setattr(StoreLink, "settling_may_fail", True)
    with pytest.raises(KeyboardInterrupt):
        bench.deliveries.reject("b", requeue, multiple=True)
    assert (bench.held, bench.in_flight) == ("c", (1, 1))
    assert bench.channel.is_open


@pytest.mark.parametrize("multiple", [False, True])
@pytest.mark.parametrize("how", ["ack", "requeue", "dead_letter"])
def test_a_signal_amid_a_settlement_ends_the_link(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, how: str, multiple: bool
) -> None:
    def interrupt(*args: Any) -> None:
        raise Signal

    monkeypatch.setattr(bench.acknowledger, how, interrupt)
    with pytest.raises(Signal):
        if how == "ack":
            bench.deliveries.ack("b", multiple)
        else:
            bench.deliveries.reject("b", how == "requeue", multiple=multiple)
    # What is not settled goes back with it.
    assert "c" in bench.held
    assert isinstance(bench.channel.connection.lost, RecoverableConnectionError)
    with pytest.raises(RecoverableConnectionError, match="interrupted by Signal"):
        bench.channel.check_open()


def test_a_multiple_ack_that_is_interrupted_keeps_the_rest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    acked: list[str] = []

    def ack(delivery: Any) -> None:
        if delivery.delivery_tag == "b":
            raise KeyboardInterrupt
        acked.append(delivery.delivery_tag)

    monkeypatch.setattr(bench.acknowledger, "ack", ack)
    with pytest.raises(KeyboardInterrupt):
        bench.deliveries.ack("c", True)
    assert (acked, sorted(bench.held), bench.in_flight) == (["a"], ["b", "c"], (2, 2))


@pytest.mark.parametrize("how", ["ack", "ack of many", "reject", "settled", "replace"])
def test_what_is_settled_lets_the_channel_serve_under_its_limit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    served: list[tuple[int, int]] = []
    monkeypatch.setattr(StoreChannel, "serve", lambda channel: served.append(bench.in_flight))

    def settle(tag: str) -> None:
        if how == "reject":
            bench.deliveries.reject(tag, True)
        elif how == "settled":
            bench.deliveries.settled(tag)
        elif how == "replace":
            bench.deliveries.replace(tag, "q", lambda delivery: None)
        else:
            bench.deliveries.ack(tag, how == "ack of many")

    settle("a")
    assert served == []
    bench.channel.prefetch.limit = 10
    settle("b")
    assert served == [(1, 1)]
