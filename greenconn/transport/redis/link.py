"""One life of a connection to a Redis server: one socket for commands, shared by all channels.

The link makes its parts and lets them know each other.  What nearly all of them use is in
:class:`~greenconn.transport.redis.pipeline.Commands`; each has, beside that, just those that it needs.
Two more sockets are opened when they are needed: one for fan-out, one for bodies above 1 MiB.

Partitions
----------
A script may touch several keys of one partition, and none of another one.  A single server has one
partition.  In a cluster there are many, and all keys of one are in one slot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from greenconn.broker.channel import Publisher, StoreChannel
from greenconn.broker.consuming import Consumer, StoreSubscriptions
from greenconn.broker.deliveries import Leases
from greenconn.broker.envelope import Envelope
from greenconn.broker.exchanges import (
    STANDARD_EXCHANGE_TYPES,
    Router,
    Routing,
)
from greenconn.broker.link import ForkHandler, LeasedLink
from greenconn.broker.port import Entry
from greenconn.broker.queues import Directory, KnownQueues
from greenconn.broker.settlements import PipelinedSettlements, PipelinedSettler, dead_letter_entries
from greenconn.exceptions import RecoverableConnectionError, error_text
from greenconn.green.deadline import NEVER, Deadline, TimeLimit
from greenconn.green.supervisor import spawn
from greenconn.transport.redis.claiming import (
    Claims,
    DueClaims,
    Invalidations,
    RedisConsuming,
    RedisFeed,
)
from greenconn.transport.redis.client import Clients
from greenconn.transport.redis.envelope import Delivery
from greenconn.transport.redis.errors import PASSING, LinkLost
from greenconn.transport.redis.fanout import (
    BroadcastRouter,
    Fanout,
    Shards,
    router_of,
    topic_of,
)
from greenconn.transport.redis.maintenance import Delays, Expiry, Owners, Sweeper, owner_of
from greenconn.transport.redis.options import Keys, RedisOptions
from greenconn.transport.redis.pipeline import PING, Commands, Pipeline, call_together
from greenconn.transport.redis.publishing import (
    LargeBodies,
    RedisPublisher,
    ReplicaConfirms,
    ReplicatedPublisher,
    UnreportedPublishes,
    WindowPublisher,
)
from greenconn.transport.redis.queues import RedisQueues, RedisTopology
from greenconn.transport.redis.server import Opener, Reauthentication, Server, check_eviction
from greenconn.transport.redis.settling import RedisSettler, Requeuer
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis import SwitchWatch, Transport


logger = logging.getLogger("greenconn.transport.redis")

T = TypeVar("T")


class RedisLink(LeasedLink):
    """A connection from its opening to its end.

    Arguments:
        transport: has address, login, options and the exchanges.

    Attributes:
        commands: for what concerns no key.
        expiring: queues that expire when they are not used, after so many milliseconds.
        feeds: queue -> what serves its consumers.
        known: the declarations of queues that were read.
        owner: the unique name under which this life holds messages.  Known when it is open.
        placement: the parts that talk to servers.
        topology: the exchanges and bindings in the server.
    """

    options: RedisOptions
    commands: Commands
    fanout: Fanout
    known: KnownQueues
    settlements: PipelinedSettlements
    subscriptions: StoreSubscriptions[RedisFeed]
    topology: RedisTopology
    close_timeout: ClassVar[float | None] = 2.0

    def __init__(self, transport: Transport) -> None:
        where = transport.server.address.where
        super().__init__(transport.client, where, transport.options, transport.handover)
        self.transport = transport
        self.state = transport.state
        self.owner = ""
        self.known = KnownQueues()
        self.feeds: dict[str, RedisFeed] = {}
        self.placement = placement = transport.placement(self)
        self.commands = commands = placement.commands
        self.topology = RedisTopology(self, placement.of, placement.partition)
        self.routing: Routing = Routing(self, checks_queues=True)
        server = placement.server
        self.fanout = Fanout(
            commands, server, self.state, self.feeds, transport.former.gap, placement.shards
        )
        self.large = LargeBodies(commands, server)
        self.queues = RedisQueues(self, self.known, self.feeds, placement.of)
        self.directory = Directory(self, self.queues, self.known, self.options.delivery_limit)
        self.settler = placement.settler
        self.settlements = PipelinedSettlements(self, placement.settler)
        self.leases = Leases(self)
        self.consuming = RedisConsuming(self, placement.of)
        self.subscriptions = StoreSubscriptions(self.consuming)
        check = partial(self.hub_affinity.check, self)
        self.clients = Clients(commands, transport.server, check)
        self.reauthentication = Reauthentication(
            commands, transport.server.login.credentials, self.other_pipelines
        )
        self._master: SwitchWatch | None = None

    def open(self, deadline: Deadline) -> None:
        """Connect and log in.  May switch.  Whatever goes wrong, nothing stays open.

        Raises:
            Exception: see :func:`~greenconn.transport.redis.server.open_pipeline`.
        """
        transport = self.transport
        try:
            self.owner = self.placement.open(deadline)
            self._master = transport.watch_master(self.commands, self.end)
            if transport.changing_credentials:
                self.reauthentication.watch()
            self._after_fork = ForkHandler(self)
        except BaseException as exc:
            lost = RecoverableConnectionError(
                f"opening the connection failed ({error_text(exc, repr)})"
            )
            self.end(lost, closed=True)
            raise

    # What its parts ask of it

    def before_call(self) -> None:
        """Send what must arrive before a call.  Never switches."""
        self.settlements.before_call()

    @property
    def unreported(self) -> UnreportedPublishes:
        """The outcomes of publishes that were not waited for."""
        return self.transport.unreported

    def other_pipelines(self) -> list[Pipeline]:
        """Return the open sockets beside that for commands.  Never switches."""
        found = (self.fanout.socket.pipeline, self.large.socket.pipeline)
        open_ones = [each for each in found if each is not None and each.lost is None]
        return [*self.placement.pipelines(), *open_ones]

    def dead_letters(self, partition: Partition, message: Delivery, reason: str) -> Sequence[Entry]:
        """Return the copies of a dead letter that belong to *partition*.  May switch.

        Those that belong to others are stored now.
        """
        entries = dead_letter_entries(self, message, reason)
        return self.placement.local_entries(partition, message.raw, entries)

    def sweep(self) -> int:
        """Requeue what dead consumers held, and return the number of messages.  May switch."""
        return sum(each.sweeper.sweep() for each in self.placement.partitions())

    def delays_of(self, queue: str) -> Delays:
        """Return what looks after the delayed messages of a queue.  Never switches."""
        return self.placement.of(queue).delays

    def queue_ended(self, name: str, exchanges: Iterable[str]) -> None:
        """End what goes with a queue that is gone, as *exchanges* do that it leaves unbound.

        May switch.
        """
        self.directory.ended(name)
        self.fanout.leave(name)
        self.state.queue_bindings_delete(name)
        self.topology.delete_unbound(exchanges)

    # Commands

    def ping(self) -> None:
        """Ask the server something.  May switch."""
        self.commands.call(PING)

    def check_open(self) -> None:
        """Raise unless open.

        Raises:
            LinkLost: with the reason as ``__cause__``.
        """
        self.commands.check_open()

    # Exchanges

    def ask(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``, which asks the server.  May switch."""
        return function(*args)

    def is_broadcast(self, exchange: str) -> bool:
        """Return whether messages to an exchange are published to a channel.  Never switches."""
        known = self.state.exchanges.get(exchange)
        return known is not None and isinstance(known.router, BroadcastRouter)

    def router_of(self, exchange: str, type: str) -> Callable[[], Router] | None:
        """Return what makes the router of an exchange; None: the usual one of its type."""
        return router_of(self.options, exchange, type)

    def existing(self, queues: Sequence[str]) -> Sequence[str]:
        """Return those of *queues* that exist, and what stands for channels.  May switch."""
        is_known, field = self.queues.is_known_to_exist, self.topology.bound_field
        unknown = {
            each: [field(*binding) for binding in self.routing.rows_to(each)]
            for each in queues
            if not is_known(each) and topic_of(each) is None
        }
        if not unknown:
            return queues
        there = self.queues.existing(unknown)
        return [each for each in queues if each not in unknown or each in there]

    def bound_queues(self, exchange: str, routing_key: str) -> Sequence[str]:
        """Return the queues that an exchange leads to by its table alone, fan-out too.  May switch."""
        known = self.routing.learn(exchange)
        if known is None:
            return ()
        kind = STANDARD_EXCHANGE_TYPES["fanout" if known.type == "headers" else known.type](None)
        queues = sorted(kind.lookup(self.topology.table(exchange), exchange, routing_key, None))
        return self.existing(queues) or queues

    # Consuming and publishing

    def keep_alive(self) -> None:
        """See that others know this owner as living from now on.  Never switches."""
        self.leases.start()
        self.leases.renew()

    def entries(self, envelope: Envelope, queues: Sequence[str]) -> list[Entry]:
        """Return a message on its way into *queues*."""
        return [Entry(queue, envelope) for queue in queues]

    def failed(self, exc: BaseException, what: str) -> None:
        """Log that a call to the server failed.  Never switches."""
        if self.lost is None:
            spawn(
                "log",
                logger.error,
                "%s: %s failed: %s",
                self.where,
                what,
                exc,
                extra={"connection": self.where},
            )

    def publisher(self, channel: StoreChannel[Any]) -> Publisher[Any]:
        """Return what *channel* publishes with."""
        return self.placement.publisher(channel)

    def flush_settlements(self, deadline: Deadline) -> None:
        """Return when the server has carried out all acks and requeues.  May switch."""
        deadline = deadline.within(self.options.reply_timeout)
        super().flush_settlements(deadline)
        if self.lost is None and not self.settlements.is_answered:
            with TimeLimit(deadline, "settling messages"):
                call_together([(each.commands, PING) for each in self.placement.partitions()])

    def wait_claims_of(self, consumers: Iterable[Consumer]) -> None:
        """Wait for the claims of queues with a single active consumer.  May switch.

        What is claimed later than the others would go back to the head of its queue before them.
        """
        for consumer in consumers:
            feed: Any = consumer.feed
            if not feed.is_single_active:
                continue
            commands = self.placement.of(feed.queue).commands
            while feed.under_way() and commands.lost is None:
                commands.call(PING, NEVER)

    def wait_claims(self, deadline: Deadline) -> None:
        leaving = set(self.consuming.leaving)
        for partition in {self.placement.of(feed.queue) for feed in leaving}:
            partition.commands.call(PING, deadline)
        self.consuming.leaving -= leaving

    def _wait_sent(self, deadline: Deadline) -> None:
        self.settlements.flush()
        self.placement.drain(deadline)

    def flush(self, deadline: Deadline) -> None:
        """Return when all is written, and acks, requeues and publishes of a window are answered.

        May switch.

        Raises:
            TimeoutError: the server took or answered too little before the deadline.
            Exception: what became of a publish.
        """
        self.hub_affinity.check(self)
        self.check_open()
        for channel in list(self.channels.values()):
            channel.flush(deadline.left())
        self.flush_settlements(deadline)
        for pipeline in self.other_pipelines():
            pipeline.drain(deadline)
        unreported = self.transport.unreported
        unreported.wait(deadline)  # those of channels that were closed
        failures = unreported.failures.take()
        if failures:
            raise failures.error(self.commands.pipeline)
        self.check_open()

    # Ending

    def close(self) -> None:
        """Requeue all unacknowledged messages and close the link.  May switch."""
        if self.lost is not None:
            return
        self.hub_affinity.check(self)
        self.transport.unreported.hold()
        try:
            super().close()
        finally:
            self.transport.unreported.log()

    def _take_leave(self) -> None:
        # What these take goes back before the queues end that are this link's own, and others look.
        self.wait_claims(NEVER)
        self.directory.close()
        self.settlements.repeat()
        self.settlements.wait_routed()
        self.settlements.flush()
        self.leases.stop()
        self.placement.leave()

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life.  Never switches."""
        if self.lost is not None:
            return
        partitions = self.placement.partitions()
        leased = [each.tag for each in partitions if each.is_kept_alive]
        self.transport.former.add(self.owner, self.fanout.queues, leased)
        self._note_lost(exc)
        super().end(exc, closed=closed)
        if self.commands.is_begun:
            self.settlements.flush()
            self.placement.close()

    def forget(self, exc: BaseException) -> None:
        """Forget it in the child of a fork: the parent owns it."""
        self._note_lost(exc)
        super().forget(exc)
        self.placement.forget()
        self.fanout.forget()
        self.large.socket.forget()
        if self._master is not None:
            self._master.forget()

    @staticmethod
    def _gone_error(exc: BaseException) -> LinkLost:
        return LinkLost(f"connection is closed ({exc})")

    def _stop(self, gone: BaseException) -> None:
        super()._stop(gone)
        for partition in self.placement.partitions():
            partition.stop()
        self.queues.stop()
        for feed in list(self.feeds.values()):
            feed.stop()
            feed.consumers.clear()
        self.fanout.stop()
        self.large.socket.stop()
        self.clients.stop()
        self.reauthentication.stop()
        if self._master is not None:
            self._master.stop()

    def _note_lost(self, exc: BaseException) -> None:
        self.commands.lost = exc
        for partition in self.placement.partitions():
            partition.commands.lost = exc


class Partition:
    """The parts of one link that talk about the queues of one partition.

    Arguments:
        link: whose partition it is.
        keys: the names of its keys.

    Attributes:
        commands: the way to the server.
        feeds: queue -> what serves its consumers.
        tag: what distinguishes it from others; empty where there is but one.
        is_kept_alive: the lease of this link is renewed here.
        owners: those who hold messages and queues here.
        queues: its queues.
    """

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self._link = link
        self.tag = keys.tag
        self.is_kept_alive = False
        #: The lease had ended, and the consumers are to be registered again.
        self._is_forgotten = False
        self.commands = Commands(link.where, keys, link.options, link.before_call)
        self.owners = Owners(self.commands, self._count_time)

    # The rest needs what the link makes of these.

    @cached_property
    def requeuer(self) -> Requeuer:
        """The requeueing of messages that dead consumers held."""
        link = self._link
        return Requeuer(self.commands, link.directory, link.bound_queues, self._dead_letters)

    @cached_property
    def claims(self) -> Claims:
        """The claims that are no feed's."""
        return Claims(self.commands, self.owners, self.keep_alive)

    @cached_property
    def expiry(self) -> Expiry:
        """The queues whose messages expire."""
        return Expiry(self.commands, self.claims, self.requeuer)

    @cached_property
    def sweeper(self) -> Sweeper:
        """The search for dead consumers."""
        parts = self._link.queues, self.requeuer, self.expiry, self.delays
        return Sweeper(self.commands, self.owners, *parts)

    @cached_property
    def delays(self) -> Delays:
        """The messages that are delayed."""
        return Delays(self.commands)

    @cached_property
    def settler(self) -> RedisSettler:
        """The commands about messages that are held here."""
        return RedisSettler(
            self.commands,
            self.owners,
            self.claims,
            self._link.queues,
            self.requeuer,
            self.delays,
            self._link.feeds,
            self._renewed,
        )

    @cached_property
    def invalidations(self) -> Invalidations:
        """The hints that there are messages."""
        return Invalidations(self.commands, self._changed)

    @cached_property
    def due(self) -> DueClaims:
        """The claims that leave when the turn ends."""
        return DueClaims()

    def _dead_letters(self, message: Delivery, reason: str) -> Sequence[Entry]:
        return self._link.dead_letters(self, message, reason)

    def _count_time(self) -> None:
        self.sweeper.start()

    def keep_alive(self) -> None:
        """See that others know this owner as living from now on.  Never switches."""
        if not self.is_kept_alive:
            self.is_kept_alive = True
            self._link.keep_alive()
            self.sweeper.start()

    # In the reader.

    def _changed(self, key: bytes | None) -> None:
        """Note that a key has changed, or that all may have.  Never switches."""
        is_delayed = key == self.commands.keys.delayed
        if is_delayed or key is None:
            self.delays.changed()
        if not is_delayed:
            self._link.topology.changed(self.commands.keys, key)
            self._link.queues.changed(self.commands.keys, key)

    def _renewed(self, had_ended: bool) -> None:
        """Register the consumers again where others took this link for dead.  Never switches."""
        link = self._link
        if had_ended and any(
            feed.consumers and link.placement.of(queue) is self
            for queue, feed in link.feeds.items()
        ):
            self._is_forgotten = True
        if self._is_forgotten:
            self._is_forgotten = False
            spawn("redis-announce", self._announce)

    def _announce(self) -> None:
        try:
            self._link.consuming.announce(self)
        except PASSING as exc:
            if self.commands.lost is not None:
                return
            self._is_forgotten = True  # until the next renewal
            logger.error(
                "%s: the lease had ended, and consumers cannot be registered again: %s",
                self.commands.where,
                exc,
                extra={"connection": self.commands.where},
            )

    # Ending

    def leave(self) -> None:
        """Say that this owner has ended, as it holds nothing any more.  Never switches."""
        if self.is_kept_alive:
            commands = self.commands
            commands.pipeline.post(pack(b"ZREM", commands.keys.owners, commands.owner))

    def stop(self) -> None:
        """End what goes by a clock.  Never switches."""
        self.sweeper.stop()
        self.expiry.stop()
        self.delays.stop()
        self.invalidations.stop()


