"""kombu's own virtual transports, unchanged: their channels put and get, greenconn does the rest.

Named by class path, with kombu installed, e.g. ``transport="kombu.transport.filesystem:Transport"``.
They do their input and output as their library does: in a process that is not monkey-patched they may
block the hub meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, MutableMapping
from functools import wraps
from queue import Empty
from time import monotonic
from typing import Any, ClassVar, Final, Protocol, TypeVar, cast

from gevent import get_hub
from gevent.lock import RLock

from greenconn.broker.channel import Publisher, StoreChannel
from greenconn.broker.consuming import ConsumedFeed, Consumer, FeedState, StoreFeed
from greenconn.broker.entities import ArgumentOf, Entities, SupportedArguments
from greenconn.broker.envelope import Envelope, copied
from greenconn.broker.errors import Method
from greenconn.broker.link import StoreLink
from greenconn.broker.port import Claimed, Settlement, SettleRequest
from greenconn.broker.publishing import SynchronousPublisher
from greenconn.encoding import plain_text
from greenconn.exceptions import ChannelError, NotFound, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.identity import uuid
from greenconn.message import Message
from greenconn.transport import base
from greenconn.transport.hooks import PACE, HookedLink, HookedTransport, HookStore
from greenconn.transport.hooks.channel import TakenMessage, keeps_only_here

F = TypeVar("F", bound=Callable[..., Any])


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


class HostedMessage(TakenMessage):
    """A message of ours for one of kombu's.

    Arguments:
        taken: kombu's.
        queue: where it was.
        reader: has kombu's channel, which gets the outcome.
    """

    __slots__ = ("_reader", "_tag", "_taken")

    is_noted = True  # by kombu's channel

    queue: str

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
        self.consumer = None
        self._taken = taken
        self._reader = reader
        #: What kombu's channel calls it: one message that went to two queues has one tag in both.
        self._tag = taken.delivery_tag

    @property
    def link(self) -> object:
        return self._reader.connection

    @property
    def is_gone_from_broker(self) -> bool:
        raw = self._reader.raw
        return bool(raw.do_restore) and keeps_only_here(raw.qos)

    def serializable(self) -> Envelope:
        stored: Envelope = self._taken.serializable()
        return stored

    def settle(self, settlement: Settlement) -> None:
        """Settle it at kombu's channel.  May switch."""
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
    return next((_MORE[module] for module in modules if module in _MORE), _SUPPORTED)


def _exclusive(method: F) -> F:
    """Make *method* need an open channel, and be alone in the transport."""

    @wraps(method)
    def alone(self: HostedChannel, *args: Any, **kwargs: Any) -> Any:
        hub_affinity = self.connection.hub_affinity
        if get_hub() is not hub_affinity.hub:
            hub_affinity.check(self.connection)
        with self.lock:
            if self.cause is not None:
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
    may_skip_counts: ClassVar[bool] = False

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
                back = SettleRequest(message.claimed, Settlement.REQUEUE)
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

    def _feed_of(self, queue: str, method: Method) -> tuple[str, ConsumedFeed]:
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


class HostedPublisher(SynchronousPublisher):
    """The publisher of one channel around one of kombu's."""

    _channel: HostedChannel

    def prepare(
        self,
        body: Any,
        priority: int | None,
        content_type: str | None,
        content_encoding: str | None,
        headers: Mapping[str, Any] | None,
        properties: MutableMapping[str, Any] | None,
    ) -> Envelope:
        """Return a message to publish: a snapshot of what may be changed later.  Never switches."""
        prepared: Envelope = self._channel.raw.prepare_message(
            body,
            priority,
            content_type if content_type.__class__ is str else plain_text(content_type),
            content_encoding if content_encoding.__class__ is str else plain_text(content_encoding),
            copied(headers) if headers else headers,
            copied(properties) if properties else properties,
        )
        return prepared

    def _decide(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool, immediate: bool
    ) -> None:
        self._channel.put_message(message, exchange, routing_key)


