"""The links of channels that are made in this process, from their opening to their end.

A link whose broker holds messages requeues before its close what its channels hold.  What one that is
lost has left is handed over to the next life of the connection.

Also the transport over a store, and the options that all such transports have.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import gevent
from gevent import Greenlet, get_hub

from greenconn.broker.channel import Publisher, StoreChannel
from greenconn.broker.consuming import (
    STALE,
    Claimer,
    ConsumedFeed,
    Consumer,
    StoreConsuming,
    StoreDelivery,
    StoreFeed,
    StoreSubscriptions,
    Subscriptions,
)
from greenconn.broker.deliveries import Acknowledger, Handover, Leases
from greenconn.broker.entities import Management
from greenconn.broker.envelope import Envelope, TagMaker, head_of, level_of, lifetime_of
from greenconn.broker.exchanges import (
    PREDECLARED,
    BrokerState,
    Router,
    Routing,
    Topology,
    TopologyStore,
)
from greenconn.broker.port import Claimed, ConsumerRegistry, Entry, Store
from greenconn.broker.publishing import PutBatcher, StorePublisher
from greenconn.broker.queues import (
    Directory,
    KnownQueues,
    StoredQueues,
    new_owner,
    note_lost,
)
from greenconn.broker.settlements import MessageSettler, Settlements, StoreSettlements
from greenconn.checks import Record, check_count, check_seconds, check_type, invalid
from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    InconsistencyError,
    RecoverableChannelError,
    RecoverableConnectionError,
    ResourceError,
    error_text,
)
from greenconn.green.deadline import NEVER, Deadline, TimeLimit, is_thrown, marking_thrown
from greenconn.green.hub import PerHub, forget_at_fork
from greenconn.green.slot import Slot
from greenconn.green.supervisor import current, end_all, spawn
from greenconn.options import known_options, split_url
from greenconn.transport import base
from greenconn.transport.base import Link, open_links

if TYPE_CHECKING:
    from greenconn.broker.envelope import Delivery
    from greenconn.message import Message


logger = logging.getLogger("greenconn.broker")

T = TypeVar("T")

#: Channels that one link may have.
CHANNEL_MAX = 65535


class BrokerLink(Link):
    """A link that keeps its channels, and ends them when it ends.

    It belongs to the hub on which it was opened.

    Attributes:
        owner: the unique name that owns the exclusive queues of this life.
        feeds: queue -> what serves its consumers of this link.
        settlements: sends the acks, requeues and rejects of its channels.
        subscriptions: the queues that its channels consume from.
        topology: the exchanges and bindings that are shared with other processes; None: they are not.
        settling_may_fail: whether an ack, requeue or reject may switch, and raise.
    """

    channel_max = CHANNEL_MAX
    settling_may_fail: ClassVar[bool] = False
    owner: str
    state: BrokerState
    directory: Directory
    routing: Routing
    feeds: Mapping[str, ConsumedFeed]
    settlements: Acknowledger
    subscriptions: Subscriptions
    topology: TopologyStore | Topology | None

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.channels: dict[int, StoreChannel[Any]] = {}
        self._last_id = 0
        #: Channels that take no more messages until the next drain; see :meth:`recall`.
        self._undrained: set[StoreChannel[Any]] = set()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<{type(self).__name__}: {state}, {len(self.channels)} channels>"

    # -- what a transport writes

    def ask(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``, which asks the broker.  May switch.

        Arguments:
            what: for messages.
        """
        raise NotImplementedError

    def router_of(self, exchange: str, type: str) -> Callable[[], Router] | None:
        """Return what makes the router of an exchange; None: the usual one of its type."""
        return None

    def existing(self, queues: Sequence[str]) -> Sequence[str]:
        """Return those of *queues* that exist.  May switch where that is not known."""
        is_there = self.directory.is_there
        return [each for each in queues if is_there(each)]

    def publisher(self, channel: StoreChannel[Any]) -> Publisher[Any]:
        """Return the publisher of *channel*."""
        raise NotImplementedError

    def wait_settled(self, deadline: Deadline) -> None:
        """Return when the broker has all acks up to now, or they are on their way.  May switch.

        Raises:
            TimeoutError: not before the deadline, or within ``reply_timeout``.
            RecoverableConnectionError: the link is lost.
        """
        raise NotImplementedError

    def flush_acks(self) -> None:
        """Return when all acks and rejects are on their way.  May switch.

        After the loss of the connection this does nothing: the next life sends them.

        Raises:
            TimeoutError: the broker read too little within ``reply_timeout``.
        """
        if self.lost is None:
            self.hub_affinity.check(self)
            try:
                self.wait_settled(NEVER)
            except RecoverableConnectionError:
                pass

    # -- what its consumers have taken, and its program does not drain

    @property
    @abstractmethod
    def place(self) -> object:
        """The broker that this link leads to; two links to one broker have equal places."""

    def recall(self, queue: str) -> bool:
        """Requeue messages of a queue that this thread's connections do not drain.  May switch.

        A consumer takes messages before ``drain_events`` runs.  A program of kombu's may look for one of
        them by ``basic_get`` instead, over another connection: kombu takes it while it drains only.

        Returns:
            False: there were none.

        Raises:
            TimeoutError, RecoverableConnectionError: the broker does not have them yet.
        """
        hub, place = self.hub_affinity.hub, self.place
        links = [
            each
            for each in open_links()
            if isinstance(each, BrokerLink)
            and each.hub_affinity.hub is hub
            and each.is_open
            and each.place == place
            and each._give_back(queue)
        ]
        for link in links:
            link.flush_settlements(NEVER)
        return bool(links)

    def _give_back(self, queue: str) -> bool:
        """Requeue what is not drained of a queue, and take no more until the next drain."""
        recalled = False
        for channel in list(self.channels.values()):
            consumers = [
                each for each in channel.consumers.values() if each.queue == queue and each.backlog
            ]
            if consumers and channel.prefetch.is_flowing:
                channel.prefetch.is_flowing = False
                self._undrained.add(channel)
                for consumer in consumers:
                    recalled = channel.deliveries.recall(consumer) or recalled
        return recalled

    def _resume(self) -> None:
        """Let channels go on that took no more until this drain.  Never switches."""
        channels, self._undrained = self._undrained, set()
        for channel in channels:
            channel.flow(True)

    # -- its channels

    def take_channel_id(self, channel_id: int | None = None) -> int:
        """Return *channel_id*, or another number that is free, for a new channel.

        Raises:
            RecoverableConnectionError: the link is closed.
            ResourceError: it has as many channels as it may have.
            WrongHub: called from another thread.
        """
        self.hub_affinity.check(self)
        self.check_open()
        if len(self.channels) >= self.channel_max:
            raise ResourceError(f"all {self.channel_max} channels are in use", (20, 10))
        if channel_id is None:
            channel_id = self._last_id % self.channel_max + 1
            while channel_id in self.channels:
                channel_id = channel_id % self.channel_max + 1
            self._last_id = channel_id
        elif channel_id in self.channels:
            raise ConnectionError(f"channel {channel_id} is open already", (20, 10))
        return channel_id

    def remove_channel(self, channel: StoreChannel[Any]) -> None:
        """Forget a channel that ended."""
        self.channels.pop(channel.channel_id, None)
        self._undrained.discard(channel)

    def drain(self, timeout: float | Deadline | None) -> None:
        """Run the next event; those of consumers that are gone are dropped.  May switch."""
        if get_hub() is not self.hub_affinity.hub:
            self.hub_affinity.check(self)
        began_at = monotonic()
        while True:
            if self.lost is not None:
                self.check_open()
            if self._undrained:
                self._resume()
            function, argument = self.events.get(timeout)
            if function(argument) is not STALE:
                return
            if timeout is not None and not isinstance(timeout, Deadline):
                timeout = Deadline(timeout - (monotonic() - began_at))

    def forget(self, exc: BaseException) -> None:
        """Forget it, silently, in the child of a fork, as the parent owns it.  Never switches."""
        self.lost = exc
        self.events.clear()
        for channel in self.channels.values():
            channel.forget(exc)
        self.channels.clear()

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life: its channels end, and what they hold goes back.  Never switches."""
        if self.lost is not None:
            return
        super().end(exc, closed=closed)
        for channel in list(self.channels.values()):
            channel.end(exc)

    def interrupted(self, exc: BaseException) -> None:
        """End the link, as a step that never switches was left halfway.  Never switches.

        A signal whose handler raises does that, or a stack that is full.  What was delivered goes back,
        and the consumers begin anew.
        """
        lost = RecoverableConnectionError(f"a call was interrupted by {error_text(exc, repr)}")
        lost.__cause__ = exc
        self.end(lost)


class ForkHandler:
    """The end of a link in the child of a fork, as long as this object exists."""

    def __init__(self, link: BrokerLink) -> None:
        self._link = link
        forget_at_fork(self)

    def forget(self) -> None:
        """See :class:`greenconn.green.hub.ForkAware`."""
        self._link.forget(RecoverableConnectionError("the connection was opened before a fork"))


class LeasedLink(BrokerLink):
    """A link whose broker holds messages.

    Arguments:
        client: the connection's facade.
        where: the broker's URL with the password masked, for messages.
        options: of the transport.
        handover: gets what this life leaves, and the acks that come after it.

    Attributes:
        is_inherited: this process is a child of the one that opened it.
        leases: those of the messages that it holds.
        settler: sends the broker what becomes of them.
    """

    settler: MessageSettler
    settlements: Settlements
    leases: Leases
    #: Seconds that ``close`` waits for the broker.
    close_timeout: ClassVar[float | None]
    #: Errors with which a close is over all the same: what is held is requeued when the leases end.
    close_errors: tuple[type[BaseException], ...] = (OSError, RecoverableConnectionError)

    def __init__(self, client: Any, where: str, options: Any, handover: Handover) -> None:
        super().__init__(client)
        self.where = where
        self.options = options
        self.handover = handover
        self.is_inherited = False

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<connection {self.where} ({state}, {len(self.channels)} channels)>"

    @property
    def place(self) -> object:
        """The broker that this link leads to; two links to one broker have equal places."""
        return type(self), self.where

    # -- what it holds

    def held(self) -> Iterator[Delivery]:
        """Yield all that its channels hold.  Never switches."""
        for channel in list(self.channels.values()):
            if isinstance(channel, StoreChannel):
                yield from list(channel.deliveries.unacked.values())

    def note_late(self, count: int) -> None:
        """Note that so many messages were settled too late.  Never switches."""
        self.leases.note_late(count)

    def flush_settlements(self, deadline: Deadline) -> None:
        """Return when the broker has all acks and requeues.  May switch.

        A claim that is on its way may bring messages that no consumer takes any more: they are
        requeued, too.

        Raises:
            TimeoutError, RecoverableConnectionError: as :meth:`wait_settled`.
        """
        if self.lost is None:
            deadline = deadline.within(self.options.reply_timeout)
            self.wait_claims(deadline)
            self.wait_settled(deadline)

    @abstractmethod
    def wait_claims(self, deadline: Deadline) -> None:
        """Wait for the end of claims that ask for queues without consumers.  May switch.

        Raises:
            TimeoutError: they were not over before the deadline.
        """

    def wait_settled(self, deadline: Deadline) -> None:
        """Return when all acks and rejects up to now have left.  May switch.

        Raises:
            TimeoutError: they had not before the deadline, or within ``reply_timeout``.
            RecoverableConnectionError: the link was lost meanwhile.
        """
        if self.lost is not None:
            return
        deadline = deadline.within(self.options.reply_timeout)
        try:
            self.settlements.wait_routed(deadline)
            self._wait_sent(deadline)
        except TimeoutError as exc:
            if is_thrown(exc):
                raise
            raise TimeoutError(f"{self.where} did not accept all acks and rejects in time") from exc

    @abstractmethod
    def _wait_sent(self, deadline: Deadline) -> None:
        """Wait until all settlements up to now have left.  May switch."""

    @abstractmethod
    def entries(self, envelope: Envelope, queues: Sequence[str]) -> Sequence[Entry]:
        """Return a message on its way into *queues*.  May switch where a queue is not known."""

    @abstractmethod
    def failed(self, exc: BaseException, what: str) -> object:
        """Log that a call to the broker failed, and end the link if that ends it.  Never switches."""

    # -- the end

    def close(self) -> None:
        """Requeue what is not settled, and close.  May switch."""
        if self.lost is not None:
            return
        self.hub_affinity.check(self)
        try:
            with TimeLimit(Deadline(self.close_timeout), "closing"):
                self._stop_claiming()
                for channel in list(self.channels.values()):
                    channel.close()
                self._take_leave()
        except self.close_errors as exc:
            if is_thrown(exc):
                raise
        finally:
            super().close()

    def _stop_claiming(self) -> None:
        """Take no more messages.  May switch."""

    @abstractmethod
    def _take_leave(self) -> None:
        """Tell the broker all that it must know before the link is closed.  May switch."""

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life.  Never switches."""
        if self.lost is not None:
            return
        self.handover.take(self)
        note_lost(self.owner)
        super().end(exc, closed=closed)
        self._stop(self._gone_error(exc))

    def forget(self, exc: BaseException) -> None:
        """Forget it in the child of a fork: the parent owns it."""
        super().forget(exc)
        self.is_inherited = True
        # Its greenlets are copied too: none may go on reading what the parent waits for.
        self._stop(self._gone_error(exc))

    @staticmethod
    def _gone_error(exc: BaseException) -> BaseException:
        """Return the error for those who wait for a link that *exc* has ended."""
        gone: BaseException = RecoverableConnectionError(f"connection is closed ({exc})")
        gone.__cause__ = exc
        return gone

    def _stop(self, gone: BaseException) -> None:
        """End what goes by a clock or in a greenlet of the link.  Never switches.

        Arguments:
            gone: what those who wait for it get.
        """
        self.leases.stop()
        self.settlements.stop(gone)


