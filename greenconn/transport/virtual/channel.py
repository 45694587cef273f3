"""A channel for brokers that only have queues: subclasses say how to put and get.

Exchanges and bindings are kept in this process, so every program that uses them must declare them.
Messages are stored in kombu's envelope (:mod:`~greenconn.transport.virtual.envelope`).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from greenconn.identity import uuid
from greenconn.transport.refusal import Method, no_exchange
from greenconn.transport.virtual.arguments import SupportedArguments
from greenconn.transport.virtual.entities import Entities
from greenconn.transport.virtual.envelope import Base64, Message
from greenconn.transport.virtual.exchange import STANDARD_EXCHANGE_TYPES, ExchangeType
from greenconn.transport.virtual.publishing import (
    Envelope,
    Outcome,
    undeliverable,
    warn_of_message,
)
from greenconn.transport.virtual.queues import HookedEntities
from greenconn.transport.virtual.signatures import KombuOrder

if TYPE_CHECKING:
    from greenconn.transport.virtual.transport import PolledLink

__all__ = ["Channel"]


class Channel(KombuOrder):
    """A channel over the hooks of :class:`~greenconn.transport.virtual.hooks.AbstractChannel`.

    Arguments:
        connection: the link.
    """

    #: A subclass whose hooks implement more adds to these.
    supported_arguments = SupportedArguments(
        exchange=frozenset({"alternate-exchange"}), message=frozenset({"priority"})
    )
    #: Exchange type -> class; an instance for each channel replaces it.
    exchange_types: Mapping[str, Any] = dict(STANDARD_EXCHANGE_TYPES)
    #: Whether the broker can broadcast (``_put_fanout``).
    supports_fanout = False
    entities_class: ClassVar[type[Entities]] = HookedEntities
    codecs: ClassVar[Mapping[str, Base64]] = {"base64": Base64()}
    #: How bodies are stored; None stores them as they are.
    body_encoding: str | None = "base64"
    #: Where messages go that have no queue to go to.
    deadletter_queue: str | None = None
    #: Attributes that ``transport_options`` may set.
    from_transport_options: tuple[str, ...] = ("body_encoding", "deadletter_queue")
    min_priority = 0
    max_priority = 9

    def __init__(self, connection: PolledLink, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._init_polling()
        self.exchange_types = {name: cls(self) for name, cls in self.exchange_types.items()}
        options = connection.client.transport_options or {}
        for name in self.from_transport_options:
            if name in options:
                setattr(self, name, options[name])

    def after_reply_message_received(self, queue: str) -> None:
        """A reply queue has done its work: delete it.  May switch."""
        self.queue_delete(queue)

    # -- bindings

    def _row(
        self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None
    ) -> tuple[str, Any, str]:
        return self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)

    def get_exchanges(self) -> list[str]:
        """The names of all exchanges."""
        return list(self.state.exchanges)

    def get_table(self, exchange: str) -> Collection[tuple[str, Any, str]]:
        """Return the rows of an exchange's bindings: routing key, pattern, queue.

        A subclass that shares bindings with other processes returns them from there; may switch.

        Raises:
            KeyError: there is no such exchange.
        """
        return [
            self._row(queue, exchange, key, None)
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
        properties: Any = None,
    ) -> Envelope:
        """Return what ``basic_publish`` takes."""
        envelope = super().prepare_message(
            body, priority, content_type, content_encoding, headers, properties
        )
        envelope["properties"].setdefault("delivery_info", {})
        return envelope

    def _publish(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool = False
    ) -> Outcome:
        self.check_open()
        if message["headers"] or message["properties"].get("expiration"):
            warn_of_message(self, message, exchange, routing_key)
        properties = {**message["properties"]}
        properties["delivery_info"] = {**properties.get("delivery_info", {})}
        message = {**message, "properties": properties}
        self._inplace_augment_message(message, exchange, routing_key)
        if not exchange:
            if mandatory and not self._is_there(routing_key):
                return Outcome.UNROUTED
            self._put(routing_key, message)
        else:
            if not self._may_know(exchange):
                exc = no_exchange(exchange, self.virtual_host, Method.BASIC_PUBLISH)
                self.fail(exc)
                raise exc
            if mandatory and not self._lookup(exchange, routing_key):
                return Outcome.UNROUTED
            self.typeof(exchange).deliver(message, exchange, routing_key)
        self.connection.poller.wake()
        return Outcome.ROUTED

    def _may_know(self, exchange: str) -> bool:
        """Whether a message to that exchange may find a queue, the one of last resort included."""
        return (
            exchange in self.state.exchanges
            or self.deadletter_queue is not None
            or type(self).get_table is not Channel.get_table
            or type(self)._lookup is not Channel._lookup
        )

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

    def _restore(self, message: Message) -> None:
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

    def _get_message_priority(self, message: Envelope, reverse: bool = False) -> int:
        """The priority of a message, from ``min_priority`` to ``max_priority``.

        Arguments:
            reverse: for brokers where a lower number comes first.
        """
        try:
            given = int(message["properties"]["priority"])
        except (TypeError, ValueError, LookupError, OverflowError):
            given = self.default_priority
        priority = max(self.min_priority, min(given, self.max_priority))
        return self.max_priority - priority if reverse else priority
