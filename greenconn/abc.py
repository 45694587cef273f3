"""Protocols of the seams between packages, so that none imports upwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Borrowed",
    "Channel",
    "ChannelOrConnection",
    "Connection",
    "DeadlineLike",
    "Lendable",
    "Lender",
    "Link",
    "Message",
    "Recoverable",
    "Session",
    "SessionServices",
    "Sink",
    "Transport",
    "TransportState",
]


#: The link that a transport opens.
L = TypeVar("L")
T = TypeVar("T")


class DeadlineLike(Protocol):
    """A point in time that several steps share (``green.deadline.Deadline``)."""

    timeout: float | None

    def left(self) -> float | None:
        """Return the seconds left, at least 0.0; None without an end."""
        ...


class Message(Protocol):
    """A received message, as a channel hands it over (kombu 5.7, ``kombu.message.Message``)."""

    delivery_tag: Any
    delivery_info: dict[str, Any]
    headers: dict[str, Any]
    properties: dict[str, Any]
    body: Any
    accept: Any
    errors: Any

    #: Channel that delivered it, and on which it is settled; None for a message made by hand.
    @property
    def channel(self) -> Any: ...

    #: Whether it was acknowledged, rejected or requeued.
    @property
    def acknowledged(self) -> bool: ...

    @property
    def payload(self) -> Any: ...

    def ack(self, multiple: bool = ...) -> None: ...

    def reject(self, requeue: bool = ...) -> None: ...

    def requeue(self) -> None: ...

    def decode(self) -> Any: ...


class Sink(Protocol):
    """The receiver of one consumer's deliveries, which do not become events of the connection then.

    ``deliver`` and ``cancelled`` are called by the connection's reader: they append, wake and return;
    they never switch greenlets and never raise.  One in which no message ever waits may have an
    attribute ``keeps_messages`` that is False, so that nothing is counted.
    """

    #: Set by the channel when nothing but memory bounds this consumer (``no_ack``, or no prefetch):
    #: the taker calls it with each message that it takes out.
    taken: Callable[[Any], None] | None

    def deliver(self, message: Any) -> None:
        """Take one message over."""
        ...

    def cancelled(self, exc: BaseException) -> None:
        """Note that the broker cancelled the consumer, or that its channel or connection is lost."""
        ...

    def requeue_unseen(self) -> None:
        """Requeue the deliveries that no handler has begun.  May switch.

        Called by who closes the channel or its connection, once the broker sends no more, where the
        broker counts what a channel leaves unacknowledged as delivered.
        """
        ...


class Recoverable(Protocol):
    """A member of a session, restored after each reconnect: mostly a consumer."""

    def recover(self, deadline: DeadlineLike) -> None:
        """Make this object whole on the connection's new life.  May switch."""
        ...


class Link(Protocol):
    """One life of a connection to one broker (``transport.base.Link``)."""

    @property
    def is_open(self) -> bool: ...

    @property
    def client(self) -> Any: ...


class Channel(Protocol):
    """The methods of a channel that entities, producers and consumers use: kombu's contract (5.7).

    Arguments behind the first ones are given by name: kombu's virtual channels order them otherwise
    than AMQP's.
    """

    #: Sets of listeners by the name of the event, such as ``basic_return``.
    @property
    def events(self) -> Mapping[str, set[Callable[..., Any]]]: ...

    #: Life of a connection to which the channel belongs.
    @property
    def connection(self) -> Link: ...

    @property
    def is_open(self) -> bool: ...

    #: Tags of consumers that need no acknowledgement; None where the channel does not keep them.
    @property
    def no_ack_consumers(self) -> set[str] | None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...

    def exchange_declare(
        self,
        exchange: str,
        type: str,
        *,
        passive: bool = ...,
        durable: bool = ...,
        auto_delete: bool = ...,
        nowait: bool = ...,
        arguments: Mapping[str, Any] | None = ...,
    ) -> Any: ...

    def exchange_delete(
        self, exchange: str, *, if_unused: bool = ..., nowait: bool = ...
    ) -> Any: ...

    def exchange_bind(
        self,
        destination: str,
        source: str = ...,
        routing_key: str = ...,
        *,
        nowait: bool = ...,
        arguments: Mapping[str, Any] | None = ...,
    ) -> Any: ...

    def exchange_unbind(
        self,
        destination: str,
        source: str = ...,
        routing_key: str = ...,
        *,
        nowait: bool = ...,
        arguments: Mapping[str, Any] | None = ...,
    ) -> Any: ...

    def queue_declare(
        self,
        queue: str = ...,
        *,
        passive: bool = ...,
        durable: bool = ...,
        exclusive: bool = ...,
        auto_delete: bool = ...,
        nowait: bool = ...,
        arguments: Mapping[str, Any] | None = ...,
    ) -> Any: ...

    def queue_bind(
        self,
        queue: str,
        exchange: str = ...,
        routing_key: str = ...,
        *,
        nowait: bool = ...,
        arguments: Mapping[str, Any] | None = ...,
    ) -> Any: ...

    def queue_unbind(
        self,
        queue: str,
        exchange: str = ...,
        routing_key: str = ...,
        *,
        nowait: bool = ...,
        arguments: Mapping[str, Any] | None = ...,
    ) -> Any: ...

    def queue_purge(self, queue: str = ..., *, nowait: bool = ...) -> int | None: ...

    def queue_delete(
        self,
        queue: str = ...,
        *,
        if_unused: bool = ...,
        if_empty: bool = ...,
        nowait: bool = ...,
    ) -> int | None: ...

    def prepare_queue_arguments(
        self, arguments: Mapping[str, Any] | None, **kwargs: Any
    ) -> dict[str, Any]: ...

    def prepare_message(
        self,
        body: Any,
        priority: int | None = ...,
        content_type: str | None = ...,
        content_encoding: str | None = ...,
        headers: MutableMapping[str, Any] | None = ...,
        properties: MutableMapping[str, Any] | None = ...,
    ) -> Any: ...

    def basic_publish(
        self,
        message: Any,
        exchange: str = ...,
        routing_key: str = ...,
        *,
        mandatory: bool = ...,
        immediate: bool = ...,
        timeout: float | None = ...,
        confirm_timeout: float | None = ...,
    ) -> Any: ...

    def basic_publish_confirm(
        self,
        message: Any,
        exchange: str = ...,
        routing_key: str = ...,
        *,
        mandatory: bool = ...,
        immediate: bool = ...,
        timeout: float | None = ...,
        confirm_timeout: float | None = ...,
    ) -> Any: ...

    def basic_consume(
        self,
        queue: str,
        *,
        consumer_tag: str = ...,
        no_local: bool = ...,
        no_ack: bool = ...,
        exclusive: bool = ...,
        nowait: bool = ...,
        callback: Callable[[Any], Any] | None = ...,
        arguments: Mapping[str, Any] | None = ...,
        on_cancel: Callable[[str], Any] | None = ...,
        sink: Sink | None = ...,
    ) -> str: ...

    def basic_cancel(self, consumer_tag: str, *, nowait: bool = ...) -> Any: ...

    def basic_get(self, queue: str, *, no_ack: bool = ...) -> Any: ...

    def basic_ack(self, delivery_tag: Any, multiple: bool = ...) -> None: ...

    def basic_reject(self, delivery_tag: Any, requeue: bool) -> None: ...

    def basic_recover(self, requeue: bool = ...) -> Any: ...

    def basic_qos(
        self, prefetch_size: int = ..., prefetch_count: int = ..., apply_global: bool = ...
    ) -> Any: ...

    def flow(self, active: bool) -> Any: ...

    def message_to_python(self, raw_message: Any) -> Any: ...

    def after_reply_message_received(self, queue: str) -> None: ...


