"""The placement of the keys of one link in a cluster.

Queues are divided among :data:`PARTITIONS` partitions by their names.  Each has a hash tag, so that all
its keys are in one slot, and these slots are spread evenly.  What a single server has once (the owners
with their leases, what is held, the queues that end by themselves) each partition has for itself, so a
script finds all its keys in one slot.  A queue whose name has a hash tag is where the tag says:
``{orders}.new`` and ``{orders}.done`` are in one partition.

An exchange is declared in the partition that its name says, with the bindings between exchanges.  A
binding of a queue is where the queue is, so that it goes with the queue in one step; the exchange's
partition has the set of the partitions to look in.

Settling
--------
A dead letter may belong to a queue of another partition.  There it is stored first; then it is removed
where it was held.  Who ends in between leaves it in both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from gevent import get_hub
from msgspec.structs import replace
from redis.crc import key_slot
from redis.exceptions import ResponseError

from greenconn.broker.channel import Publisher, StoreChannel
from greenconn.broker.envelope import Envelope
from greenconn.broker.port import Done, Entry, HeldMessage, SettleRequest
from greenconn.broker.publishing import Completion
from greenconn.green.deadline import Deadline
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.supervisor import spawn
from greenconn.transport.redis.envelope import Delivery, Outgoing, number_of
from greenconn.transport.redis.errors import PASSING, LinkLost
from greenconn.transport.redis.fanout import Fanout, Shards, topic_of
from greenconn.transport.redis.link import Partition
from greenconn.transport.redis.maintenance import owner_of
from greenconn.transport.redis.nodes import AnyNode, Nodes, SlotPipeline
from greenconn.transport.redis.options import Keys
from greenconn.transport.redis.pipeline import (
    ENDLESS,
    PING,
    CommandPipeline,
    Commands,
    Pipeline,
    call_together,
)
from greenconn.transport.redis.publishing import (
    RedisPublisher,
    ReplicaConfirms,
    Routed,
    WindowPublisher,
)
from greenconn.transport.redis.server import Address, Login
from greenconn.transport.redis.settling import copies_of
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
    """See :class:`~greenconn.transport.redis.link.Placement`.

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
        self.settler = ClusterSettler(self, link)

    def open(self, deadline: Deadline) -> str:
        """See :class:`~greenconn.transport.redis.link.Placement`."""
        self._owner = owner_of(None)
        try:
            self.nodes.refresh(deadline)
            self._begin(self.commands, _tags()[0])
            self.commands.pipeline.call(PING, deadline.renewed())
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

    def shards(self, fanout: Fanout) -> Shards | None:
        """Return the subscriptions to shard channels; None: there are to be none."""
        if self._options.fanout_sharding == "off":
            return None
        return Shards(self.commands, self.nodes, self._shard_channel, fanout)

    def _shard_channel(self, exchange: str) -> bytes:
        return self.of(exchange).commands.keys.shard_channel(exchange)

    # -- partitions

    def partition(self, tag: str) -> Partition:
        """Return the partition of a tag.  Never switches."""
        found = self._partitions.get(tag)
        if found is None:
            found = Partition(self._link, Keys(self._options, 0, tag))
            slot = self._begin(found.commands, tag)
            if self.commands.lost is not None:
                found.commands.lost = self.commands.lost
                slot.close()
            self._partitions[tag] = found  # last: a signal before leaves none that has not begun
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
            found.invalidations.forget()
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
        link.consuming.announce(partition)

    # -- sockets

    def drain(self, deadline: Deadline) -> None:
        """Wait until the sockets have taken what was sent.  May switch."""
        for each in list(self._slots):
            each.drain(deadline)

    def pipelines(self) -> Collection[Pipeline]:
        """Return the open sockets to nodes.  Never switches."""
        return self.nodes.pipelines()

    def leave(self) -> None:
        """See :class:`~greenconn.transport.redis.link.Placement`."""
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
                each.invalidations.forget()
            return
        start = len(self._options.global_keyprefix.encode()) + 1
        for key in push[1]:
            found = self._partitions.get(
                key[start : key.find(b"}", start)].decode("utf-8", "replace")
            )
            if found is not None:
                found.invalidations.take([push[0], [key]])


class _Passing:
    """A sending side that never waits: each partition has one that does."""

    must_wait = False

    def before_flush(self, callback: object) -> None:
        """Not used: publishers leave at once."""
        raise NotImplementedError


_PASSING: Final = _Passing()


