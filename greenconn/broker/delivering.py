"""What a channel delivers: consumers and gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from greenconn.broker.feed import Feed
from greenconn.broker.link import LeasedLink
from greenconn.broker.message import LeasedDelivery
from greenconn.broker.port import Claimed
from greenconn.encoding import plain_text
from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import NEVER, Deadline
from greenconn.transport.refusal import Method, refused
from greenconn.transport.virtual.answering import AnsweringMethods
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.life import closes_channel

__all__ = ["DeliveringMethods"]


class DeliveringMethods(AnsweringMethods):
    """Consumers, gets, and where answers go."""

    connection: LeasedLink

    # -- answers

    def _done(self, delivery: LeasedDelivery) -> None:
        self.connection.settling.done(delivery.queue, delivery.handle)

    def _done_late(self, tag: Any) -> None:
        self.connection.transport.inheritance.ack(tag)

    def flush(self, timeout: float | None = None) -> None:
        """Return when the store was told all answers.  (A publish returns when it has the message.)

        May switch.

        Raises:
            TimeoutError: it was not within *timeout* seconds; None is ``reply_timeout``.
            RecoverableConnectionError, RecoverableChannelError: the channel is gone.
        """
        self.check_open()
        self.connection.flush(Deadline(timeout))

    def flush_answers(self) -> None:
        """Return when the store was told all answers.  May switch.

        Where the connection is lost it does nothing: the next one tells them.

        Raises:
            TimeoutError: it was not within ``reply_timeout``.
        """
        if self.connection.lost is None:
            try:
                self.connection.flush(NEVER)
            except RecoverableConnectionError:
                pass

    def give_back(self, deliveries: Iterable[LeasedDelivery]) -> None:
        """Put *deliveries* back to the heads of their queues.  Never switches."""
        link = self.connection
        for delivery in deliveries:
            if not delivery.is_held:
                continue
            limit = link.directory.delivery_limit(delivery.queue)
            if limit is not None and delivery.deliveries + 1 >= limit:
                link.settling.bury(delivery.claimed, "delivery_limit")
            else:
                link.settling.back(delivery.queue, delivery.handle)

    def give_up(self, deliveries: list[LeasedDelivery], reason: str) -> None:
        """Make dead letters of *deliveries*, or drop them.  Never switches."""
        for delivery in deliveries:
            if delivery.is_held:
                self.connection.settling.bury(delivery.claimed, reason)

    def serve(self) -> None:
        """Let its consumers have what its limit leaves, in their order.  Never switches."""
        for consumer in list(self.consumers.values()):
            if consumer.is_parked:
                consumer.wake()
            else:
                _feed_of(consumer).serve()

    # -- getting

    @closes_channel
    def basic_get(self, queue: str = "", no_ack: bool = False) -> LeasedDelivery | None:
        """Take the next message of a queue; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
        queue = plain_text(queue)
        link = self.connection
        name = self._queue_name(queue)
        link.catch_up()
        while True:
            found = link.ask(
                "taking a message",
                link.store.claim,
                {name: 1},
                0.0,
                on_abandoned=self._give_unseen_back,
            )
            claimed = self._first_alive(found)
            if claimed is not None:
                break
            if not found:
                link.directory.check(name, Method.BASIC_GET)
                return None
        number = link.take_number()
        delivery = LeasedDelivery(self, link.tag(number), number, claimed)
        if no_ack:
            self._done(delivery)
        elif self.is_open:
            self.unanswered[delivery.delivery_tag] = delivery
        else:
            self._give_unseen_back([claimed])
            self.check_open()
        return delivery

    def _first_alive(self, found: Sequence[Claimed]) -> Claimed | None:
        """Return the first message that is to be delivered, and give back or bury the rest."""
        link = self.connection
        first = None
        for each in found:
            limit = link.directory.delivery_limit(each.queue)
            if each.dead is not None:
                link.settling.bury(each, each.dead)
            elif limit is not None and each.deliveries >= limit:
                link.settling.bury(each, "delivery_limit")
            elif first is None:
                first = each
            else:
                self._give_unseen_back([each])
        return first

    def _give_unseen_back(self, found: Sequence[Claimed]) -> None:
        for each in found:
            self.connection.settling.back(each.queue, each.handle, is_unseen=True)

    # -- consumers

    def _feed_of(self, queue: str, method: Method) -> tuple[str, Feed]:
        link = self.connection
        name = self._queue_name(queue)
        link.catch_up()
        link.directory.check(name, method)
        link.directory.rules(name)
        return name, link.feed(name)

    def _started(self, consumer: Consumer) -> None:
        link = self.connection
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
                    f"queue '{feed.queue}' in vhost '{self.virtual_host}' in exclusive use",
                    Method.BASIC_CONSUME,
                )
            self.check_open()  # it may have been closed meanwhile
            feed.join(consumer)
        finally:
            feed.coming -= 1
            if not feed.is_used:
                self._unused(feed)

    def _left(self, consumer: Consumer) -> None:
        """A consumer is gone: its queue may be of no use any more.  Never switches."""
        link, feed = self.connection, _feed_of(consumer)
        if consumer not in feed.consumers:
            return
        feed.leave(consumer)
        if feed.is_used:
            count = len(feed.consumers) + feed.coming
            if link.lost is None:
                link.later("leaving a queue", partial(link.store.enrol, feed.queue, count))
        else:
            self._unused(feed)

    def _unused(self, feed: Feed) -> None:
        link = self.connection
        link.retire(feed)
        if link.lost is None:
            link.later("leaving a queue", partial(_leave, link, feed.queue))


def _leave(link: LeasedLink, queue: str) -> None:
    """Nobody consumes from *queue* on this link any more: an auto-delete queue may go."""
    link.store.enrol(queue, 0)
    declared = link.directory.look(queue)
    if declared.auto_delete and queue not in link.feeds and not link.store.others(queue):
        link.directory.drop(queue)


def _feed_of(consumer: Consumer) -> Feed:
    assert isinstance(consumer.feed, Feed)
    return consumer.feed
