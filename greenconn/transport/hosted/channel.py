"""A channel of ours around channels of kombu's virtual transports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from greenconn.encoding import plain_text
from greenconn.exceptions import ChannelError, NotFound, RecoverableChannelError
from greenconn.identity import uuid
from greenconn.transport.base import StdChannel
from greenconn.transport.hosted.consumer import HostedConsumer, message_of
from greenconn.transport.refusal import Method, no_recover_in_place, unknown_delivery_tag
from greenconn.transport.virtual.arguments import (
    ArgumentOf,
    SupportedArguments,
    warn_of_unsupported,
)
from greenconn.transport.virtual.publishing import copied

if TYPE_CHECKING:
    from greenconn.abc import Sink
    from greenconn.message import Message
    from greenconn.transport.hosted.link import HostedLink

__all__ = ["HostedChannel"]

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


def _supported_by(cls: type) -> SupportedArguments:
    """The arguments that a channel class of kombu's, or one derived from it, implements."""
    own: SupportedArguments | None = getattr(cls, "supported_arguments", None)
    if own is not None:
        return own
    modules = [each.__module__ for each in cls.__mro__]
    return next((_MORE[each] for each in modules if each in _MORE), _SUPPORTED)


def _exclusive(method: F) -> F:
    """Make *method* need an open channel, and be alone in the transport."""

    @wraps(method)
    def alone(self: HostedChannel, *args: Any, **kwargs: Any) -> Any:
        self.connection.home.check(self.connection)
        with self.connection.lock:
            self.check_open()
            try:
                return method(self, *args, **kwargs)
            except ChannelError as exc:
                if type(exc) is ChannelError and str(exc.reply_code) == "404":
                    # As a broker's own refusal is.
                    raise NotFound(exc.reply_text, exc.method_sig, exc.method_name) from exc
                raise

    return cast(F, alone)


