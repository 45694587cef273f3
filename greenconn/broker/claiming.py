"""Claiming: who asks the store for messages, for which queues, and when.

Theory
------
A claimer asks for one or for many queues in one call, for as many messages as their consumers have
room for, so that whatever comes has a place.  There is one greenlet, as long as there is something to
ask for.

A store that cannot wait is asked for queues that are not *dry*: a queue is dry when the last claim
gave less than was wanted, until somebody says that there is more (a publish of this process, an
answer that gives back, the store's ``wake``).  What is said while a claim is on its way counts for
the next one, since the claim may have looked before.

A store that can wait is asked for all queues whose consumers have room, and is interrupted when a
queue comes that it was not asked for.

No queue starves: one that was asked for goes behind the others, and what a claim may take goes to
those in front first (where it waits, each queue may have as much, or those left out would wait for its
end).  A limit of a whole channel is divided among the queues that its consumers wait for; where it is
less than one each, a claim does not wait long, and those left out come first then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from greenconn.broker.feed import Feed
from greenconn.broker.port import Claimed
from greenconn.green.hub import turn
from greenconn.green.supervisor import spawn

if TYPE_CHECKING:
    from gevent import Greenlet

    from greenconn.broker.link import StoreLink

__all__ = ["Claimer"]

#: Seconds that a claim waits while others may need the room that is reserved for it.
SHORT_WAIT: Final = 0.5


class Claimer:
    """Takes the messages of some queues, all together."""

    __slots__ = ("_asked", "_feeds", "_greenlet", "_is_stopped", "_left_out", "_link", "_wait")

    def __init__(self, link: StoreLink) -> None:
        self._link = link
        self._wait = link.store.claim_wait
        #: Those that may have messages and consumers with room, the next in front.
        self._feeds: dict[Feed, None] = {}
        #: What the claim that is on its way asked for.
        self._asked: dict[str, int] = {}
        #: Somebody has no room because others have it.
        self._left_out = False
        self._greenlet: Greenlet[..., Any] | None = None
        self._is_stopped = False

    def want(self, feed: Feed) -> None:
        """A queue may have messages, and its consumers room.  Never switches."""
        if self._is_stopped or (feed.is_dry and not self._wait):
            return
        self._feeds[feed] = None
        if self._greenlet is None:
            self._greenlet = spawn("claim", self._run)
        elif self._wait and self._asked and feed.queue not in self._asked:
            self._link.store.interrupt()

    def stop(self) -> None:
        """Ask no more.  Never switches."""
        self._is_stopped = True
        self._feeds.clear()
        store = self._link.store
        if not (self._asked and self._wait):
            return
        if not store.claims_each_queue:
            store.interrupt()
            return
        for queue in self._asked:
            store.abandon(queue)

    @property
    def greenlet(self) -> Greenlet[..., Any] | None:
        """What asks now; None: nobody."""
        return self._greenlet

    def _run(self) -> None:
        try:
            while feeds := self._reserve():
                self._claim(feeds)
        finally:
            self._greenlet = None

    def _claim(self, feeds: list[Feed]) -> None:
        claimed: Sequence[Claimed] = ()
        is_shared = any(each.has_rivals for each in feeds)
        # Claimers of other queues cannot say that they were left out.
        is_short = is_shared and (self._left_out or self._link.store.claims_each_queue)
        wait = min(self._wait, SHORT_WAIT) if is_short else self._wait
        try:
            claimed = self._link.store.claim(dict(self._asked), wait)
        except BaseException as exc:
            self._failed(exc, feeds)
            if not isinstance(exc, Exception):
                raise
        finally:
            asked, self._asked = self._asked, {}
            freed = {channel for feed in feeds for channel in feed.release()}
        if self._link.lost is not None:
            for each in claimed:
                self._link.answers.back(each.queue, each.handle, is_unseen=True)
            return
        again = self._hand_over(feeds, asked, claimed)
        for channel in freed:
            channel.serve()
        if is_shared:
            for feed in again:
                self._feeds.pop(feed, None)
            turn()
        for feed in again:
            self.want(feed)

    def _reserve(self) -> list[Feed]:
        """Reserve room for the next claim, and return the queues that it is for."""
        left = self._link.store.claim_limit
        chosen: list[Feed] = []
        feeds = list(self._feeds)
        self._left_out = False
        for others, feed in zip(range(len(feeds) - 1, -1, -1), feeds, strict=True):
            del self._feeds[feed]
            room = feed.reserve(left, others)
            if room <= 0:
                self._left_out = True
                feed.release()
                continue  # it comes back when there is room
            self._asked[feed.queue] = room
            chosen.append(feed)
            if not self._wait:
                left -= room
            if left <= 0:
                break
        return chosen

    def _hand_over(
        self, feeds: list[Feed], asked: dict[str, int], claimed: Sequence[Claimed]
    ) -> list[Feed]:
        """Hand over what came, and return the queues that are to be asked for again."""
        link = self._link
        found = Counter(each.queue for each in claimed if each.dead is None)
        for feed in feeds:
            # Not if somebody said meanwhile that there is more: the claim may have looked before.
            feed.is_dry = found[feed.queue] < asked[feed.queue] and feed not in self._feeds
        for each in claimed:
            taker = link.feeds.get(each.queue)
            if each.dead is not None:
                link.answers.bury(each, each.dead)
            elif taker is None:
                link.answers.back(each.queue, each.handle, is_unseen=True)
            else:
                taker.deliver(each)
        return [each for each in feeds if link.feeds.get(each.queue) is each]

    def _failed(self, exc: BaseException, feeds: list[Feed]) -> None:
        link = self._link
        error = link.failed(exc, "claiming messages")
        if link.lost is None and isinstance(exc, Exception):
            # The broker refuses: so it tells those who asked.
            for feed in feeds:
                for consumer in list(feed.consumers):
                    consumer.channel.refuse(consumer, error)