class Transport(Protocol[L]):
    """A transport: it opens links of one kind and their channels (kombu 5.7, ``transport.base``)."""

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]: ...

    @property
    def channel_errors(self) -> tuple[type[BaseException], ...]: ...

    def establish_connection(self) -> L: ...

    def close_connection(self, connection: L) -> None: ...

    def create_channel(self, connection: L) -> Any: ...

    def drain_events(self, connection: L, timeout: float | None = ...) -> None: ...


class TransportState(Protocol):
    """Objects that outlive a link and its transport (``transport.base``)."""

    def get(self, kind: Callable[..., T], place: str, *arguments: Any) -> T:
        """Return the object of *kind* for *place*, made now if there is none.  Never switches."""
        ...


class SessionServices(Protocol):
    """The services that a session keeps (``session.services``), as far as transports need them."""

    @property
    def transport_state(self) -> TransportState: ...


class Session(Protocol):
    """The life of a connection over all its links, as transports need it (``session.session``)."""

    @property
    def services(self) -> SessionServices:
        """Objects that outlive a link."""
        ...

    def add(self, member: Recoverable) -> None:
        """Restore *member* after each reconnect.  Never switches."""
        ...

    def discard(self, member: Recoverable) -> None:
        """Restore *member* no longer.  Never switches."""
        ...

    def successor(self, old: Any, deadline: Any = ...) -> Any:
        """Return the channel that stands for *old* on the connection's current link.  May switch."""
        ...


@runtime_checkable
class Connection(Protocol):
    """A ``Connection``, as far as transports, producers and consumers need it."""

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
    def default_channel(self) -> Channel: ...

    @property
    def transport(self) -> Any: ...

    def channel(self) -> Channel: ...

    @property
    def clone(self) -> Callable[..., Any]: ...

    def close(self) -> None: ...

    def drain_events(self, timeout: float | None = ...) -> Any: ...

    def Pool(self, limit: int | None = ...) -> Any: ...  # noqa: N802

    def as_uri(self, include_password: bool = False, mask: str = "**") -> str: ...


class Lender(Protocol):
    """A pool, as far as a connection that it lends needs it (``resource.Resource``)."""

    @property
    def limit(self) -> int | None: ...

    def release(self, resource: Any) -> None:
        """Release *resource*, a facade.  Never switches.  A second call does nothing."""
        ...

    def replace(self, resource: Any) -> None:
        """Release one that must not be used again: it is closed.  Never switches."""
        ...


class ProducerLender(Lender, Protocol):
    """A pool of producers, as far as a producer needs it (``pools.ProducerPool``)."""

    @property
    def connection_lender(self) -> Lender:
        """The lender of the producers' connections."""
        ...


class Borrowed(Protocol):
    """A facade, lent by a pool, over something that the pool keeps (``PooledConnection``).

    Its ``release()`` calls ``pool.release(self)``, its ``replace()`` ``pool.replace(self)``.  It
    shares the state of what is below and equals it.
    """

    def mark_released(self) -> None:
        """Called once it was released: it goes on working, and logs each place that uses it.

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
    """A connection that a pool keeps and lends again and again."""

    @property
    def is_reusable(self) -> bool:
        """False when it was closed, so that the pool makes another.  Never switches.

        One that was never opened, is open or is being recovered can be used.
        """
        ...

    def lend(self, pool: Lender) -> Borrowed:
        """Return a new facade over this connection.  Never switches."""
        ...


#: What kombu's classes take as *channel*: a connection means its default channel.
ChannelOrConnection: TypeAlias = "Channel | Connection"
