"""The feeds whose claims are due, in fair order."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from greenconn.broker.feed import Feed

__all__ = ["DueFeeds"]

F = TypeVar("F", bound=Feed[Any, Any])


class DueFeeds(Generic[F]):
    """The feeds whose claims are due, the next in front.  Nothing here switches.

    No queue starves: a feed that was asked for goes behind the others, and what a claim may take goes to
    those in front first.  A limit of a whole channel is divided among the queues that its consumers wait
    for; where it is less than one each, those that were left out come first when there is room again.

    Attributes:
        feeds: those that are due.
        is_left_out: some have no room, because others had it.
    """

    __slots__ = ("feeds", "is_left_out")

    def __init__(self) -> None:
        self.feeds: dict[F, None] = {}
        self.is_left_out = False

    def add(self, feed: F) -> None:
        """Put a feed behind the others, unless it is in."""
        self.feeds[feed] = None

    def begin(self, most: int, *, together: bool) -> list[tuple[F, int]]:
        """Reserve room for claims; return the feeds that have some, and for how many messages.

        Arguments:
            most: messages that one claim may take.
            together: all are one claim; what it has no place for stays due.
        """
        begun: list[tuple[F, int]] = []
        self.is_left_out = False
        others = len(self.feeds)
        for feed in list(self.feeds):
            del self.feeds[feed]
            others -= 1
            count = feed.begin(most, others)
            if not count:
                self.is_left_out = True
                continue  # it comes back when there is room
            begun.append((feed, count))
            if together:
                most -= count
                if most <= 0:
                    break
        return begun
