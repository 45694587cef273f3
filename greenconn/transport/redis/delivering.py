"""What a channel delivers, and the answers to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from greenconn.green.supervisor import spawn
from greenconn.transport.redis.burying import burial
from greenconn.transport.redis.feed import Feed
from greenconn.transport.redis.link import RedisLink
from greenconn.transport.redis.message import Delivery
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.returning import given_back
from greenconn.transport.refusal import Method, refused
from greenconn.transport.virtual.answering import AnsweringMethods
from greenconn.transport.virtual.consumer import Consumer
from greenconn.wire.resp import pack

__all__ = ["DeliveringMethods"]


class DeliveringMethods(AnsweringMethods):
    """Consumers, gets and answers."""

    connection: RedisLink

    def _init_deliveries(self) -> None:
        self._init_answers()
        self._turn = 0
        self._forgets = not self.connection.options.ack_emulation

    # -- room

    def serve(self) -> None:
        """Let its consumers have what its limit leaves, in their order.  Never switches."""
        for consumer in self._order():
            if consumer.is_parked:
                consumer.wake()
            else:
                _feed_of(consumer).serve()

    def _order(self) -> list[Consumer]:
        consumers = list(self.consumers.values())
        strategy = self.connection.options.queue_order_strategy
        if strategy == "sorted":
            consumers.sort(key=_queue_of)
        elif strategy == "round_robin" and consumers:
            self._turn = (self._turn + 1) % len(consumers)
            consumers = consumers[self._turn :] + consumers[: self._turn]
        return consumers

    # -- deliveries

    def deliver(self, consumer: Consumer, delivery: Delivery) -> None:
        """Hand *delivery* to a consumer of this channel.  Never switches."""
        self.hold(consumer, delivery)
        if self._forgets:
            self._let_go(delivery)
        consumer.hand_over(delivery, delivery)

    def _let_go(self, delivery: Delivery) -> None:
        """Without ``ack_emulation``: nobody holds what was delivered.  Never switches."""
        if delivery.is_held:
            delivery.is_held = False
            self.connection.answers.ack(delivery.delivery_tag)

    # -- answers

    def _done(self, delivery: Delivery) -> None:
        self.connection.answers.ack(delivery.delivery_tag)

    def _done_late(self, tag: Any) -> None:
        self.connection.transport.inheritance.ack(tag)

    def give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Put *deliveries* back to the heads of their queues.  Never switches."""
        link = self.connection
        for delivery in deliveries:
            if delivery.is_broadcast:
                feed = link.feeds.get(delivery.queue)
                if feed is not None and feed.consumers:
                    feed.broadcast_again(delivery)
                continue
            move, count = given_back(link.keys, delivery)
            if not delivery.is_held:
                for key, raw in move.copies:
                    link.pipeline.post(pack(b"RPUSH", key, raw))
                continue
            limit = link.directory.delivery_limit(delivery.queue)
            if limit is not None and count >= limit:
                # This may be the reader: what has to be routed has a greenlet of its own.
                spawn("redis-bury", self.give_up, [delivery], "delivery_limit")
                continue
            link.answers.move(move)

    def give_up(self, deliveries: list[Delivery], reason: str) -> None:
        """Make dead letters of *deliveries*, or drop them.  May switch."""
        link = self.connection
        for delivery in deliveries:
            if not delivery.is_held:
                continue
            field, queue = delivery.delivery_tag, delivery.queue
            move = burial(link, delivery.number, field, queue, delivery.raw, reason)
            if link.lost is not None:
                return  # it goes back to its queue, and is given up once more
            if move is None:
                link.answers.ack(field)
            else:
                link.answers.move(move)

    def flush_answers(self) -> None:
        """Return when all answers to deliveries have been given to the socket.  May switch.

        Where the connection is gone it does nothing.

        Raises:
            TimeoutError: the server took too little within its ``reply_timeout``.
        """
        link = self.connection
        if link.lost is None:
            link.answers.flush()
            link.pipeline.drain()

    # -- consumers

    def _feed_of(self, queue: str, method: Method) -> tuple[str, Feed]:
        link = self.connection
        name = self._queue_name(queue)
        link.directory.check(name, method)
        link.lease.begin(ENDLESS)
        return name, link.feed(name)

    def _started(self, consumer: Consumer) -> None:
        link = self.connection
        # From now on the feed stays, whoever leaves it while the server is asked.
        feed = consumer.feed = link.feed(consumer.queue)
        feed.coming += 1
        try:
            self._join(consumer, feed)
        finally:
            feed.coming -= 1
            if not feed.is_used:
                link.fanout.leave(feed.queue)
                link.directory.unused(feed.queue)
                feed.retire()

    def _join(self, consumer: Consumer, feed: Feed) -> None:
        link = self.connection
        others = feed.consumers
        may = not any(each.exclusive for each in others) and not (consumer.exclusive and others)
        how = "exclusive" if consumer.exclusive else len(others) + 1
        link.fanout.listen(feed.queue)
        if not may or not link.directory.join(feed.queue, how):
            raise refused(
                f"queue '{feed.queue}' in vhost '{self.virtual_host}' in exclusive use",
                Method.BASIC_CONSUME,
            )
        self.check_open()  # it may have been closed meanwhile
        link.waking.add(feed)
        feed.join(consumer)

    def _left(self, consumer: Consumer) -> None:
        """A consumer is gone: its queue may be of no use any more."""
        feed = _feed_of(consumer)
        feed.leave(consumer)
        if feed.is_used:
            self.connection.directory.left(feed.queue, len(feed.consumers) + feed.coming)
        else:
            self.connection.waking.discard(feed)
            self.connection.fanout.leave(feed.queue)
            self.connection.directory.unused(feed.queue)

    def _ended(self, consumer: Consumer) -> None:
        feed = _feed_of(consumer)
        feed.leave(consumer)
        if not feed.is_used:
            self.connection.waking.discard(feed)


def _feed_of(consumer: Consumer) -> Feed:
    assert isinstance(consumer.feed, Feed)
    return consumer.feed


def _queue_of(consumer: Consumer) -> str:
    return consumer.queue
