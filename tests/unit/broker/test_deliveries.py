"""The unanswered deliveries of a channel: what an answer tells the broker, and the room it frees."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import gevent
import pytest

from greenconn.broker.channel import StoreChannel
from greenconn.broker.consumers import StoreConsumer
from greenconn.broker.deliveries import Deliveries
from greenconn.broker.link import StoreLink
from greenconn.exceptions import (
    AMQPNotImplementedError,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
    WrongHub,
)
from greenconn.transport.virtual.consumer import Consumer, Prefetch
from tests.unit.broker.conftest import Opener


class Delivered:
    """A delivery with nothing in it."""

    def __init__(self, tag: str, consumer: Consumer | None) -> None:
        self.delivery_tag = tag
        self.consumer = consumer
        self.is_held = True


class Told:
    """What the broker was told, in order."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, list[str]]] = []

    def ack(self, delivery: Any) -> None:
        self.answers.append(("done", [delivery.delivery_tag]))

    def ack_late(self, tag: Any) -> None:
        self.answers.append(("late", [tag]))

    def requeue(self, deliveries: Iterable[Any], unhandled: Collection[Any] = ()) -> None:
        self.answers.append(("back", [each.delivery_tag for each in deliveries]))
        if unhandled:
            self.answers.append(("unhandled", sorted(unhandled)))

    def requeue_unseen(self, delivery: Any) -> None:
        self.answers.append(("unseen", [delivery.delivery_tag]))

    def dead_letter(self, deliveries: Iterable[Any], reason: str) -> None:
        self.answers.append((reason, [each.delivery_tag for each in deliveries]))


class Feed:
    """Counts how often there was room again."""

    resumed = 0

    def resume(self, consumer: Consumer) -> None:
        self.resumed += 1


class Bench:
    """A channel whose consumer holds the deliveries ``a``, ``b`` and ``c``, all that it may hold."""

    def __init__(self, channel: StoreChannel[StoreLink]) -> None:
        self.channel = channel
        self.told = Told()
        self.feed = Feed()
        self.deliveries = Deliveries(channel, self.told)
        self.consumer = Consumer(channel, self.feed, "tag", "q", limit=3)
        for tag in "abc":
            self.deliveries.hold(self.consumer, Delivered(tag, self.consumer))

    @property
    def held(self) -> str:
        """The tags that are not answered."""
        return "".join(self.deliveries.unacked)

    @property
    def in_flight(self) -> tuple[int, int]:
        """How many are counted, for the consumer and for the channel."""
        return self.consumer.unacked, self.channel.prefetch.in_flight


@pytest.fixture
def bench(connect: Opener) -> Bench:
    """A channel and what its deliveries tell."""
    return Bench(StoreChannel(connect()))


def test_ack_frees_a_place(bench: Bench) -> None:
    assert bench.in_flight == (3, 3)
    bench.deliveries.ack("b", False)
    assert (bench.told.answers, bench.held) == ([("done", ["b"])], "ac")
    assert (bench.in_flight, bench.feed.resumed) == ((2, 2), 1)


@pytest.mark.parametrize(
    ("tag", "answered", "left"), [("b", "ab", "c"), ("c", "abc", ""), (0, "abc", "")]
)
def test_ack_of_many_ends_with_its_tag(bench: Bench, tag: Any, answered: str, left: str) -> None:
    bench.deliveries.ack(tag, True)
    assert bench.told.answers == [("done", [each]) for each in answered]
    assert (bench.held, bench.in_flight) == (left, (len(left), len(left)))


@pytest.mark.parametrize("multiple", [False, True])
def test_an_unknown_tag_is_refused_and_changes_nothing(bench: Bench, multiple: bool) -> None:
    with pytest.raises(PreconditionFailed):
        bench.deliveries.ack("x", multiple)
    with pytest.raises(PreconditionFailed):
        bench.deliveries.reject("x", True, multiple=multiple)
    assert (bench.told.answers, bench.held, bench.in_flight) == ([], "abc", (3, 3))


@pytest.mark.parametrize(("requeue", "what"), [(True, "back"), (False, "rejected")])
def test_reject(bench: Bench, requeue: bool, what: str) -> None:
    bench.deliveries.reject("b", requeue)
    bench.deliveries.reject("c", requeue, multiple=True)
    assert bench.told.answers == [(what, ["b"]), (what, ["a", "c"])]
    assert (bench.held, bench.in_flight) == ("", (0, 0))


def test_what_the_broker_does_not_hold_is_not_acked(bench: Bench) -> None:
    bench.deliveries.unacked["a"].is_held = False
    bench.deliveries.ack("b", True)
    assert bench.told.answers == [("done", ["b"])]
    assert bench.in_flight == (1, 1)


def test_recover_gives_all_back(bench: Bench) -> None:
    with pytest.raises(AMQPNotImplementedError):
        bench.deliveries.recover(False)
    bench.deliveries.recover(True)
    assert (bench.told.answers, bench.held) == ([("back", ["a", "b", "c"])], "")


def test_what_needs_no_answer_takes_no_room(bench: Bench) -> None:
    consumer = Consumer(bench.channel, bench.feed, "free", "q", no_ack=True)
    bench.deliveries.hold(consumer, Delivered("d", consumer))
    assert bench.channel.prefetch.in_flight == 3
    bench.deliveries.taken("d")
    bench.deliveries.taken("d")  # cancelled meanwhile
    assert bench.told.answers == [("done", ["d"])]
    assert bench.channel.prefetch.in_flight == 3