class Copy:
    """The receiver of the outcome of one copy of a message.

    Arguments:
        take: gets it.
        done: gets the outcome of all copies.
    """

    __slots__ = ("_done", "_take")

    def __init__(self, take: Callable[[Any], object], done: Completion) -> None:
        self._take = take
        self._done = done

    @property
    def has_left(self) -> bool:
        """Whether the message is not to be stored any more."""
        return self._done.has_left

    def offer(self, value: Any) -> bool:
        """Take the outcome.  In the reader."""
        self._take(value)
        return True


class Divided(Routed):
    """Commands that store one message in queues of several partitions.

    Arguments:
        names: the queue or exchange of each command.
        partitions: of the link.
    """

    __slots__ = ("_names", "_partitions")

    def __init__(
        self,
        pipeline: CommandPipeline,
        commands: list[bytes],
        queues: list[str],
        may_end: bool,
        names: Sequence[str],
        partitions: ClusterPlacement,
    ) -> None:
        super().__init__(pipeline, commands, queues, may_end)
        self._names = names
        self._partitions = partitions

    def _send(self, take: Callable[[Any], object], done: Completion) -> None:
        for name, command in zip(self._names, self.commands, strict=True):
            self._partitions.post_stored(name, command, Copy(take, done))


class ClusterPublisher(RedisPublisher):
    """The publisher of one channel.

    Arguments:
        channel: is closed by what the broker refuses.
        link: has the parts that all its channels share.
        partitions: of the link.
    """

    def __init__(
        self, channel: StoreChannel[Any], link: RedisLink, partitions: ClusterPlacement
    ) -> None:
        super().__init__(channel, link)
        self._partitions = partitions
        self._writer = _PASSING

    def _pipeline_of(self, name: str) -> CommandPipeline:
        return self._partitions.of(name).commands.pipeline

    def _keys_of(self, queue: str) -> Keys:
        return self._partitions.of(queue).commands.keys

    def _target(
        self,
        message: Outgoing | dict[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline | None,
    ) -> bytes | Routed | None:
        if not exchange:
            self._wait_writable(self._pipeline_of(routing_key), deadline)
        return super()._target(message, exchange, routing_key, mandatory, deadline)

    def _wait_writable(self, pipeline: CommandPipeline, deadline: Deadline | None) -> None:
        if pipeline.writer.must_wait:
            pipeline.wait_writable(deadline or ENDLESS)

    def _put(
        self,
        target: bytes | Routed,
        queue: str,
        done: Completion,
        deadline: Deadline | None,
    ) -> None:
        if isinstance(target, bytes):
            self._partitions.post_stored(queue, target, done)
            self._pushed(queue)
        else:
            super()._put(target, queue, done, deadline)

    def _placed(
        self, copies: list[tuple[str, bytes]], size: int, lists: list[str], may_end: bool
    ) -> Routed:
        names = [name if (topic := topic_of(name)) is None else topic[0] for name, _ in copies]
        for each in dict.fromkeys(map(self._pipeline_of, names)):
            self._wait_writable(each, None)
        commands = [command for _, command in copies]
        return Divided(self._pipeline, commands, lists, may_end, names, self._partitions)


class _Parts:
    """The outcome of one call that was divided among partitions.

    Arguments:
        count: parts.
        complete: called when the last of them is there.  Never switches.

    Attributes:
        outcome: None, a number, a list, or an Exception.
    """

    def __init__(self, count: int, complete: Callable[[], object]) -> None:
        self._left = count
        self._complete = complete
        self.outcome: Any = None

    def note(self, outcome: Any) -> None:
        """Take the outcome of one part.  Never switches."""
        self._left -= 1
        if isinstance(outcome, Exception):
            self.outcome = outcome
        elif outcome is not None and not isinstance(self.outcome, Exception):
            self.outcome = outcome + self.outcome if self.outcome else outcome
        if not self._left:
            self._complete()


class ClusterSettler:
    """See :class:`~greenconn.broker.settlements.PipelinedSettler`.

    Arguments:
        partitions: of the link.
        link: ends where the outcome of something is unknown.
    """

    outlives_link = True

    def __init__(self, partitions: ClusterPlacement, link: RedisLink) -> None:
        self._partitions = partitions
        self._link = link

    @property
    def lease(self) -> float:
        """Seconds that a message is held without renewal."""
        return self._link.options.lease

    @property
    def renewal_interval(self) -> float:
        """Seconds between two renewals."""
        options = self._link.options
        return min(options.lease / 3, options.visibility_timeout / 4)

    def _divided(self, handles: Iterable[str]) -> dict[Partition, list[str]]:
        found: dict[Partition, list[str]] = {}
        for each in handles:
            found.setdefault(self._partitions.of_handle(each), []).append(each)
        return found

    def parts(self, requests: Sequence[SettleRequest]) -> Iterable[Sequence[SettleRequest]]:
        """Cut what one turn has brought into what one call of a script takes."""
        divided: dict[Partition, list[SettleRequest]] = {}
        for each in requests:
            partition = self._partitions.of_handle(each.message.handle)
            divided.setdefault(partition, []).append(each)
        for partition, own in divided.items():
            yield from partition.settler.parts(own)

    def settle(self, requests: Sequence[SettleRequest], done: Done) -> None:
        """Put messages where they belong now, and wake those who wait for them.  Never switches."""
        partition = self._partitions.of_handle(requests[0].message.handle)
        local, elsewhere = [], []
        for each in requests:
            entries, others = self._split(partition, each.entries)
            local.append(replace(each, entries=entries) if others else each)
            elsewhere += [(each.message.raw, entry) for entry in others]
        if not elsewhere:
            partition.settler.settle(requests, done)
            return

        def stored() -> None:
            # In the reader.
            if isinstance(parts.outcome, Exception):
                done(parts.outcome)
            else:
                partition.settler.settle(local, done)

        parts = _Parts(len(elsewhere), stored)
        for raw, entry in elsewhere:
            commands = self._of(entry).commands
            for command in copies_of(commands.keys, raw, [entry]):
                commands.pipeline.post(
                    command,
                    lambda reply: parts.note(reply if isinstance(reply, Exception) else None),
                )

    def _of(self, entry: Entry) -> Partition:
        """Return the partition that stores a copy."""
        topic = topic_of(entry.queue)
        return self._partitions.of(entry.queue if topic is None else topic[0])

    def _split(
        self, partition: Partition, entries: Sequence[Entry]
    ) -> tuple[list[Entry], list[Entry]]:
        """Return the entries that belong to a partition, and the others."""
        local = [each for each in entries if self._of(each) is partition]
        return local, [each for each in entries if self._of(each) is not partition]

    def local_entries(
        self, partition: Partition, raw: bytes, entries: Sequence[Entry]
    ) -> Sequence[Entry]:
        """Store what belongs to other partitions, and return the rest.  May switch."""
        local, others = self._split(partition, entries)
        asked = []
        for each in others:
            commands = self._of(each).commands
            asked += [(commands, command) for command in copies_of(commands.keys, raw, [each])]
        call_together(asked, "storing dead letters")
        return local

    def return_unheld(self, delivery: Delivery) -> None:
        """Requeue a delivery that the server does not hold for us.  Never switches."""
        self._partitions.of(delivery.queue).settler.return_unheld(delivery)

    def unread(self, message: HeldMessage) -> Envelope:
        """Return an empty envelope: a message that cannot be read is moved as it is."""
        return {}

    def postpone(self, message: HeldMessage) -> None:
        """Leave a message held, until the lease is renewed."""

    def renew(self, handles: Sequence[Any], done: Done) -> None:
        """Begin the leases of these messages anew.  Never switches."""
        divided = self._divided(handles)
        for each in self._partitions.partitions():
            if each.is_kept_alive:
                divided.setdefault(each, [])
        if not divided:
            done(None)
            return
        parts = _Parts(len(divided), lambda: done(parts.outcome))
        for partition, own in divided.items():
            partition.settler.renew(own, parts.note)

    def unconfirmed_claims(self) -> Iterable[HeldMessage]:
        """Return what claims may have taken whose answers never came.  Never switches."""
        return [
            each
            for partition in self._partitions.partitions()
            for each in partition.settler.unconfirmed_claims()
        ]

    def reclaim(
        self,
        held: Sequence[HeldMessage],
        unhandled: Sequence[HeldMessage],
        unconfirmed: Sequence[HeldMessage],
    ) -> None:
        """Requeue what former lives held, and what they may have.  May switch."""
        divided: dict[Partition, tuple[list[HeldMessage], ...]] = {}
        for place, messages in enumerate((held, unhandled, unconfirmed)):
            for each in messages:
                partition = self._partitions.of_handle(each.handle)
                divided.setdefault(partition, ([], [], []))[place].append(each)
        for partition, parts in divided.items():
            partition.settler.reclaim(*parts)

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* when all that can run now has run.  Never switches."""
        get_hub().loop.run_callback(callback)

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return the exception for a reply that is one.  Never switches."""
        return self._partitions.commands.pipeline.error(outcome, what)

    def interrupted(self, exc: BaseException) -> None:
        """End the link, since the outcome of what was sent is unknown.  Never switches."""
        self._partitions.commands.pipeline.interrupted(exc)
