"""A channel for brokers that only have queues, its messages, and kombu's ``QoS``.

Subclasses define how to put and get.

Exchanges and bindings are kept in this process, so every program that uses them must declare them.
Messages are stored in kombu's envelope (:mod:`~greenconn.broker.envelope`).
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, MutableSequence
from contextlib import suppress
from pprint import pformat
from queue import Empty
from tempfile import mkstemp
from typing import IO, TYPE_CHECKING, Any, ClassVar, Final, Generic, TextIO, TypeVar

from amqp.protocol import queue_declare_ok_t

from greenconn.broker.channel import Prepared, PublishResult, StoreChannel, closes_channel
from greenconn.broker.consuming import ConsumedFeed, Consumer, StoreConsumer
from greenconn.broker.deliveries import Handover
from greenconn.broker.entities import ArgumentOf, Entities, SupportedArguments
from greenconn.broker.envelope import WHAT, Base64, Envelope, checked
from greenconn.broker.errors import (
    Method,
    in_use,
    no_exchange,
    no_queue,
    no_recover_in_place,
    not_empty,
)
from greenconn.broker.exchanges import (
    STANDARD_EXCHANGE_TYPES,
    Binding,
    BrokerState,
    ExchangeType,
    Router,
)
from greenconn.broker.link import StoreLink
from greenconn.broker.port import Claimed, Settlement
from greenconn.broker.publishing import PublishOutcome, undeliverable, warn_of_message
from greenconn.broker.queues import Declaration, generated_name
from greenconn.encoding import plain_text
from greenconn.exceptions import DecodeError, error_text
from greenconn.green.supervisor import spawn
from greenconn.identity import uuid
from greenconn.jsoncodec import dumps
from greenconn.message import Message as BaseMessage
from greenconn.serialization import decode_error

if TYPE_CHECKING:
    from greenconn.transport.hooks import HookLink

logger = logging.getLogger("greenconn.transport.virtual")


class TakenMessage(BaseMessage, ABC):
    """A message that a hook has taken out of its broker.

    Attributes:
        queue: where it was taken from, if known: it is given back there.
        consumer: who gets it; None for ``basic_get``.
    """

    __slots__ = ("consumer", "queue")

    #: Whether its channel holds it until it is settled.
    is_held = True
    #: A ``QoS`` has noted it, gets its outcome, and puts it back in the end.
    is_noted: bool

    queue: str | None
    consumer: Consumer | None

    @property
    def claimed(self) -> Claimed:
        """The claim of the store."""
        return Claimed(self.queue or "", None, self)

    @property
    @abstractmethod
    def link(self) -> object:
        """The link that took it out."""

    @property
    @abstractmethod
    def is_gone_from_broker(self) -> bool:
        """Whether we must requeue it, since neither the broker nor a ``QoS`` of its own does."""

    @abstractmethod
    def serializable(self) -> Envelope:
        """Return the envelope with which it can be put back."""

    @abstractmethod
    def settle(self, settlement: Settlement) -> None:
        """Settle it at the broker.  May switch."""


class Message(TakenMessage):
    """A message out of its envelope.

    Arguments:
        payload: the envelope.
        channel: decodes the body.
        queue: where it was taken from, if known.
    """

    __slots__ = ("_raw", "is_noted")

    def __init__(
        self, payload: Envelope, channel: Any = None, queue: str | None = None, **kwargs: Any
    ) -> None:
        self._raw = payload
        self.queue = queue
        self.consumer = None
        self.is_noted = False
        error: DecodeError | None = None
        try:
            properties, headers, content_type, content_encoding, body = checked(payload)
        except Exception as exc:
            super().__init__(body=payload, channel=channel, **kwargs)
            self._note(decode_error(exc, WHAT))
            return
        try:
            if body is not None and not isinstance(body, (str, bytes)):
                body = dumps(body)  # its publisher did not serialize it
            elif body and channel is not None:
                body = channel.decode_body(body, properties.get("body_encoding"))
        except Exception as exc:
            error = decode_error(exc, WHAT)
        tag = properties.get("delivery_tag")
        super().__init__(
            body=body,
            channel=channel,
            delivery_tag=tag if isinstance(tag, (str, int)) else None,
            content_type=content_type,
            content_encoding=content_encoding,
            headers=headers,
            properties=properties,
            delivery_info={
                **(properties.get("delivery_info") or {}),
                "redelivered": bool(payload.get("redelivered")),
            },
            postencode="utf-8",
            **kwargs,
        )
        if error is not None:
            self._note(error)

    def _note(self, error: DecodeError) -> None:
        """Have decoding raise *error*, as the message cannot be read."""
        self.errors.append((DecodeError, error, None))

    @property
    def link(self) -> object:
        return self.channel.connection

    @property
    def is_gone_from_broker(self) -> bool:
        channel = self.channel
        return bool(channel.do_restore) and (not self.is_noted or keeps_only_here(channel.qos))

    def settle(self, settlement: Settlement) -> None:
        """Settle it at the ``QoS``; requeue one that it does not know itself.  May switch."""
        channel = self.channel
        if not self.is_noted:
            if settlement is Settlement.REQUEUE:
                channel._restore_at_beginning(self)
        elif settlement is Settlement.ACK:
            channel.qos.ack(self.delivery_tag)
        else:
            channel.qos.reject(self.delivery_tag, requeue=settlement is Settlement.REQUEUE)
        if channel.asks_qos:
            channel.serve()

    def serializable(self) -> Envelope:
        if self.errors:
            return dict(self._raw) if isinstance(self._raw, dict) else {"body": self._raw}
        properties = self.properties
        body = self.body
        if body is not None:
            body, _ = self.channel.encode_body(body, properties.get("body_encoding"))
        # The body was decompressed on its way in.
        headers = {name: each for name, each in self.headers.items() if name != "compression"}
        return {
            "body": body,
            "properties": properties,
            "content-type": self.content_type,
            "content-encoding": self.content_encoding,
            "headers": headers,
        }


class QoS:
    """Unacked deliveries of one channel, in order (kombu's).

    Arguments:
        channel: requeues what is not settled.
        prefetch_count: deliveries that may be unacked at once; 0 is no limit.
    """

    prefetch_count = 0
    #: Whether what is left is given back when the channel closes.
    restore_at_shutdown = True

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        self.channel = channel
        self.prefetch_count = prefetch_count or 0
        self._delivered = _Delivered()
        #: kombu's finalizer, which subclasses cancel: here the channel gives back what is left.
        self._on_collect = _Finalizer()
        #: Settled and still in there: subclasses look at it after the ack.
        self._dirty: set[Any] = set()

    def can_consume(self) -> bool:
        """Return whether one more may be delivered.

        Asked by the channel where a subclass has its own; else its consumers have their bounds.
        """
        return not self.prefetch_count or len(self) < self.prefetch_count

    def can_consume_max_estimate(self) -> int | None:
        """Return the number of messages that may still be delivered; None: no limit."""
        if not self.prefetch_count:
            return None
        return max(self.prefetch_count - len(self), 0)

    def append(self, message: Any, delivery_tag: Any) -> None:
        """Note a delivery."""
        self._flush()
        self._quick_append(delivery_tag, message)

    def get(self, delivery_tag: Any) -> Any:
        """Return an unacknowledged message, or the one that was settled last.

        Raises:
            KeyError: there is none of that tag.
        """
        return self._delivered[delivery_tag]

    def ack(self, delivery_tag: Any) -> None:
        """Acknowledge a message; may switch in subclasses."""
        self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Reject a message; with *requeue* put it back.  May switch."""
        if requeue:
            self.channel._restore_at_beginning(self._delivered[delivery_tag])
        self._quick_ack(delivery_tag)

    def _quick_append(self, delivery_tag: Any, message: Any) -> None:
        self._delivered[delivery_tag] = message

    def _quick_ack(self, delivery_tag: Any) -> None:
        self._flush()
        if delivery_tag in self._delivered:
            self._dirty.add(delivery_tag)
        self.channel.note_settled(delivery_tag)

    def _flush(self) -> None:
        """Remove what was settled."""
        while self._dirty:
            self._delivered.pop(self._dirty.pop(), None)

    def __len__(self) -> int:
        return len(self._delivered) - len(self._dirty)

    def restore_unacked(self) -> list[tuple[Exception, Any]]:
        """Put everything back, and return what could not be, with the reasons.  May switch."""
        self._flush()
        failed = []
        # Oldest first, so that their order holds; acks may come in between.
        for tag in list(self._delivered):
            message = self._delivered.pop(tag, None)
            if message is None or tag in self._dirty:
                continue
            self.channel.note_settled(tag)
            try:
                self.channel._restore(message)
            except Exception as exc:
                failed.append((exc, message))
        return failed

    def restore_unacked_once(self, stderr: TextIO | None = None) -> None:
        """Put everything back when the channel closes.  May switch.

        What cannot be put back is dumped into a file.

        Arguments:
            stderr: where the path is written to; None logs it.
        """
        if not len(self) or not self.restore_at_shutdown or not self.channel.do_restore:
            return
        logger.info("restoring %d unacknowledged message(s)", len(self))
        failed = self.restore_unacked()
        self._delivered.restored = True
        if failed:
            logger.error(
                "%d unacknowledged message(s) could not be restored: %r", len(failed), failed[0][0]
            )
            dump_messages((message for _, message in failed), stderr)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Requeue what others left unacknowledged, where there is a visibility timeout; else nothing."""


class _Finalizer:
    """The place of what kombu calls when a program ends; channels do that work here."""

    def cancel(self) -> None:
        """Do nothing."""


class _Delivered(OrderedDict[Any, Any]):
    """Delivery tag -> message, the oldest first."""

    #: Whether all was given back, as it is once when a channel closes (kombu's).
    restored = False


#: Modules of the ``QoS`` that keep deliveries in a dict: ours, and kombu's.
_KEEP_HERE: Final = frozenset({__name__, "kombu.transport.virtual.base"})


def keeps_only_here(qos: Any) -> bool:
    """Return whether the deliveries that a ``QoS`` has are in this process, and nowhere else.

    One that keeps them at its broker overrides ``append``.
    """
    return bool(qos.restore_at_shutdown) and type(qos).append.__module__ in _KEEP_HERE


#: Names for what a ``Channel`` has attributes of the same names for.
StoredMessage = Message
Unacked = QoS


class HookedEntities(Entities):
    """Exchanges and bindings of this process, and queues over the hooks of *channel*.

    May switch, as the hooks may.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._hooks = channel

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings that all channels of the transport share."""
        return self._hooks.connection.state

    def _router_factory(self, exchange: str, type: str) -> Callable[[], Router] | None:
        kind = self._hooks.exchange_types.get(type)
        return None if kind is None else lambda: kind.router(exchange)

    def _bound(self, binding: Binding) -> None:
        if self._hooks.supports_fanout and not binding.to_exchange:
            row = self._row(binding)
            self._hooks._queue_bind(binding.source, *row)

    def _row(self, binding: Binding) -> tuple[str, Any, str]:
        """Return kombu's row of a binding of a queue."""
        return self._hooks.binding_row(
            binding.destination, binding.source, binding.routing_key, binding.arguments
        )

    def declare_queue(
        self, queue: str, declared: Declaration, *, passive: bool, counted: bool = True
    ) -> queue_declare_ok_t:
        """Make a queue.

        Returns:
            its name, how many messages wait, and 0.

        Raises:
            NotFound: passive, and it does not exist.
        """
        hooks = self._hooks
        name = queue or generated_name("amq.gen-")
        options = {
            "durable": declared.durable,
            "exclusive": declared.owner is not None,
            "auto_delete": declared.auto_delete,
            "arguments": declared.arguments or None,
        }
        if not passive:
            hooks.warn_of_unsupported(ArgumentOf.QUEUE, name, declared.arguments)
            hooks._new_queue(name, **options)
        elif not hooks._has_queue(name, **options):
            raise no_queue(name, hooks.virtual_host, Method.QUEUE_DECLARE)
        self.last_queue = name
        hooks.connection.declared.add(name)
        return queue_declare_ok_t(name, hooks._size(name) if counted else 0, 0)

    def delete_queue(self, queue: str, if_unused: bool, if_empty: bool) -> int:
        """Delete a queue and its bindings; return how many messages it had.

        Raises:
            PreconditionFailed: *if_unused*, and this connection consumes from it; *if_empty*, and
                it is not.
        """
        hooks = self._hooks
        size = hooks._size(queue)
        consumers = [
            (channel, each)
            for channel in hooks.connection.channels.values()
            for each in channel.consumers.values()
            if each.queue == queue
        ]
        if if_unused and consumers:
            raise in_use("queue", queue, hooks.virtual_host, Method.QUEUE_DELETE)
        if if_empty and size:
            raise not_empty(queue, hooks.virtual_host, Method.QUEUE_DELETE)
        rows: list[tuple[Any, ...]] = [
            (
                each.exchange,
                *hooks.binding_row(queue, each.exchange, each.routing_key, each.arguments),
            )
            for each in self.state.queue_bindings(queue)
        ]
        for channel, consumer in consumers:
            channel.cancelled_by_broker(consumer)
        self.state.queue_bindings_delete(queue)
        hooks.connection.declared.discard(queue)
        for row in rows or [()]:
            hooks._delete(queue, *row)
        return size

    def purge_queue(self, queue: str) -> int:
        """Drop the messages of a queue and return how many there were."""
        return self._hooks._purge(self.queue_name(queue)) or 0


class AbstractChannel:
    """The hooks, which may all switch.  Transports inherit from ``Channel``, which is built on them."""

    def _get(self, queue: str, timeout: float | None = None) -> Envelope:
        """Take the next message of *queue*.

        Raises:
            Empty: there is none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no _get")

    def _put(self, queue: str, message: Envelope, **kwargs: Any) -> None:
        """Append *message* to *queue*."""
        raise NotImplementedError(f"{type(self).__name__} has no _put")

    def _purge(self, queue: str) -> int | None:
        """Drop all messages of *queue* and return how many there were, if that is known."""
        raise NotImplementedError(f"{type(self).__name__} has no _purge")

    def _size(self, queue: str) -> int:
        """Return the number of messages that wait in *queue*; 0 if it is unknown."""
        return 0

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        """Delete *queue*.

        Arguments:
            args: exchange, routing key, pattern and queue of a binding, for each that it had.
        """
        self._purge(queue)

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        """*queue* is declared, with the arguments *kwargs*: make it where that is needed."""

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        """Return whether *queue* exists; True if it is unknown."""
        return True

    def _queue_bind(self, exchange: str, routing_key: str, pattern: Any, queue: str) -> None:
        """Store a binding where bindings are shared.  Called with ``supports_fanout``."""

    def _put_fanout(
        self, exchange: str, message: Envelope, routing_key: str, **kwargs: Any
    ) -> None:
        """Broadcast *message*.  Asked with ``supports_fanout``."""
        raise NotImplementedError(f"{type(self).__name__} has no _put_fanout")

    def _get_and_deliver(self, queue: str, callback: Any) -> None:
        callback(self._get(queue), queue)

    def _poll(self, cycle: FairCycle[str], callback: Any, timeout: float | None = None) -> Any:
        """Take one message from any of the queues in *cycle*: ``callback(message, queue)``.

        Raises:
            Empty: none of them has any.
        """
        return cycle.get(callback)


class HookConsumer(StoreConsumer):
    """A consumer whose channel's ``QoS`` may have a say of its own."""

    __slots__ = ()

    def has_room(self) -> bool:
        """Return whether it may be given one more message now."""
        return super().has_room() and (not self.channel.asks_qos or self.channel.qos.can_consume())


class Channel(AbstractChannel, StoreChannel[StoreLink]):
    """A channel over hooks, which subclasses write.  All hooks may switch.

    Its methods take their arguments in the order of kombu's virtual channels, where that is another one
    than AMQP's: transports that were written for kombu override them and call them by position.

    Arguments:
        connection: the link.
    """

    connection: HookLink
    #: A subclass whose hooks implement more adds to these.
    supported_arguments = SupportedArguments(
        exchange=frozenset({"alternate-exchange"}), message=frozenset({"priority"})
    )
    #: Exchange type -> class; an instance for each channel replaces it.
    exchange_types: Mapping[str, Any] = dict(STANDARD_EXCHANGE_TYPES)
    #: Whether the broker can broadcast (``_put_fanout``).
    supports_fanout = False
    entities_class: ClassVar[type[Entities]] = HookedEntities
    consumer_class: ClassVar[type[Consumer]] = HookConsumer
    #: A program's own ``queue_declare`` may be kombu's.
    may_skip_counts: ClassVar[bool] = False
    Message: ClassVar[type[StoredMessage]] = StoredMessage
    QoS: ClassVar[type[Unacked]] = Unacked
    #: Whether unacknowledged messages are requeued when the channel closes.
    do_restore: ClassVar[bool] = True
    codecs: ClassVar[Mapping[str, Base64]] = {"base64": Base64()}
    #: How bodies are stored; None stores them as they are.
    body_encoding: str | None = "base64"
    #: Where messages go that have no queue to go to.
    deadletter_queue: str | None = None
    #: Attributes that ``transport_options`` may set.
    from_transport_options: tuple[str, ...] = ("body_encoding", "deadletter_queue")
    default_priority = 0
    min_priority = 0
    max_priority = 9

    def __init__(self, connection: HookLink, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        #: Where the next look goes (kombu's name, which transports use).
        self._active_queues: list[str] = []
        self._qos: Unacked | None = None
        #: Whether the ``QoS`` has a say of its own in how much is delivered.
        self.asks_qos = self.QoS.can_consume is not Unacked.can_consume
        self._cycle: FairCycle[str] | None = None
        self.exchange_types = {name: cls(self) for name, cls in self.exchange_types.items()}
        options = connection.client.transport_options or {}
        for name in self.from_transport_options:
            if name in options:
                setattr(self, name, options[name])

    def has_dead_letters(
        self, queue: str, routing_key: str = "", headers: Mapping[str, Any] | None = None
    ) -> bool:
        """Return False: what hooks reject is dropped.  Never switches."""
        return False

    # -- what a transport may write beside the hooks

    def _restore(self, message: StoredMessage) -> None:
        """Put *message* back where it came from."""
        stored = message.serializable()
        stored["redelivered"] = True
        info = message.delivery_info
        queues = (
            [message.queue]
            if message.queue is not None
            else self._lookup(info["exchange"], info["routing_key"])
        )
        for queue in queues:
            self._put(queue, stored)

    def _restore_at_beginning(self, message: StoredMessage) -> None:
        """Put *message* back where it came from, to the head if the broker can."""
        self._restore(message)

    def after_reply_message_received(self, queue: str) -> None:
        """Delete a reply queue whose reply has come.  May switch."""
        self.queue_delete(queue)

    # -- exchanges and queues

    def exchange_declare(  # type: ignore[override]  # kombu's order
        self,
        exchange: str | None = None,
        type: str = "direct",
        durable: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        nowait: bool = False,
        passive: bool = False,
    ) -> None:
        """Make an exchange, or check that the existing one is the same."""
        super().exchange_declare(
            exchange or "", type or "direct", passive, durable, auto_delete, nowait, arguments
        )

    def queue_declare(  # type: ignore[override]  # kombu's order
        self, queue: str | None = None, passive: bool = False, **kwargs: Any
    ) -> queue_declare_ok_t:
        """Make a queue.  May switch.

        Arguments:
            kwargs: ``durable``, ``exclusive``, ``auto_delete``, ``nowait``, ``arguments``.
        """
        return super().queue_declare(queue or "", passive, **kwargs)

    def queue_delete(  # type: ignore[override]  # kombu's
        self, queue: str = "", if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> int:
        """Delete a queue and its bindings; return how many messages it had.  May switch."""
        return super().queue_delete(queue, if_unused, if_empty)

    def queue_purge(self, queue: str = "", **kwargs: Any) -> int:  # type: ignore[override]
        """Drop the messages of a queue and return how many there were.  May switch."""
        return super().queue_purge(queue)

    def is_there(self, queue: str) -> bool:
        """Return whether a queue exists; True if it is unknown.  May switch."""
        return queue in self.connection.declared or self._has_queue(queue)

    # -- bindings

    def queue_bind(  # type: ignore[override]  # kombu's order
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Bind a queue to an exchange; again: changes nothing.

        Arguments:
            exchange: None or empty is ``amq.direct``.
        """
        super().queue_bind(queue, exchange or "amq.direct", routing_key, False, arguments)

    def queue_unbind(  # type: ignore[override]  # kombu's order
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remove a binding of a queue; one that is not there is no error."""
        super().queue_unbind(queue, exchange or "amq.direct", routing_key, False, arguments)

    def binding_row(
        self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None
    ) -> tuple[str, Any, str]:
        """Return kombu's row of a binding of a queue."""
        return self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)

    def get_exchanges(self) -> list[str]:
        """Return the names of all exchanges."""
        return list(self.state.exchanges)

    def get_table(self, exchange: str) -> Collection[tuple[str, Any, str]]:
        """Return the rows of an exchange's bindings: routing key, pattern, queue.

        A subclass that shares bindings with other processes returns them from there; may switch.

        Raises:
            KeyError: there is no such exchange.
        """
        return [
            self.binding_row(queue, exchange, key, None)
            for key, _, queue in self.state.exchanges[exchange].table
        ]

    def typeof(self, exchange: str, default: str = "direct") -> ExchangeType:
        """Return the type of an exchange; that named *default* for one that is not known here."""
        known = self.state.exchanges.get(exchange)
        found: ExchangeType = self.exchange_types[default if known is None else known.type]
        return found

    def _lookup(
        self, exchange: str, routing_key: str, default: str | None = None
    ) -> Collection[str]:
        """Return the queues that a message goes to; *default*, if given, when there are none."""
        if not exchange:
            return [routing_key or default or ""]
        queues = self._routes(exchange, routing_key)
        default = self.deadletter_queue if default is None else default
        if queues or default is None:
            return queues
        warnings.warn(undeliverable(exchange, routing_key, default), stacklevel=6)
        self._new_queue(default)
        return [default]

    def _routes(self, exchange: str, routing_key: str) -> Collection[str]:
        if type(self).get_table is Channel.get_table:
            known = exchange in self.state.exchanges
            return self.state.route(exchange, routing_key) if known else ()
        try:
            table = self.get_table(exchange)
        except KeyError:
            return ()
        return self.typeof(exchange).lookup(table, exchange, routing_key, None)

    # -- publishing

    def prepare_message(
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: MutableMapping[str, Any] | None = None,
    ) -> Envelope:
        """Return what ``basic_publish`` takes."""
        envelope: Envelope = super().prepare_message(
            body,
            priority or self.default_priority,
            content_type,
            content_encoding,
            headers,
            properties,
        )
        envelope["properties"].setdefault("delivery_info", {})
        return envelope

    def basic_publish_confirm(
        self,
        message: Prepared | Envelope,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Publish *message* and return when the broker has it.  May switch."""
        super().begin_publish(message, exchange, routing_key, mandatory, immediate).wait()

    def begin_publish(
        self, message: Prepared | Envelope, *args: Any, **kwargs: Any
    ) -> PublishResult:
        """Publish *message*; the result's ``wait`` tells what became of it.  May switch."""
        if type(self).basic_publish is StoreChannel.basic_publish:
            return super().begin_publish(message, *args, **kwargs)
        # What a transport has of its own must not be passed by.
        names = ("exchange", "routing_key", "mandatory", "immediate")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given.pop("deadline", None)
        self.basic_publish(
            message, given.pop("exchange", ""), given.pop("routing_key", ""), **given
        )
        return PublishOutcome(None)

    def put_message(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool
    ) -> bool:
        """Route *message*; return False if it is mandatory and unroutable.  May switch.

        Raises:
            NotFound: there is no such exchange; this channel is closed.
        """
        self.check_open()
        if message["headers"] or message["properties"].get("expiration"):
            warn_of_message(self, message, exchange, routing_key)
        properties = {**message["properties"]}
        properties["delivery_info"] = {**properties.get("delivery_info", {})}
        message = {**message, "properties": properties}
        self._inplace_augment_message(message, exchange, routing_key)
        if not exchange:
            if mandatory and not self.is_there(routing_key):
                return False
            self._put(routing_key, message)
        else:
            if not self._may_know(exchange):
                exc = no_exchange(exchange, self.virtual_host, Method.BASIC_PUBLISH)
                self.fail(exc)
                raise exc
            if mandatory and not self._lookup(exchange, routing_key):
                return False
            self.typeof(exchange).deliver(message, exchange, routing_key)
        self.connection.store.wake(None)
        return True

    def _may_know(self, exchange: str) -> bool:
        """Return whether a message to that exchange may reach a queue, the last resort included."""
        return (
            exchange in self.state.exchanges
            or self.deadletter_queue is not None
            or type(self).get_table is not Channel.get_table
            or type(self)._lookup is not Channel._lookup
        )

    # -- consuming

    @property
    def qos(self) -> Unacked:
        """The unacknowledged deliveries."""
        if self._qos is None:
            self._qos = self.QoS(self)
        return self._qos

    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        """Limit the unacknowledged deliveries; see :class:`~.life.StoreChannel[Any]`."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        # For transports that take several messages at once and ask how many.
        self.qos.prefetch_count = prefetch_count

    def basic_consume(  # type: ignore[override]  # kombu's order
        self,
        queue: str,
        no_ack: bool = False,
        callback: Callable[[Any], Any] | None = None,
        consumer_tag: str = "",
        **kwargs: Any,
    ) -> str:
        """Start a consumer and return its tag.

        Arguments:
            kwargs: ``exclusive``, ``arguments``, ``on_cancel``, ``sink``: as on channels of AMQP.
        """
        return super().basic_consume(
            queue, consumer_tag, no_ack=no_ack, callback=callback, **kwargs
        )

    def _feed_of(self, queue: str, method: Method) -> tuple[str, ConsumedFeed]:
        if not self.is_there(queue):
            raise no_queue(queue, self.virtual_host, method)
        return queue, self.connection.feed(queue)

    @property
    def _consumers(self) -> Collection[str]:
        """The tags of the consumers (kombu's name, which transports use)."""
        return self.consumers.keys()

    @property
    def _tag_to_queue(self) -> dict[str, str]:
        """The queues of consumer tags (kombu's name, which transports use)."""
        return {tag: consumer.queue for tag, consumer in self.consumers.items()}

    @property
    def cycle(self) -> FairCycle[str]:
        """Asks the queues whose consumers have room, in turn."""
        if self._cycle is None:
            self._reset_cycle()
        assert self._cycle is not None
        return self._cycle

    def _reset_cycle(self) -> None:
        self._cycle = FairCycle(self._get_and_deliver, self._active_queues, Empty)

    def poll_queues(self, queues: Collection[str], timeout: float) -> None:
        """Take what there is, once, from *queues*, whose consumers have room.  May switch.

        Arguments:
            timeout: seconds that the broker may be waited for.
        """
        self._active_queues[:] = queues
        try:
            self.drain_events(timeout=timeout, callback=self.connection._deliver)
        except Empty:
            pass

    def drain_events(
        self, timeout: float | None = None, callback: Callable[[Envelope, str], Any] | None = None
    ) -> Any:
        """Take what there is, once, from the queues whose consumers have room.  May switch.

        The link calls it; programs drain their connection.

        Arguments:
            timeout: seconds that the broker may be waited for.
            callback: called with each message and the name of its queue.

        Raises:
            Empty: there was nothing.
        """
        if not self._active_queues or (self.asks_qos and not self.qos.can_consume()):
            raise Empty
        get_many = getattr(self, "_get_many", None)
        if get_many is not None:
            return get_many(self._active_queues, timeout=timeout)
        return self._poll(self.cycle, callback or self.connection._deliver, timeout=timeout)

    def basic_get(  # type: ignore[override]  # kombu's
        self, queue: str = "", no_ack: bool = False, **kwargs: Any
    ) -> StoredMessage | None:
        """Take the next message of a queue; None when there is none.  May switch."""
        return self._taken(plain_text(queue), no_ack)

    @closes_channel
    def _taken(self, queue: str, no_ack: bool) -> StoredMessage | None:
        try:
            message = self.message_of(self._get(queue), queue)
        except Empty:
            return None
        if not no_ack:
            self.receive_message(message, None)
            self.deliveries.unacked[message.delivery_tag] = message
        return message

    def message_of(self, raw: Envelope, queue: str) -> StoredMessage:
        """Return the message for what was taken out of *queue*."""
        message = self.Message(raw, channel=self)
        message.queue = queue
        return message

    def message_to_python(self, raw_message: Any) -> Any:
        """Return the message in an envelope; a message is returned as it is."""
        if isinstance(raw_message, dict):
            return self.Message(raw_message, channel=self)
        return raw_message

    def receive_message(self, message: StoredMessage, consumer: Consumer | None) -> None:
        """Take *message* as this channel's, for *consumer* or ``basic_get``."""
        message.channel = self
        message.consumer = consumer
        if consumer is not None:
            message.delivery_info["consumer_tag"] = consumer.tag
        # One message that went to two queues has one tag in both.
        if message.delivery_tag is None or message.delivery_tag in self.deliveries.unacked:
            message.delivery_tag = uuid()
        if consumer is None or not consumer.no_ack:
            message.is_noted = True
            self.qos.append(message, message.delivery_tag)

    # -- acks, requeues and rejects

    def basic_recover(self, requeue: bool = False) -> None:
        """Requeue all unacknowledged messages.  May switch.

        Raises:
            AMQPNotImplementedError: *requeue* is false.
        """
        self.check_open()
        if not requeue:
            raise no_recover_in_place()
        for consumer in self.consumers.values():
            consumer.forget_backlog()
        self.qos.restore_unacked()
        self.connection.store.wake(None)

    def note_settled(self, delivery_tag: Any) -> None:
        """Free the room of a delivery that its ``QoS`` has settled.  Never switches."""
        self.deliveries.settled(delivery_tag)

    # -- the end

    def close(self) -> None:
        """Close it: cancel its consumers and requeue its unacknowledged messages.  May switch."""
        consumers = list(self.consumers.values())
        try:
            if self.is_open:
                for tag in list(self.consumers):
                    try:
                        self.basic_cancel(tag)
                    except Exception as exc:  # what could not be put back is held still
                        self.connection.failed(exc, "cancelling a consumer")
                self.qos.restore_unacked_once()
        finally:
            ended = [each for each in consumers if self.consumers.get(each.tag) is not each]
            super().close()
            assert self.cause is not None
            for consumer in ended:
                consumer.lose(self.cause)

    def _release(self, consumers: list[Consumer]) -> None:
        for consumer in consumers:
            consumer.stop()
        held = list(self.deliveries.unacked.values())
        self.deliveries.unacked.clear()
        # This may be the reader, or the hub: what talks to the broker has a greenlet of its own.
        if self.connection.lost is None and held:
            spawn("restore", self._restore_all, [each for each in held if not each.is_noted])
        for consumer in consumers:
            self.connection.subscriptions.left(consumer)

    def _restore_all(self, unseen: list[StoredMessage]) -> None:
        failed = []
        for message in unseen:
            try:
                self._restore_at_beginning(message)
            except Exception as exc:
                logger.error("a message could not be requeued: %s", error_text(exc, repr))
                failed.append(message)
        if failed:
            dump_messages(failed)
        self.qos.restore_unacked_once()

    # -- envelopes

    def _inplace_augment_message(self, message: Envelope, exchange: str, routing_key: str) -> None:
        """Add what the stored form has beside what was published."""
        properties = message["properties"]
        message["body"], encoding = self.encode_body(message["body"], self.body_encoding)
        properties["body_encoding"] = encoding
        properties["delivery_tag"] = self._next_delivery_tag()
        properties["delivery_info"].update(exchange=exchange, routing_key=routing_key)

    def _next_delivery_tag(self) -> str:
        return uuid()

    def encode_body(self, body: Any, encoding: str | None = None) -> tuple[Any, str | None]:
        """Return *body* as it is stored, and the encoding."""
        if encoding and encoding.lower() != "utf-8":
            return self.codecs[encoding].encode(body), encoding
        return body, encoding

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        """Return a stored body as it was published."""
        if encoding and encoding.lower() != "utf-8":
            return self.codecs[encoding].decode(body)
        return body

    def _get_message_priority(self, message: Envelope, reverse: bool = False) -> int:
        """Return the priority of a message, from ``min_priority`` to ``max_priority``.

        Arguments:
            reverse: for brokers where a lower number comes first.
        """
        try:
            given = int(message["properties"]["priority"])
        except (TypeError, ValueError, LookupError, OverflowError):
            given = self.default_priority
        priority = max(self.min_priority, min(given, self.max_priority))
        return self.max_priority - priority if reverse else priority


T = TypeVar("T")


class FairCycle(Generic[T]):
    """Asks resources in turn until one has something (kombu's).

    Arguments:
        fun: called with a resource and what ``get`` was given.
        resources: a list, which may change meanwhile.
        predicate: the exception that means that a resource has nothing.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        resources: MutableSequence[T],
        predicate: type[Exception] = Exception,
    ) -> None:
        self.fun = fun
        self.resources = resources
        self.predicate = predicate
        self.pos = 0

    def _next(self) -> T:
        if not self.resources:
            self.pos = 0
            raise self.predicate()
        if self.pos >= len(self.resources):
            self.pos = 0
        self.pos += 1
        return self.resources[self.pos - 1]

    def get(self, callback: Callable[..., Any], **kwargs: Any) -> Any:
        """Return what the first resource that has something gives.  May switch, if *fun* does.

        Raises:
            Exception: *predicate*, when none has anything.
        """
        tries = len(self.resources)
        while True:
            resource = self._next()
            tries -= 1
            try:
                return self.fun(resource, callback, **kwargs)
            except self.predicate:
                if tries <= 0:
                    raise

    def close(self) -> None:
        """Nothing to do (kombu's name)."""

    def __repr__(self) -> str:
        return f"<FairCycle: {self.pos}/{len(self.resources)} {self.resources}>"


def dump_messages(messages: Iterable[Any], stderr: TextIO | None = None) -> None:
    """Write messages that no queue takes back, and that no consumer has, into a file of this user's.

    The log, or *stderr*, names it; it is no place for bodies.
    """
    state = [
        message.serializable() if hasattr(message, "serializable") else message
        for message in messages
    ]
    try:
        emergency_dump_state(state, stderr=stderr)
    except Exception:
        logger.exception("%d message(s) could not be dumped, and are lost", len(state))


class UnreturnedMessages:
    """Dumps what is left of one connection when it is forgotten, or the program ends.

    Arguments:
        handover: has what former lives have left.
    """

    def __init__(self, handover: Handover) -> None:
        weakref.finalize(self, _dump, os.getpid(), handover)


def _dump(process: int, handover: Handover) -> None:
    if os.getpid() != process:
        return  # the parent of this process has them
    messages = [each.handle for each in handover.left() if each.handle.is_gone_from_broker]
    if messages:
        logger.error("%d message(s) were not requeued before the end", len(messages))
        dump_messages(messages)


def emergency_dump_state(
    state: Any,
    open_file: Callable[[str, str], IO[Any]] = open,
    dump: Callable[..., Any] | None = None,
    stderr: IO[str] | None = None,
) -> str:
    """Write *state* to a new temporary file that only this user may read, and return its path.

    Arguments:
        open_file: called as ``open_file(path, mode)``.
        dump: called as ``dump(state, file, protocol=0)`` with a text file; None pickles into a
            binary one.
        stderr: where the path is written to; None logs it.
    """
    descriptor, path = mkstemp()
    os.close(descriptor)
    _report(f"EMERGENCY DUMP STATE TO FILE -> {path} <-", stderr)
    with open_file(path, "wb" if dump is None else "w") as file:
        try:
            (dump or pickle.dump)(state, file, protocol=0)
        except Exception as exc:
            _report(
                f"Cannot pickle state. Falling back to pformat. ({error_text(exc, repr)})", stderr
            )
            _rewind(file)
            text = pformat(state)
            try:
                file.write(text.encode())
            except TypeError:  # a text file
                file.write(text)
    return path


def _rewind(file: IO[Any]) -> None:
    try:
        file.seek(0)
        file.truncate()
    except (OSError, ValueError):
        # What was written in part stays before the text.
        with suppress(OSError, ValueError):
            file.seek(0, os.SEEK_END)


def _report(text: str, stderr: IO[str] | None) -> None:
    if stderr is None:
        logger.error("%s", text)
    else:
        print(text, file=stderr)
