"""Protocols of the seams between packages, so that none imports upwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Self

    from greenconn.connection import Connection
    from greenconn.green.deadline import Deadline
    from greenconn.transport.base import Link

__all__ = [
    "Channel",
    "ChannelOrConnection",
    "Lender",
    "Recoverable",
    "Sink",
]


class Sink(Protocol):
    """The receiver of one consumer's deliveries, which do not become events of the connection then.

    ``deliver`` and ``cancelled`` are called by the connection's reader: they append, wake and return;
    they never switch greenlets and never raise.  One in which no message ever waits may have an
    attribute ``keeps_messages`` that is False, so that nothing is counted.  One whose messages must come
    back in their order may have an attribute ``keeps_order`` that is True: what its channel has not
    acknowledged is requeued in one step with the end of the channel, before another consumer is served.
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
        broker counts what a channel leaves unacknowledged as delivered; and when the leases of some
        have ended, so that others handle them.
        """
        ...


class Recoverable(Protocol):
    """A member of a session, restored after each reconnect: mostly a consumer."""

    def recover(self, deadline: Deadline) -> None:
        """Make this object whole on the connection's new life.  May switch."""
        ...


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


#: What kombu's classes take as *channel*: a connection means its default channel.
ChannelOrConnection: TypeAlias = "Channel | Connection"
