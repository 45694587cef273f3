"""The unacknowledged deliveries of a channel: what is sent to the broker, and the prefetch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import gevent
import pytest

from greenconn.broker.channel import StoreChannel
from greenconn.broker.consuming import Consumer, Prefetch, StoreConsumer
from greenconn.broker.deliveries import Deliveries
from greenconn.broker.link import StoreLink
from greenconn.exceptions import (
    AMQPNotImplementedError,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
    WrongHub,
)
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


def test_ack_frees_a_place(bench: Bench) -> None:
    assert bench.in_flight == (3, 3)
    bench.deliveries.ack("b", False)
    assert (bench.acknowledger.calls, bench.held) == ([("ack", ["b"])], "ac")
    assert (bench.in_flight, bench.feed.resumed) == ((2, 2), 1)


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


@pytest.mark.parametrize(("requeue", "what"), [(True, "requeue"), (False, "rejected")])
def test_reject(bench: Bench, requeue: bool, what: str) -> None:
    bench.deliveries.reject("b", requeue)
    bench.deliveries.reject("c", requeue, multiple=True)
    assert bench.acknowledger.calls == [(what, ["b"]), (what, ["a", "c"])]
    assert (bench.held, bench.in_flight) == ("", (0, 0))


def test_a_delivery_that_is_replaced_is_settled(bench: Bench) -> None:
    replaced: list[tuple[str, str]] = []
    assert bench.deliveries.replace(
        "b", "q", lambda delivery: replaced.append((delivery.delivery_tag, bench.held))
    )
    assert (replaced, bench.held) == ([("b", "ac")], "ac")
    assert (bench.in_flight, bench.feed.resumed) == ((2, 2), 1)


@pytest.mark.parametrize("why", ["settled", "not held", "another queue", "lost"])
def test_a_delivery_that_cannot_be_replaced_stays(bench: Bench, why: str) -> None:
    replaced: list[Any] = []
    bench.deliveries.unacked["b"].is_held = why != "not held"
    if why == "lost":
        bench.channel.connection.end(RecoverableConnectionError("cut"))
    tag, queue = "x" if why == "settled" else "b", "p" if why == "another queue" else "q"
    assert bench.deliveries.replace(tag, queue, replaced.append) is False
    assert (replaced, bench.held, bench.in_flight) == ([], "abc", (3, 3))


def test_what_the_broker_does_not_hold_is_not_acked(bench: Bench) -> None:
    bench.deliveries.unacked["a"].is_held = False
    bench.deliveries.ack("b", True)
    assert bench.acknowledger.calls == [("ack", ["b"])]
    assert bench.in_flight == (1, 1)


def test_recover_requeues_all(bench: Bench) -> None:
    with pytest.raises(AMQPNotImplementedError):
        bench.deliveries.recover(False)
    bench.deliveries.recover(True)
    assert (bench.acknowledger.calls, bench.held) == ([("requeue", ["a", "b", "c"])], "")


def test_no_ack_deliveries_do_not_count_against_the_prefetch(bench: Bench) -> None:
    consumer = Consumer(bench.channel, bench.feed, "free", "q", no_ack=True)
    bench.deliveries.hold(consumer, Delivered("d", consumer))
    assert bench.channel.prefetch.in_flight == 3
    bench.deliveries.taken("d")
    bench.deliveries.taken("d")  # cancelled meanwhile
    assert bench.acknowledger.calls == [("ack", ["d"])]
    assert bench.channel.prefetch.in_flight == 3


@pytest.mark.parametrize("how", ["ack", "reject", "recover"])
def test_settling_all_leaves_alone_what_needs_no_ack(bench: Bench, how: str) -> None:
    bench.channel.deliveries = bench.deliveries
    consumer = StoreConsumer(bench.channel, bench.feed, "free", "q", no_ack=True)
    bench.channel.consumers["free"] = consumer
    delivered = Delivered("d", consumer)
    bench.deliveries.hold(consumer, delivered)
    consumer.backlog.append(delivered)
    if how == "ack":
        bench.deliveries.ack(0, True)
    elif how == "reject":
        bench.deliveries.reject(0, True, multiple=True)
    else:
        bench.deliveries.recover(True)
    del bench.channel.consumers["free"]
    assert (bench.held, list(consumer.backlog)) == ("d", [delivered])
    with pytest.raises(PreconditionFailed):
        bench.deliveries.ack("d", True)
    bench.acknowledger.calls.clear()
    assert consumer._handle(delivered) is None  # type: ignore[arg-type]
    assert (bench.acknowledger.calls, bench.held) == ([("ack", ["d"])], "")


def test_undrained_deliveries_are_requeued_when_the_consumer_stops(bench: Bench) -> None:
    held = bench.deliveries.unacked
    bench.consumer.backlog.extend([held["b"], held["c"]])
    bench.deliveries.ack("b", False)  # by its tag, before its event was drained
    bench.deliveries.stop(bench.consumer)
    assert bench.acknowledger.calls == [("ack", ["b"]), ("requeue", ["c"]), ("unhandled", ["c"])]
    assert bench.held == "a"


def test_unhandled_deliveries_do_not_count_as_an_attempt(bench: Bench) -> None:
    held = bench.deliveries.unacked
    bench.deliveries.requeue_unseen("a")
    assert bench.acknowledger.calls == [("requeue", ["a"]), ("unhandled", ["a"])]
    assert (bench.in_flight, bench.feed.resumed) == ((2, 2), 1)
    bench.acknowledger.calls.clear()
    bench.deliveries.requeue_unseen("a")  # again: does nothing
    assert not bench.acknowledger.calls
    bench.consumer.backlog.append(held["c"])
    bench.deliveries.release([bench.consumer])
    assert bench.acknowledger.calls == [("requeue", ["b", "c"]), ("unhandled", ["c"])]


def test_recovery_counts_what_was_handled(bench: Bench) -> None:
    bench.channel.consumers["tag"] = bench.consumer
    bench.consumer.backlog.append(bench.deliveries.unacked["c"])
    bench.deliveries.recover(True)
    assert bench.acknowledger.calls == [("requeue", ["a", "b", "c"]), ("unhandled", ["c"])]
    assert (bench.held, bench.consumer.stale) == ("", 1)
    bench.channel.consumers.clear()


def test_undrained_deliveries_of_a_deleted_queue_are_dropped(bench: Bench) -> None:
    bench.consumer.backlog.append(bench.deliveries.unacked["c"])
    bench.deliveries.drop(bench.consumer)
    assert (bench.acknowledger.calls, bench.held) == ([("ack", ["c"])], "ab")


def test_a_closed_channel_refuses_acks(bench: Bench) -> None:
    bench.channel.close()
    with pytest.raises(RecoverableChannelError):
        bench.deliveries.ack("a", False)
    with pytest.raises(RecoverableChannelError):
        bench.deliveries.reject("a", True)
    bench.deliveries.requeue_unseen("a")  # it goes back with the channel
    bench.deliveries.release(())
    assert (bench.acknowledger.calls, bench.held) == ([("requeue", ["a", "b", "c"])], "")


def test_only_acks_are_passed_on_after_the_link_is_lost(bench: Bench) -> None:
    bench.channel.connection.end(RecoverableConnectionError("cut"))
    bench.deliveries.ack("a", False)
    bench.deliveries.reject("b", True)
    bench.deliveries.requeue_unseen("c")
    assert bench.acknowledger.calls == [("ack late", ["a"]), ("unhandled late", ["c"])]
    bench.deliveries.release(())
    assert bench.held == "abc"


def test_the_next_life_is_told_what_nobody_has_drained(bench: Bench) -> None:
    bench.consumer.backlog.append(bench.deliveries.unacked["b"])
    bench.channel.connection.end(RecoverableConnectionError("cut"))
    bench.deliveries.release([bench.consumer])
    assert bench.acknowledger.calls == [("unhandled late", ["b"])]


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


def test_limit_of_a_channel_may_be_kept_together(bench: Bench) -> None:
    prefetch = bench.channel.prefetch
    prefetch.limit = 10
    prefetch.is_divided = False
    assert (prefetch.share(0), prefetch.share(9)) == (7, 7)
    assert prefetch.reserve(9) == 7
    assert prefetch.share(1) == 0


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
def test_an_interrupted_reject_frees_the_prefetch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, requeue: bool
) -> None:
    def interrupt(deliveries: Iterable[Any], *reason: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.acknowledger, "requeue" if requeue else "dead_letter", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.deliveries.reject("b", requeue, multiple=True)
    assert (bench.held, bench.in_flight) == ("c", (1, 1))


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


def test_a_multiple_ack_wakes_the_consumer_once(bench: Bench) -> None:
    bench.deliveries.ack("b", True)
    assert bench.feed.resumed == 1
    bench.deliveries.reject("c", True)
    assert bench.feed.resumed == 2


def test_consumers_have_turns_under_the_limit_of_a_channel(bench: Bench) -> None:
    assert bench.consumer.turn == 0  # without a limit nobody needs one
    bench.channel.prefetch.limit = 10
    for tag in "de":
        bench.deliveries.hold(bench.consumer, Delivered(tag, bench.consumer))
    assert bench.consumer.turn == 2


def test_a_delivery_settled_by_other_means_is_counted_off_once(bench: Bench) -> None:
    for _ in range(2):
        bench.deliveries.settled("a")
    assert (bench.acknowledger.calls, bench.held, bench.in_flight) == ([], "bc", (2, 2))
    assert bench.feed.resumed == 1


def test_deliveries_of_basic_get_do_not_count_against_the_prefetch(bench: Bench) -> None:
    for tag in "xyz":
        bench.deliveries.unacked[tag] = Delivered(tag, None)
    bench.deliveries.ack("x", False)
    bench.deliveries.reject("y", True)
    assert bench.in_flight == (3, 3)
    bench.deliveries.ack("z", True)
    assert (bench.held, bench.in_flight) == ("", (0, 0))


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