class HostedChannel(StdChannel):
    """Gives each consumer a channel of kombu's of its own, and does all else on one more.

    Exchanges and bindings are kept in this process, as kombu's virtual transports do.

    Arguments:
        connection: the link.
    """

    def __init__(self, connection: HostedLink) -> None:
        self.connection = connection
        self.raw = connection.open_channel()
        self.supported_arguments = _supported_by(type(self.raw))
        self.channel_id = self.raw.channel_id
        self.cause: BaseException | None = None
        self.no_ack_consumers: set[str] = set()
        #: Listeners by event: kombu's virtual transports return no message, so nobody calls them.
        self.events: defaultdict[str, set[Callable[..., Any]]] = defaultdict(set)
        self.consumers: dict[str, HostedConsumer] = {}
        #: Delivery tag -> kombu's channel that it must be answered on, and its tag there.
        self._unanswered: dict[Any, tuple[Any, Any]] = {}
        self._finished: list[Any] = []
        self._prefetch = 0
        connection.channels[self] = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.channel_id}: {'open' if self.is_open else 'closed'}>"

    # Life

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self.cause is None

    def flush(self, timeout: float | None = None) -> None:
        """Raise unless it can be used: kombu's transports have told the broker when a call returns."""
        self.check_open()

    def check_open(self) -> None:
        """Raise unless it can be used.

        Raises:
            RecoverableConnectionError: the link is closed or lost.
            RecoverableChannelError: it was closed.
        """
        self.connection.check_open()
        if self.cause is not None:
            raise RecoverableChannelError(f"channel {self.channel_id} is closed ({self.cause})")

    def close(self) -> None:
        """Close it; what was not answered goes back to its queues.  May switch."""
        if not self.is_open:
            return
        consumers = list(self.consumers.values())
        for consumer in consumers:
            consumer.stop()
        self.end(RecoverableChannelError(f"channel {self.channel_id} was closed"))
        with self.connection.lock:
            for raw in (*(each.raw for each in consumers), *self._finished, self.raw):
                raw.close()

    def end(self, exc: BaseException) -> None:
        """End its life.  Never switches."""
        if self.cause is not None:
            return
        self.cause = exc
        self.connection.channels.pop(self, None)
        consumers, self.consumers = self.consumers, {}
        self._unanswered.clear()
        for consumer in consumers.values():
            consumer.lose(exc)

    def _warn(self, kind: ArgumentOf, name: str, arguments: Mapping[str, Any] | None) -> None:
        warn_of_unsupported(self.supported_arguments, self.connection.client, kind, name, arguments)

    # Topology

    @_exclusive
    def exchange_declare(
        self, exchange: str = "", type: str = "direct", *args: Any, **kwargs: Any
    ) -> Any:
        """Declare an exchange in this process."""
        exchange, type = plain_text(exchange), plain_text(type)
        self._warn(ArgumentOf.EXCHANGE, exchange, kwargs.get("arguments"))
        return self.raw.exchange_declare(exchange, type, *args, **kwargs)

    @_exclusive
    def exchange_delete(self, exchange: str, *args: Any, **kwargs: Any) -> Any:
        """Delete an exchange."""
        exchange = plain_text(exchange)
        return self.raw.exchange_delete(exchange, *args, **kwargs)

    @_exclusive
    def exchange_bind(self, *args: Any, **kwargs: Any) -> Any:
        """Bind an exchange to another; few transports can."""
        return self.raw.exchange_bind(*args, **kwargs)

    @_exclusive
    def exchange_unbind(self, *args: Any, **kwargs: Any) -> Any:
        """Undo a binding of exchanges."""
        return self.raw.exchange_unbind(*args, **kwargs)

    @_exclusive
    def queue_declare(self, queue: str = "", passive: bool = False, **kwargs: Any) -> Any:
        """Declare a queue; without a name it gets one."""
        queue = plain_text(queue)
        if not passive:
            self._warn(ArgumentOf.QUEUE, queue, kwargs.get("arguments"))
        return self.raw.queue_declare(queue=queue, passive=passive, **kwargs)

    @_exclusive
    def queue_bind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Any:
        """Bind a queue."""
        queue = plain_text(queue)
        exchange = plain_text(exchange)
        routing_key = plain_text(routing_key)
        return self.raw.queue_bind(queue, exchange, routing_key, arguments)

    @_exclusive
    def queue_unbind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Any:
        """Undo a binding."""
        queue = plain_text(queue)
        exchange = plain_text(exchange)
        routing_key = plain_text(routing_key)
        return self.raw.queue_unbind(queue, exchange, routing_key, arguments)

    @_exclusive
    def queue_purge(self, queue: str = "", nowait: bool = False) -> int:
        """Drop what waits and return how many there were."""
        queue = plain_text(queue)
        return int(self.raw.queue_purge(queue) or 0)

    @_exclusive
    def queue_delete(
        self, queue: str = "", if_unused: bool = False, if_empty: bool = False, nowait: bool = False
    ) -> Any:
        """Delete a queue."""
        queue = plain_text(queue)
        return self.raw.queue_delete(queue, if_unused=if_unused, if_empty=if_empty)

    def list_bindings(self) -> Any:
        """All bindings that this process knows."""
        return self.raw.list_bindings()

    # Publishing

    def prepare_message(
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: Any = None,
    ) -> Any:
        """Make what ``basic_publish`` takes."""
        return self.raw.prepare_message(
            body,
            priority,
            plain_text(content_type),
            plain_text(content_encoding),
            copied(headers) if headers else headers,
            copied(properties) if properties else properties,
        )

    @_exclusive
    def basic_publish(
        self,
        message: dict[str, Any],
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> Any:
        """Publish; it returns when the transport has the message.  May switch."""
        exchange, routing_key = plain_text(exchange), plain_text(routing_key)
        properties, headers = message.get("properties") or {}, message.get("headers") or {}
        if headers or properties.get("expiration"):
            given = {name: headers.get(name) for name in ("x-delay", "CC", "BCC")}
            given["expiration"] = properties.get("expiration")
            self._warn(ArgumentOf.MESSAGE, exchange or routing_key, given)
        result = self.raw.basic_publish(message, exchange, routing_key)
        self.connection.poller.wake()
        return result

    basic_publish_confirm = basic_publish

    # Consuming

    @_exclusive
    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        """Bound what consumers that are started from now on hold unanswered, each by itself.

        With *apply_global* those that run, too.
        """
        self._prefetch = prefetch_count
        if apply_global:
            for consumer in self.consumers.values():
                consumer.raw.basic_qos(0, prefetch_count, False)

    def basic_consume(
        self,
        queue: str = "",
        consumer_tag: str = "",
        no_local: bool = False,
        no_ack: bool = False,
        exclusive: bool = False,
        nowait: bool = False,
        callback: Callable[[Any], Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        on_cancel: Callable[[str], Any] | None = None,
        *,
        sink: Sink | None = None,
    ) -> str:
        """Poll *queue* and give what is there to *callback* (in who drains) or *sink*.  May switch."""
        queue, consumer_tag = plain_text(queue), plain_text(consumer_tag)
        self.check_open()
        self._warn(ArgumentOf.CONSUMER, queue, arguments)
        tag = consumer_tag or uuid()
        raw = self.connection.open_channel()
        with self.connection.lock:
            raw.basic_qos(0, self._prefetch, False)
            consumer = HostedConsumer(self, raw, queue, tag, no_ack, callback=callback, sink=sink)
        self.consumers[tag] = consumer
        if no_ack:
            self.no_ack_consumers.add(tag)
        if sink is not None:
            sink.taken = None
        self.connection.poller.add(consumer)
        return tag

    def basic_cancel(self, consumer_tag: str, nowait: bool = False) -> Any:
        """End a consumer; what it holds can still be answered.  May switch."""
        consumer_tag = plain_text(consumer_tag)
        consumer = self.consumers.pop(consumer_tag, None)
        self.no_ack_consumers.discard(consumer_tag)
        if consumer is not None:
            consumer.stop()
            self._finished.append(consumer.raw)

    @_exclusive
    def basic_get(self, queue: str = "", no_ack: bool = False) -> Message | None:
        """Take a message, or None.  May switch."""
        queue = plain_text(queue)
        raw = self.raw.basic_get(queue, no_ack=no_ack)
        if raw is None:
            return None
        message = message_of(raw, self)
        if not no_ack:
            self.note(message, self.raw)
        return message

    def note(self, message: Message, raw: Any) -> None:
        """Note that *message* must be answered, on kombu's channel *raw*.  Never switches."""
        tag = message.delivery_tag
        if tag in self._unanswered:
            message.delivery_tag = uuid()  # it went to two queues, with one tag in both
        self._unanswered[message.delivery_tag] = raw, tag

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        """Acknowledge a message.  May switch.

        For a delivery of a connection that is gone it does nothing.

        Arguments:
            multiple: all deliveries of this channel up to this one; all for 0.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
        """
        if self.connection.is_open:
            self._ack(delivery_tag, multiple)

    @_exclusive
    def _ack(self, delivery_tag: Any, multiple: bool) -> None:
        if multiple and not delivery_tag:
            tags = list(self._unanswered)
        else:
            self._check_tag(delivery_tag, Method.BASIC_ACK)
            tags = list(self._unanswered) if multiple else [delivery_tag]
            del tags[tags.index(delivery_tag) + 1 :]
        for each in tags:
            raw, tag = self._unanswered.pop(each)
            raw.basic_ack(tag)
        self._has_room()

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Reject a message, or give it back; see :meth:`basic_ack`.  May switch."""
        if self.connection.is_open:
            self._reject(delivery_tag, requeue)

    @_exclusive
    def _reject(self, delivery_tag: Any, requeue: bool) -> None:
        self._check_tag(delivery_tag, Method.BASIC_REJECT)
        raw, tag = self._unanswered.pop(delivery_tag)
        raw.basic_reject(tag, requeue=requeue)
        self._has_room()

    def _check_tag(self, delivery_tag: Any, method: Method) -> None:
        if delivery_tag not in self._unanswered:
            raise unknown_delivery_tag(delivery_tag, method)

    @_exclusive
    def basic_recover(self, requeue: bool = False) -> Any:
        """Give back all that was not answered.  May switch.

        Raises:
            AMQPNotImplementedError: *requeue* is false.
        """
        if not requeue:
            raise no_recover_in_place()
        channels = (*(raw for raw, _ in self._unanswered.values()), self.raw)
        for raw in {id(each): each for each in channels}.values():
            raw.basic_recover(requeue)
        self._unanswered.clear()
        self._has_room()

    def flow(self, active: bool) -> Any:
        """Stop or go on with deliveries; virtual transports of kombu's cannot."""
        return self.raw.flow(active)

    def message_to_python(self, raw_message: Any) -> Any:
        """Return a message as it is: those of this channel are ready."""
        return raw_message

    def after_reply_message_received(self, queue: str) -> None:
        """Delete a reply queue that nobody needs any more."""
        self.raw.after_reply_message_received(queue)

    def _has_room(self) -> None:
        for consumer in self.consumers.values():
            if consumer.has_room():
                self.connection.poller.add(consumer)
