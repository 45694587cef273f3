"""One life of a connection to a broker of hooks: publishing, acks and the channels that have the hooks.

A publish, an ack or a reject is decided when the hooks return, by the greenlet that asks for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from greenconn.broker.channel import Publisher, StoreChannel
from greenconn.broker.claiming import StoreFeed
from greenconn.broker.link import StoreLink
from greenconn.broker.port import Claimed, Settlement
from greenconn.broker.settlement_port import Disposition
from greenconn.broker.settlements import Settlements
from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import Deadline, TimeLimit
from greenconn.message import Message as BaseMessage
from greenconn.transport.hooks.channel import Channel
from greenconn.transport.hooks.message import Message
from greenconn.transport.hooks.store import POLL_TIMEOUT, HookStore, TakenMessage
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.publishing import (
    Envelope,
    SynchronousPublisher,
    no_immediate,
    unroutable,
)

if TYPE_CHECKING:
    from greenconn.transport.hooks.transport import HookedTransport, Transport

_DONE: Final = Settlement.ACK


class HookSettlements(Settlements):
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
            for each in left:
                self._hold(each)

    def _hold(self, delivery: Any) -> None:
        """Hold a delivery again that was not settled."""
        link = self._waking
        if link.lost is None:
            delivery.channel.deliveries.unacked[delivery.delivery_tag] = delivery
        else:
            back = Disposition(delivery.claimed, Settlement.REQUEUE)
            link.handover.add(link, (), [back])


class HookPublisher(SynchronousPublisher):
    """The publisher of one channel.

    Arguments:
        channel: gets back what reached no queue.
        put: puts a message where it belongs: an exchange, a routing key and ``mandatory``; False: it
            reached no queue.  May switch.
        is_confirming: every publish tells what became of it.
    """

    def __init__(
        self,
        channel: StoreChannel[Any],
        put: Callable[[Envelope, str, str, bool], bool],
        is_confirming: bool,
    ) -> None:
        super().__init__(channel, is_confirming)
        self._put = put

    def _decide(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool, immediate: bool
    ) -> Exception | None:
        if immediate:
            raise no_immediate()
        is_put = self._put(message, exchange, routing_key, mandatory)
        return None if is_put else unroutable(exchange, routing_key)


class HookedLink(StoreLink):
    """A link whose store is hooks.

    Arguments:
        transport: says how often to look.
    """

    store: HookStore

    def __init__(self, transport: HookedTransport) -> None:
        super().__init__(transport)
        self.store.link = self
        self.settlements = HookSettlements(self)

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
        return HookPublisher(channel, channel.put_message, self.is_confirming)

    def delivery(self, claimed: Claimed, consumer: Consumer) -> BaseMessage:
        """Return the message that *consumer* is given for what was claimed."""
        message: Message = claimed.handle
        try:
            consumer.channel.receive_message(message, consumer)
        except Exception as exc:  # a user's ``QoS``
            self.failed(exc, "recording a delivery")
        return message