#: The highest priority that there is.
HIGHEST: Final = 255


class StoreLink(LeasedLink):
    """A connection from its opening to its end.

    Arguments:
        transport: has the options and the exchanges, and makes the store.

    Attributes:
        owner: the unique name that owns the exclusive queues and consumers of this life.
        store: what is talked to.
        tags: makes the tags of published messages.
        where: the broker's URL, password masked.
    """

    settler: StoreSettlements
    settlements: StoreSettlements
    subscriptions: StoreSubscriptions[StoreFeed]
    close_timeout: ClassVar[float | None] = 5.0

    def __init__(self, transport: StoreTransport) -> None:
        # Wrong options and addresses are refused before there is a link to close.
        client, options, handover = transport.client, transport.options, transport.handover
        self.state = transport.state
        self.store = transport.make_store(self._wake)
        super().__init__(client, client.as_uri(), options, handover)
        self.close_errors = (
            *self.close_errors,
            *transport.connection_errors,
            *transport.recoverable_channel_errors,  # no room for what is given back
        )
        self.transport = transport
        self.owner = new_owner()
        self.store.owner = self.owner
        self.topology = self.store.topology
        self.store.registry = transport.registry
        self.store.gone = self._gone
        self.store.lost = self.end
        self.store.died = self._died
        known = KnownQueues()
        self.directory = Directory(
            self, StoredQueues(self, known), known, self.options.delivery_limit
        )
        self.routing: Routing = Routing(self)
        self.put_batcher = PutBatcher(self)
        self.settler = self.settlements = StoreSettlements(self)
        self.subscriptions = StoreSubscriptions(StoreConsuming(self))
        self.leases = Leases(self)
        self.feeds: dict[str, StoreFeed] = {}
        #: Those that ask the store for messages: one, or one for each queue.
        self._claimers: dict[str, Claimer] = {}
        #: Calls on their way, and who waits for them.
        self._calls: dict[Greenlet[..., Any], Slot[Any] | None] = {}
        self.tags = TagMaker()
        self._last_number = 0

    def open(self, deadline: Deadline) -> None:
        """Open the store.  May switch.  Whatever goes wrong, nothing stays open."""
        try:
            self.ask("connecting", self._open_store, deadline, deadline=deadline)
            self.topology = self.store.topology
            self.leases.start()
            self._after_fork = ForkHandler(self)
            self.handover.pass_on(self)
        except BaseException as exc:
            if self.lost is None:
                lost = RecoverableConnectionError(
                    f"opening the connection failed ({error_text(exc, repr)})"
                )
                self.end(lost, closed=True)
            raise

    def _open_store(self, deadline: Deadline) -> None:
        try:
            self.store.open(deadline)
        finally:
            # The link may have ended, and the kill that follows may come too late: when the reply that
            # the store waited for is there, it goes on, and makes what it was to let go of.
            if self.lost is not None:
                self.store.drop()

    # -- calls to the store

    def ask(
        self,
        what: str,
        function: Callable[..., T],
        *args: Any,
        deadline: Deadline | None = None,
        on_abandoned: Callable[[T], object] | None = None,
    ) -> T:
        """Return what a method of the store returns.  May switch.

        Arguments:
            what: for messages.
            deadline: of the caller; None is ``reply_timeout``, at whose end the link ends.
            on_abandoned: called with the result if the caller does not wait for it any more.

        Raises:
            RecoverableConnectionError: the link is lost, or the store did not reply.
            TimeoutError: the deadline ended.
        """
        self.check_open()
        slot: Slot[T] = Slot()
        greenlet = spawn("store", self._call, slot, what, function, args, on_abandoned)
        self._calls[greenlet] = slot
        limit = deadline if deadline is not None else Deadline(self.options.reply_timeout)
        try:
            return slot.wait(limit)
        except TimeoutError as exc:
            if not slot.has_expired:
                raise  # the store's own, or the program's
            if deadline is None:
                raise self.no_reply(what) from exc
            seconds = "the given time" if deadline.timeout is None else f"{deadline.timeout:g} s"
            raise TimeoutError(f"{self.where}: no reply within {seconds} ({what})") from exc
        except BaseException:
            if slot.has_value and on_abandoned is not None:
                on_abandoned(slot.value)
            raise

    def _call(
        self,
        slot: Slot[T],
        what: str,
        function: Callable[..., T],
        args: tuple[Any, ...],
        on_abandoned: Callable[[T], object] | None,
    ) -> None:
        try:
            result = function(*args)
        except BaseException as exc:
            # Its caller gets the very error, others that it is over; a call of later() has none.
            is_raised = self._calls.pop(current(), None) is not None
            slot.fail(self.failed(exc, what, is_raised=is_raised))
            if not isinstance(exc, Exception):
                raise
        else:
            if not slot.offer(result) and on_abandoned is not None:
                on_abandoned(result)
        finally:
            self._calls.pop(current(), None)

    def later(self, what: str, function: Callable[[], object]) -> None:
        """Call *function*, which may switch, in a greenlet that :meth:`catch_up` waits for.

        Its errors are logged.
        """
        self._calls[spawn("store", self._call, Slot(), what, function, (), None)] = None

    def catch_up(self) -> None:
        """Wait until the store has all acks, rejects and cancels up to now.  May switch.

        A call must see the effect of those before it.
        """
        deadline = Deadline(self.options.reply_timeout)
        for greenlet, slot in list(self._calls.items()):
            if slot is None:
                with marking_thrown():
                    greenlet.join(deadline.left())
        try:
            self.wait_settled(deadline)
        except TimeoutError as exc:
            if is_thrown(exc):
                raise
            raise self.no_reply("settling messages") from exc

    def wait_claims(self, deadline: Deadline) -> None:
        for claimer in list(self._claimers.values()):
            claimer.wait_unwanted(deadline)

    def _wait_sent(self, deadline: Deadline) -> None:
        self.settlements.wait(deadline)

    def flush(self, deadline: Deadline) -> None:
        """Return when the store has all acks and rejects.  May switch.

        Raises:
            As :meth:`flush_settlements`.
        """
        self.hub_affinity.check(self)
        self.check_open()
        self.flush_settlements(deadline)

    def publisher(self, channel: StoreChannel[Any]) -> Publisher[Envelope]:
        """Return what *channel* publishes with."""
        return self.transport.Publisher(channel, self)

    def failed(self, exc: BaseException, what: str, *, is_raised: bool = False) -> BaseException:
        """Return the error for a failed call to the store.  Never switches.

        Arguments:
            is_raised: whether a caller gets the error.

        Returns:
            the error for those who wait for it.
        """
        if self.lost is not None:
            return self._gone_error(self.lost)
        if isinstance(exc, self.transport.connection_errors):
            self.end(exc)
            return exc
        if isinstance(exc, (*self.transport.channel_errors, ValueError)):
            if not is_raised:
                spawn(
                    "log",
                    logger.error,
                    "%s: %s: %s",
                    self.where,
                    what,
                    error_text(exc),
                    extra={"connection": self.where},
                )
            return exc
        return self.end_unexpectedly(exc, what)

    def end_unexpectedly(self, exc: BaseException, what: str) -> BaseException:
        """End the link for an error that should not happen, and return its own.  Never switches."""
        lost: BaseException = RecoverableConnectionError(
            f"{self.where}: {what} failed: {error_text(exc, repr)}"
        )
        lost.__cause__ = exc
        if isinstance(exc, Exception):
            spawn(
                "log",
                logger.error,
                "%s: %s failed",
                self.where,
                what,
                exc_info=exc,
                extra={"connection": self.where},
            )
        self.end(lost)
        return lost

    def no_reply(self, what: str) -> RecoverableConnectionError:
        """End the link, as the store did not reply, and return the error.  Never switches."""
        lost = RecoverableConnectionError(
            f"{self.where}: {what}: no reply within {self.options.reply_timeout:g} s"
        )
        self.end(lost)
        return lost

    def ping(self) -> None:
        """Ask the store something.  May switch."""
        self.ask("a ping", self.store.find_queue, "greenconn.ping")

    # -- messages

    def take_tag(self) -> tuple[str, int]:
        """Return a delivery tag that no other life of a connection has, and its number in this one."""
        self._last_number = number = self._last_number + 1
        return f"{self.owner}.{number}", number

    def delivery(self, claimed: Claimed, consumer: Consumer) -> Message:
        """Return the message that *consumer* is given for what was claimed.  Never switches."""
        tag, number = self.take_tag()
        return StoreDelivery(consumer.channel, tag, number, claimed, consumer)

    def entries(
        self, envelope: Envelope, queues: Sequence[str], delay: float = 0.0, head: str = ""
    ) -> list[Entry]:
        """Return a message on its way into *queues*.  May switch where a queue is not known.

        Arguments:
            head: of the entries, where it is known.

        Raises:
            ValueError: a header or a property is nothing for JSON.
        """
        if not head and self.store.keeps_body_apart:
            head = head_of(envelope)
        properties = envelope["properties"]
        given = properties.get("priority")
        priority = level_of(given, HIGHEST) if given else 0
        expiration = properties.get("expiration")
        own = None if expiration is None else lifetime_of(expiration)
        entries = []
        for queue in queues:
            rules = self.directory.rules(queue)
            ttl = rules.message_ttl
            lifetime = own if ttl is None else ttl if own is None else min(own, ttl)
            highest = rules.max_priority
            level = priority if highest is None else min(priority, highest)
            entries.append(Entry(queue, envelope, level, delay, lifetime, head))
        return entries

    def is_alive(self, claimed: Claimed) -> bool:
        """Return whether a message is to be delivered; what is not is given up.  Never switches.

        A first delivery that the store does not give up is.
        """
        if claimed.dead is not None:
            self.settlements.give_up(claimed, claimed.dead)
            return False
        limit = self.directory.delivery_limit(claimed.queue)
        if limit is not None and claimed.deliveries >= limit:
            self.settlements.give_up(claimed, "delivery_limit")
            return False
        return True

    # -- consuming

    def feed(self, queue: str) -> StoreFeed:
        """Return the feed of *queue* on this link."""
        feed = self.feeds.get(queue)
        if feed is None:
            key = queue if self.store.claims_each_queue else ""
            claimer = self._claimers.get(key)
            if claimer is None:
                claimer = self._claimers[key] = Claimer(self)
            feed = self.feeds[queue] = StoreFeed(queue, self, claimer)
        return feed

    def retire(self, feed: StoreFeed) -> None:
        """Forget a feed that is not used any more.  Never switches."""
        if feed.is_used or self.feeds.get(feed.queue) is not feed:
            return
        del self.feeds[feed.queue]
        if self.store.claims_each_queue:
            self._claimers.pop(feed.queue).stop()

    def wake(self, queue: str) -> None:
        """Note that a queue may have messages.  Never switches."""
        feed = self.feeds.get(queue)
        if feed is not None:
            feed.wake()

    def _wake(self, queue: str | None) -> None:
        if self.lost is not None:
            return
        if queue is not None:
            self.wake(queue)
            return
        for feed in list(self.feeds.values()):
            feed.wake()

    def _gone(self, queue: str) -> None:
        """Handle that another link deleted a queue that may be consumed here.  Never switches."""
        self.directory.forget(queue)
        feed = self.feeds.get(queue)
        if feed is not None and self.lost is None:
            for consumer in list(feed.consumers):
                consumer.channel.cancelled_by_broker(consumer)

    def _died(self, messages: Sequence[Claimed]) -> None:
        for each in messages:
            self.settlements.give_up(each, each.dead or "expired")

    # -- ending

    def _stop_claiming(self) -> None:
        for claimer in self._claimers.values():
            claimer.stop()
        greenlets = [each.claiming.greenlet for each in self._claimers.values()]
        with marking_thrown():
            gevent.joinall([each for each in greenlets if each is not None])

    def _take_leave(self) -> None:
        with marking_thrown():
            gevent.joinall(list(self._calls))  # including abandoned ones
        self.catch_up()
        self.directory.close()
        self.leases.stop()
        self.settlements.finish_renewals()  # none may find the store closed
        self.ask("closing", self.store.close)

    def _stop(self, gone: BaseException) -> None:
        super()._stop(gone)
        self.put_batcher.stop(gone)
        for claimer in self._claimers.values():
            claimer.stop()
            claimer.claiming.end()
        self.store.registry.leave(self.owner)
        self.feeds.clear()
        calls, self._calls = self._calls, {}
        for slot in calls.values():
            if slot is not None:
                slot.fail(gone)
        end_all(calls)
        self.store.drop()


