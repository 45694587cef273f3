"""One partition of the keys of a link: queues, and all that is kept for them, under one prefix.

A script may touch several keys of one partition, and none of another one.  A single server has one
partition.  In a cluster there are many, and all keys of one are in one slot.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from greenconn.broker.directory import Directory
from greenconn.broker.port import Entry
from greenconn.broker.routing import Routing
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from greenconn.transport.redis.claiming import Claims, RedisFeed
from greenconn.transport.redis.commands import PING, Commands
from greenconn.transport.redis.delays import Delays
from greenconn.transport.redis.envelope import Delivery
from greenconn.transport.redis.errors import PASSING
from greenconn.transport.redis.invalidations import Invalidations
from greenconn.transport.redis.keys import Keys
from greenconn.transport.redis.maintenance import Expiry, Sweeper
from greenconn.transport.redis.owners import Owners
from greenconn.transport.redis.queues import RedisQueues
from greenconn.transport.redis.settling import Requeuer
from greenconn.transport.redis.store import RedisConsuming, RedisSettler
from greenconn.transport.redis.topology import RedisTopology
from greenconn.transport.virtual.state import BrokerState
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink


logger = logging.getLogger("greenconn.transport.redis")


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
        records: its bindings.
    """

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self._link = link
        self.tag = keys.tag
        self.is_kept_alive = False
        #: The lease had ended, and the consumers are to be registered again.
        self._is_forgotten = False
        self.feeds: dict[str, RedisFeed] = {}
        self.commands = Commands(link.where, keys, link.options, link.before_call)
        self.owners = Owners(self.commands, self._count_time)
        self.queues = RedisQueues(
            self, link.known, self.commands, self.owners, self.feeds, link.expiring
        )
        self.records = RedisTopology(self)

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
        parts = self.queues, self.requeuer, self.expiry, self.delays
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
            self.queues,
            self.requeuer,
            self.delays,
            self.feeds,
            self._renewed,
        )

    @cached_property
    def invalidations(self) -> Invalidations:
        """The hints that there are messages."""
        return Invalidations(self.commands, self._changed)

    @cached_property
    def consuming(self) -> RedisConsuming:
        """The commands about queues that are consumed."""
        link = self._link
        return RedisConsuming(
            self.commands,
            self.claims,
            link.settlements,
            link.directory,
            self.queues,
            link.fanout,
            self.invalidations,
            self.feeds,
        )

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
            self.queues.changed(key)

    def _renewed(self, had_ended: bool) -> None:
        """Register the consumers again where others took this link for dead.  Never switches."""
        if had_ended and any(feed.consumers for feed in self.feeds.values()):
            self._is_forgotten = True
        if self._is_forgotten:
            self._is_forgotten = False
            spawn("redis-announce", self._announce)

    def _announce(self) -> None:
        try:
            self.consuming.announce()
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

    # See :class:`~greenconn.transport.redis.topology.TopologyLink`

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings that the connection knows."""
        return self._link.state

    @property
    def routing(self) -> Routing:
        """The routes of the link."""
        return self._link.routing

    @property
    def directory(self) -> Directory:
        """The queues of the link."""
        return self._link.directory

    def is_broadcast(self, exchange: str) -> bool:
        """Return whether messages to an exchange are published to a channel.  Never switches."""
        return self._link.is_broadcast(exchange)

    # Asked for by its queues

    def wait_dead_letters(self, deadline: Deadline) -> None:
        """Wait until dead letters are stored.  May switch."""
        self._link.settlements.wait_routed(deadline)

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
        self.expiry.forget(name)
        self.records.ended(name)
        self._link.queue_ended(name, exchanges)

    # Ending

    def wait_claims(self, deadline: Deadline) -> None:
        """Wait until the claims of queues without consumers are answered.  May switch."""
        leaving = set(self.consuming.leaving)
        if leaving:
            self.commands.call(PING, deadline)
            self.consuming.leaving -= leaving

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
        self.queues.stop()
        for feed in list(self.feeds.values()):
            feed.source.stop()
            feed.consumers.clear()
