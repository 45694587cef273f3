"""The queues of a cluster, each asked for, and consumed from, in its partition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from greenconn.transport.redis.claiming import RedisFeed
from greenconn.transport.redis.envelope import Delivery
from greenconn.transport.redis.partition import Partition
from greenconn.transport.redis.queues import LinkQueues
from greenconn.transport.redis.store import RedisConsuming
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.declaration import Declaration

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.transport.redis.cluster.placement import ClusterPlacement


class ClusterFeeds(Mapping[str, RedisFeed]):
    """The feeds of all partitions, by the names of their queues.

    Arguments:
        partitions: of the link.
    """

    def __init__(self, partitions: ClusterPlacement) -> None:
        self._partitions = partitions

    def __getitem__(self, queue: str) -> RedisFeed:
        return self._partitions.of(queue).feeds[queue]

    def get(self, queue: str, default: Any = None) -> Any:
        """Return the feed of a queue, or *default*.  Never switches."""
        return self._partitions.of(queue).feeds.get(queue, default)

    def __iter__(self) -> Iterator[str]:
        for each in self._partitions.partitions():
            yield from each.feeds

    def __len__(self) -> int:
        return sum(len(each.feeds) for each in self._partitions.partitions())


class ClusterQueues(LinkQueues):
    """The queues of a cluster, as one link asks for them.

    Arguments:
        partitions: of the link.
        expiring: queues that expire when they are not used, after so many milliseconds.
    """

    def __init__(self, partitions: ClusterPlacement, expiring: dict[str, int]) -> None:
        self._partitions = partitions
        self.expiring = expiring

    def check_name(self, name: str, method: Method) -> None:
        self._partitions.of(name).queues.check_name(name, method)

    def settle(self) -> None:
        for each in self._partitions.partitions():
            each.queues.settle()

    def find(self, name: str) -> Declaration | None:
        return self._partitions.of(name).queues.find(name)

    def is_current(self, name: str) -> bool:
        return self._partitions.of(name).queues.is_current(name)

    def is_known_to_exist(self, name: str) -> bool:
        return self._partitions.of(name).queues.is_known_to_exist(name)

    def is_permanent(self, name: str) -> bool:
        return self._partitions.of(name).queues.is_permanent(name)

    def may_end(self, name: str) -> bool:
        return self._partitions.of(name).queues.may_end(name)

    def is_there(self, name: str) -> bool:
        return self._partitions.of(name).queues.is_there(name)

    def existing(self, queues: Mapping[str, Iterable[bytes]]) -> list[str]:
        by_partition: dict[Partition, dict[str, Iterable[bytes]]] = {}
        for name, fields in queues.items():
            by_partition.setdefault(self._partitions.of(name), {})[name] = fields
        return [
            name
            for partition, asked in by_partition.items()
            for name in partition.queues.existing(asked)
        ]

    def make(self, name: str, declared: Declaration) -> Declaration:
        return self._partitions.of(name).queues.make(name, declared)

    def counts(self, name: str) -> tuple[int, int]:
        return self._partitions.of(name).queues.counts(name)

    def touch(self, name: str) -> None:
        self._partitions.of(name).queues.touch(name)

    def pushed(self, name: str) -> None:
        self._partitions.of(name).queues.pushed(name)

    def purge(self, name: str) -> int:
        return self._partitions.of(name).queues.purge(name)

    def drop(self, name: str) -> int:
        return self._partitions.of(name).queues.drop(name)


class ClusterConsuming:
    """See :class:`~greenconn.broker.consumers.Consuming`.

    Arguments:
        partitions: of the link.
    """

    def __init__(self, partitions: ClusterPlacement) -> None:
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

    def take(self, channel: StoreChannel[Any], queue: str) -> Delivery | None:
        """Take one message for *channel*; None when none waits.  May switch."""
        return self._of(queue).take(channel, queue)
