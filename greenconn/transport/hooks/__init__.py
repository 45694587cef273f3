"""Transports of kombu's hooks (``_get``, ``_put``, ``_size``...), as stores of :mod:`greenconn.broker`.

A broker that is only hooks knows lists to put into and to take out of: what was taken out is gone from
it, and no caller waits for it.  The channel keeps unacknowledged messages, and requeues what is
not handled.

A publish, an ack or a reject is decided when the hooks return, by the greenlet that asks for it.

Messages are claimed by taking them out, and requeued by putting them in again, so that there are no
leases: what a process holds that is killed is lost.  A broker of hooks cannot say that it has something,
so it is polled.  A claim polls all queues whose consumers have room, in turn, and goes on while it finds
something.  What is found is handed over at once: the next poll may wait.  When nothing was found, the
next claim comes after the polling interval, or when this process publishes or has room again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, ClassVar, Final

from greenconn.broker.channel import Publisher, StoreChannel
from greenconn.broker.consuming import Consumer, StoreFeed
from greenconn.broker.deliveries import Handover
from greenconn.broker.envelope import Envelope
from greenconn.broker.exchanges import PREDECLARED, BrokerState
from greenconn.broker.link import CHANNEL_MAX, StoreLink, StoreOptions, StoreTransport
from greenconn.broker.port import (
    Claimed,
    ConsumerRegistry,
    Entry,
    Settlement,
    SettleRequest,
    Store,
)
from greenconn.broker.publishing import SynchronousPublisher, no_immediate, unroutable
from greenconn.broker.queues import UNDECLARED, Declaration
from greenconn.broker.settlements import StoreSettlements
from greenconn.checks import in_seconds
from greenconn.exceptions import RecoverableChannelError, RecoverableConnectionError, error_text
from greenconn.green.deadline import Deadline, TimeLimit
from greenconn.green.hub import yield_to_hub
from greenconn.green.supervisor import Ticker
from greenconn.message import Message as BaseMessage
from greenconn.transport import base
from greenconn.transport.hooks.channel import (
    Channel,
    FairCycle,
    Message,
    TakenMessage,
    UnreturnedMessages,
    dump_messages,
)

logger = logging.getLogger("greenconn.transport.virtual")

#: Hooks take the time that they take; the transport options are the subclass's own.
_OPTIONS: Final = StoreOptions(reply_timeout=None)

#: Seconds that a hook may wait where the transport has no interval: others want to be looked for, too.
POLL_TIMEOUT: Final = 1.0
#: Seconds of looking without a wait before the hub gets a turn.
PACE: Final = 0.005


class HookedTransport(StoreTransport):
    """Base of the transports whose store is hooks."""

    inner_schemes: ClassVar[frozenset[str] | None] = None
    default_port: int | None = None
    takes_any_property = True
    #: Seconds between two looks at a broker that had nothing; None and 0: the hooks wait themselves.
    polling_interval: float | None = 1.0
    connection_errors: tuple[type[BaseException], ...] = base.Transport.connection_errors
    recoverable_connection_errors: tuple[type[BaseException], ...] = (RecoverableConnectionError,)
    recoverable_channel_errors = (RecoverableChannelError,)
    implements = base.Transport.implements.extend()

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self._state = BrokerState()

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings that its channels know."""
        return self._state

    @state.setter
    def state(self, state: BrokerState) -> None:
        self._state = state

    @property
    def registry(self) -> ConsumerRegistry:
        """The consumers that one connection knows."""
        return ConsumerRegistry()

    @property
    def handover(self) -> Handover:
        """The hand-over from former lives of this connection."""
        handover = super().handover
        self.kept_state.get(UnreturnedMessages, self.place(), handover)
        return handover

    @property
    def options(self) -> StoreOptions:
        """The options that all transports over a store have."""
        return _OPTIONS

    def make_store(self, wake: Callable[[str | None], None]) -> HookStore:
        """Return the store of one link."""
        return HookStore(self.client, wake, self.polling_interval)


class Transport(HookedTransport):
    """Base of the transports whose ``Channel`` has the hooks (kombu's ``virtual.Transport``)."""

    Channel: ClassVar[type[Channel]] = Channel
    Cycle: ClassVar[type[FairCycle[Any]]] = FairCycle
    channel_max = CHANNEL_MAX
    #: Exchanges and bindings that all transports of a class share; None: each has its own.
    global_state: ClassVar[BrokerState | None] = None

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        if self.global_state is not None:
            self.state = self.global_state
        for name, kind in PREDECLARED.items():
            if name not in self.state.exchanges:
                self.state.declare(name, kind, durable=True)
        interval = (client.transport_options or {}).get("polling_interval")
        if interval is not None:
            self.polling_interval = float(in_seconds(interval))

    def establish_connection(self, deadline: Deadline | None = None) -> HookLink:
        """Open a link.  May switch in subclasses."""
        link = HookLink(self)
        link.open(deadline or Deadline())
        return link


