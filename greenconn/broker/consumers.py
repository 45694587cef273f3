"""The consumers of queues that many processes share, and the queues that one link consumes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from greenconn.broker.feed import Feed, Source
from greenconn.transport.refusal import Method, in_exclusive_use
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.consumer import Feed as ConsumedFeed

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.deliveries import DeliveredMessage
    from greenconn.message import Message

M = TypeVar("M")
S = TypeVar("S", bound=Source[Any])


class StoreConsumer(Consumer):
    """A consumer; with ``no_ack`` a message is acked as soon as it is taken."""

    __slots__ = ()

    def _answer(self, message: Message) -> None:
        self.channel.deliveries.taken(message.delivery_tag)


class Subscriptions(Protocol):
    """The queues that are consumed from over one link."""

    def feed(self, queue: str, method: Method) -> ConsumedFeed:
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

    def get(self, channel: StoreChannel[Any], queue: str) -> DeliveredMessage | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """


class ConsumerRegistry:
    """The consumers of all links of a process to one broker."""

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


class Consuming(Protocol[M, S]):
    """The commands of one link about the queues that it consumes."""

    def check(self, queue: str, method: Method) -> None:
        """See that a queue may be consumed.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """

    def feed(self, queue: str) -> Feed[M, S]:
        """Return what gives the messages of *queue* to the consumers of this link.  Never switches."""

    def set_consumers(self, feed: Feed[M, S], *, exclusive: bool) -> bool:
        """Tell the broker how many consumers there are, with those that are about to be.  May switch.

        Returns:
            whether they may consume; False: others consume exclusively, or they do and this one wants
            to be the only one.
        """

    def left(self, feed: Feed[M, S]) -> None:
        """Tell the broker that a consumer has left, or did not come.  Never switches."""

    def ended(self, feed: Feed[M, S]) -> None:
        """Tell the broker that a consumer has left a queue that is gone.  Never switches."""

    def take(self, channel: StoreChannel[Any], queue: str) -> DeliveredMessage | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """


class StoreSubscriptions(Generic[M, S]):
    """The subscriptions to a store; see :class:`Subscriptions`.

    Arguments:
        consuming: asks the broker.
    """

    def __init__(self, consuming: Consuming[M, S]) -> None:
        self._consuming = consuming

    def feed(self, queue: str, method: Method) -> Feed[M, S]:
        """Return what gives the messages of a queue to consumers.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        self._consuming.check(queue, method)
        return self._consuming.feed(queue)

    def start(self, consumer: Consumer) -> None:
        """Let *consumer* have messages.  May switch.

        Raises:
            AccessRefused: it may not consume beside another one.
        """
        channel = consumer.channel
        # From now on the feed stays, even if its consumers leave during the call of the broker.
        feed = consumer.feed = self._consuming.feed(consumer.queue)
        feed.coming += 1
        has_asked = False
        try:
            others = feed.consumers
            if any(each.exclusive for each in others) or (consumer.exclusive and others):
                raise in_exclusive_use(feed.queue, channel.virtual_host)
            has_asked = True
            if not self._consuming.set_consumers(feed, exclusive=consumer.exclusive):
                raise in_exclusive_use(feed.queue, channel.virtual_host)
            channel.check_open()  # it may have been closed meanwhile
            feed.join(consumer)
        finally:
            feed.coming -= 1
            if not feed.is_used:
                feed.source.retire()
                self._consuming.left(feed)
            elif has_asked and consumer not in feed.consumers:
                self._consuming.left(feed)  # the broker may count it beside the others

    def left(self, consumer: Consumer) -> None:
        """Forget a consumer: its queue may be of no use any more.  Never switches."""
        feed = self._feed_of(consumer)
        if consumer in feed.consumers:
            _leave(feed, consumer)
            self._consuming.left(feed)

    def ended(self, consumer: Consumer) -> None:
        """Forget a consumer whose queue is gone.  Never switches."""
        feed = self._feed_of(consumer)
        if consumer in feed.consumers:
            _leave(feed, consumer)
            self._consuming.ended(feed)

    def serve(self, consumer: Consumer) -> None:
        """Look for messages for a consumer that has room under its channel's limit.  Never switches."""
        self._feed_of(consumer).serve()

    def get(self, channel: StoreChannel[Any], queue: str) -> DeliveredMessage | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
        return self._consuming.take(channel, queue)

    @staticmethod
    def _feed_of(consumer: Consumer) -> Feed[M, S]:
        assert isinstance(consumer.feed, Feed)
        return consumer.feed


def _leave(feed: Feed[M, S], consumer: Consumer) -> None:
    feed.leave(consumer)
    if not feed.is_used:
        feed.source.retire()