class QueueReader:
    """Takes the messages of a queue out, through a channel that does nothing else.

    So its prefetch is what its consumers have room for.

    Arguments:
        prefetch: of the consumer that is the first one, for a transport that takes it.

    Attributes:
        connection: the link.
        lock: the link's.
        raw: the channel.
    """

    def __init__(self, link: HostedLink, queue: str, prefetch: int) -> None:
        self.connection: Final = link
        self.lock: Final = link.lock
        self._queue = queue
        self._tag = uuid()
        self._unacked = 0
        self._is_active = True
        self.raw = link.open_channel()
        try:
            self.raw.basic_qos(0, prefetch, False)
            self.raw.basic_consume(queue, False, self._take, self._tag)
        except BaseException:
            self.raw.close()
            raise
        #: The callback of each queue, which kombu's transport has one of.
        self._callbacks = link.raw._callbacks
        #: What makes a message of what the queue holds, and calls ``_take``.
        self._receive = self._callbacks[queue]

    def poll(self, wanted: Mapping[str, int]) -> None:
        """Take out what there is as long as it is wanted, but not for long.  May switch.

        Arguments:
            wanted: queue -> how many messages there is room for; changes while they come.
        """
        raw, queue = self.raw, self._queue
        with self.lock:
            if not self._is_active:
                return
            raw.qos.prefetch_count = self._unacked + wanted.get(queue, 0)
            self._callbacks[queue] = self._receive  # a former reader's end removes it
            ends_at = monotonic() + PACE
            try:
                while queue in wanted:
                    raw.drain_events(callback=self._deliver)
                    if monotonic() > ends_at:
                        break
            except Empty:
                pass

    def _deliver(self, raw_message: Any, queue: str) -> None:
        self._receive(raw_message)

    def _take(self, taken: Any) -> None:
        self._unacked += 1
        queue = self._queue
        self.connection.store.arrive(HostedMessage(taken, queue, self), queue)

    def note_settled(self, queue: str) -> None:
        """Note that one of its messages was settled.  May switch.  Call with the lock."""
        self._unacked -= 1
        if not self._is_active:
            self._close_unused()
        feed = self.connection.feeds.get(queue)
        if feed is not None and feed.state is FeedState.DRY:
            feed.wake()  # a ``QoS`` with a say of its own may want more now

    def leave(self) -> None:
        """Take no more.  What was taken can still be settled.  May switch."""
        with self.lock:
            self._is_active = False
            self.raw.basic_cancel(self._tag)
            self._close_unused()

    def _close_unused(self) -> None:
        if not self._unacked:
            self.raw.close()


class HostedLink(HookedLink):
    """A link with kombu's transport, which one greenlet at a time may use.

    Arguments:
        raw: the transport; it is opened here.
    """

    def __init__(self, transport: HostedTransport, raw: Any) -> None:
        self.connected = raw.establish_connection()
        self.raw = raw
        #: Held around each call of the transport: what it waits for may let other greenlets run.
        self.lock = RLock()
        self._readers: dict[str, QueueReader] = {}
        super().__init__(transport)

    def open_channel(self) -> Any:
        """Open one of kombu's channels.  May switch."""
        self.hub_affinity.check(self)
        self.check_open()
        with self.lock:
            return self.raw.create_channel(self.connected)

    def hooks(self, queue: str) -> Any:
        """Return one of kombu's channels.

        Raises:
            RecoverableConnectionError: there is none.
        """
        for channel in self.channels.values():
            if isinstance(channel, HostedChannel):
                return channel.raw
        raise RecoverableConnectionError(f"no channel consumes queue {queue!r}")

    def put_back(self, message: TakenMessage) -> None:
        """Put a message back that a former life has taken out.  May switch."""
        with self.lock:
            raw = self.open_channel()
            try:
                raw._put(message.queue, message.serializable() | {"redelivered": True})
            finally:
                raw.close()
        self.store.wake(message.queue)

    def read(self, queue: str, prefetch: int) -> None:
        """Begin to take messages out of a queue; again: does nothing.  May switch."""
        with self.lock:
            if queue not in self._readers:
                reader = QueueReader(self, queue, prefetch)
                if queue in self.feeds:
                    self._readers[queue] = reader
                else:
                    reader.leave()  # its consumer has gone meanwhile
        self.wake(queue)

    def poll(self, wanted: Mapping[str, int], timeout: float) -> None:
        """Look into each queue.  May switch."""
        for queue in list(wanted):
            reader = self._readers.get(queue)
            if reader is not None:
                reader.poll(wanted)

    def retire(self, feed: StoreFeed) -> None:
        """Forget a feed that is not used any more.  Never switches."""
        super().retire(feed)
        reader = None if feed.queue in self.feeds else self._readers.pop(feed.queue, None)
        if reader is not None and self.lost is None:
            self.later("cancelling a consumer", reader.leave)

    def publisher(self, channel: StoreChannel[Any]) -> Publisher[Envelope]:
        """Return what *channel* publishes with."""
        assert isinstance(channel, HostedChannel)
        return HostedPublisher(channel)

    def delivery(self, claimed: Claimed, consumer: Consumer) -> Message:
        """Return the message that *consumer* is given for what was claimed."""
        message: HostedMessage = claimed.handle
        message.consumer = consumer
        message.delivery_info["consumer_tag"] = consumer.tag
        consumer.channel.receive_message(message)
        return message

    def close(self) -> None:
        """Requeue what is not settled, and close.  May switch."""
        was_open = self.is_open
        super().close()
        if was_open:
            with self.lock:
                self.raw.close_connection(self.connected)


