"""One life of a connection to a Redis server: one socket for commands, shared by all channels.

The link makes its parts and lets them know each other.  What nearly all of them use is in
:class:`~greenconn.transport.redis.commands.Commands`; each has, beside that, just those that it needs.
Two more sockets are opened when they are needed: one for fan-out, one for bodies above 1 MiB.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

from greenconn.broker.channel import StoreChannel
from greenconn.broker.dead_letters import dead_letter_entries
from greenconn.broker.directory import Directory
from greenconn.broker.handover import Handover
from greenconn.broker.leased_link import LeasedLink
from greenconn.broker.leases import Leases
from greenconn.broker.port import Entry
from greenconn.broker.queue_port import KnownQueues
from greenconn.broker.routing import Routing
from greenconn.broker.settlements import Settlements
from greenconn.broker.subscriptions import StoreSubscriptions
from greenconn.broker.topology import DirectTopology, Topology
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from greenconn.transport.redis.claiming import Claims, RedisFeed, RedisSource
from greenconn.transport.redis.client import Clients
from greenconn.transport.redis.commands import PING, Commands
from greenconn.transport.redis.envelope import Delivery
from greenconn.transport.redis.errors import LinkLost
from greenconn.transport.redis.fanout import BroadcastRouter, Fanout, router_of, topic_of
from greenconn.transport.redis.keys import Keys
from greenconn.transport.redis.maintenance import Expiry, Sweeper
from greenconn.transport.redis.options import RedisOptions
from greenconn.transport.redis.owners import FormerOwners, Owners, owner_of
from greenconn.transport.redis.pipeline import Pipeline
from greenconn.transport.redis.publishing import LargeBodies, RedisPublisher
from greenconn.transport.redis.queues import RedisQueues
from greenconn.transport.redis.server import Reauthentication, Server, check_eviction
from greenconn.transport.redis.settling import Requeuer
from greenconn.transport.redis.store import RedisConsuming, RedisSettler
from greenconn.transport.redis.topology import RedisTopology
from greenconn.transport.redis.waking import Waking
from greenconn.transport.redis.window import UnreportedPublishes, WindowPublisher
from greenconn.transport.virtual.exchange import STANDARD_EXCHANGE_TYPES, Router
from greenconn.transport.virtual.link import ForkHandler
from greenconn.transport.virtual.publishing import Envelope
from greenconn.transport.virtual.state import BrokerState
from greenconn.wire.resp import pack

__all__ = ["MasterWatch", "RedisLink"]

logger = logging.getLogger("greenconn.transport.redis")

T = TypeVar("T")


class MasterWatch(Protocol):
    """Watches whether a server is still the one that is meant."""

    def stop(self) -> None:
        """End.  Never switches."""

    def forget(self) -> None:
        """Leave it to the parent process, in the child of a fork."""


class LinkTransport(Protocol):
    """The transport that opens links: what all lives of a connection share.

    Attributes:
        changing_credentials: the login may be another one when it is asked again.
        former: the former lives at the same place.
        handover: what they have left.
        server: where the next link is opened.
        state: the exchanges and bindings as this connection knows them.
        unreported: the outcomes of publishes that were not waited for.
    """

    client: Any
    keys: Keys
    server: Server

    @property
    def options(self) -> RedisOptions: ...
    @property
    def state(self) -> BrokerState: ...
    @property
    def handover(self) -> Handover: ...
    @property
    def former(self) -> FormerOwners: ...
    @property
    def unreported(self) -> UnreportedPublishes: ...
    @property
    def changing_credentials(self) -> bool: ...

    def watch_master(
        self, commands: Commands, end: Callable[[BaseException], None]
    ) -> MasterWatch | None:
        """Return what watches whether the server is still the one that is meant; None: nothing."""


class RedisLink(LeasedLink):
    """A connection from its opening to its end.

    Arguments:
        transport: has address, login, options and the exchanges.

    Attributes:
        commands: the socket that its parts share.
        feeds: queue -> what serves its consumers.
        owner: the unique name under which this life holds messages.  Known when it is open.
        records: the exchanges and bindings in the server.
    """

    options: RedisOptions
    subscriptions: StoreSubscriptions[Delivery, RedisSource]
    close_timeout: ClassVar[float | None] = 2.0

    def __init__(self, transport: LinkTransport) -> None:
        where = transport.server.address.where
        super().__init__(transport.client, where, transport.options, transport.handover)
        self.transport = transport
        self.state = transport.state
        self.owner = ""
        self.feeds: dict[str, RedisFeed] = {}
        server, feeds = transport.server, self.feeds
        self.commands = commands = Commands(
            self.where, transport.keys, self.options, self._before_call
        )
        self.owners = owners = Owners(commands, self._count_time)
        self.records = RedisTopology(self)
        self.topology: Topology = DirectTopology(self.records)
        self.routing: Routing = Routing(self, checks_queues=True)
        self.fanout = Fanout(commands, server, self.state, feeds, transport.former.gap)
        self.large = LargeBodies(commands, server)
        known = KnownQueues()
        self.queues = queues = RedisQueues(self, known, commands, owners, feeds)
        self.directory = Directory(self, queues, known, self.options.delivery_limit)
        dead_letters = partial(dead_letter_entries, self)
        requeuer = Requeuer(commands, self.directory, self.bound_queues, dead_letters)
        self.claims = Claims(commands, owners, self.keep_alive)
        self.expiry = Expiry(commands, self.claims, requeuer)
        self.sweeper = Sweeper(commands, owners, queues, requeuer, self.expiry)
        self.settler = RedisSettler(
            commands, owners, self.claims, self.directory, queues, requeuer, feeds
        )
        self.settlements = Settlements(self)
        self.leases = Leases(self)
        self.waking = Waking(commands, queues.changed)
        consuming = RedisConsuming(
            commands,
            self.claims,
            self.settlements,
            self.directory,
            queues,
            self.fanout,
            self.waking,
            feeds,
        )
        self.subscriptions = StoreSubscriptions(consuming)
        self.clients = Clients(commands, server, partial(self.hub_affinity.check, self))
        self.reauthentication = Reauthentication(
            commands, server.login.credentials, self.other_pipelines
        )
        self._master: MasterWatch | None = None

    def open(self, deadline: Deadline) -> None:
        """Connect and log in.  May switch.  Whatever goes wrong, nothing stays open.

        Raises:
            Exception: see :func:`~greenconn.transport.redis.server.open_pipeline`.
        """
        transport, commands = self.transport, self.commands
        pipeline, welcome = transport.server.open(deadline, self._on_push, self._on_pipeline_lost)
        self.owner = owner_of(welcome.client_id)
        try:
            commands.begin(pipeline, welcome.protocol, self.owner)
            check_eviction(pipeline)
            pipeline.call(PING, deadline)
            commands.watch(pipeline)
            self._master = transport.watch_master(commands, self.end)
            if transport.changing_credentials:
                self.reauthentication.watch()
            self._after_fork = ForkHandler(self)
        except BaseException:
            pipeline.close()
            raise

    # What its parts ask of it

    def _before_call(self) -> None:
        self.settlements.before_call()

    def _count_time(self) -> None:
        self.sweeper.start()

    def other_pipelines(self) -> list[Pipeline]:
        """Return the open sockets beside that for commands.  Never switches."""
        found = (self.fanout.socket.pipeline, self.large.socket.pipeline)
        return [each for each in found if each is not None and each.lost is None]

    def wait_dead_letters(self, deadline: Deadline) -> None:
        """Wait until dead letters are stored.  May switch."""
        self.settlements.wait_routed(deadline)

    def queue_expires_messages(self, name: str, seconds: float) -> None:
        """See that messages of a queue expire after so long.  Never switches."""
        self.expiry.watch(name, seconds)

    def queue_used(self, name: str, expires_ms: int) -> None:
        """Renew what goes with a queue that expires so long after its last use.  Never switches."""
        self.records.keep(name, expires_ms)

    def queue_ended(self, name: str, exchanges: Iterable[str]) -> None:
        """End what goes with a queue that is gone, as *exchanges* do that it leaves unbound.

        May switch.
        """
        self.directory.ended(name)
        self.expiry.forget(name)
        self.fanout.leave(name)
        self.records.ended(name)
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
        is_known, field = self.queues.is_known_to_exist, self.records.bound_field
        doubtful = {
            each: [field(*binding) for binding in self.routing.rows_to(each)]
            for each in queues
            if not is_known(each) and topic_of(each) is None
        }
        if not doubtful:
            return queues
        there = self.queues.existing(doubtful)
        return [each for each in queues if each not in doubtful or each in there]

    def bound_queues(self, exchange: str, routing_key: str) -> Sequence[str]:
        """Return the queues that an exchange leads to by its table alone, fan-out too.  May switch."""
        known = self.routing.learn(exchange)
        if known is None:
            return ()
        kind = STANDARD_EXCHANGE_TYPES["fanout" if known.type == "headers" else known.type](None)
        queues = sorted(kind.lookup(self.records.table(exchange), exchange, routing_key, None))
        return self.existing(queues) or queues

    # Consuming and publishing

    def keep_alive(self) -> None:
        """See that others know this owner as living from now on.  Never switches."""
        if not self.leases.is_renewing:
            self.leases.start()
            self.leases.renew()
            self.sweeper.start()

    def entries(self, envelope: Envelope, queues: Sequence[str]) -> list[Entry]:
        """Return a message on its way into *queues*."""
        return [Entry(queue, envelope) for queue in queues]

    def failed(self, exc: BaseException, what: str) -> None:
        """Log that a call to the server failed.  Never switches."""
        if self.lost is None:
            spawn("log", logger.error, "%s: %s failed: %s", self.where, what, exc)

    def publisher(self, channel: StoreChannel[Any]) -> RedisPublisher:
        """Return what *channel* publishes with."""
        size = self.options.publish_window
        if size:
            return WindowPublisher(channel, self, size, self.transport.unreported)
        return RedisPublisher(channel, self)

    def _wait_sent(self, deadline: Deadline) -> None:
        self.commands.pipeline.drain(deadline)

    def flush(self, deadline: Deadline) -> None:
        """Return when all is written, and publishes of a window are answered.  May switch.

        Raises:
            TimeoutError: the server took or answered too little before the deadline.
            Exception: what became of a publish.
        """
        self.hub_affinity.check(self)
        self.check_open()
        for channel in list(self.channels.values()):
            channel.flush(deadline.left())
        self.wait_settled(deadline)
        for pipeline in self.other_pipelines():
            pipeline.drain(deadline)
        unreported = self.transport.unreported
        if unreported.awaited:  # of channels that were closed; answers keep their order
            self.commands.pipeline.call(PING, deadline)
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
        self.directory.close()
        self.settlements.repeat()
        self.settlements.wait_routed()
        self.settlements.flush()
        if self.leases.is_renewing:
            self.leases.stop()
            self.commands.pipeline.post(pack("ZREM", self.commands.keys.owners, self.owner))
        self.commands.pipeline.call(PING)

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life.  Never switches."""
        if self.lost is not None:
            return
        is_leased = self.leases.is_renewing
        self.transport.former.add(self.owner, self.fanout.queues, is_leased=is_leased)
        self.commands.lost = exc
        super().end(exc, closed=closed)
        if hasattr(self.commands, "pipeline"):
            self.settlements.flush()
            self.commands.pipeline.close()

    def forget(self, exc: BaseException) -> None:
        """Forget it in the child of a fork: the parent owns it."""
        self.commands.lost = exc
        super().forget(exc)
        self.commands.pipeline.forget()
        self.fanout.socket.forget()
        self.large.socket.forget()
        if self._master is not None:
            self._master.forget()
        self.feeds.clear()

    @staticmethod
    def _gone_error(exc: BaseException) -> LinkLost:
        return LinkLost(f"connection is closed ({exc})")

    def _stop(self, gone: BaseException) -> None:
        super()._stop(gone)
        self.sweeper.stop()
        self.expiry.stop()
        self.waking.stop()
        self.queues.stop()
        self.fanout.socket.stop()
        self.large.socket.stop()
        self.clients.stop()
        self.reauthentication.stop()
        if self._master is not None:
            self._master.stop()
        for feed in list(self.feeds.values()):
            feed.source.stop()
            feed.consumers.clear()

    # In the reader: nothing here may switch or run user code.

    def _on_push(self, push: list[Any]) -> None:
        if push[0] == b"invalidate":
            self.waking.invalidated(push[1])

    def _on_pipeline_lost(self, exc: LinkLost) -> None:
        self.end(exc)