class Placement(Protocol):
    """The parts of one link that talk to servers.

    Attributes:
        commands: for what concerns no key.
        server: opens further sockets.
    """

    @property
    def commands(self) -> Commands: ...
    @property
    def server(self) -> Opener: ...
    @property
    def settler(self) -> PipelinedSettler: ...

    def open(self, deadline: Deadline) -> str:
        """Connect and log in, and return the name of the owner.  May switch.

        Whatever goes wrong, nothing stays open.

        Raises:
            Exception: see :func:`~greenconn.transport.redis.server.open_pipeline`.
        """

    def publisher(self, channel: StoreChannel[Any]) -> Publisher[Any]:
        """Return what *channel* publishes with."""

    def shards(self, fanout: Fanout) -> Shards | None:
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

    @property
    def settler(self) -> PipelinedSettler:
        """The commands about messages that are held."""
        return self.whole.settler

    def open(self, deadline: Deadline) -> str:
        """See :class:`Placement`."""
        commands = self.commands
        take = self.whole.invalidations.take
        pipeline, welcome = self.server.open(deadline, take, self._on_lost)
        owner = owner_of(welcome.client_id)
        try:
            commands.begin(pipeline, welcome.protocol, owner)
            check_eviction(pipeline)
            pipeline.call(PING, deadline.renewed())
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

    def shards(self, fanout: Fanout) -> Shards | None:
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

    def _on_lost(self, exc: LinkLost) -> None:
        self._link.end(exc)
