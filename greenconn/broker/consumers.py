"""The consumers of queues that many processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from greenconn.transport.refusal import Method
from greenconn.transport.virtual.consumer import Consumer, Feed

if TYPE_CHECKING:
    from greenconn.broker.deliveries import DeliveredMessage
    from greenconn.message import Message
    from greenconn.transport.virtual.channel import ChannelPort

__all__ = ["ConsumerRegistry", "StoreConsumer", "Subscriptions"]


class StoreConsumer(Consumer):
    """A consumer; with ``no_ack`` a message is acked as soon as it is taken."""

    __slots__ = ()

    def _answer(self, message: Message) -> None:
        self.channel.deliveries.taken(message.delivery_tag)


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

    def get(self, channel: ChannelPort, queue: str) -> DeliveredMessage | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """


class ConsumerRegistry:
    """The consumers of all links of a process to one broker."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        #: Queue -> owner -> how many consumers, and whether the one is exclusive.
        self._queues: dict[str, dict[str, tuple[int, bool]]] = {}

    def set_consumers(self, queue: str, owner: str, consumers: int, exclusive: bool) -> bool:
        """Note how many consumers of a queue a link has now; False: it may not."""
        owners = self._queues.setdefault(queue, {})
        others = {name: each for name, each in owners.items() if name != owner}
        if consumers and (any(alone for _, alone in others.values()) or (exclusive and others)):
            return False
        owners.pop(owner, None)
        if consumers:
            owners[owner] = (consumers, exclusive)
        if not owners:
            del self._queues[queue]
        return True

    def other_consumers(self, queue: str, owner: str) -> int:
        """Return the number of consumers that other links have."""
        owners = self._queues.get(queue, {})
        return sum(count for name, (count, _) in owners.items() if name != owner)

    def leave(self, owner: str) -> None:
        """Remove a link that has ended."""
        for queue, owners in list(self._queues.items()):
            owners.pop(owner, None)
            if not owners:
                del self._queues[queue]