#: Seconds between two looks where the transport does not say.
POLLING_INTERVAL: Final = 1.0

_made: dict[type, type[HostedTransport]] = {}


def hosted(cls: Any) -> Any:
    """Return what runs *cls* if it is one of kombu's virtual transports, else *cls* itself.

    Raises:
        TypeError: *cls* is one of kombu's that is not virtual, and needs kombu's event loop.
    """
    kombu: Any = sys.modules.get("kombu.transport.base")
    if kombu is None or kombu is base or not isinstance(cls, type):
        return cls
    if not issubclass(cls, kombu.Transport):
        return cls
    virtual: Any = sys.modules.get("kombu.transport.virtual.base")
    if virtual is None or not issubclass(cls, virtual.Transport):
        raise TypeError(
            f"transport {cls.__module__}:{cls.__qualname__} is kombu's own, and only kombu's "
            f"virtual transports can be hosted"
        )
    if cls not in _made:
        _made[cls] = _make(cls)
    return _made[cls]


class HostedTransport(HookedTransport):
    """Runs a virtual transport of kombu's, one of its transports for each link.

    Arguments:
        client: the ``Connection``; the transport within reads its host, login and options.
    """

    #: kombu's class.
    hosted_cls: ClassVar[Any]
    Channel = HostedChannel

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        #: Only asked for what it can tell; each link has another.
        self.hosted = self.hosted_cls(client=client)

    def driver_version(self) -> str:
        """Return the version of the library below."""
        return str(self.hosted.driver_version())

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return dict(self.hosted.default_connection_params)

    def make_store(self, wake: Callable[[str | None], None]) -> HookStore:
        """Return the store of one link."""
        interval = self.hosted.polling_interval
        return HookStore(self.client, wake, POLLING_INTERVAL if interval is None else interval)

    def establish_connection(self, deadline: Deadline | None = None) -> HostedLink:
        """Open a link; how long that may take is the transport's to know."""
        link = HostedLink(self, self.hosted_cls(client=self.client))
        link.open(deadline or Deadline())
        return link

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Mask a URL that the transport parses itself."""
        return str(self.hosted.as_uri(uri, include_password, mask))


def _make(cls: Any) -> type[HostedTransport]:
    """Derive the class that runs *cls*, with what kombu asks of classes."""
    attributes = {
        "__doc__": cls.__doc__,
        "hosted_cls": cls,
        "can_parse_url": cls.can_parse_url,
        "default_port": cls.default_port,
        "driver_type": cls.driver_type,
        "driver_name": cls.driver_name,
        "polling_interval": cls.polling_interval,
        "implements": base.Implements(cls.implements),
        "connection_errors": (*base.Transport.connection_errors, *cls.connection_errors),
        "recoverable_connection_errors": (RecoverableConnectionError, *cls.connection_errors),
        "channel_errors": (*base.Transport.channel_errors, *cls.channel_errors),
    }
    return type(f"Hosted{cls.__name__}", (HostedTransport,), attributes)
