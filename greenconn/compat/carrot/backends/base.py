"""Carrot's backend: one channel of a connection, used by its publishers and consumers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice
from typing import TYPE_CHECKING, Any, ClassVar

from greenconn.exceptions import ChannelError, MessageStateError, NotFound
from greenconn.message import ACK_STATES as ACKNOWLEDGED_STATES
from greenconn.message import Message as BaseMessage
from greenconn.transport import get_transport_cls

if TYPE_CHECKING:
    from greenconn.compat.carrot.connection import BrokerConnection

__all__ = [
    "ACKNOWLEDGED_STATES",
    "BaseBackend",
    "BaseMessage",
    "MessageStateError",
    "QueueAlreadyExistsWarning",
]

Callback = Callable[[Any], Any]


class QueueAlreadyExistsWarning(UserWarning):
    """The queue exists, perhaps with other settings than those that are asked for now."""


class BaseBackend:
    """One channel, opened when it is needed.

    Arguments:
        connection: carrot's ``BrokerConnection``.
        kwargs: ignored.
    """

    #: Alias or class path of the transport.
    transport: ClassVar[str] = "amqp"
    extra_options: Any = None

    def __init__(self, connection: BrokerConnection, **kwargs: Any) -> None:
        self.connection = connection
        self._channel: Any = None
        #: Tags that consume on the channel.
        self._consuming: set[str] = set()

    # What it is

    @property
    def default_port(self) -> int | None:
        """The port where the connection names none."""
        port: int | None = get_transport_cls(self.transport).default_port
        return port

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """The errors of a lost connection."""
        errors: tuple[type[BaseException], ...]
        errors = get_transport_cls(self.transport).connection_errors
        return errors

    @property
    def channel_errors(self) -> tuple[type[BaseException], ...]:
        """The errors of a refusal by the broker."""
        errors: tuple[type[BaseException], ...] = get_transport_cls(self.transport).channel_errors
        return errors

    @property
    def channel(self) -> Any:
        """The channel; another one after its connection was lost.  May switch."""
        if self._channel is None or not self._channel.is_open:
            self._channel = self.connection.get_channel()
            self._consuming.clear()
        return self._channel

    # Life

    def establish_connection(self) -> Any:
        """Open the connection.  May switch."""
        return self.connection.connect()

    def close_connection(self, connection: BrokerConnection) -> None:
        """Close what :meth:`establish_connection` gave.  May switch."""
        connection.close()

    def close(self) -> None:
        """Close the channel.  May switch."""
        channel, self._channel = self._channel, None
        self._consuming.clear()
        if channel is not None and channel.is_open:
            channel.close()

    # Queues

    def queue_declare(
        self,
        queue: str,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        warn_if_exists: bool = False,
    ) -> Any:
        """Declare a queue.  May switch."""
        if warn_if_exists and self.queue_exists(queue):
            warnings.warn(
                QueueAlreadyExistsWarning(f"queue {queue!r} exists: its settings are not changed"),
                stacklevel=3,
            )
        return self.channel.queue_declare(
            queue=queue, durable=durable, exclusive=exclusive, auto_delete=auto_delete
        )

    def queue_exists(self, queue: str) -> bool:
        """Return whether there is such a queue.  May switch."""
        try:
            self.channel.queue_declare(queue=queue, passive=True)
        except (NotFound, ChannelError) as exc:
            if exc.reply_code != NotFound.code:
                raise
            return False
        return True

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False) -> Any:
        """Delete a queue.  May switch."""
        return self.channel.queue_delete(queue, if_unused=if_unused, if_empty=if_empty)

    def queue_purge(self, queue: str, **kwargs: Any) -> int:
        """Drop what waits in a queue and return how many there were.  May switch."""
        return int(self.channel.queue_purge(queue) or 0)

    purge = queue_purge

    def exchange_declare(
        self,
        exchange: str,
        type: str = "direct",
        durable: bool = False,
        auto_delete: bool = False,
    ) -> Any:
        """Declare an exchange.  May switch."""
        return self.channel.exchange_declare(
            exchange=exchange, type=type, durable=durable, auto_delete=auto_delete
        )

    def queue_bind(
        self,
        queue: str,
        exchange: str,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> Any:
        """Bind a queue to an exchange.  May switch."""
        return self.channel.queue_bind(
            queue=queue, exchange=exchange, routing_key=routing_key, arguments=arguments
        )

    # Messages in

    def get(self, queue: str, no_ack: bool = False) -> Any:
        """Take the next message of a queue, or None.  May switch."""
        raw = self.channel.basic_get(queue, no_ack=no_ack)
        return None if raw is None else self.message_to_python(raw)

    def message_to_python(self, raw_message: Any) -> Any:
        """Return a message as callbacks get it."""
        message = self.channel.message_to_python(raw_message)
        message.backend = self
        return message

    def declare_consumer(
        self,
        queue: str,
        no_ack: bool,
        callback: Callback,
        consumer_tag: str,
        nowait: bool = False,
    ) -> None:
        """Begin to consume; a second time changes nothing.  May switch."""
        channel = self.channel
        if consumer_tag in self._consuming:  # wait() and iterconsume() may be called again
            return
        channel.basic_consume(
            queue=queue,
            no_ack=no_ack,
            callback=callback,
            consumer_tag=consumer_tag,
            nowait=nowait,
        )
        self._consuming.add(consumer_tag)

    def consume(self, limit: int | None = None) -> Iterator[bool]:
        """Yield True after each event that was handled, *limit* times at most.  May switch."""
        for _ in islice(count(), limit or None):
            self.connection.drain_events()
            yield True

    def cancel(self, consumer_tag: str) -> None:
        """End a consumer.  May switch."""
        self._consuming.discard(consumer_tag)
        if self._channel is not None and self._channel.is_open:
            self._channel.basic_cancel(consumer_tag)

    def ack(self, delivery_tag: Any) -> None:
        """Acknowledge a message."""
        self.channel.basic_ack(delivery_tag)

    def reject(self, delivery_tag: Any) -> None:
        """Reject a message."""
        self.channel.basic_reject(delivery_tag, requeue=False)

    def requeue(self, delivery_tag: Any) -> None:
        """Give a message back."""
        self.channel.basic_reject(delivery_tag, requeue=True)

    def flow(self, active: bool) -> None:
        """Ask the broker to stop or to go on with deliveries.  May switch."""
        self.channel.flow(active)

    def qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        """Limit the unacknowledged messages.  May switch."""
        self.channel.basic_qos(prefetch_size, prefetch_count, apply_global)

    # Messages out

    def prepare_message(
        self,
        message_data: Any,
        delivery_mode: int,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Make what :meth:`publish` takes, without headers."""
        return {
            "body": message_data,
            "priority": priority,
            "content_type": content_type,
            "content_encoding": content_encoding,
            "properties": {"delivery_mode": delivery_mode},
        }

    def publish(
        self,
        message: Any,
        exchange: str,
        routing_key: str,
        mandatory: bool | None = None,
        immediate: bool | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> None:
        """Publish a message.  May switch."""
        channel = self.channel
        channel.basic_publish(
            channel.prepare_message(**message, headers=dict(headers or {})),
            exchange=exchange,
            routing_key=routing_key,
            mandatory=bool(mandatory),
            immediate=bool(immediate),
        )
