"""The placement of the keys of one link: all in one server, or divided among the nodes of a cluster.

A link asks its placement for the parts that talk to servers, and does not know how many there are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from greenconn.broker.channel import Publisher, StoreChannel
from greenconn.broker.consumers import Consuming
from greenconn.broker.port import Entry
from greenconn.broker.settlement_port import MessageSettler
from greenconn.green.deadline import Deadline
from greenconn.transport.redis.claiming import RedisFeed, RedisSource
from greenconn.transport.redis.commands import PING, Commands
from greenconn.transport.redis.envelope import Delivery
from greenconn.transport.redis.errors import LinkLost
from greenconn.transport.redis.fanout import Listener, Shards
from greenconn.transport.redis.keys import Keys
from greenconn.transport.redis.owners import owner_of
from greenconn.transport.redis.partition import Partition
from greenconn.transport.redis.pipeline import Pipeline
from greenconn.transport.redis.publishing import RedisPublisher
from greenconn.transport.redis.queues import LinkQueues
from greenconn.transport.redis.replicas import ReplicaConfirms, ReplicatedPublisher
from greenconn.transport.redis.server import Opener, Server, check_eviction
from greenconn.transport.redis.topology import LinkRecords
from greenconn.transport.redis.window import WindowPublisher

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink


class Placement(Protocol):
    """The parts of one link that talk to servers.

    Attributes:
        commands: for what concerns no key.
        feeds: queue -> what serves its consumers.
        server: opens further sockets.
    """

    @property
    def commands(self) -> Commands: ...
    @property
    def server(self) -> Opener: ...
    @property
    def feeds(self) -> Mapping[str, RedisFeed]: ...
    @property
    def queues(self) -> LinkQueues: ...
    @property
    def records(self) -> LinkRecords: ...
    @property
    def settler(self) -> MessageSettler: ...
    @property
    def consuming(self) -> Consuming[Delivery, RedisSource]: ...

    def open(self, deadline: Deadline) -> str:
        """Connect and log in, and return the name of the owner.  May switch.

        Whatever goes wrong, nothing stays open.

        Raises:
            Exception: see :func:`~greenconn.transport.redis.server.open_pipeline`.
        """

    def publisher(self, channel: StoreChannel[Any]) -> Publisher[Any]:
        """Return what *channel* publishes with."""

    def shards(self, listener: Listener) -> Shards | None:
        """Return the subscriptions to shard channels; None: there are to be none."""

    def of(self, name: str) -> Partition:
        """Return the partition of a queue or an exchange.  Never switches."""

    def partition(self, tag: str) -> Partition:
        """Return the partition of a tag.  Never switches."""

    def partitions(self) -> Collection[Partition]:
        """Return the partitions that were used.  Never switches."""

    def local_entries(
        self, partition: Partition, raw: bytes, entries: Sequence[Entry]
    ) -> Sequence[Entry]:
        """Store those of *entries* that belong to others than *partition*, and return the rest.

        May switch.

        Arguments:
            raw: the message whose copies they are.
        """

    def drain(self, deadline: Deadline) -> None:
        """Wait until the sockets have taken what was written.  May switch."""

    def pipelines(self) -> Collection[Pipeline]:
        """Return the open sockets beside that of ``commands``.  Never switches."""

    def leave(self) -> None:
        """Say that the owner has ended, and return when all is done that was asked.  May switch."""

    def close(self) -> None:
        """Close the sockets for commands.  Never switches."""

    def forget(self) -> None:
        """Leave them to the parent process, in the child of a fork."""


class SinglePlacement:
    """All keys in one server: one partition, over one socket.

    Arguments:
        link: whose keys they are.
        server: where they are.
        keys: their names.
    """

    def __init__(self, link: RedisLink, server: Server, keys: Keys) -> None:
        self._link = link
        self.server = server
        replicas = link.options.replicas
        self._confirms = ReplicaConfirms(replicas) if replicas else None
        self.whole = whole = Partition(link, keys)
        self.commands = whole.commands
        self.feeds = whole.feeds
        self.queues = whole.queues
        self.records = whole.records

    @property
    def settler(self) -> MessageSettler:
        """The commands about messages that are held."""
        return self.whole.settler

    @property
    def consuming(self) -> Consuming[Delivery, RedisSource]:
        """The commands about queues that are consumed."""
        return self.whole.consuming

    def open(self, deadline: Deadline) -> str:
        """See :class:`Placement`."""
        commands = self.commands
        pipeline, welcome = self.server.open(deadline, self._on_push, self._on_lost)
        owner = owner_of(welcome.client_id)
        try:
            commands.begin(pipeline, welcome.protocol, owner)
            check_eviction(pipeline)
            pipeline.call(PING, deadline)
            commands.watch(pipeline)
        except BaseException:
            pipeline.close()
            raise
        return owner

    def publisher(self, channel: StoreChannel[Any]) -> Publisher[Any]:
        """Return what *channel* publishes with."""
        link = self._link
        size = link.options.publish_window
        if size:
            return WindowPublisher(RedisPublisher(channel, link), size, link.unreported)
        if self._confirms is not None:
            return ReplicatedPublisher(channel, link, self._confirms)
        return RedisPublisher(channel, link)

    def shards(self, listener: Listener) -> Shards | None:
        """Return None: a single server has no shards."""
        return None

    def of(self, name: str) -> Partition:
        """Return the only one."""
        return self.whole

    def partition(self, tag: str) -> Partition:
        """Return the only one."""
        return self.whole

    def partitions(self) -> Collection[Partition]:
        """Return the only one."""
        return (self.whole,)

    def local_entries(
        self, partition: Partition, raw: bytes, entries: Sequence[Entry]
    ) -> Sequence[Entry]:
        """Return *entries*: there is no other partition."""
        return entries

    def drain(self, deadline: Deadline) -> None:
        """Wait until the socket has taken what was written.  May switch."""
        self.commands.pipeline.drain(deadline)

    def pipelines(self) -> Collection[Pipeline]:
        """Return those beside that of ``commands``: none."""
        return ()

    def leave(self) -> None:
        """See :class:`Placement`."""
        self.whole.leave()
        self.commands.pipeline.call(PING)

    def close(self) -> None:
        """Close the socket.  Never switches."""
        if self.commands.is_begun:
            self.commands.pipeline.close()

    def forget(self) -> None:
        """Leave it to the parent process, in the child of a fork."""
        self.commands.pipeline.forget()

    # In the reader: nothing here may switch or run user code.

    def _on_push(self, push: list[Any]) -> None:
        if push[0] == b"invalidate":
            self.whole.invalidations.take(push[1])

    def _on_lost(self, exc: LinkLost) -> None:
        self._link.end(exc)