class HookStore(Store):
    """The hooks of the channels of one link.

    Arguments:
        client: the ``Connection``.
        wake: see :class:`~greenconn.broker.port.Store`.
        interval: seconds between two looks when there was nothing; None and 0: the looks themselves
            wait.

    Attributes:
        link: has the channels with the hooks.
    """

    lease = None
    #: All queues are looked for together; a look takes what the hooks give.
    claim_limit: ClassVar[int] = 1_000_000
    #: One that finds the broker lost must not be repeated with others.
    settle_limit: ClassVar[int] = 1
    #: Channels encode by themselves.
    body_encoding = None

    link: HookedLink

    def __init__(
        self, client: Any, wake: Callable[[str | None], None], interval: float | None
    ) -> None:
        super().__init__(client, wake)
        self.interval = interval
        #: What was taken out when no consumer had room.
        self._arrived: dict[str, deque[TakenMessage]] = {}
        #: Queue -> how many messages are still wanted by the claim that is under way.
        self._wanted: dict[str, int] = {}
        self._has_come = False
        self._ticker: Ticker | None = None
        self._turned_at = 0.0

    # -- life

    def open(self, deadline: Deadline) -> None:
        """Do nothing: the transport connects, if anything does."""

    def close(self) -> None:
        """Look no more."""
        self.drop()

    def drop(self) -> None:
        """Look no more.  Never switches."""
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()
        self._arrived.clear()
        self._wanted = {}

    @property
    def is_waiting(self) -> bool:
        """Whether it looks again when the interval is over."""
        return self._ticker is not None

    # -- queues

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        """Make a queue."""
        self.link.hooks(name)._new_queue(
            name,
            durable=declaration.durable,
            exclusive=declaration.owner is not None,
            auto_delete=declaration.auto_delete,
            arguments=declaration.arguments,
        )
        return declaration

    def find_queue(self, name: str) -> Declaration:
        """Return a declaration that says nothing: no hook tells how a queue was declared."""
        return UNDECLARED

    def drop_queue(self, name: str) -> int:
        """Delete a queue, and return how many messages waited in it."""
        size = self.size(name)
        self.link.hooks(name)._delete(name)
        return size

    def purge(self, name: str) -> int:
        """Delete the messages that wait in a queue and return how many there were."""
        return int(self.link.hooks(name)._purge(name) or 0)

    def size(self, name: str) -> int:
        """Return the number of messages that wait in a queue."""
        return int(self.link.hooks(name)._size(name))

    # -- messages

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """Put messages in."""
        for entry in entries:
            self.link.hooks(entry.queue)._put(entry.queue, entry.envelope)
        return [None] * len(entries)

    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        """Return what waited for room, else poll as long as something comes: it is handed over at once.

        Raises:
            RecoverableConnectionError: a hook failed; who cannot be asked is lost.
        """
        found = self._take_arrived(wanted)
        if found or self._poll(wanted):
            self.wake(None)  # a poll takes from one queue, and others may have messages, too
        elif not self.interval:
            yield_to_hub()
            self.wake(None)
        elif self._ticker is None:
            self._ticker = Ticker(self.interval, self._tick, "polling")
            self._ticker.start()
        return found

    def _poll(self, wanted: Mapping[str, int]) -> bool:
        """Poll until nothing comes or it is the others' turn; False: nothing came at all."""
        if monotonic() - self._turned_at > PACE:
            yield_to_hub()
            self._turned_at = monotonic()
        left = self._wanted = dict(wanted)
        timeout = self.interval or POLL_TIMEOUT
        has_come = False
        try:
            while left:
                self._has_come = False
                self.link.poll(left, timeout)
                if not self._has_come:
                    break
                has_come = True
                if monotonic() - self._turned_at > PACE:
                    break
        except Exception as exc:
            if isinstance(exc, self.link.transport.connection_errors):
                raise
            raise RecoverableConnectionError(f"polling failed: {error_text(exc, repr)}") from exc
        return has_come

    def _tick(self, lag: float) -> None:
        # In the hub.
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()
            self.wake(None)

    def arrive(self, message: TakenMessage, queue: str) -> None:
        """Hand over what a hook has taken out of *queue*.  Never switches."""
        self._has_come = True
        feed = self.link.feeds.get(queue)
        if feed is None:
            # Its consumer was cancelled while the broker was asked.
            self.link.settlements.requeue_unseen(message.claimed)
        elif queue in self._arrived or not feed.offer(message.claimed):
            self._arrived.setdefault(queue, deque()).append(message)
            self.wake(queue)
        left = self._wanted.get(queue, 0) - 1
        if left > 0:
            self._wanted[queue] = left
        else:
            self._wanted.pop(queue, None)

    def _take_arrived(self, wanted: Mapping[str, int]) -> list[Claimed]:
        found: list[Claimed] = []
        for queue in [each for each in self._arrived if each in wanted]:
            messages = self._arrived[queue]
            taken = min(wanted[queue], len(messages))
            found.extend(messages.popleft().claimed for _ in range(taken))
            if not messages:
                del self._arrived[queue]
        return found

    def retire(self, queue: str) -> None:
        """Give back what was taken out for consumers that are gone.  Never switches."""
        for message in self._arrived.pop(queue, ()):
            self.link.settlements.requeue_unseen(message.claimed)

    def unconfirmed_claims(self) -> Sequence[tuple[str, Any]]:
        """Return queue and message of what was taken out when no consumer had room."""
        return [(queue, message) for queue, found in self._arrived.items() for message in found]

    def settle(self, requests: Sequence[SettleRequest]) -> int:
        """Requeue messages that no handler has seen, whose channel has ended, or of a former life."""
        for request in requests:
            message: TakenMessage = request.handle
            is_former = message.link is not self.link
            try:
                if not is_former:
                    message.settle(request.settlement)
                elif request.settlement is Settlement.REQUEUE and message.is_gone_from_broker:
                    self.link.put_back(message)
            except Exception as exc:
                if not is_former and isinstance(exc, self.link.transport.connection_errors):
                    raise  # the next life tries once more
                logger.error("a message could not be requeued: %s", error_text(exc, repr))
                if is_former or not message.is_noted:
                    dump_messages([message])
        return 0


