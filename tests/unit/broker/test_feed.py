"""Feeds by themselves: their states, room and turns, over a source that does what a test says."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.broker.consuming import WINDOW, Consumer, DueFeeds, Feed, FeedState, Prefetch
from tests.fix_wires import until
from tests.unit.broker.sink import Sink


class Source:
    """A source that notes what it is asked."""

    def __init__(self, feed: Feed[Any, Source]) -> None:
        self.feed = feed
        self.is_single_active = False
        self.calls: list[str] = []

    def schedule(self) -> None:
        self.calls.append("schedule")

    def watch(self) -> None:
        self.calls.append("watch")

    def retire(self) -> None:
        self.calls.append("retire")

    def delivery(self, message: Any, consumer: Consumer) -> Any:
        consumer.unacked += not consumer.no_ack
        return message


class Channel:
    """A channel that holds nothing."""

    def __init__(self) -> None:
        self.prefetch = Prefetch()
        self.consumers: dict[str, Consumer] = {}
        self.deliveries = self
        self.refused: list[BaseException] = []

    def hold(self, consumer: Consumer, delivery: Any) -> None:
        if not consumer.no_ack:
            self.prefetch.in_flight += 1

    def serve(self) -> None:
        for each in self.consumers.values():
            each.wake() if each.is_parked else each.feed.serve()  # type: ignore[attr-defined]

    def refuse(self, consumer: Consumer, error: BaseException) -> None:
        self.refused.append(error)


@pytest.fixture
def feed() -> Feed[Any, Source]:
    return Feed("q", Source)


def join(
    feed: Feed[Any, Source], channel: Channel | None = None, limit: int = 10, **options: Any
) -> Consumer:
    """Return a new consumer of the feed."""
    channel = channel or Channel()
    sink = Sink()
    tag = f"c{len(channel.consumers)}"
    consumer = Consumer(channel, feed, tag, feed.queue, sink=sink, limit=limit, **options)
    channel.consumers[tag] = consumer
    feed.join(consumer)
    return consumer


def ack(consumer: Consumer, count: int = 1) -> None:
    """Free the room of messages."""
    consumer.unacked -= count
    consumer.prefetch.in_flight -= count
    consumer.wake()


def got(consumer: Consumer) -> list[Any]:
    """Return what a consumer was given."""
    assert isinstance(consumer.sink, Sink)
    return list(consumer.sink)


def claim(feed: Feed[Any, Source], *messages: Any, most: int = 100) -> int:
    """Let a claim bring *messages*; return for how many it was."""
    count = feed.begin(most)
    for each in messages:
        feed.offer(each)
    feed.free()
    feed.ended(len(messages) < count)
    return count


def test_what_a_turn_frees_is_claimed_together(feed: Feed[Any, Source]) -> None:
    consumer = join(feed)
    assert (feed.state, feed.source.calls) == (FeedState.DUE, ["schedule"])
    assert claim(feed, *range(10)) == 10
    assert (feed.state, feed.source.calls) == (FeedState.IDLE, ["schedule"])
    for _ in range(3):
        ack(consumer)
    assert (feed.state, feed.source.calls) == (FeedState.DUE, ["schedule"] * 2)
    assert claim(feed, 10, 11, 12) == 3
    assert got(consumer) == list(range(13))


def test_an_unbounded_consumer_is_served_by_windows(feed: Feed[Any, Source]) -> None:
    join(feed, limit=0)
    assert feed.begin(1000) == WINDOW


def test_a_claim_that_nobody_has_room_for_is_none(feed: Feed[Any, Source]) -> None:
    consumer = join(feed)
    feed.leave(consumer)
    assert (feed.begin(100), feed.state) == (0, FeedState.IDLE)


def test_a_dry_queue_is_watched_until_there_may_be_more(feed: Feed[Any, Source]) -> None:
    consumer = join(feed)
    claim(feed, 0)
    assert (feed.state, feed.source.calls[-1]) == (FeedState.DRY, "watch")
    ack(consumer)
    assert feed.state is FeedState.DRY
    feed.wake()
    assert (feed.state, feed.source.calls[-1]) == (FeedState.DUE, "schedule")


def test_what_is_said_while_a_claim_is_on_its_way_counts(feed: Feed[Any, Source]) -> None:
    join(feed)
    count = feed.begin(100)
    feed.wake()
    feed.ended(count > 0)
    states = [feed.state]
    claim(feed)
    states.append(feed.state)
    assert states == [FeedState.DUE, FeedState.DRY]


def test_room_that_comes_while_a_claim_is_on_its_way_waits_for_its_end(
    feed: Feed[Any, Source],
) -> None:
    join(feed, limit=1)
    assert feed.begin(100) == 1
    join(feed, limit=5)
    assert feed.source.calls == ["schedule"]
    feed.offer(0)
    feed.ended(False)
    assert (feed.state, feed.begin(100)) == (FeedState.DUE, 5)


def test_who_comes_first_does_not_believe_that_there_is_nothing(feed: Feed[Any, Source]) -> None:
    consumer = join(feed)
    claim(feed)
    feed.coming += 1
    feed.leave(consumer)
    states = [feed.state]
    join(feed)
    states.append(feed.state)
    assert states == [FeedState.DRY, FeedState.DUE]


def test_a_claim_that_nobody_waits_for_retires_the_feed(feed: Feed[Any, Source]) -> None:
    consumer = join(feed)
    feed.begin(100)
    feed.leave(consumer)
    assert not feed.offer("x")
    feed.ended(True)
    assert (feed.state, feed.source.calls) == (FeedState.IDLE, ["schedule", "retire"])
    assert got(consumer) == []


def test_consumers_take_turns_by_priority(feed: Feed[Any, Source]) -> None:
    low, other = join(feed, limit=3), join(feed, limit=3)
    high = join(feed, limit=1, arguments={"x-priority": 1})
    assert claim(feed, *range(5)) == 7
    assert (got(high), got(low), got(other)) == ([0], [1, 3], [2, 4])


def test_only_the_oldest_is_served_where_one_is_active(feed: Feed[Any, Source]) -> None:
    feed.source.is_single_active = True
    first, second = join(feed, limit=3), join(feed, limit=3)
    assert claim(feed, 0) == 3
    feed.leave(first)
    feed.wake()
    assert claim(feed, 1) == 3
    assert (got(first), got(second)) == ([0], [1])


def test_a_claim_reserves_the_places_of_a_channel(feed: Feed[Any, Source]) -> None:
    channel, other = Channel(), Feed("p", Source)
    channel.prefetch.limit = 4
    one, two = join(feed, channel), join(other, channel)
    assert feed.begin(100) == 4
    assert feed.has_rivals
    assert (other.begin(100), other.state) == (0, FeedState.IDLE)
    feed.offer("x")
    feed.free()
    assert (feed.has_rivals, other.state) == (False, FeedState.DUE)
    feed.ended(True)
    assert other.begin(100) == 3
    assert (got(one), got(two)) == (["x"], [])


def test_the_places_of_a_channel_are_divided_among_queues(feed: Feed[Any, Source]) -> None:
    channel, other = Channel(), Feed("p", Source)
    channel.prefetch.limit = 5
    join(feed, channel)
    join(other, channel)
    assert (feed.begin(100, 1), other.begin(100)) == (3, 2)


def test_a_channel_that_does_not_flow_is_not_claimed_for(feed: Feed[Any, Source]) -> None:
    consumer = join(feed)
    consumer.prefetch.is_flowing = False
    assert feed.begin(100) == 0
    consumer.prefetch.is_flowing = True
    consumer.wake()
    assert feed.begin(100) == 10


def test_a_refusal_ends_the_channels_of_the_consumers(feed: Feed[Any, Source]) -> None:
    consumer, error = join(feed), ValueError("you may not")
    consumer.prefetch.limit = 3
    assert feed.begin(100) == 3
    feed.refuse(error)
    assert (feed.state, consumer.prefetch.reserved) == (FeedState.IDLE, 0)
    until(lambda: consumer.channel.refused)
    assert consumer.channel.refused == [error]


def test_what_comes_without_a_claim_waits_for_room(feed: Feed[Any, Source]) -> None:
    consumer = join(feed, limit=2)
    for number in range(3):
        feed.arrive(number)
    assert (got(consumer), list(feed.arrived)) == ([0, 1], [2])
    feed.arrive_again(-1)
    ack(consumer, 2)
    assert (got(consumer), list(feed.arrived)) == ([0, 1, -1, 2], [])


def test_a_channel_with_one_consumer_has_no_rivals(feed: Feed[Any, Source]) -> None:
    consumer = join(feed)
    consumer.prefetch.limit = 6
    assert feed.begin(100, 5) == 6  # the other queues have no consumer of this channel
    assert not feed.has_rivals
    feed.free()
    assert consumer.prefetch.reserved == 0


def test_a_claim_that_is_none_reserves_nothing(feed: Feed[Any, Source]) -> None:
    channel, other = Channel(), Feed("p", Source)
    channel.prefetch.limit = 2
    join(feed, channel)
    join(other, channel)
    assert (feed.begin(100), other.begin(100)) == (2, 0)
    assert (feed.has_rivals, other.has_rivals) == (True, False)


def test_a_claim_that_is_full_leaves_further_channels_alone(feed: Feed[Any, Source]) -> None:
    first, second = Channel(), Channel()
    for channel in (first, second):
        channel.prefetch.limit = 5
        join(feed, channel)
    join(Feed("p", Source), second)
    assert feed.begin(5) == 5
    assert (first.prefetch.reserved, second.prefetch.reserved) == (5, 0)
    assert not feed.has_rivals


def test_a_feed_shows_what_it_does(feed: Feed[Any, Source]) -> None:
    assert repr(feed) == "<Feed 'q': idle, 0 consumers>"
    join(feed)
    assert repr(feed) == "<Feed 'q': due, 1 consumers>"
    assert feed.is_used
    assert feed.has_room


AnyFeed = Feed[Any, Source]


@pytest.fixture
def due() -> DueFeeds[AnyFeed]:
    return DueFeeds()


def feeds_of(channel: Channel | None, names: str, limit: int = 10) -> list[AnyFeed]:
    """Return feeds of some queues with a consumer each."""
    feeds = [Feed(name, Source) for name in names]
    for each in feeds:
        join(each, channel, limit)
    return feeds


def begun(due: DueFeeds[AnyFeed], most: int, *, together: bool) -> list[tuple[str, int]]:
    """Begin claims; return the queues that they are for, with their counts."""
    return [(feed.queue, count) for feed, count in due.begin(most, together=together)]


def test_one_claim_is_for_those_in_front(due: DueFeeds[AnyFeed]) -> None:
    for each in feeds_of(None, "abc"):
        due.add(each)
    assert begun(due, 15, together=True) == [("a", 10), ("b", 5)]
    assert begun(due, 15, together=True) == [("c", 10)]
    assert begun(due, 15, together=True) == []


def test_each_claim_may_take_as_much(due: DueFeeds[AnyFeed]) -> None:
    for each in feeds_of(None, "abc"):
        due.add(each)
    assert begun(due, 8, together=False) == [("a", 8), ("b", 8), ("c", 8)]
    assert not due.feeds


def test_who_is_in_keeps_its_place(due: DueFeeds[AnyFeed]) -> None:
    one, two = feeds_of(None, "ab")
    for each in (one, two, one):
        due.add(each)
    assert begun(due, 8, together=False) == [("a", 8), ("b", 8)]


@pytest.mark.parametrize("together", [False, True])
def test_limit_of_a_channel_is_divided(due: DueFeeds[AnyFeed], together: bool) -> None:
    channel = Channel()
    channel.prefetch.limit = 5
    for each in feeds_of(channel, "abc"):
        due.add(each)
    assert begun(due, 100, together=together) == [("a", 2), ("b", 2), ("c", 1)]
    assert not due.is_left_out


def test_feed_without_room_is_left_out(due: DueFeeds[AnyFeed]) -> None:
    channel = Channel()
    channel.prefetch.limit = 2
    feeds = feeds_of(channel, "abc")
    for each in feeds:
        due.add(each)
    assert begun(due, 100, together=False) == [("a", 1), ("b", 1)]
    assert (due.is_left_out, feeds[2].state) == (True, FeedState.IDLE)
    assert not due.feeds
    feeds[0].free()
    assert feeds[2].state is FeedState.DUE


def test_a_claim_that_is_not_full_goes_on_with_the_next(due: DueFeeds[AnyFeed]) -> None:
    assert due.is_left_out is False
    for each in feeds_of(None, "abc"):
        due.add(each)
    assert begun(due, 11, together=True) == [("a", 10), ("b", 1)]
    assert [each.queue for each in due.feeds] == ["c"]


def test_whether_a_feed_is_left_out_is_found_anew_each_time(due: DueFeeds[AnyFeed]) -> None:
    channel = Channel()
    channel.prefetch.limit = 1
    feeds = feeds_of(channel, "ab")
    for each in feeds:
        due.add(each)
    begun(due, 100, together=False)
    assert due.is_left_out
    begun(due, 100, together=False)
    assert not due.is_left_out
