"""What a channel delivers, and the answers to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from greenconn.exceptions import AMQPNotImplementedError
from greenconn.green.supervisor import spawn
from greenconn.transport.redis.burying import burial
from greenconn.transport.redis.feed import Feed
from greenconn.transport.redis.link import RedisLink
from greenconn.transport.redis.message import Delivery
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.returning import given_back
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.consuming import ConsumingMethods
from greenconn.transport.virtual.life import closes_channel
from greenconn.transport.virtual.refusal import Method, refused, unknown_delivery_tag
from greenconn.wire.resp import pack

__all__ = ["DeliveringMethods", "RedisConsumer"]


class RedisConsumer(Consumer):
    """A consumer; what needs no answer is answered as soon as it was taken."""

    __slots__ = ()

    channel: DeliveringMethods

    def _handle(self, message: Any) -> Any:
        if self.no_ack and self.is_active and not self.stale:
            self.channel.settle(message)
        return super()._handle(message)

    def _taken(self, message: Any) -> None:
        if self.no_ack:
            self.channel.settle(message)
        super()._taken(message)


class DeliveringMethods(ConsumingMethods):
    """Consumers, gets and answers."""

    connection: RedisLink
    consumer_class = RedisConsumer

    def _init_deliveries(self) -> None:
        #: Field -> what was delivered and not answered, in the order of delivery.
        self.unanswered: dict[str, Delivery] = {}
        #: Places under ``prefetch_limit`` that claims under way may fill.
        self._reserved = 0
        self._turn = 0
        self._forgets = not self.connection.options.ack_emulation

    def _queue_name(self, name: str) -> str:
        """Return the queue that *name* means; '' is the one this channel declared last."""
        raise NotImplementedError

    # -- room

    def reserve(self, count: int) -> int:
        """Reserve places for *count* messages; returns how many there are.  Never switches."""
        if self.prefetch_limit:
            count = max(0, min(count, self.prefetch_limit - self.in_flight - self._reserved))
            self._reserved += count
        return count

    def release(self, count: int) -> None:
        """A claim for *count* messages is over.  Never switches."""
        if self._reserved:
            self._reserved = max(0, self._reserved - count)

    def serve(self) -> None:
        """Let its consumers have what its limit leaves, in their order.  Never switches."""
        for consumer in self._order():
            if consumer.is_parked:
                consumer.wake()
            else:
                _feed_of(consumer).serve()

    def _wake_consumers(self) -> None:
        self.serve()

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
        self.unanswered[delivery.delivery_tag] = delivery
        if self._forgets:
            self._let_go(delivery)
        if not consumer.no_ack:
            consumer.unacked += 1
            self.in_flight += 1
        consumer.hand_over(delivery, delivery)

    def _let_go(self, delivery: Delivery) -> None:
        """Without ``ack_emulation``: nobody holds what was delivered.  Never switches."""
        if delivery.is_held:
            delivery.is_held = False
            self.connection.answers.ack(delivery.delivery_tag)

    def message_to_python(self, raw_message: Any) -> Any:
        """Return *raw_message*: messages come ready."""
        return raw_message

    # -- answers

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        """Say that a delivery is done.  Never switches: the server is told when this turn ends.

        For a delivery of a connection that is gone it counts until the connection is there again,
        and does nothing afterwards: the message is back in its queue.

        Arguments:
            multiple: all deliveries of this channel up to this one.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        link = self.connection
        if link.lost is not None:
            link.transport.inheritance.ack(delivery_tag)
            return
        self.check_open()
        if multiple:
            self._free(map(self._acked, self._up_to(delivery_tag)))
            return
        delivery = self.unanswered.pop(delivery_tag, None)
        if delivery is None:
            raise unknown_delivery_tag(delivery_tag, Method.BASIC_ACK)
        if delivery.is_held:
            link.answers.ack(delivery_tag)
        consumer = delivery.consumer
        if consumer is not None and not consumer.no_ack:
            consumer.unacked -= 1
            self.in_flight -= 1
            if self.prefetch_limit:
                self._wake_consumers()
            elif consumer.is_parked:
                consumer.wake()

    def settle(self, delivery: Delivery) -> None:
        """A delivery that needs no answer was taken: it is done.  Never switches."""
        if self.unanswered.pop(delivery.delivery_tag, None) is not None:
            self._acked(delivery)

    def _acked(self, delivery: Delivery) -> Delivery:
        if delivery.is_held and self.connection.lost is None:
            self.connection.answers.ack(delivery.delivery_tag)
        return delivery

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Refuse a delivery: it goes to the head of its queue, or is a dead letter.

        Never switches, unless it is a dead letter.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        if self.connection.lost is not None:
            return
        self.check_open()
        delivery = self.unanswered.pop(delivery_tag, None)
        if delivery is None:
            raise unknown_delivery_tag(delivery_tag, Method.BASIC_REJECT)
        self._refuse([delivery], requeue)

    def basic_nack(self, delivery_tag: Any, multiple: bool = False, requeue: bool = True) -> None:
        """Refuse a delivery, or all up to it."""
        if not multiple:
            self.basic_reject(delivery_tag, requeue)
        elif self.connection.lost is None:
            self.check_open()
            self._refuse(self._up_to(delivery_tag), requeue)

    @closes_channel
    def basic_recover(self, requeue: bool = False) -> None:
        """Give everything that was delivered and not answered back to its queues.

        Raises:
            AMQPNotImplementedError: *requeue* is false, which RabbitMQ does not know either.
        """
        if not requeue:
            raise AMQPNotImplementedError(
                "NOT_IMPLEMENTED - basic.recover with requeue=False", Method.BASIC_RECOVER.value
            )
        for consumer in self.consumers.values():
            consumer.forget_backlog()
        deliveries = list(self.unanswered.values())
        self.unanswered.clear()
        self._refuse(deliveries, True)

    def _up_to(self, tag: Any) -> list[Delivery]:
        """Take out all deliveries up to *tag*, or all for tag 0."""
        unanswered = self.unanswered
        if tag and tag not in unanswered:
            raise unknown_delivery_tag(tag, Method.BASIC_ACK)
        tags = list(unanswered)
        if tag:
            del tags[tags.index(tag) + 1 :]
        return [unanswered.pop(each) for each in tags]

    def _free(self, deliveries: Iterable[Delivery]) -> None:
        """Free the room that *deliveries* took, and let their consumers have more."""
        freed: dict[Consumer, None] = {}
        for delivery in deliveries:
            consumer = delivery.consumer
            if consumer is not None and not consumer.no_ack:
                consumer.unacked -= 1
                self.in_flight -= 1
                freed[consumer] = None
        if self.prefetch_limit:
            self._wake_consumers()
        for consumer in freed:
            consumer.wake()

    def _refuse(self, deliveries: list[Delivery], requeue: bool) -> None:
        if requeue:
            self.give_back(deliveries)
        else:
            self.give_up(deliveries, "rejected")
        self._free(deliveries)

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

    def _cancelled(self, consumer: Consumer) -> None:
        unseen = self._stop(consumer)
        self._refuse(unseen, True)
        self._left(consumer)

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

    def _stop(self, consumer: Consumer) -> list[Delivery]:
        """Stop a consumer, and take back what became events that nobody has drained."""
        unseen: list[Delivery] = consumer.stop()
        return [each for each in unseen if self.unanswered.pop(each.delivery_tag, None) is not None]

    def cancelled_by_broker(self, consumer: Consumer) -> None:
        """The queue of a consumer of this channel is gone.  Never switches."""
        self._forget(consumer)
        unseen = self._stop(consumer)
        self._free(map(self._acked, unseen))
        _feed_of(consumer).leave(consumer)
        consumer.cancelled_by_broker()

    def refuse(self, consumer: Consumer, error: BaseException) -> None:
        """The server does not let *consumer* consume.  May switch."""
        if self.consumers.get(consumer.tag) is not consumer:
            return
        self._forget(consumer)
        _feed_of(consumer).leave(consumer)
        self._stop(consumer)
        if consumer.sink is not None:
            consumer.sink.cancelled(error)
        else:
            self.connection.events.put((_raise, error))

    def _release(self, consumers: list[Consumer]) -> None:
        for consumer in consumers:
            consumer.stop()
        if self.connection.lost is None:
            held = list(self.unanswered.values())
            self.unanswered.clear()
            self.give_back(held)
        for consumer in consumers:
            self._left(consumer)


def _feed_of(consumer: Consumer) -> Feed:
    assert isinstance(consumer.feed, Feed)
    return consumer.feed


def _queue_of(consumer: Consumer) -> str:
    return consumer.queue


def _raise(exc: BaseException) -> None:
    raise exc
