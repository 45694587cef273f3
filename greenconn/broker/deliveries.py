"""The unacknowledged deliveries of one channel.

The broker holds a message until it is settled (acked, requeued or rejected).  Each unsettled delivery
counts for the prefetch of its channel; to settle it makes room for another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final, Protocol

from gevent import get_hub

from greenconn.abc import Message
from greenconn.transport.refusal import Method, no_recover_in_place, unknown_delivery_tag
from greenconn.transport.virtual.channel import ChannelPort, ChannelState
from greenconn.transport.virtual.consumer import Consumer

__all__ = ["Acknowledger", "DeliveredMessage", "Deliveries"]

_OPEN: Final = ChannelState.OPEN


class DeliveredMessage(Message, Protocol):
    """A message that was delivered and is not settled yet."""

    @property
    def consumer(self) -> Consumer | None:
        """The consumer that got it; None: ``basic_get`` took it."""

    @property
    def is_held(self) -> bool:
        """Whether the broker holds it for us until it is settled."""

    @property
    def redelivered(self) -> bool:
        """Whether it was delivered before."""


class Acknowledger(Protocol):
    """The sender of the acks, requeues and rejects of one link.  Never switches, unless it says so."""

    def ack(self, delivery: Any) -> None:
        """Acknowledge a delivery."""

    def ack_late(self, tag: Any) -> None:
        """Acknowledge a delivery of a link that is lost."""

    def requeue(self, deliveries: Iterable[Any], unhandled: Collection[Any] = ()) -> None:
        """Requeue *deliveries*, at the heads of their queues.

        Arguments:
            unhandled: tags of those with which no handler has begun: they do not count as delivered,
                where the broker can tell.
        """

    def requeue_unseen(self, delivery: Any) -> None:
        """Requeue a delivery that no handler has seen."""

    def dead_letter(self, deliveries: Iterable[Any], reason: str) -> None:
        """Make dead letters of *deliveries*, or drop them.  May switch."""


class Deliveries:
    """The unacknowledged deliveries of one channel.

    Arguments:
        channel: whose prefetch they count for.
        acknowledger: of its link.

    Attributes:
        unacked: delivery tag -> delivery, in the order of delivery.
    """

    __slots__ = ("_acknowledger", "_channel", "_hub", "_link", "_prefetch", "unacked")

    def __init__(self, channel: ChannelPort, acknowledger: Acknowledger) -> None:
        self._channel = channel
        self._link = channel.connection
        self._hub = channel.connection.home.hub
        self._prefetch = channel.prefetch
        self._acknowledger = acknowledger
        self.unacked: dict[Any, Any] = {}

    def hold(self, consumer: Consumer, delivery: Any) -> None:
        """Note *delivery* for a consumer of this channel.  Never switches."""
        self.unacked[delivery.delivery_tag] = delivery
        if not consumer.no_ack:
            consumer.unacked += 1
            prefetch = self._prefetch
            prefetch.in_flight += 1
            if prefetch.limit:
                consumer.turn = prefetch.next_turn(consumer.turn)

    # -- acks, requeues and rejects

    def ack(self, tag: Any, multiple: bool) -> None:
        """Acknowledge a delivery, or all up to it.  Never switches.

        Raises:
            PreconditionFailed: there is no unacknowledged delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        if self._link.lost is not None:
            self._acknowledger.ack_late(tag)
            return
        if get_hub() is not self._hub or self._channel.state_of_life is not _OPEN:
            self._channel.check_open()
        if multiple:
            self._free(self._acked_each(self._up_to(tag)))
            return
        delivery = self.unacked.pop(tag, None)
        if delivery is None:
            raise unknown_delivery_tag(tag, Method.BASIC_ACK)
        if delivery.is_held:
            self._acknowledger.ack(delivery)
        consumer = delivery.consumer
        if consumer is not None and not consumer.no_ack:
            consumer.unacked -= 1
            prefetch = self._prefetch
            prefetch.in_flight -= 1
            if prefetch.limit:
                self._channel.serve()
            elif consumer.is_parked:
                consumer.wake()

    def reject(self, tag: Any, requeue: bool, *, multiple: bool = False) -> None:
        """Reject a delivery, or all up to it: requeue it, or dead-letter it.  May switch.

        Raises:
            PreconditionFailed: there is no unacknowledged delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        if self._link.lost is not None:
            return
        self._channel.check_open()
        if multiple:
            self._refuse(self._up_to(tag), requeue)
            return
        delivery = self.unacked.pop(tag, None)
        if delivery is None:
            raise unknown_delivery_tag(tag, Method.BASIC_REJECT)
        self._refuse([delivery], requeue)

    def requeue_unseen(self, tag: Any) -> None:
        """Requeue a delivery with which no handler has begun: it does not count.  May switch.

        Acknowledged or rejected before, or the channel is gone: does nothing.

        Raises:
            WrongHub: called from another thread.
        """
        if self._link.lost is not None or self._channel.state_of_life is not _OPEN:
            return
        self._channel.check_open()
        delivery = self.unacked.pop(tag, None)
        if delivery is not None:
            self._refuse([delivery], True, (tag,))

    def recover(self, requeue: bool) -> None:
        """Requeue everything.  Never switches.

        Raises:
            AMQPNotImplementedError: *requeue* is false, which RabbitMQ does not know either.
        """
        if not requeue:
            raise no_recover_in_place()
        unhandled: list[Any] = []
        for consumer in self._channel.consumers.values():
            if not consumer.no_ack:
                unhandled += consumer.backlog
                consumer.forget_backlog()
        self._refuse(self._up_to(0), True, _tags(unhandled))

    def taken(self, tag: Any) -> None:
        """Note that a delivery without an ack was taken, which settles it.  Never switches."""
        delivery = self.unacked.pop(tag, None)
        if delivery is not None and delivery.is_held and self._link.lost is None:
            self._acknowledger.ack(delivery)

    def settled(self, tag: Any) -> None:
        """Free the room of a delivery that was settled elsewhere, once.  Never switches."""
        delivery = self.unacked.pop(tag, None)
        if delivery is not None:
            self._free([delivery])

    def _acked(self, delivery: Any) -> Any:
        if delivery.is_held and self._link.lost is None:
            self._acknowledger.ack(delivery)
        return delivery

    def _acked_each(self, deliveries: Iterable[Any]) -> Iterator[Any]:
        """Ack each, and yield it then; where one fails, it and the rest stay unacked."""
        left = deque(deliveries)
        try:
            while left:
                self._acked(left[0])
                yield left.popleft()
        finally:
            for each in left:
                self.unacked[each.delivery_tag] = each

    def _refuse(
        self, deliveries: list[Any], requeue: bool, unhandled: Collection[Any] = ()
    ) -> None:
        try:
            if requeue:
                self._acknowledger.requeue(deliveries, unhandled)
            else:
                self._acknowledger.dead_letter(deliveries, "rejected")
        except BaseException:
            # What was not sent is held again; the rest takes no room any more.
            self._free([each for each in deliveries if each.delivery_tag not in self.unacked])
            raise
        self._free(deliveries)

    def _free(self, deliveries: Iterable[Any]) -> None:
        """Free the room that *deliveries* took, and let their consumers have more."""
        freed: dict[Consumer, None] = {}
        try:
            for delivery in deliveries:
                consumer = delivery.consumer
                if consumer is not None and not consumer.no_ack:
                    consumer.unacked -= 1
                    self._prefetch.in_flight -= 1
                    freed[consumer] = None
        finally:
            if self._prefetch.limit:
                self._channel.serve()
            for consumer in freed:
                consumer.wake()

    def _up_to(self, tag: Any) -> list[Any]:
        """Take out all deliveries up to *tag*, or all for tag 0; not those that need no ack."""
        unacked = self.unacked
        tags = [
            name
            for name, each in unacked.items()
            if each.consumer is None or not each.consumer.no_ack
        ]
        if tag:
            if tag not in tags:
                raise unknown_delivery_tag(tag, Method.BASIC_ACK)
            del tags[tags.index(tag) + 1 :]
        return [unacked.pop(each) for each in tags]

    # -- the end of consumers

    def stop(self, consumer: Consumer) -> None:
        """Stop a cancelled consumer, and requeue what no handler has seen.  Never switches."""
        unseen = self._unseen(consumer)
        self._refuse(unseen, True, _tags(unseen))

    def drop(self, consumer: Consumer) -> None:
        """Stop a consumer of a deleted queue; unseen messages are dropped.  Never switches."""
        self._free(self._acked_each(self._unseen(consumer)))

    def _unseen(self, consumer: Consumer) -> list[Any]:
        """Stop a consumer, and take back what became events that nobody has drained."""
        found = (self.unacked.pop(each.delivery_tag, None) for each in consumer.stop())
        return [each for each in found if each is not None]

    def release(self, consumers: Iterable[Consumer]) -> None:
        """Stop *consumers* and requeue everything, as the channel ends.  Never switches."""
        unseen = _tags([each for consumer in consumers for each in consumer.stop()])
        if self._link.lost is None:
            deliveries = list(self.unacked.values())
            self.unacked.clear()
            self._acknowledger.requeue(deliveries, unseen)


def _tags(deliveries: Iterable[Any]) -> set[Any]:
    return {each.delivery_tag for each in deliveries}
