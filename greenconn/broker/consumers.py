"""The consumers of one link: which queues they consume from, and what is fetched by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from greenconn.transport.refusal import Method
from greenconn.transport.virtual.consumer import Consumer, Feed

if TYPE_CHECKING:
    from greenconn.message import Message
    from greenconn.transport.virtual.delivery import Delivery
    from greenconn.transport.virtual.life import ChannelLife

__all__ = ["StoreConsumer", "Subscriptions"]


class StoreConsumer(Consumer):
    """A consumer; what needs no answer is answered as soon as it was taken."""

    __slots__ = ()

    def _handle(self, message: Message) -> Any:
        if self.no_ack and self.is_active and not self.stale:
            self.channel.deliveries.taken(message.delivery_tag)
        return super()._handle(message)

    def _taken(self, message: Message) -> None:
        if self.no_ack:
            self.channel.deliveries.taken(message.delivery_tag)
        super()._taken(message)


class Subscriptions(Protocol):
    """The queues that are consumed from over one link."""

    def feed(self, queue: str, method: Method) -> Feed:
        """Return what gives the messages of a queue to consumers.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """

    def start(self, consumer: Consumer) -> None:
        """Let *consumer* have messages.  May switch.

        Raises:
            AccessRefused: it may not consume beside another one.
        """

    def left(self, consumer: Consumer) -> None:
        """Forget a consumer: its queue may be of no use any more.  Never switches."""

    def ended(self, consumer: Consumer) -> None:
        """Forget a consumer whose queue is gone.  Never switches."""

    def serve(self, consumer: Consumer) -> None:
        """Look for messages for a consumer that has room under its channel's limit.  Never switches."""

    def get(self, channel: ChannelLife, queue: str) -> Delivery | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
