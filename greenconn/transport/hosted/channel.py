"""A channel around channels of kombu's virtual transports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar, cast

from gevent import get_hub

from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.broker.port import Claimed, Settlement
from greenconn.broker.settlement_port import Disposition
from greenconn.encoding import plain_text
from greenconn.exceptions import ChannelError, NotFound
from greenconn.identity import uuid
from greenconn.message import Message
from greenconn.transport.hooks.qos import keeps_only_here
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.arguments import ArgumentOf, SupportedArguments
from greenconn.transport.virtual.channel import ChannelState
from greenconn.transport.virtual.consumer import Consumer, Feed
from greenconn.transport.virtual.entities import Entities
from greenconn.transport.virtual.publishing import Envelope

if TYPE_CHECKING:
    from gevent.lock import RLock

    from greenconn.transport.hosted.link import HostedLink

F = TypeVar("F", bound=Callable[..., Any])

_OPEN: Final = ChannelState.OPEN

#: What each of kombu's virtual transports does with arguments; a few do more.
_SUPPORTED: Final = SupportedArguments(message=frozenset({"priority"}))
_MORE: Final[Mapping[str, SupportedArguments]] = {
    "kombu.transport.mongodb": SupportedArguments(
        queue=frozenset({"x-expires", "x-message-ttl"}), message=_SUPPORTED.message
    ),
    "kombu.transport.redis": SupportedArguments(
        queue=frozenset({"x-expires"}), message=_SUPPORTED.message
    ),
}

_DONE: Final = Settlement.ACK
_BACK: Final = Settlement.REQUEUE


class Reader(Protocol):
    """The receiver of messages that were taken out; it is notified when they are settled.

    Attributes:
        connection: the link.
        lock: of kombu's transport.
        raw: kombu's channel.
    """

    @property
    def connection(self) -> object: ...
    @property
    def lock(self) -> RLock: ...
    @property
    def raw(self) -> Any: ...

    def note_settled(self, queue: str) -> None:
        """Note that a message of *queue* was settled.  May switch.  Called with the lock."""


class HostedMessage(Message):
    """A message of ours for one of kombu's.

    Arguments:
        taken: kombu's.
        queue: where it was.
        reader: has kombu's channel, which gets the outcome.

    Attributes:
        consumer: who gets it; None for ``basic_get``.
    """

    __slots__ = ("_reader", "_tag", "_taken", "consumer", "queue")

    #: Whether its channel holds it until it is settled.
    is_held = True
    #: kombu's channel puts it back in the end.
    is_noted = True

    def __init__(self, taken: Any, queue: str, reader: Reader) -> None:
        super().__init__(
            body=taken.body,
            delivery_tag=taken.delivery_tag,
            content_type=taken.content_type,
            content_encoding=taken.content_encoding,
            delivery_info=taken.delivery_info,
            properties=taken.properties,
            headers=taken.headers,
        )
        self.errors = list(taken.errors)
        self.queue = queue
        self.consumer: Consumer | None = None
        self._taken = taken
        self._reader = reader
        #: What kombu's channel calls it: one message that went to two queues has one tag in both.
        self._tag = taken.delivery_tag

    @property
    def claimed(self) -> Claimed:
        """The claim of the store."""
        return Claimed(self.queue, None, self)

    @property
    def link(self) -> object:
        """The link that took it out."""
        return self._reader.connection

    @property
    def is_gone_from_broker(self) -> bool:
        """Whether we must requeue it, since neither the broker nor a ``QoS`` of its own does."""
        raw = self._reader.raw
        return bool(raw.do_restore) and keeps_only_here(raw.qos)

    def serializable(self) -> Envelope:
        """Return the envelope with which it can be put back."""
        stored: Envelope = self._taken.serializable()
        return stored

    def settle(self, settlement: Settlement) -> None:
        """Tell kombu's channel what becomes of it.  May switch."""
        reader = self._reader
        with reader.lock:
            if settlement is _DONE:
                reader.raw.basic_ack(self._tag)
            else:
                reader.raw.basic_reject(self._tag, requeue=settlement is _BACK)
            reader.note_settled(self.queue)


def _supported_by(cls: type) -> SupportedArguments:
    """Return the arguments that a channel class of kombu's, or one derived from it, implements."""
    own: SupportedArguments | None = getattr(cls, "supported_arguments", None)
    if own is not None:
        return own
    modules = [each.__module__ for each in cls.__mro__]
    return next((_MORE[each] for each in modules if each in _MORE), _SUPPORTED)


def _exclusive(method: F) -> F:
    """Make *method* need an open channel, and be alone in the transport."""

    @wraps(method)
    def alone(self: HostedChannel, *args: Any, **kwargs: Any) -> Any:
        hub_affinity = self.connection.hub_affinity
        if get_hub() is not hub_affinity.hub:
            hub_affinity.check(self.connection)
        with self.lock:
            if self.state_of_life is not _OPEN:
                self.check_open()
            try:
                return method(self, *args, **kwargs)
            except ChannelError as exc:
                if type(exc) is ChannelError and str(exc.reply_code) == "404":
                    # As a broker's own refusal is.
                    raise NotFound(exc.reply_text, exc.method_sig, exc.method_name) from exc
                raise

    return cast(F, alone)


