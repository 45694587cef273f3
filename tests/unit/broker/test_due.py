"""Feeds whose claims are due, over sources that do nothing."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.broker.due import DueFeeds
from greenconn.broker.feed import Feed, FeedState
from tests.unit.broker.test_feed import Channel, Source, join

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
