"""Consuming from the queues of a cluster, each in its partition."""

from __future__ import annotations

from greenconn.transport.redis.claiming import RedisFeed
from greenconn.transport.redis.cluster.queues import Partitions
from greenconn.transport.redis.envelope import Delivery
from greenconn.transport.redis.store import RedisConsuming
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.channel import ChannelPort

__all__ = ["ClusterConsuming"]


class ClusterConsuming:
    """See :class:`~greenconn.broker.consumers.Consuming`.

    Arguments:
        partitions: of the link.
    """

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions

    def _of(self, queue: str) -> RedisConsuming:
        return self._partitions.of(queue).consuming

    def check(self, queue: str, method: Method) -> None:
        """See that a queue may be consumed.  May switch."""
        self._of(queue).check(queue, method)

    def feed(self, queue: str) -> RedisFeed:
        """Return what gives the messages of *queue* to the consumers of this link.  Never switches."""
        return self._of(queue).feed(queue)

    def set_consumers(self, feed: RedisFeed, *, exclusive: bool) -> bool:
        """Register the consumers of this link; False: others consume.  May switch."""
        return self._of(feed.queue).set_consumers(feed, exclusive=exclusive)

    def left(self, feed: RedisFeed) -> None:
        """Unregister a consumer.  Never switches."""
        self._of(feed.queue).left(feed)

    def ended(self, feed: RedisFeed) -> None:
        """Note that a consumer has left a queue that is gone.  Never switches."""
        self._of(feed.queue).ended(feed)

    def take(self, channel: ChannelPort, queue: str) -> Delivery | None:
        """Take one message for *channel*; None when none waits.  May switch."""
        return self._of(queue).take(channel, queue)