class StoreOptions(Record):
    """The options of a connection to any store."""

    lease: float = 30.0
    """Seconds after which the messages of a consumer that shows no sign of life are requeued.  A
    living consumer renews the lease every third of that time, however long its handlers run."""

    delivery_limit: int | None = None
    """Maximum number of deliveries of a message, after which it is dead-lettered; None is no limit.
    A queue's ``x-delivery-limit`` takes precedence."""

    dead_letter_queue: str | None = None
    """Queue for dead letters of queues without ``x-dead-letter-exchange``; None drops them."""

    deadletter_queue: str | None = None
    """Queue for messages that no binding matches; None drops them (kombu's)."""

    confirm_publish: bool = False
    """Let ``Producer.publish`` raise ``PublishNacked`` if a full queue refuses the message, and
    ``Unroutable`` if a mandatory one reaches no queue.  It waits until the message is stored anyway."""

    reply_timeout: float | None = 30.0
    """Seconds for a call of the store, if the caller gives no timeout; None is no limit."""

    confirm_timeout: float | None = None
    """Seconds that a publish waits until its message is stored, if the call gives no timeout; None
    is as long as the store replies within *reply_timeout*."""

    max_message_size: int = 512 * 1024 * 1024
    """Maximum bytes of a body."""

    def __post_init__(self) -> None:
        check_type(self, str, "dead_letter_queue", "deadletter_queue", optional=True)
        check_type(self, bool, "confirm_publish")
        check_seconds(self, "lease", optional=False)
        check_seconds(self, "reply_timeout", "confirm_timeout")
        check_count(self, "delivery_limit", least=1)
        check_count(self, "max_message_size", least=1, optional=False)
        if not self.lease:
            raise invalid(self, "lease", "a number of seconds above 0")


