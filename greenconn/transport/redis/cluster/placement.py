"""The placement of the keys of one link in a cluster.

Queues are divided among :data:`PARTITIONS` partitions by their names.  Each has a hash tag, so that all
its keys are in one slot, and these slots are spread evenly.  What a single server has once (the owners
with their leases, what is held, the queues that end by themselves) each partition has for itself, so a
script finds all its keys in one slot.  A queue whose name has a hash tag is where the tag says:
``{orders}.new`` and ``{orders}.done`` are in one partition.

An exchange is declared in the partition that its name says, with the bindings between exchanges.  A
binding of a queue is where the queue is, so that it goes with the queue in one step; the exchange's
partition has the set of the partitions to look in.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from redis.crc import key_slot
from redis.exceptions import ResponseError

from greenconn.broker.channel import Publisher, StoreChannel
from greenconn.broker.port import Entry
from greenconn.broker.publisher import Completion
from greenconn.green.deadline import Deadline
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.supervisor import spawn
from greenconn.transport.redis.cluster.fanout import ClusterShards
from greenconn.transport.redis.cluster.nodes import AnyNode, Nodes
from greenconn.transport.redis.cluster.publishing import ClusterPublisher
from greenconn.transport.redis.cluster.queues import ClusterConsuming, ClusterFeeds, ClusterQueues
from greenconn.transport.redis.cluster.settling import ClusterSettler
from greenconn.transport.redis.cluster.slot import SlotPipeline
from greenconn.transport.redis.cluster.topology import ClusterRecords
from greenconn.transport.redis.commands import PING, Commands
from greenconn.transport.redis.errors import PASSING, LinkLost
from greenconn.transport.redis.fanout import Listener, Shards
from greenconn.transport.redis.keys import Keys
from greenconn.transport.redis.owners import owner_of
from greenconn.transport.redis.partition import Partition
from greenconn.transport.redis.pipeline import Pipeline
from greenconn.transport.redis.replicas import ReplicaConfirms
from greenconn.transport.redis.server import Address, Login
from greenconn.transport.redis.settling import number_of
from greenconn.transport.redis.window import WindowPublisher
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink


logger = logging.getLogger("greenconn.transport.redis")

#: All programs of one cluster must agree on it.
PARTITIONS: Final = 128
#: Fields that are read at once.
PAGE: Final = 500
#: While a node that has replaced another one cannot be asked what it holds for this link.
RECONCILING: Final = RetryPolicy(first=0.1, longest=1.0)


@lru_cache(maxsize=1)
def _tags() -> tuple[str, ...]:
    """Return a hash tag for each partition: their slots are spread evenly."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < PARTITIONS:
        found.setdefault(key_slot(b"%d" % number) * PARTITIONS // 16384, str(number))
        number += 1
    return tuple(found[each] for each in range(PARTITIONS))


@lru_cache(maxsize=4096)
def tag_of(name: str) -> str:
    """Return the hash tag of the partition of a queue or an exchange."""
    return _tags()[key_slot(name.encode(), PARTITIONS)]


class ClusterPlacement:
    """See :class:`~greenconn.transport.redis.placement.Placement`.

    Arguments:
        link: whose keys they are.
        seeds: where the cluster is asked for its nodes first.
        login: of all nodes.
        connect_timeout: seconds for one connection; None waits.
    """

    def __init__(
        self,
        link: RedisLink,
        seeds: Sequence[Address],
        login: Login,
        connect_timeout: float | None,
    ) -> None:
        self._link = link
        options = self._options = link.options
        self._keys = Keys(options)
        self.commands = commands = Commands(link.where, self._keys, options, link.before_call)
        self.nodes = Nodes(
            seeds, login, connect_timeout, commands.watch, self._on_push, self._on_node_lost
        )
        self.server = AnyNode(self.nodes)
        self._owner = ""
        self._partitions: dict[str, Partition] = {}
        self._slots: list[SlotPipeline] = []
        self._confirms = ReplicaConfirms(options.replicas) if options.replicas else None
        self.feeds = ClusterFeeds(self)
        self.queues = ClusterQueues(self, link.expiring)
        self.records = ClusterRecords(self, link)
        self.settler = ClusterSettler(self, link)
        self.consuming = ClusterConsuming(self)

    def open(self, deadline: Deadline) -> str:
        """See :class:`~greenconn.transport.redis.placement.Placement`."""
        self._owner = owner_of(None)
        try:
            self.nodes.refresh(deadline)
            self._begin(self.commands, _tags()[0])
            self.commands.pipeline.call(PING, deadline)
        except BaseException:
            self.close()
            raise
        return self._owner

    def _begin(self, commands: Commands, tag: str) -> SlotPipeline:
        """Let *commands* be sent to where the keys of a tag are.  Never switches."""
        options, link = self._options, self._link
        slot = SlotPipeline(
            self.nodes,
            key_slot(f"{options.global_keyprefix}{{{tag}}}".encode()),
            link.where,
            options.socket_timeout or options.reply_timeout,
            link.end,
            partial(self._on_moved, commands),
            self._confirms,
        )
        self._slots.append(slot)
        commands.begin(slot, 3, self._owner)
        return slot

    def shards(self, listener: Listener) -> Shards | None:
        """Return the subscriptions to shard channels; None: there are to be none."""
        if self._options.fanout_sharding == "off":
            return None
        return ClusterShards(self.commands, self.nodes, self._shard_channel, listener)

    def _shard_channel(self, exchange: str) -> bytes:
        return self.of(exchange).commands.keys.shard_channel(exchange)

    # -- partitions

    def partition(self, tag: str) -> Partition:
        """Return the partition of a tag.  Never switches."""
        found = self._partitions.get(tag)
        if found is None:
            found = Partition(self._link, Keys(self._options, 0, tag))
            self._partitions[tag] = found
            slot = self._begin(found.commands, tag)
            if self.commands.lost is not None:
                found.commands.lost = self.commands.lost
                slot.close()
        return found

    def of(self, name: str) -> Partition:
        """Return the partition of a queue or an exchange.  Never switches."""
        tag = tag_of(name)
        return self._partitions.get(tag) or self.partition(tag)

    def of_handle(self, handle: str) -> Partition:
        """Return the partition of a message, by the field under which it is held.  Never switches."""
        return self.partition(handle.split(".")[2])

    def partitions(self) -> Collection[Partition]:
        """Return those that were used.  Never switches."""
        return list(self._partitions.values())

    def post_stored(self, name: str, command: bytes, done: Completion) -> None:
        """Send a command that stores a message in a queue, or publishes it to an exchange.

        *done* gets the outcome.  Never switches.
        """
        pipeline = self.of(name).commands.pipeline
        assert isinstance(pipeline, SlotPipeline)
        pipeline.post_stored(command, done)

    def publisher(self, channel: StoreChannel[Any]) -> Publisher[Any]:
        """Return what *channel* publishes with."""
        link, size = self._link, self._options.publish_window
        publisher = ClusterPublisher(channel, link, self)
        return WindowPublisher(publisher, size, link.unreported) if size else publisher

    def local_entries(
        self, partition: Partition, raw: bytes, entries: Sequence[Entry]
    ) -> Sequence[Entry]:
        """Store what belongs to other partitions, and return the rest.  May switch."""
        return self.settler.local_entries(partition, raw, entries)

    # -- when a slot has moved, or the socket to its node was lost

    def _on_node_lost(self, node: Pipeline) -> None:
        for each in self._slots:
            each.dropped(node)

    def _on_moved(self, commands: Commands, was_lost: bool) -> None:
        # Never switches.
        commands.scripts.forget()
        found = self._partitions.get(commands.keys.tag)
        if found is not None:
            found.invalidations.take(None)
            if was_lost:
                spawn("redis-reconcile", self._reconcile, found)

    def _reconcile(self, partition: Partition) -> None:
        """Requeue what the server holds for this owner without its knowledge.

        A claim may have been carried out whose reply was lost, and a replica that was promoted may not
        know of the latest acks.  One that was promoted just now may refuse all writes for a while, as
        no replica follows it (``min-replicas-to-write``); no lease would end meanwhile.
        """
        has_failed = False
        try:
            for attempt in attempts(RECONCILING, is_retryable=self._may_reconcile):
                with attempt:
                    self._requeue_unknown(partition)
                    return
                where, is_refused = self._link.where, isinstance(attempt.error, ResponseError)
                logger.log(
                    logging.ERROR if is_refused and not has_failed else logging.DEBUG,
                    "%s: messages that a lost node may hold for this connection are requeued later: %s",
                    where,
                    attempt.error,
                    extra={"connection": where},
                )
                has_failed = has_failed or is_refused
        except LinkLost:
            pass  # the next life does it

    def _may_reconcile(self, exc: Exception) -> bool:
        return self.commands.lost is None and isinstance(exc, PASSING)

    def _requeue_unknown(self, partition: Partition) -> None:
        """Requeue what is held in one partition and not known here.  May switch."""
        commands, link = partition.commands, self._link
        link.settlements.flush()
        # Callbacks keep their order: behind it, claims that were lost are not under way any more.
        commands.call(PING)
        known = {each.handle for each in link.held() if each.is_held}
        known.update(each.handle for each in partition.settler.unconfirmed_claims())
        last = partition.claims.last_number
        index, own = commands.keys.unacked_index, f"{commands.prefix}*"
        unknown: list[str] = []
        cursor = b"0"
        while True:
            page = pack(b"ZSCAN", index, cursor, b"MATCH", own, b"COUNT", PAGE)
            cursor, flat = commands.call(page, what="looking for lost messages")
            fields = (each.decode() for each in flat[::2])
            unknown += (each for each in fields if each not in known and number_of(each) <= last)
            if cursor == b"0":
                break
        unknown.sort(key=number_of, reverse=True)
        count = partition.requeuer.requeue(unknown, uncounted=set(unknown))
        if count:
            logger.warning(
                "%s: %d messages whose delivery or ack was lost with a node were requeued",
                link.where,
                count,
                extra={"connection": link.where},
            )
        link.leases.renew()
        partition.consuming.announce()

    # -- sockets

    def drain(self, deadline: Deadline) -> None:
        """Wait until the sockets have taken what was sent.  May switch."""
        for each in list(self._slots):
            each.drain(deadline)

    def pipelines(self) -> Collection[Pipeline]:
        """Return the open sockets to nodes.  Never switches."""
        return self.nodes.pipelines()

    def leave(self) -> None:
        """See :class:`~greenconn.transport.redis.placement.Placement`."""
        partitions = self.partitions()
        for each in partitions:
            each.leave()
        for each in partitions:
            each.commands.pipeline.call(PING)

    def close(self) -> None:
        """Close all sockets.  Never switches."""
        for each in self._slots:
            each.close()
        self.nodes.close()

    def forget(self) -> None:
        """Leave them to the parent process, in the child of a fork."""
        for each in self._slots:
            each.forget()
        self.nodes.forget()

    # In the reader: nothing here may switch or run user code.

    def _on_push(self, push: list[Any]) -> None:
        if push[0] != b"invalidate":
            return
        if push[1] is None:
            for each in self.partitions():
                each.invalidations.take(None)
            return
        start = len(self._options.global_keyprefix.encode()) + 1
        for key in push[1]:
            found = self._partitions.get(
                key[start : key.find(b"}", start)].decode("utf-8", "replace")
            )
            if found is not None:
                found.invalidations.take([key])
