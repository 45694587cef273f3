"""Channels that consumers share."""

from __future__ import annotations

from typing import Any

from greenconn.transport import base
from greenconn.worker.channels import CONSUMERS_PER_CHANNEL, SharedChannels
from tests.tiny_client import TinyClient


class Link(base.Link):
    """A link that makes channels."""

    def __init__(self) -> None:
        super().__init__(TinyClient())

    def create_channel(self, link: Any) -> Any:
        """A channel."""
        return Channel()


class Channel:
    """A channel."""

    is_open = True


def test_fifty_consumers_share_a_channel() -> None:
    channels, link = SharedChannels(), Link()
    taken = [channels.acquire(link) for _ in range(2 * CONSUMERS_PER_CHANNEL + 1)]
    assert len(channels) == 3
    assert [each.consumers for each in dict.fromkeys(taken)] == [
        CONSUMERS_PER_CHANNEL,
        CONSUMERS_PER_CHANNEL,
        1,
    ]
    channels.release(taken[0])
    assert channels.acquire(link) is taken[0]


def test_a_private_one_is_shared_with_nobody() -> None:
    channels, link = SharedChannels(), Link()
    shared = channels.acquire(link)
    private = channels.acquire(link, is_private=True)
    assert private is not shared
    assert channels.acquire(link) is shared
    assert channels.acquire(link, is_private=True) is not private
    channels.release(private)
    assert channels.acquire(link, is_private=True) is private
    channels.release(private)
    for _ in range(CONSUMERS_PER_CHANNEL - 2):
        channels.acquire(link)
    assert channels.acquire(link) is private


def test_closed_channels_and_former_lives_are_forgotten() -> None:
    channels, link = SharedChannels(), Link()
    first = channels.acquire(link)
    channel = first.open(link)
    assert first.open(link) is channel
    channel.is_open = False
    second = channels.acquire(link)
    assert second is not first
    assert channels.acquire(Link()) is not second
    assert len(channels) == 1
