"""The queues that the channels of one link to a store consume from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from greenconn.broker.delivery import StoreDelivery
from greenconn.broker.feed import Feed
from greenconn.broker.port import Claimed
from greenconn.transport.refusal import Method, refused
from greenconn.transport.virtual.consumer import Consumer

if TYPE_CHECKING:
    from greenconn.broker.link import StoreLink
    from greenconn.transport.virtual.port import ChannelPort

__all__ = ["StoreSubscriptions"]


class StoreSubscriptions:
    """See :class:`~greenconn.broker.consumers.Subscriptions`."""

    __slots__ = ("_link",)

    def __init__(self, link: StoreLink) -> None:
        self._link = link

    def feed(self, queue: str, method: Method) -> Feed:
        """Return what gives the messages of a queue to consumers.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        link = self._link
        link.catch_up()
        link.directory.check(queue, method)
        link.directory.rules(queue)
        return link.feed(queue)

    def start(self, consumer: Consumer) -> None:
        """Let *consumer* have messages.  May switch.

        Raises:
            AccessRefused: it may not consume beside another one.
        """
        link, channel = self._link, consumer.channel
        # From now on the feed stays, whoever leaves it while the store is asked.
        feed = consumer.feed = link.feed(consumer.queue)
        feed.coming += 1
        try:
            others = feed.consumers
            may = not any(each.exclusive for each in others) and not (consumer.exclusive and others)
            if may:
                may = link.ask(
                    "consuming",
                    partial(
                        link.store.enrol,
                        feed.queue,
                        len(others) + feed.coming,
                        exclusive=consumer.exclusive,
                    ),
                )
            if not may:
                raise refused(
                    f"queue '{feed.queue}' in vhost '{channel.virtual_host}' in exclusive use",
                    Method.BASIC_CONSUME,
                )
            channel.check_open()  # it may have been closed meanwhile
            feed.join(consumer)
        finally:
            feed.coming -= 1
            if not feed.is_used:
                self._unused(feed)

    def left(self, consumer: Consumer) -> None:
        """Forget a consumer: its queue may be of no use any more.  Never switches."""
        link, feed = self._link, _feed_of(consumer)
        if consumer not in feed.consumers:
            return
        feed.leave(consumer)
        if feed.is_used:
            count = len(feed.consumers) + feed.coming
            if link.lost is None:
                link.later("leaving a queue", partial(link.store.enrol, feed.queue, count))
        else:
            self._unused(feed)

    def ended(self, consumer: Consumer) -> None:
        """Forget a consumer whose queue is gone.  Never switches."""
        self.left(consumer)

    def serve(self, consumer: Consumer) -> None:
        """Look for messages for a consumer that has room under its channel's limit.  Never switches."""
        _feed_of(consumer).serve()

    def _unused(self, feed: Feed) -> None:
        link = self._link
        link.retire(feed)
        if link.lost is None:
            link.later("leaving a queue", partial(_leave, link, feed.queue))

    # -- getting

    def get(self, channel: ChannelPort, queue: str) -> StoreDelivery | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
        link = self._link
        link.catch_up()
        while True:
            found = link.ask(
                "taking a message",
                link.store.claim,
                {queue: 1},
                0.0,
                on_abandoned=self._give_unseen_back,
            )
            claimed = self._first_alive(found)
            if claimed is not None:
                break
            if not found:
                link.directory.check(queue, Method.BASIC_GET)
                return None
        number = link.take_number()
        return StoreDelivery(channel, link.tag(number), number, claimed)

    def _first_alive(self, found: Sequence[Claimed]) -> Claimed | None:
        """Return the first message that is to be delivered, and give back or give up the rest."""
        link = self._link
        first = None
        for each in found:
            limit = link.directory.delivery_limit(each.queue)
            if each.dead is not None:
                link.answers.give_up(each, each.dead)
            elif limit is not None and each.deliveries >= limit:
                link.answers.give_up(each, "delivery_limit")
            elif first is None:
                first = each
            else:
                self._give_unseen_back([each])
        return first

    def _give_unseen_back(self, found: Sequence[Claimed]) -> None:
        for each in found:
            self._link.answers.return_unseen(each)


def _leave(link: StoreLink, queue: str) -> None:
    """Leave *queue*, which nobody consumes from on this link any more: an auto-delete queue may go."""
    link.store.enrol(queue, 0)
    declared = link.directory.look(queue)
    if declared.auto_delete and queue not in link.feeds and not link.store.others(queue):
        link.directory.drop(queue)


def _feed_of(consumer: Consumer) -> Feed:
    assert isinstance(consumer.feed, Feed)
    return consumer.feed