@pytest.mark.parametrize("how", ["ack", "reject", "recover"])
def test_an_answer_to_all_leaves_alone_what_needs_none(bench: Bench, how: str) -> None:
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
    bench.told.answers.clear()
    assert consumer._handle(delivered) is None  # type: ignore[arg-type]
    assert (bench.told.answers, bench.held) == ([("done", ["d"])], "")


def test_what_nobody_has_drained_goes_back_with_its_consumer(bench: Bench) -> None:
    held = bench.deliveries.unacked
    bench.consumer.backlog.extend([held["b"], held["c"]])
    bench.deliveries.ack("b", False)  # by its tag, before its event was drained
    bench.deliveries.stop(bench.consumer)
    assert bench.told.answers == [("done", ["b"]), ("back", ["c"]), ("unhandled", ["c"])]
    assert bench.held == "a"


def test_what_no_handler_has_begun_with_does_not_count(bench: Bench) -> None:
    held = bench.deliveries.unacked
    bench.deliveries.requeue_unseen("a")
    assert bench.told.answers == [("back", ["a"]), ("unhandled", ["a"])]
    assert (bench.in_flight, bench.feed.resumed) == ((2, 2), 1)
    bench.told.answers.clear()
    bench.deliveries.requeue_unseen("a")  # again: does nothing
    assert not bench.told.answers
    bench.consumer.backlog.append(held["c"])
    bench.deliveries.release([bench.consumer])
    assert bench.told.answers == [("back", ["b", "c"]), ("unhandled", ["c"])]


def test_recovery_counts_what_was_handled(bench: Bench) -> None:
    bench.channel.consumers["tag"] = bench.consumer
    bench.consumer.backlog.append(bench.deliveries.unacked["c"])
    bench.deliveries.recover(True)
    assert bench.told.answers == [("back", ["a", "b", "c"]), ("unhandled", ["c"])]
    assert (bench.held, bench.consumer.stale) == ("", 1)
    bench.channel.consumers.clear()


def test_with_its_queue_what_nobody_has_drained_is_done(bench: Bench) -> None:
    bench.consumer.backlog.append(bench.deliveries.unacked["c"])
    bench.deliveries.drop(bench.consumer)
    assert (bench.told.answers, bench.held) == ([("done", ["c"])], "ab")


def test_a_closed_channel_takes_no_answer(bench: Bench) -> None:
    bench.channel.close()
    with pytest.raises(RecoverableChannelError):
        bench.deliveries.ack("a", False)
    with pytest.raises(RecoverableChannelError):
        bench.deliveries.reject("a", True)
    bench.deliveries.requeue_unseen("a")  # it goes back with the channel
    bench.deliveries.release(())
    assert (bench.told.answers, bench.held) == ([("back", ["a", "b", "c"])], "")


def test_the_next_life_is_told_of_late_acks_only(bench: Bench) -> None:
    bench.channel.connection.end(RecoverableConnectionError("cut"))
    bench.deliveries.ack("a", False)
    bench.deliveries.reject("b", True)
    bench.deliveries.requeue_unseen("c")
    bench.deliveries.release(())
    assert (bench.told.answers, bench.held) == ([("late", ["a"])], "abc")


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


def test_another_thread_takes_no_part_in_it(bench: Bench) -> None:
    def answer() -> BaseException | None:
        try:
            bench.deliveries.ack("a", False)
        except WrongHub as exc:
            return exc
        return None

    assert isinstance(gevent.get_hub().threadpool.apply(answer), WrongHub)
    assert (bench.told.answers, bench.held) == ([], "abc")


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
def test_a_refusal_that_is_interrupted_frees_what_was_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, requeue: bool
) -> None:
    def interrupt(deliveries: Iterable[Any], *reason: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.told, "requeue" if requeue else "dead_letter", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.deliveries.reject("b", requeue, multiple=True)
    assert (bench.held, bench.in_flight) == ("c", (1, 1))


def test_a_multiple_ack_that_is_interrupted_keeps_the_rest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def ack(delivery: Any) -> None:
        if delivery.delivery_tag == "b":
            raise KeyboardInterrupt
        told.append(delivery.delivery_tag)

    monkeypatch.setattr(bench.told, "ack", ack)
    with pytest.raises(KeyboardInterrupt):
        bench.deliveries.ack("c", True)
    assert (told, sorted(bench.held), bench.in_flight) == (["a"], ["b", "c"], (2, 2))


def test_room_of_many_answers_wakes_the_consumer(bench: Bench) -> None:
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


def test_what_was_settled_elsewhere_frees_its_place_once(bench: Bench) -> None:
    for _ in range(2):
        bench.deliveries.settled("a")
    assert (bench.told.answers, bench.held, bench.in_flight) == ([], "bc", (2, 2))
    assert bench.feed.resumed == 1


def test_answers_to_what_was_got_take_no_room(bench: Bench) -> None:
    for tag in "xyz":
        bench.deliveries.unacked[tag] = Delivered(tag, None)
    bench.deliveries.ack("x", False)
    bench.deliveries.reject("y", True)
    assert bench.in_flight == (3, 3)
    bench.deliveries.ack("z", True)
    assert (bench.held, bench.in_flight) == ("", (0, 0))
