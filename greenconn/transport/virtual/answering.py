"""The channel methods that answer deliveries, for brokers that hold a message until it is answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from greenconn.transport.refusal import Method, unknown_delivery_tag
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.delivery import Delivery
from greenconn.transport.virtual.refusing import RefusingMethods

if TYPE_CHECKING:
    from greenconn.message import Message

__all__ = ["AnsweringConsumer", "AnsweringMethods"]


class AnsweringConsumer(Consumer):
    """A consumer; what needs no answer is answered as soon as it was taken."""

    __slots__ = ()

    channel: AnsweringMethods

    def _handle(self, message: Message) -> Any:
        if self.no_ack and self.is_active and not self.stale:
            self.channel.settle(message)
        return super()._handle(message)

    def _taken(self, message: Message) -> None:
        if self.no_ack:
            self.channel.settle(message)
        super()._taken(message)


class AnsweringMethods(RefusingMethods):
    """Answers, and the room that they make."""

    consumer_class = AnsweringConsumer

    def _init_answers(self) -> None:
        self.unanswered: dict[str, Any] = {}
        #: Places under ``prefetch_limit`` that claims under way may fill.
        self._reserved = 0

    # -- what a transport writes

    def _queue_name(self, name: str) -> str:
        """Return the queue that *name* means; '' is the one this channel declared last."""
        raise NotImplementedError

    def _done(self, delivery: Any) -> None:
        """A delivery was handled.  Never switches."""
        raise NotImplementedError

    def _done_late(self, tag: Any) -> None:
        """A delivery of a connection that is gone was handled.  Never switches."""

    def give_back(self, deliveries: Iterable[Any]) -> None:
        """Put *deliveries* back to the heads of their queues.  Never switches."""
        raise NotImplementedError

    def give_up(self, deliveries: list[Any], reason: str) -> None:
        """Make dead letters of *deliveries*, or drop them.  May switch."""
        raise NotImplementedError

    def serve(self) -> None:
        """Let its consumers have what its limit leaves, in their order.  Never switches."""
        raise NotImplementedError

    def _left(self, consumer: Consumer) -> None:
        """A consumer is gone: its queue may be of no use any more.  Never switches."""
        raise NotImplementedError

    def _ended(self, consumer: Consumer) -> None:
        """A consumer was ended by the broker, which knows that it is gone.  Never switches."""
        self._left(consumer)

    # -- room

    def reserve(self, count: int) -> int:
        """Reserve places for *count* messages; returns how many there are.  Never switches."""
        if self.prefetch_limit:
            count = max(0, min(count, self.prefetch_limit - self.in_flight - self._reserved))
            self._reserved += count
        return count

    def share(self, others: int) -> int:
        """Places for one consumer where *others*, as far as they are of this channel, come behind it."""
        free = self.prefetch_limit - self.in_flight - self._reserved
        behind = min(others, len(self.consumers) - 1)
        return max(-(-free // (behind + 1)), 0)

    def release(self, count: int) -> None:
        """A claim for *count* messages is over.  Never switches."""
        if self._reserved:
            self._reserved = max(0, self._reserved - count)

    def _wake_consumers(self) -> None:
        self.serve()

    def hold(self, consumer: Consumer, delivery: Delivery) -> None:
        """Note *delivery* for a consumer of this channel: it is unanswered.  Never switches."""
        self.unanswered[delivery.delivery_tag] = delivery
        if not consumer.no_ack:
            consumer.unacked += 1
            self.in_flight += 1

    # -- answers

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        """Say that a delivery is done.  Never switches: the broker is told when this turn ends.

        For a delivery of a connection that is gone it counts until the connection is there again,
        and does nothing afterwards: the message is back in its queue.

        Arguments:
            multiple: all deliveries of this channel up to this one.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        if self.connection.lost is not None:
            self._done_late(delivery_tag)
            return
        self.check_open()
        if multiple:
            self._free(map(self._acked, self._up_to(delivery_tag)))
            return
        delivery = self.unanswered.pop(delivery_tag, None)
        if delivery is None:
            raise unknown_delivery_tag(delivery_tag, Method.BASIC_ACK)
        if delivery.is_held:
            self._done(delivery)
        consumer = delivery.consumer
        if consumer is not None and not consumer.no_ack:
            consumer.unacked -= 1
            self.in_flight -= 1
            if self.prefetch_limit:
                self._wake_consumers()
            elif consumer.is_parked:
                consumer.wake()

    def settle(self, delivery: Message) -> None:
        """A delivery that needs no answer was taken: it is done.  Never switches."""
        if self.unanswered.pop(delivery.delivery_tag, None) is not None:
            self._acked(delivery)

    def _acked(self, delivery: Any) -> Any:
        if delivery.is_held and self.connection.lost is None:
            self._done(delivery)
        return delivery

    def _free(self, deliveries: Iterable[Any]) -> None:
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

    def _refuse(self, deliveries: list[Any], requeue: bool) -> None:
        if requeue:
            self.give_back(deliveries)
        else:
            self.give_up(deliveries, "rejected")
        self._free(deliveries)

    # -- the end of consumers

    def _cancelled(self, consumer: Consumer) -> None:
        unseen = self._stop(consumer)
        self._refuse(unseen, True)
        self._left(consumer)

    def _stop(self, consumer: Consumer) -> list[Any]:
        """Stop a consumer, and take back what became events that nobody has drained."""
        unseen = consumer.stop()
        return [each for each in unseen if self.unanswered.pop(each.delivery_tag, None) is not None]

    def cancelled_by_broker(self, consumer: Consumer) -> None:
        """The queue of a consumer of this channel is gone.  Never switches."""
        self._forget(consumer)
        unseen = self._stop(consumer)
        self._free(map(self._acked, unseen))
        self._ended(consumer)
        consumer.cancelled_by_broker()

    def refuse(self, consumer: Consumer, error: BaseException) -> None:
        """The broker does not let *consumer* consume, which ends this channel.  Never switches.

        As all that a broker refuses: whoever uses a channel that is open relies on its consumers.
        """
        if self.consumers.get(consumer.tag) is consumer:
            self.fail(error)

    def _release(self, consumers: list[Consumer]) -> None:
        for consumer in consumers:
            consumer.stop()
        if self.connection.lost is None:
            held = list(self.unanswered.values())
            self.unanswered.clear()
            self.give_back(held)
        for consumer in consumers:
            self._left(consumer)