_DONE: Final = Settlement.ACK


class HookSettlements(StoreSettlements):
    """The acks, requeues and rejects of one link.

    It may switch, as the hooks may, and raises what they raise: the delivery is unacknowledged then.
    Only what no handler has seen is requeued by a greenlet, as in the base class.
    """

    def __init__(self, link: HookedLink) -> None:
        super().__init__(link)
        self._waking = link

    def ack(self, delivery: Any) -> None:
        """Acknowledge a delivery."""
        try:
            delivery.settle(_DONE)
        except BaseException:
            self._hold(delivery)
            raise

    def requeue(self, deliveries: Iterable[Any], unhandled: Collection[Any] = ()) -> None:
        """Requeue *deliveries*.  Hooks count nothing."""
        for delivery in self._settled_one_by_one(deliveries, Settlement.REQUEUE):
            self._waking.wake(delivery.queue)

    def dead_letter(self, deliveries: Iterable[Any], reason: str) -> None:
        """Drop *deliveries*."""
        for _ in self._settled_one_by_one(deliveries, Settlement.REJECT):
            pass

    def _settled_one_by_one(
        self, deliveries: Iterable[Any], settlement: Settlement
    ) -> Iterator[Any]:
        """Settle each, and yield it then; those that were not settled are held again."""
        left = deque(deliveries)
        try:
            while left:
                left[0].settle(settlement)
                yield left.popleft()
        finally:
            for delivery in left:
                self._hold(delivery)

    def _hold(self, delivery: Any) -> None:
        """Hold a delivery again that was not settled."""
        link = self._waking
        if link.lost is None:
            delivery.channel.deliveries.unacked[delivery.delivery_tag] = delivery
        else:
            back = SettleRequest(delivery.claimed, Settlement.REQUEUE)
            link.handover.add(link, [back])


class HookPublisher(SynchronousPublisher):
    """The publisher of one channel over hooks."""

    _channel: Channel

    def _decide(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool, immediate: bool
    ) -> Exception | None:
        if immediate:
            raise no_immediate()
        is_put = self._channel.put_message(message, exchange, routing_key, mandatory)
        return None if is_put else unroutable(exchange, routing_key)


