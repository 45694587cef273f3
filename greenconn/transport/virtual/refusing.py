"""The channel methods that refuse deliveries, for brokers that hold a message until it is answered."""

from __future__ import annotations

from typing import Any

from greenconn.transport.refusal import Method, no_recover_in_place, unknown_delivery_tag
from greenconn.transport.virtual.life import ChannelLife, closes_channel

__all__ = ["RefusingMethods"]


class RefusingMethods(ChannelLife):
    """What is unanswered, and its refusal.

    Attributes:
        unanswered: delivery tag -> what was delivered and not answered, in the order of delivery.
    """

    unanswered: dict[Any, Any]

    def _refuse(self, deliveries: list[Any], requeue: bool) -> None:
        """Give *deliveries* back, or up; then let their consumers have more."""
        raise NotImplementedError

    def message_to_python(self, raw_message: Any) -> Any:
        """Return *raw_message*: messages come ready."""
        return raw_message

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Refuse a delivery: it goes back to its queue, or is a dead letter.

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
            raise no_recover_in_place()
        for consumer in self.consumers.values():
            consumer.forget_backlog()
        deliveries = list(self.unanswered.values())
        self.unanswered.clear()
        self._refuse(deliveries, True)

    def _up_to(self, tag: Any) -> list[Any]:
        """Take out all deliveries up to *tag*, or all for tag 0."""
        unanswered = self.unanswered
        if tag and tag not in unanswered:
            raise unknown_delivery_tag(tag, Method.BASIC_ACK)
        tags = list(unanswered)
        if tag:
            del tags[tags.index(tag) + 1 :]
        return [unanswered.pop(each) for each in tags]