class _Shared:
    """The exchanges and consumers that are known here."""

    def __init__(self) -> None:
        self.registry = ConsumerRegistry()
        self.state = BrokerState()
        for name, kind in PREDECLARED.items():
            self.state.declare(name, kind, durable=True)


#: By transport and place: what all connections of a process know of one broker.
_shared: Final[PerHub[dict[tuple[type[Any], str], _Shared]]] = PerHub(dict)


class StoreTransport(base.Transport[StoreLink]):
    """Base of the transports whose broker is a :class:`~greenconn.broker.port.Store`.

    A subclass sets ``Channel``, ``Options``, ``driver_type``, ``driver_name`` and the errors of its
    client library, and writes :meth:`make_store`.
    """

    Channel: ClassVar[type[StoreChannel[StoreLink]]] = StoreChannel
    Publisher: ClassVar[type[StorePublisher]] = StorePublisher
    Options: ClassVar[type[StoreOptions]] = StoreOptions
    Management = Management
    inner_schemes: ClassVar[frozenset[str] | None] = frozenset()
    #: Seconds between two attempts to connect, at most.
    longest_pause: ClassVar[float] = 5.0
    connection_errors: tuple[type[BaseException], ...] = (
        ConnectionError,
        InconsistencyError,
        OSError,
    )
    channel_errors: tuple[type[BaseException], ...] = (ChannelError,)
    recoverable_connection_errors: tuple[type[BaseException], ...] = (
        RecoverableConnectionError,
        OSError,
    )
    recoverable_channel_errors = (RecoverableChannelError,)
    implements = base.default_transport_capabilities.extend(
        asynchronous=True,
        exchange_type=frozenset({"direct", "topic", "fanout", "headers"}),
        heartbeats=False,
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self._options: StoreOptions | None = None

    @abstractmethod
    def make_store(self, wake: Callable[[str | None], None]) -> Store:
        """Return a store that is not open yet.  Never switches.

        Raises:
            ValueError: an option or the URL cannot be.
        """

    def place(self) -> str:
        """Return a key that is equal for connections to the same messages."""
        client = self.client
        return f"{client.hostname}:{client.port}/{client.virtual_host}"

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings as this process knows them."""
        return self._share().state

    @property
    def registry(self) -> ConsumerRegistry:
        """The consumers of this process."""
        return self._share().registry

    def _share(self) -> _Shared:
        known, key = _shared.get(), (type(self), self.place())
        found = known.get(key)
        if found is None:
            found = known[key] = _Shared()
        return found

    @property
    def handover(self) -> Handover:
        """The hand-over from former lives of this connection to the same broker."""
        return self.kept(Handover)

    def kept(self, kind: Callable[[], T]) -> T:
        """Return the object of *kind* that all lives of this connection to the same place share."""
        return self.kept_state.get(kind, f"{type(self).__module__} {self.place()}")

    @property
    def options(self) -> Any:
        """The transport options, with those of the URL, read when they are first needed.

        Raises:
            ValueError: one has a value that cannot be.
        """
        if self._options is None:
            client = self.client
            options = known_options(self.Options, client.transport_options, client.as_uri(), logger)
            if self.can_parse_url:
                options = options.replace(**split_url(client.hostname or "", self.Options)[1])
            self._options = options
        return self._options

    @property
    def stores_fanout(self) -> bool:
        """Whether a fan-out exchange stores messages for queues without consumers at that time."""
        return bool(getattr(self.options, "fanout_lists", True))

    def establish_connection(self, deadline: Deadline | None = None) -> StoreLink:
        """Open a link.  May switch.

        Arguments:
            deadline: of the caller; ``connect_timeout`` bounds it too.
        """
        link = StoreLink(self)
        link.open((deadline or Deadline()).within(self.client.connect_timeout))
        return link

    def create_channel(self, connection: StoreLink) -> StoreChannel[StoreLink]:
        """Open a channel."""
        return self.Channel(connection)

    def qos_semantics_matches_spec(self, connection: StoreLink) -> bool:
        """``apply_global`` means the channel, as RabbitMQ has it."""
        return False

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {"hostname": "localhost", "port": self.default_port}
