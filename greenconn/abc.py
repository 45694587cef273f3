"""Protocols through which the rooms know each other without importing upwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Borrowed",
    "ChannelLike",
    "ClientLike",
    "DeadlineLike",
    "Lendable",
    "Lender",
    "LinkLike",
    "MessageLike",
    "PooledLike",
    "Recoverable",
    "Sink",
    "TransportLike",
    "is_connection",
    "maybe_channel",
]


class DeadlineLike(Protocol):
    """A point in time that several steps share (``green.deadline.Deadline``)."""

    timeout: float | None

    def left(self) -> float | None:
        """Seconds left, at least 0.0; None when there is no end."""
        ...


class MessageLike(Protocol):
    """A received message, as a channel hands it over."""

    channel: Any
    delivery_tag: Any
    delivery_info: MutableMapping[str, Any]
    headers: MutableMapping[str, Any]
    properties: MutableMapping[str, Any]
    body: Any
    accept: Any
    errors: Any

    def ack(self, multiple: bool = False) -> None: ...

    def reject(self, requeue: bool = False) -> None: ...

    def requeue(self) -> None: ...

    def decode(self) -> Any: ...


class Sink(Protocol):
    """Where the deliveries of one consumer go instead of the connection's events.

    Both methods are called by the connection's reader: they append, wake and return; they never
    switch greenlets and never raise.
    """

    #: Set by the channel when nothing but memory bounds this consumer (``no_ack``, or no prefetch):
    #: the taker calls it with each message that it takes out.
    taken: Callable[[Any], None] | None

    def deliver(self, message: Any) -> None:
        """Take one message over."""
        ...

    def cancelled(self, exc: BaseException) -> None:
        """The consumer is gone: cancelled by the broker, or its channel or connection is lost."""
        ...


class Recoverable(Protocol):
    """What a session restores after a reconnect: consumers, mostly."""

    def recover(self, deadline: DeadlineLike) -> None:
        """Make this object whole on the connection's new life.  May switch."""
        ...


class LinkLike(Protocol):
    """One life of a connection to one broker (``transport.base.Link``)."""

    @property
    def is_open(self) -> bool: ...

    @property
    def client(self) -> Any: ...


class ChannelLike(Protocol):
    """The channel methods that entities, producers and consumers use: kombu's channel contract."""

    connection: Any
    events: Mapping[str, set[Callable[..., Any]]]

    @property
    def is_open(self) -> bool: ...

    def close(self) -> None: ...

    def exchange_declare(
        self,
        exchange: str,
        type: str,
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = True,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Any: ...

    def exchange_delete(
        self, exchange: str, if_unused: bool = False, nowait: bool = False
    ) -> Any: ...

    def exchange_bind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Any: ...

    def exchange_unbind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Any: ...

    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = True,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Any: ...

    def queue_bind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Any: ...

    def queue_unbind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Any: ...

    def queue_purge(self, queue: str = "", nowait: bool = False) -> int | None: ...

    def queue_delete(
        self,
        queue: str = "",
        if_unused: bool = False,
        if_empty: bool = False,
        nowait: bool = False,
    ) -> int | None: ...

    def prepare_queue_arguments(
        self, arguments: Mapping[str, Any] | None, **kwargs: Any
    ) -> dict[str, Any]: ...

    def prepare_message(
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: MutableMapping[str, Any] | None = None,
    ) -> Any: ...

    def basic_publish(
        self,
        message: Any,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> Any: ...

    def basic_publish_confirm(
        self,
        message: Any,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> Any: ...

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
    ) -> str: ...

    def basic_cancel(self, consumer_tag: str, nowait: bool = False) -> Any: ...

    def basic_get(self, queue: str = "", no_ack: bool = False) -> Any: ...

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None: ...

    def basic_reject(self, delivery_tag: Any, requeue: bool) -> None: ...

    def basic_recover(self, requeue: bool = False) -> Any: ...

    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> Any: ...

    def flow(self, active: bool) -> Any: ...

    def message_to_python(self, raw_message: Any) -> Any: ...

    def after_reply_message_received(self, queue: str) -> None: ...


class TransportLike(Protocol):
    """A transport (``transport.base.Transport``)."""

    connection_errors: tuple[type[BaseException], ...]
    channel_errors: tuple[type[BaseException], ...]

    def establish_connection(self) -> Any: ...

    def close_connection(self, connection: Any) -> None: ...

    def create_channel(self, connection: Any) -> Any: ...

    def drain_events(self, connection: Any, timeout: float | None = None) -> None: ...


@runtime_checkable
class ClientLike(Protocol):
    """What transports, producers and consumers ask of a ``Connection``."""

    hostname: str | None
    port: int | None
    userid: str | None
    virtual_host: str
    ssl: Any
    connect_timeout: float | None
    heartbeat: float | None
    transport_options: dict[str, Any]
    declared_entities: Any

    @property
    def default_channel(self) -> Any: ...

    @property
    def transport(self) -> Any: ...

    def channel(self) -> Any: ...

    def as_uri(self, include_password: bool = False, mask: str = "**") -> str: ...


class PooledLike(Protocol):
    """What a ``Producer`` asks of a connection that came from a pool."""

    def replace(self) -> None:
        """Give the broken resource back so that the pool opens another in its place."""
        ...

    def __enter__(self) -> Self: ...


class Lender(Protocol):
    """What a borrowed connection asks of the pool it came from (``resource.Resource``)."""

    @property
    def limit(self) -> int | None: ...

    def release(self, resource: Any) -> None:
        """Take *resource* (what was borrowed) back.  Never switches.  Again: does nothing."""
        ...

    def replace(self, resource: Any) -> None:
        """The same for one that shall not be lent again: it is closed.  Never switches."""
        ...


class Borrowed(Protocol):
    """What a pool lends: a facade over something that the pool keeps (``PooledConnection``).

    Its ``release()`` calls ``pool.release(self)``, its ``replace()`` ``pool.replace(self)``.  It
    shares the state of what is below and equals it.
    """

    def mark_released(self) -> None:
        """Called once it was given back: it goes on working, and logs each place that uses it.

        Giving it back again does nothing, and so do ``close()`` and the end of a ``with`` block.
        Never switches.
        """
        ...

    def expire(self, reason: str) -> None:
        """Called when what is below was closed: whatever is asked of it now raises, naming *reason*.

        Never switches.
        """
        ...


class Lendable(Protocol):
    """What a pool keeps and lends again and again: a connection."""

    @property
    def is_reusable(self) -> bool:
        """False when it was closed, so that the pool makes another.  Never switches.

        One that was never opened, is open or is being recovered can be used.
        """
        ...

    def lend(self, pool: Lender) -> Borrowed:
        """A new facade over this connection.  Never switches."""
        ...


def is_connection(obj: object) -> TypeGuard[ClientLike]:
    """Tell whether *obj* is a connection (rather than a channel), by protocol.

    >>> is_connection(object())
    False
    """
    # On the class: asking the object for its default channel would open it.
    return hasattr(type(obj), "default_channel")


def maybe_channel(channel: Any) -> Any:
    """Return the default channel of a connection, and anything else as it is.  May switch."""
    return channel.default_channel if is_connection(channel) else channel
