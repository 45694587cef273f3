"""One life of a connection to a store.

The store's calls run in greenlets of this link, one for each kind of work; what users call waits for
them with a deadline, and may be killed at any time without any harm to a call that is on its way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import gevent
from gevent import Greenlet

from greenconn.broker.base_link import ForkHandler
from greenconn.broker.blocking import StoreSettler
from greenconn.broker.channel import Publisher, StoreChannel
from greenconn.broker.claiming import Claimer, StoreConsuming, StoreDelivery, StoreFeed, StoreSource
from greenconn.broker.consumers import StoreSubscriptions
from greenconn.broker.directory import Directory, KnownQueues, StoredQueues
from greenconn.broker.feed import Feed
from greenconn.broker.leased_link import LeasedLink
from greenconn.broker.leases import Leases
from greenconn.broker.port import Claimed, Entry
from greenconn.broker.publishing import PutBatcher
from greenconn.broker.routing import Routing
from greenconn.broker.settlements import Settlements
from greenconn.exceptions import RecoverableConnectionError, error_text
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import current, end_all, spawn
from greenconn.message import Message
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.names import TagMaker, new_owner
from greenconn.transport.virtual.publishing import Envelope, level_of, lifetime_of

if TYPE_CHECKING:
    from greenconn.broker.transport import StoreTransport

logger = logging.getLogger("greenconn.broker")

T = TypeVar("T")

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

    settler: StoreSettler
    subscriptions: StoreSubscriptions[Claimed, StoreSource]
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
        self.settler = StoreSettler(self)
        self.settlements = Settlements(self)
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
            self.ask("connecting", self.store.open, deadline, deadline=deadline)
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
            if not slot.has_left:
                raise  # the store's own
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
                greenlet.join(deadline.left())
        try:
            self.wait_settled(deadline)
        except TimeoutError as exc:
            raise self.no_reply("settling messages") from exc

    def _wait_claims(self, deadline: Deadline) -> None:
        for claimer in list(self._claimers.values()):
            claimer.wait_unwanted(deadline)

    def _wait_sent(self, deadline: Deadline) -> None:
        self.settler.wait(deadline)

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

    def take_number(self) -> int:
        """Return the number of the next delivery."""
        self._last_number += 1
        return self._last_number

    def tag(self, number: int) -> str:
        """Return a delivery tag that no other life of a connection has."""
        return f"{self.owner}.{number}"

    def delivery(self, claimed: Claimed, consumer: Consumer) -> Message:
        """Return the message that *consumer* is given for what was claimed.  Never switches."""
        number = self.take_number()
        return StoreDelivery(consumer.channel, self.tag(number), number, claimed, consumer)

    def entries(self, envelope: Envelope, queues: Sequence[str], delay: float = 0.0) -> list[Entry]:
        """Return a message on its way into *queues*.  May switch where a queue is not known."""
        properties = envelope["properties"]
        priority = level_of(properties.get("priority"), HIGHEST)
        expiration = properties.get("expiration")
        own = None if expiration is None else lifetime_of(expiration)
        entries = []
        for queue in queues:
            rules = self.directory.rules(queue)
            ttl = rules.message_ttl
            lifetime = own if ttl is None else ttl if own is None else min(own, ttl)
            highest = rules.max_priority
            level = priority if highest is None else min(priority, highest)
            entries.append(Entry(queue, envelope, level, delay, lifetime))
        return entries

    def is_alive(self, claimed: Claimed) -> bool:
        """Return whether a message is to be delivered; what is not is given up.  Never switches."""
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
            feed = self.feeds[queue] = Feed(queue, partial(StoreSource, self, claimer))
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
        gevent.joinall([each for each in greenlets if each is not None])

    def _take_leave(self) -> None:
        gevent.joinall(list(self._calls))  # including abandoned ones
        self.catch_up()
        self.directory.close()
        self.ask("closing", self.store.close)

    def _stop(self, gone: BaseException) -> None:
        super()._stop(gone)
        self.put_batcher.stop(gone)
        self.settler.stop(gone)
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