class HostedChannel(StoreChannel[StoreLink]):
    """Does all but consuming on a channel of kombu's; each queue is consumed from over one more.

    Exchanges and bindings are kept in this process, as kombu's virtual transports do.

    Arguments:
        connection: the link.

    Attributes:
        raw: kombu's channel.
        lock: the link's.
    """

    connection: HostedLink
    entities_class: ClassVar[type[Entities]] = Entities

    def __init__(self, connection: HostedLink) -> None:
        self.raw = connection.open_channel()
        self.lock: Final = connection.lock
        self.supported_arguments = _supported_by(type(self.raw))
        super().__init__(connection)

    # Life

    def close(self) -> None:
        """Close it and requeue its unacknowledged messages.  May switch."""
        if not self.is_open:
            return
        super().close()
        self.connection.flush_acks()
        with self.lock:
            self.raw.close()

    def _release(self, consumers: list[Consumer]) -> None:
        for consumer in consumers:
            consumer.stop()
        held = list(self.deliveries.unacked.values())
        self.deliveries.unacked.clear()
        # Else the broker itself requeues what is not settled, or the next life does.
        if self.raw.do_restore and self.connection.lost is None:
            for message in held:
                back = Disposition(message.claimed, Settlement.REQUEUE)
                self.connection.settlements.settle(back)
        for consumer in consumers:
            self.connection.subscriptions.left(consumer)

    # Topology

    @_exclusive
    def exchange_declare(
        self, exchange: str = "", type: str = "direct", *args: Any, **kwargs: Any
    ) -> Any:
        """Declare an exchange in this process."""
        exchange, type = plain_text(exchange), plain_text(type)
        self.warn_of_unsupported(ArgumentOf.EXCHANGE, exchange, kwargs.get("arguments"))
        return self.raw.exchange_declare(exchange, type, *args, **kwargs)

    @_exclusive
    def exchange_delete(self, exchange: str, *args: Any, **kwargs: Any) -> Any:
        """Delete an exchange."""
        return self.raw.exchange_delete(plain_text(exchange), *args, **kwargs)

    @_exclusive
    def exchange_bind(self, *args: Any, **kwargs: Any) -> Any:
        """Bind an exchange to another; few transports can."""
        return self.raw.exchange_bind(*args, **kwargs)

    @_exclusive
    def exchange_unbind(self, *args: Any, **kwargs: Any) -> Any:
        """Undo a binding of exchanges."""
        return self.raw.exchange_unbind(*args, **kwargs)

    @_exclusive
    def queue_declare(  # type: ignore[override]  # the rest by name
        self, queue: str = "", passive: bool = False, **kwargs: Any
    ) -> Any:
        """Declare a queue; without a name it gets one."""
        queue = plain_text(queue)
        if not passive:
            self.warn_of_unsupported(ArgumentOf.QUEUE, queue, kwargs.get("arguments"))
        return self.raw.queue_declare(queue=queue, passive=passive, **kwargs)

    @_exclusive
    def queue_bind(
        self,
        queue: str = "",
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Any:
        """Bind a queue."""
        return self.raw.queue_bind(
            plain_text(queue), plain_text(exchange), plain_text(routing_key), arguments
        )

    @_exclusive
    def queue_unbind(
        self,
        queue: str = "",
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Any:
        """Undo a binding."""
        return self.raw.queue_unbind(
            plain_text(queue), plain_text(exchange), plain_text(routing_key), arguments
        )

    @_exclusive
    def queue_purge(self, queue: str = "", nowait: bool = False) -> int:
        """Drop what waits and return how many there were."""
        return int(self.raw.queue_purge(plain_text(queue)) or 0)

    @_exclusive
    def queue_delete(
        self, queue: str = "", if_unused: bool = False, if_empty: bool = False, nowait: bool = False
    ) -> Any:
        """Delete a queue."""
        return self.raw.queue_delete(plain_text(queue), if_unused=if_unused, if_empty=if_empty)

    def list_bindings(self) -> Any:
        """Return all bindings that this process knows."""
        return self.raw.list_bindings()

    # Publishing

    @_exclusive
    def put_message(self, message: Envelope, exchange: str, routing_key: str) -> None:
        """Publish; it returns when the transport has the message.  May switch."""
        properties, headers = message.get("properties") or {}, message.get("headers") or {}
        if headers or properties.get("expiration"):
            given = {name: headers.get(name) for name in ("x-delay", "CC", "BCC")}
            given["expiration"] = properties.get("expiration")
            self.warn_of_unsupported(ArgumentOf.MESSAGE, exchange or routing_key, given)
        self.raw.basic_publish(message, exchange, routing_key)
        self.connection.store.wake(None)

    # Consuming

    def _feed_of(self, queue: str, method: Method) -> tuple[str, Feed]:
        return queue, self.connection.feed(queue)

    def _started(self, consumer: Consumer) -> None:
        super()._started(consumer)
        try:
            self.connection.read(consumer.queue, self.prefetch.count)
        except BaseException:
            consumer.stop()
            self.connection.subscriptions.left(consumer)
            raise

    @_exclusive
    def basic_get(self, queue: str = "", no_ack: bool = False) -> HostedMessage | None:  # type: ignore[override]
        """Take a message, or None.  May switch."""
        queue = plain_text(queue)
        taken = self.raw.basic_get(queue, no_ack=no_ack)
        if taken is None:
            return None
        message = HostedMessage(taken, queue, self)
        self.receive_message(message)
        if not no_ack:
            self.deliveries.unacked[message.delivery_tag] = message
        return message

    def note_settled(self, queue: str) -> None:
        """Note that a message which ``basic_get`` took from *queue* was settled.  Never switches."""
        self.connection.wake(queue)

    def receive_message(self, message: HostedMessage) -> None:
        """Take *message* as this channel's.  Never switches."""
        message.channel = self
        if message.delivery_tag is None or message.delivery_tag in self.deliveries.unacked:
            message.delivery_tag = uuid()  # it went to two queues, with one tag in both

    def after_reply_message_received(self, queue: str) -> None:
        """Delete a reply queue that is not needed any more."""
        self.raw.after_reply_message_received(queue)