class HookedLink(StoreLink):
    """A link whose store is hooks.

    Arguments:
        transport: says how often to look.
    """

    settling_may_fail = True
    store: HookStore

    def __init__(self, transport: HookedTransport) -> None:
        super().__init__(transport)
        self.store.link = self
        self.settler = self.settlements = HookSettlements(self)

    def hooks(self, queue: str) -> Any:
        """Return a channel whose hooks are called for a queue.

        Raises:
            RecoverableConnectionError: there is none.
        """
        raise NotImplementedError

    def put_back(self, message: TakenMessage) -> None:
        """Put a message back that a former life has taken out.  May switch."""
        raise NotImplementedError

    def poll(self, wanted: Mapping[str, int], timeout: float) -> None:
        """Let the hooks take out what there is, once, for ``store.arrive``.  May switch.

        Arguments:
            wanted: queue -> how many messages there is room for; changes while they come.
            timeout: seconds that the broker may be waited for.
        """
        raise NotImplementedError

    def retire(self, feed: StoreFeed) -> None:
        """Forget a feed that is not used any more.  Never switches."""
        super().retire(feed)
        if feed.queue not in self.feeds:
            self.store.retire(feed.queue)

    def close(self) -> None:
        """Requeue what is not settled, and close.  May switch."""
        if self.is_open:
            for channel in list(self.channels.values()):
                channel.close()
        super().close()

    def _stop_claiming(self) -> None:
        # A hook that waits for longer than asked is not waited for: it ends with the link.
        with suppress(TimeoutError), TimeLimit(Deadline(POLL_TIMEOUT), "the last poll"):
            super()._stop_claiming()


class HookLink(HookedLink):
    """A link whose channels have the hooks.

    Arguments:
        transport: has the exchanges and bindings.
    """

    transport: Transport

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        super().__init__(transport)
        options = transport.client.transport_options or {}
        self.is_confirming = bool(options.get("confirm_publish"))
        #: Queues that were declared here: they may be consumed from, whether or not the broker can
        #: tell an empty one from none.
        self.declared: set[str] = set()
        #: The channel that was asked last.
        self._asked: Channel | None = None

    def __getattr__(self, name: str) -> Any:
        # kombu's channels have the transport itself for a connection, and so what it has of its own.
        if name == "transport":
            raise AttributeError(name)
        return getattr(self.transport, name)

    def _deliver(self, message: Envelope, queue: str) -> None:
        """Hand over what a hook has taken from *queue* (kombu's name).  May switch.

        Raises:
            KeyError: it does not say which queue that was.
        """
        if not queue:
            raise KeyError("a message was received without the name of its queue")
        self.store.arrive(self.hooks(queue).message_of(message, queue), queue)

    def hooks(self, queue: str) -> Channel:
        """Return a channel that consumes from a queue, else any.

        Raises:
            RecoverableConnectionError: there is none.
        """
        feed = self.feeds.get(queue)
        if feed is not None:
            for consumer in feed.consumers:
                found: Channel = consumer.channel
                return found
        channels = [each for each in self.channels.values() if isinstance(each, Channel)]
        channel = channels[0] if channels else self._asked
        if channel is None:
            raise RecoverableConnectionError(f"no channel consumes queue {queue!r}")
        return channel

    def put_back(self, message: TakenMessage) -> None:
        """Put a message back that a former life has taken out.  May switch."""
        channel = self.transport.create_channel(self)
        assert isinstance(channel, Channel)
        assert isinstance(message, Message)
        try:
            channel._restore_at_beginning(message)
        finally:
            channel.close()
        self.store.wake(message.queue)

    def poll(self, wanted: Mapping[str, int], timeout: float) -> None:
        """Poll each channel that has consumers with room.  May switch."""
        queues: dict[Channel, list[str]] = {}
        for queue in wanted:
            feed = self.feeds.get(queue)
            for consumer in feed.consumers if feed is not None else ():
                channel = consumer.channel
                if not channel.asks_qos or consumer.has_room():
                    queues.setdefault(channel, []).append(queue)
                    break
        for channel, active in queues.items():
            self._asked = channel
            channel.poll_queues(active, timeout)

    def publisher(self, channel: StoreChannel[Any]) -> Publisher[Envelope]:
        """Return what *channel* publishes with."""
        assert isinstance(channel, Channel)
        return HookPublisher(channel, self.is_confirming)

    def delivery(self, claimed: Claimed, consumer: Consumer) -> BaseMessage:
        """Return the message that *consumer* is given for what was claimed."""
        message: Message = claimed.handle
        try:
            consumer.channel.receive_message(message, consumer)
        except Exception as exc:  # a user's ``QoS``
            self.failed(exc, "recording a delivery")
        return message
