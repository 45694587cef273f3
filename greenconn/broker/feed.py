"""What gives the messages of a queue to its consumers on one link.

Theory
------
Each queue has a feed: its consumers, and whose turn it is.  A claimer asks for one or for many queues
in one call, for as many messages as their consumers have room for, so that whatever comes has a place.
There is one greenlet, as long as there is something to ask for.

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

from greenconn.broker.port import Claimed
from greenconn.green.hub import turn
from greenconn.green.supervisor import spawn
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.turns import Turns

if TYPE_CHECKING:
    from gevent import Greenlet

    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.link import StoreLink

__all__ = ["Claimer", "Feed"]

#: Seconds that a claim waits while others may need the room that is reserved for it.
SHORT_WAIT: Final = 0.5


class Feed:
    """One queue and its consumers.

    Arguments:
        link: knows the queue.
        queue: its name.
        claimer: takes its messages.

    Attributes:
        coming: consumers that are about to be.
        consumers: in the order in which they came.
        is_dry: there was less than was wanted, and nobody has said since that there is more.
    """

    __slots__ = (
        "_claimer",
        "_link",
        "_reserved",
        "_turns",
        "coming",
        "consumers",
        "is_dry",
        "queue",
    )

    def __init__(self, link: StoreLink, queue: str, claimer: Claimer) -> None:
        self._link = link
        self._claimer = claimer
        self.queue = queue
        self.coming = 0
        self.consumers: dict[Consumer, None] = {}
        self.is_dry = False
        self._turns = Turns()
        #: Places under the limits of channels that a claim under way may fill.
        self._reserved: list[tuple[StoreChannel[Any], int]] = []

    def __repr__(self) -> str:
        state = "dry" if self.is_dry else "wet"
        return f"<Feed {self.queue!r}: {state}, {len(self.consumers)} consumers>"

    @property
    def is_used(self) -> bool:
        """Whether somebody consumes, or is about to."""
        return bool(self.consumers or self.coming)

    # -- consumers

    def join(self, consumer: Consumer) -> None:
        """Add a consumer.  Never switches."""
        self.consumers[consumer] = None
        # What it was when nobody listened says nothing.
        self.is_dry = False
        consumer.wake()

    def leave(self, consumer: Consumer) -> None:
        """Remove a consumer: the next one may become the single active one.  Never switches."""
        self.consumers.pop(consumer, None)
        self._turns.discard(consumer)
        if self.consumers:
            next(iter(self.consumers)).wake()

    def resume(self, consumer: Consumer) -> None:
        """A consumer that had no room has some again.  Never switches."""
        if consumer in self.consumers and self._may_serve(consumer):
            self._turns.add(consumer)
            self._claimer.want(self)

    def _may_serve(self, consumer: Consumer) -> bool:
        return next(iter(self.consumers)) is consumer or not self._link.directory.is_single_active(
            self.queue
        )

    def serve(self) -> None:
        """There may be room again under the limit of a channel.  Never switches."""
        self._claimer.want(self)

    def ripen(self) -> None:
        """There may be messages.  Never switches."""
        self.is_dry = False
        self._claimer.want(self)

    # -- messages

    @property
    def has_rivals(self) -> bool:
        """Whether the room reserved here may be missing elsewhere."""
        return any(len(channel.consumers) > 1 for channel, _ in self._reserved)

    def reserve(self, most: int, others: int = 0) -> int:
        """Reserve room for messages and return for how many.  Never switches.

        Arguments:
            others: queues that are still to come, and may need room on the same channels.
        """
        room = 0
        for consumer in self._turns.ready():
            own = min(consumer.room, most - room)
            prefetch = consumer.prefetch
            if prefetch.limit and not consumer.no_ack:
                channel = consumer.channel
                behind = min(others, len(channel.consumers) - 1)
                own = prefetch.reserve(min(own, prefetch.share(behind)))
                self._reserved.append((channel, own))
            room += own
            if room >= most:
                break
        return room

    def release(self) -> set[StoreChannel[Any]]:
        """The claim is over; returns the channels that have more room now.  Never switches."""
        reserved, self._reserved = self._reserved, []
        for channel, count in reserved:
            channel.prefetch.release(count)
        return {channel for channel, count in reserved if count}

    def deliver(self, claimed: Claimed) -> None:
        """Hand over what was claimed.  Never switches."""
        link = self._link
        limit = link.directory.delivery_limit(self.queue)
        if limit is not None and claimed.deliveries >= limit:
            link.answers.give_up(claimed, "delivery_limit")
            return
        if not self.offer(claimed):
            # Its consumer was cancelled meanwhile, and nobody has seen this.
            link.answers.return_unseen(claimed)

    def offer(self, claimed: Claimed) -> bool:
        """Hand over what was claimed; False: no consumer has room.  Never switches."""
        consumer = self._turns.take()
        if consumer is None:
            return False
        delivery = self._link.delivery(claimed, consumer)
        consumer.channel.deliveries.hold(consumer, delivery)
        consumer.hand_over(delivery, delivery)
        if consumer.is_parked and consumer.has_room():
            self._turns.add(consumer)
        return True


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
                self._link.answers.return_unseen(each)
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
                link.answers.give_up(each, each.dead)
            elif taker is None:
                link.answers.return_unseen(each)
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
