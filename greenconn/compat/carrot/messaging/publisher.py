"""A publisher, and one that consumes as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from greenconn.compat.carrot import serialization
from greenconn.compat.carrot.messaging.consumer import Callbacks, Consumer

if TYPE_CHECKING:
    from greenconn.compat.carrot.connection import BrokerConnection

__all__ = ["Messaging", "Publisher"]


class Publisher:
    """Sends messages to an exchange.

    What is not given is what the class says, so that programs derive classes of their own.

    Arguments:
        connection: a ``BrokerConnection`` of carrot's.
        exchange: the name of the exchange.
        routing_key: of messages that say none.
        kwargs: ``exchange_type``, ``durable``, ``auto_delete``, ``serializer``, ``delivery_mode`` (1 or
            "non-persistent", 2 or "persistent"), ``auto_declare``.
    """

    NONE_PERSISTENT_DELIVERY_MODE: ClassVar[int] = 1
    PERSISTENT_DELIVERY_MODE: ClassVar[int] = 2
    DELIVERY_MODES: ClassVar[Mapping[str, int]] = {"non-persistent": 1, "persistent": 2}

    exchange: str = ""
    routing_key: Any = ""
    delivery_mode: Any = PERSISTENT_DELIVERY_MODE
    exchange_type: str = "direct"
    durable: bool = True
    auto_delete: bool = False
    auto_declare: bool = True
    serializer: str | None = None

    _closed = True
    _init_opts: ClassVar[tuple[str, ...]] = (
        *("exchange_type", "durable", "auto_delete", "serializer", "delivery_mode"),
        "auto_declare",
    )

    def __init__(
        self,
        connection: BrokerConnection,
        exchange: str | None = None,
        routing_key: Any = None,
        **kwargs: Any,
    ) -> None:
        self.connection = connection
        self.backend = connection.create_backend()
        self.exchange = exchange or self.exchange
        self.routing_key = routing_key or self.routing_key
        for name in self._init_opts:
            if kwargs.get(name) is not None:
                setattr(self, name, kwargs[name])
        self.delivery_mode = self._mode(self.delivery_mode)
        self._closed = False
        if self.auto_declare and self.exchange:
            self.declare()

    def _mode(self, mode: Any) -> Any:
        return self.DELIVERY_MODES.get(mode, mode)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def declare(self) -> None:
        """Declare the exchange.  May switch."""
        self.backend.exchange_declare(
            exchange=self.exchange,
            type=self.exchange_type,
            durable=self.durable,
            auto_delete=self.auto_delete,
        )

    def create_message(
        self,
        message_data: Any,
        delivery_mode: Any = None,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        serializer: str | None = None,
    ) -> Any:
        """Serialise *message_data* and return what the backend publishes.

        Arguments:
            content_type, content_encoding: of data that is serialised already.
        """
        if not content_type:
            content_type, content_encoding, message_data = serialization.encode(
                message_data, serializer=serializer or self.serializer
            )
        elif isinstance(message_data, str):
            content_encoding = content_encoding or "utf-8"
            message_data = message_data.encode(content_encoding)
        return self.backend.prepare_message(
            message_data,
            self._mode(delivery_mode) or self.delivery_mode,
            priority=priority,
            content_type=content_type,
            content_encoding=content_encoding or "binary",
        )

    def send(
        self,
        message_data: Any,
        routing_key: Any = None,
        delivery_mode: Any = None,
        mandatory: bool = False,
        immediate: bool = False,
        priority: int = 0,
        content_type: str | None = None,
        content_encoding: str | None = None,
        serializer: str | None = None,
    ) -> None:
        """Send a message.  May switch.

        Arguments:
            routing_key: instead of the publisher's; for a headers exchange a dict of headers.
            delivery_mode: instead of the publisher's.
            mandatory: the broker returns it if no queue takes it.
            immediate: refused by today's brokers.
            priority: 0 to 9.
            content_type, content_encoding: of data that is serialised already.
            serializer: instead of the publisher's.

        Raises:
            EncodeError: the data cannot be serialised.
        """
        headers = None
        routing_key = routing_key or self.routing_key
        if self.exchange_type == "headers":
            headers, routing_key = routing_key or None, ""
        message = self.create_message(
            message_data,
            priority=priority,
            delivery_mode=delivery_mode,
            content_type=content_type,
            content_encoding=content_encoding,
            serializer=serializer,
        )
        self.backend.publish(
            message,
            exchange=self.exchange,
            routing_key=routing_key,
            mandatory=mandatory,
            immediate=immediate,
            headers=headers,
        )

    def close(self) -> None:
        """Close the channel.  May switch."""
        self.backend.close()
        self._closed = True


class Messaging(Callbacks):
    """A publisher and a consumer of the same exchange.

    Arguments:
        connection: a ``BrokerConnection`` of carrot's.
        kwargs: ``exchange``, ``queue``, ``routing_key``.
    """

    queue: str = ""
    exchange: str = ""
    routing_key: Any = ""
    publisher_cls: ClassVar[type[Publisher]] = Publisher
    consumer_cls: ClassVar[type[Consumer]] = Consumer

    _closed = True

    def __init__(self, connection: BrokerConnection, **kwargs: Any) -> None:
        self.connection = connection
        self.exchange = kwargs.get("exchange", self.exchange)
        self.queue = kwargs.get("queue", self.queue)
        self.routing_key = kwargs.get("routing_key", self.routing_key)
        self.publisher = self.publisher_cls(
            connection, exchange=self.exchange, routing_key=self.routing_key
        )
        self.consumer = self.consumer_cls(
            connection, queue=self.queue, exchange=self.exchange, routing_key=self.routing_key
        )
        self.consumer.register_callback(self.receive)
        self.callbacks = []
        self._closed = False

    def __enter__(self) -> Messaging:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def send(self, message_data: Any, delivery_mode: Any = None) -> None:
        """Send a message; see :meth:`Publisher.send`."""
        self.publisher.send(message_data, delivery_mode=delivery_mode)

    def fetch(self, **kwargs: Any) -> Any:
        """Return the next message, or None; see :meth:`Consumer.fetch`."""
        return self.consumer.fetch(**kwargs)

    def close(self) -> None:
        """Close both channels.  May switch."""
        self.consumer.close()
        self.publisher.close()
        self._closed = True
