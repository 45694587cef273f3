"""Claims of messages from a store whose calls block.

A claimer asks for one or for many queues in one call.  There is one greenlet, as long as there is
something to ask for; it runs behind all that can run when the first claim is due.

A store that cannot wait is asked for queues that are not dry.  A store that can wait is asked for all
queues whose consumers have room, and is interrupted when a queue comes that it was not asked for.

No queue starves (see :class:`~greenconn.broker.feed.DueFeeds`).  Where a claim waits, each queue may
have as much as a claim may take, or those left out would wait for its end; and where the limit of a
channel is less than one each, it does not wait long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from greenconn.broker.dead_letters import DELIVERY_COUNT
from greenconn.broker.feed import DueFeeds, Feed
from greenconn.broker.port import Claimed
from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.slot import Condition
from greenconn.green.supervisor import OnDemand
from greenconn.message import Message
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.envelope import Contents, Delivery, contents_in
from greenconn.transport.virtual.publishing import Envelope

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.link import StoreLink

#: Seconds that a claim waits while others may need the room that is reserved for it.
SHORT_WAIT: Final = 0.5


class StoreDelivery(Delivery):
    """A delivery of what was *claimed*.

    Attributes:
        envelope: as it was stored; None where it cannot be read.
        deliveries: how often it was delivered before, as far as the store can tell.
    """

    __slots__ = ("claimed",)

    def __init__(
        self,
        channel: StoreChannel[Any],
        tag: str,
        number: int,
        claimed: Claimed,
        consumer: Any = None,
    ) -> None:
        super().__init__(
            channel, tag, number, claimed.raw, claimed.queue, consumer, claimed.waiting
        )
        self.claimed = claimed
        self.handle = claimed.handle

    @property
    def envelope(self) -> Envelope | None:
        return self.claimed.envelope

    @property
    def deliveries(self) -> int:
        return self.claimed.deliveries

    def _contents(self) -> Contents:
        properties, headers, *others = contents_in(self.claimed.envelope)
        if self.claimed.deliveries:
            headers = {**headers, DELIVERY_COUNT: self.claimed.deliveries}
        return properties, headers, *others

    @property
    def redelivered(self) -> bool:
        return self.claimed.deliveries > 0 or super().redelivered


class StoreSource:
    """See :class:`~greenconn.broker.feed.Source`.

    Arguments:
        claimer: asks for its queue.

    Attributes:
        delivery: returns what a consumer is given for what was claimed.
    """

    __slots__ = ("_claimer", "_feed", "_link", "delivery")

    def __init__(self, link: StoreLink, claimer: Claimer, feed: StoreFeed) -> None:
        self._link = link
        self._claimer = claimer
        self._feed = feed
        self.delivery: Callable[[Claimed, Consumer], Message] = link.delivery

    @property
    def is_single_active(self) -> bool:
        """Whether only the oldest consumer is served."""
        return self._link.directory.is_single_active(self._feed.queue)

    def schedule(self) -> None:
        """Let the claimer ask for the queue.  Never switches."""
        self._claimer.want(self._feed)

    def watch(self) -> None:
        """Do nothing: the store calls ``wake``."""

    def retire(self) -> None:
        """Forget the feed: what a claim brings is given to its successor, or back.  Never switches."""
        self._link.retire(self._feed)


StoreFeed = Feed[Claimed, StoreSource]


class Claimer:
    """Takes the messages of some queues, all together.

    Attributes:
        claiming: the greenlet that claims.
    """

    def __init__(self, link: StoreLink) -> None:
        self._link = link
        self._wait = link.store.claim_wait
        self._due: DueFeeds[StoreFeed] = DueFeeds()
        #: What the claim that is on its way asked for.
        self._asked: dict[str, int] = {}
        #: Wakes those who wait for its end.
        self._ended = Condition()
        self.claiming = OnDemand("claim", self._claim_all)
        self._is_stopped = False

    def want(self, feed: StoreFeed) -> None:
        """Note that a claim is due.  Never switches."""
        if self._is_stopped:
            return
        self._due.add(feed)
        if self.claiming.greenlet is None:
            self.claiming.start()
        elif self._wait and self._asked and feed.queue not in self._asked:
            self._link.store.interrupt()

    def wait_unwanted(self, deadline: Deadline) -> None:
        """Wait for the end of a claim that asks for a queue without consumers.  May switch.

        Raises:
            TimeoutError: it was not over before the deadline.
        """
        claim = self._asked
        if any(queue not in self._link.feeds for queue in claim):
            if self._wait:
                self._link.store.interrupt()
            while self._asked is claim and self.claiming.greenlet is not None:
                self._ended.wait(deadline)

    def stop(self) -> None:
        """Ask no more.  Never switches."""
        self._is_stopped = True
        self._due.feeds.clear()
        store = self._link.store
        if not (self._asked and self._wait):
            return
        if not store.claims_each_queue:
            store.interrupt()
            return
        for queue in self._asked:
            store.abandon(queue)

    def _claim_all(self) -> None:
        try:
            while feeds := self._begin():
                self._claim(feeds)
        except BaseException as exc:
            # Without this greenlet no claim is made: the consumers begin anew on the next link.
            if self._link.lost is None:
                self._link.end_unexpectedly(exc, "passing on claimed messages")
            if not isinstance(exc, Exception):
                raise

    def _begin(self) -> list[StoreFeed]:
        """Reserve room for the next claim, and return the queues that it is for."""
        limit = self._link.store.claim_limit
        begun = self._due.begin(limit, together=not self._wait)
        self._asked.update((feed.queue, count) for feed, count in begun)
        return [feed for feed, _ in begun]

    def _claim(self, feeds: list[StoreFeed]) -> None:
        """Claim messages for *feeds* in one call of the store, and hand them out."""
        link = self._link
        is_shared = any(each.has_rivals for each in feeds)
        # Claimers of other queues cannot say that they were left out.
        is_short = is_shared and (self._due.is_left_out or link.store.claims_each_queue)
        wait = min(self._wait, SHORT_WAIT) if is_short else self._wait
        asked = self._asked
        try:
            claimed = link.store.claim(dict(asked), wait)
        except BaseException as exc:
            self._end_claim()
            self._failed(exc, feeds)
            if not isinstance(exc, Exception):
                raise
            return
        self._end_claim()
        if link.lost is not None:
            for each in claimed:
                link.settlements.requeue_unseen(each)
            return
        rest = iter(claimed)
        try:
            self._hand_over(rest)
        finally:
            for each in rest:  # none, unless it failed
                link.settlements.requeue_unseen(each)
        for feed in feeds:
            feed.free()
        if is_shared:
            yield_to_hub()  # those that were left out are served before those that ask again
        found = Counter(each.queue for each in claimed if each.dead is None)
        # Those that had least come first.
        for feed in sorted(feeds, key=lambda each: asked[each.queue]):
            feed.ended(not self._wait and found[feed.queue] < asked[feed.queue])

    def _end_claim(self) -> None:
        # Who waits runs behind this turn, in which the messages are handed out.
        self._asked = {}
        self._ended.wake_all()

    def _hand_over(self, claimed: Iterator[Claimed]) -> None:
        link = self._link
        for each in claimed:
            if not link.is_alive(each):
                continue
            feed = link.feeds.get(each.queue)
            if feed is None or not feed.offer(each):
                # Its consumer was cancelled during the claim: no handler has seen this message.
                link.settlements.requeue_unseen(each)

    def _failed(self, exc: BaseException, feeds: list[StoreFeed]) -> None:
        link = self._link
        error = link.failed(exc, "claiming messages")
        if link.lost is None and isinstance(exc, Exception):
            # The broker refuses: so it tells those who asked.
            for feed in feeds:
                feed.refuse(error)


class StoreConsuming:
    """See :class:`~greenconn.broker.consumers.Consuming`."""

    def __init__(self, link: StoreLink) -> None:
        self._link = link

    def check(self, queue: str, method: Method) -> None:
        """See that a queue may be consumed.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        link = self._link
        link.catch_up()
        link.directory.check(queue, method)
        link.directory.rules(queue)

    def feed(self, queue: str) -> StoreFeed:
        """Return what gives the messages of *queue* to the consumers of this link.  Never switches."""
        return self._link.feed(queue)

    def set_consumers(self, feed: StoreFeed, *, exclusive: bool) -> bool:
        """Tell the store how many consumers there are; False: others consume.  May switch."""
        link = self._link
        count = len(feed.consumers) + feed.coming
        return link.ask(
            "consuming", partial(link.store.set_consumers, feed.queue, count, exclusive=exclusive)
        )

    def left(self, feed: StoreFeed) -> None:
        """Tell the store that a consumer has left.  Never switches."""
        link = self._link
        if link.lost is not None:
            return
        if feed.is_used:
            count = len(feed.consumers) + feed.coming
            link.later(
                "cancelling a consumer", partial(link.store.set_consumers, feed.queue, count)
            )
        else:
            link.later("cancelling a consumer", partial(_leave, link, feed.queue))

    def ended(self, feed: StoreFeed) -> None:
        """Tell the store that a consumer has left a queue that is gone.  Never switches."""
        self.left(feed)

    def take(self, channel: StoreChannel[Any], queue: str) -> StoreDelivery | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
        link = self._link
        link.catch_up()
        while True:
            found = link.ask(
                "getting a message",
                link.store.claim,
                {queue: 1},
                0.0,
                on_abandoned=self._requeue_unseen,
            )
            alive = [each for each in found if link.is_alive(each)]
            if alive:
                break
            if not found:
                link.directory.check(queue, Method.BASIC_GET)
                return None
        self._requeue_unseen(alive[1:])
        number = link.take_number()
        return StoreDelivery(channel, link.tag(number), number, alive[0])

    def _requeue_unseen(self, found: Sequence[Claimed]) -> None:
        for each in found:
            self._link.settlements.requeue_unseen(each)


def _leave(link: StoreLink, queue: str) -> None:
    """Leave *queue*, which has no consumer on this link any more: it may be deleted (auto-delete)."""
    link.store.set_consumers(queue, 0)
    declared = link.directory.declaration(queue)
    if declared.auto_delete and queue not in link.feeds and not link.store.other_consumers(queue):
        link.directory.drop(queue)
