"""Channels that consumers share."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.transport import base
from greenconn.worker.group import CONSUMERS_PER_CHANNEL, SharedChannel, SharedChannels
from tests.tiny_client import TinyClient


class Link(base.Link):
    """A link that makes channels."""

    def __init__(self) -> None:
        super().__init__(TinyClient())

    def create_channel(self, link: Any) -> Any:
        """A channel."""
        return Channel()


class Channel:
    """A channel that notes its prefetch."""

    is_open = True

    def __init__(self) -> None:
        self.prefetches: list[int] = []

    def basic_qos(self, size: int, count: int, is_global: bool) -> None:
        """Note the prefetch."""
        assert not size
        assert not is_global
        self.prefetches.append(count)


def expecting(count: int, prefetch: int = 10) -> SharedChannels:
    """Return channels that so many consumers will need."""
    channels = SharedChannels()
    for _ in range(count):
        channels.expect(prefetch)
    return channels


def counts(taken: list[SharedChannel]) -> list[int]:
    """Return the number of consumers on each channel."""
    return [each.consumers for each in dict.fromkeys(taken)]


def test_consumers_that_begin_together_are_spread_over_the_channels_that_they_need() -> None:
    count = 4 * CONSUMERS_PER_CHANNEL - 1
    channels = expecting(count)
    for link in (Link(), Link()):  # also those that begin again after a reconnect
        taken = [channels.acquire(link, 10) for _ in range(count)]
        assert len(set(taken[:4])) == 4
        assert sorted(counts(taken)) == [CONSUMERS_PER_CHANNEL - 1, *[CONSUMERS_PER_CHANNEL] * 3]


def test_a_channel_has_one_prefetch_which_is_sent_once() -> None:
    channels, link = expecting(4), Link()
    ten = channels.acquire(link, 10)
    twenty = channels.acquire(link, 20)
    assert twenty is not ten
    assert channels.acquire(link, 10) is ten
    channel = ten.open(link)
    ten.open(link)
    assert channel.prefetches == [10]
    channels.release(ten)
    channels.release(ten)
    assert channels.acquire(link, 30) is ten  # nobody else is there any more
    assert ten.open(link) is channel
    assert channel.prefetches == [10, 30]


def test_a_channel_whose_prefetch_did_not_arrive_is_given_it_again() -> None:
    class Timid(Channel):
        def basic_qos(self, size: int, count: int, is_global: bool) -> None:
            super().basic_qos(size, count, is_global)
            if len(self.prefetches) == 1:
                raise TimeoutError

    class TimidLink(Link):
        def create_channel(self, link: Any) -> Any:
            return Timid()

    link = TimidLink()
    shared = SharedChannels().acquire(link, 10)
    with pytest.raises(TimeoutError):
        shared.open(link)
    assert shared.open(link).prefetches == [10, 10]


def test_closed_channels_and_former_lives_are_forgotten() -> None:
    channels, link = expecting(2), Link()
    first = channels.acquire(link, 10)
    channel = first.open(link)
    assert first.open(link) is channel
    channel.is_open = False
    second = channels.acquire(link, 10)
    assert second is not first
    channels.release(first)
    third = channels.acquire(link, 10, is_private=True)
    assert third is not first
    other = Link()
    fourth = channels.acquire(other, 10)
    assert fourth not in (first, second, third)
    channels.release(second)  # of the former life: changes nothing
    assert channels.acquire(other, 10) is fourth


def test_a_consumer_that_asks_for_the_former_link_late_disturbs_nobody() -> None:
    channels, former, link = expecting(3), Link(), Link()
    early = channels.acquire(link, 50)
    late = channels.acquire(former, 1)  # it was held up since the former life
    channels.release(late)
    again = channels.acquire(link, 1)
    channels.release(early)
    assert early.consumers == 0
    assert channels.acquire(link, 1) is again
    channels.release(channels.acquire(link, 50))
