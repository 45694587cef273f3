"""Sending and receiving messages (carrot.messaging)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from greenconn.checks import check_has_run, check_keywords, check_runs
from greenconn.compat import FetchIterator
from greenconn.compat.carrot import serialization
from greenconn.compat.carrot.utils import gen_unique_id

if TYPE_CHECKING:
    from greenconn.compat.carrot.connection import BrokerConnection
    from greenconn.message import Message

__all__ = ["Consumer", "ConsumerSet", "Messaging", "Publisher"]

Callback = Callable[[Any, Any], Any]


class Callbacks:
    """Calls callbacks with what is received."""

    callbacks: list[Callback]

    def register_callback(self, callback: Callback) -> None:
        """Call ``callback(message_data, message)`` with each message.

        Raises:
            TypeError: a call of it would run nothing, since it is ``async def`` or a generator.
        """
        check_runs("callback", callback)
        self.callbacks.append(callback)

    def check_callbacks(self) -> None:
        """Refuse to consume for functions of which a call runs nothing.

        Raises:
            TypeError: one is ``async def`` or a generator.
        """
        for callback in self.callbacks:
            check_runs("callback", callback)
        check_runs("receive", self.receive)

    def receive(self, message_data: Any, message: Message) -> None:
        """Call the callbacks.

        Raises:
            NotImplementedError: there are none.
        """
        if not self.callbacks:
            raise NotImplementedError("No consumer callbacks registered")
        for callback in self.callbacks:
            check_has_run("a callback", callback(message_data, message))


class Receiver(Callbacks):
    """Receives from a backend."""

    backend: Any
    #: Acknowledge each message before its callbacks are called.
    auto_ack: bool = False

    def _receive_callback(self, raw_message: Any) -> None:
        message = self.backend.message_to_python(raw_message)
        if self.auto_ack and not message.acknowledged:
            message.ack()
        self.receive(message.payload, message)

    def flow(self, active: bool) -> None:
        """Ask the broker to stop or to go on with deliveries.  May switch."""
        self.backend.flow(active)

    def qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> Any:
        """Bound what the broker sends ahead.  May switch.

        Arguments:
            prefetch_size: bytes; 0 is without limit.
            prefetch_count: messages; 0 is without limit.
            apply_global: for the whole channel.
        """
        return self.backend.qos(prefetch_size, prefetch_count, apply_global)


class Consumer(FetchIterator, Receiver):
    """Receives the messages of a queue.

    What is not given is what the class says, so that programs derive classes of their own.

    Arguments:
        connection: a ``BrokerConnection`` of carrot's.
        queue: the name of the queue.
        exchange: the name of the exchange that it is bound to.
        routing_key: of the binding; for a headers exchange a dict of arguments.
        kwargs: ``durable``, ``exclusive``, ``auto_delete``, ``exchange_type``, ``warn_if_exists``,
            ``auto_ack``, ``no_ack``, ``auto_declare``, ``backend``.

    Raises:
        ResourceLocked: the queue is another connection's exclusive one.
    """

    queue: str = ""
    exchange: str = ""
    routing_key: Any = ""
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    exchange_type: str = "direct"
    channel_open: bool = False
    warn_if_exists: bool = False
    auto_declare: bool = True
    auto_ack: bool = False
    no_ack: bool = False

    _closed = True
    _init_opts: ClassVar[tuple[str, ...]] = (
        *("durable", "exclusive", "auto_delete", "exchange_type", "warn_if_exists"),
        *("auto_ack", "no_ack", "auto_declare"),
    )

    def __init__(
        self,
        connection: BrokerConnection,
        queue: str | None = None,
        exchange: str | None = None,
        routing_key: Any = None,
        **kwargs: Any,
    ) -> None:
        known = {*self._init_opts, "backend", "queue", "exchange", "routing_key"}
        check_keywords(type(self).__name__, kwargs, known, is_kombus=True)
        self.connection = connection
        self.backend = kwargs.get("backend") or connection.create_backend()
        self.queue = queue or self.queue
        self.exchange = exchange or self.exchange
        self.routing_key = routing_key or self.routing_key
        self.callbacks = []
        for name in self._init_opts:
            if kwargs.get(name) is not None:
                setattr(self, name, kwargs[name])
        if self.exclusive:
            self.auto_delete = True
        self.consumer_tag = self._generate_consumer_tag()
        if self.auto_declare:
            self.declare()

    def _generate_consumer_tag(self) -> str:
        return f"{type(self).__module__}.{type(self).__name__}-{gen_unique_id()}"

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def declare(self) -> Consumer:
        """Declare queue and exchange, and bind one to the other.  May switch."""
        arguments: Mapping[str, Any] | None = None
        routing_key = self.routing_key
        if self.exchange_type == "headers":
            arguments, routing_key = routing_key or None, ""
        if self.queue:
            self.backend.queue_declare(
                queue=self.queue,
                durable=self.durable,
                exclusive=self.exclusive,
                auto_delete=self.auto_delete,
                warn_if_exists=self.warn_if_exists,
            )
        if self.exchange:
            self.backend.exchange_declare(
                exchange=self.exchange,
                type=self.exchange_type,
                durable=self.durable,
                auto_delete=self.auto_delete,
            )
        if self.queue and self.exchange:
            self.backend.queue_bind(
                queue=self.queue,
                exchange=self.exchange,
                routing_key=routing_key,
                arguments=arguments,
            )
        self._closed = False
        return self

    # One by one

    def fetch(
        self,
        no_ack: bool | None = None,
        auto_ack: bool | None = None,
        enable_callbacks: bool = False,
    ) -> Any:
        """Return the next message, or None if the queue is empty.  May switch.

        Arguments:
            no_ack: the message needs no ack; None is what the consumer says.
            auto_ack: acknowledge it at once; None is what the consumer says.
            enable_callbacks: call the callbacks as well.
        """
        if enable_callbacks:
            self.check_callbacks()  # before it takes a message
        message = self.backend.get(self.queue, no_ack=no_ack or self.no_ack)
        if message is None:
            return None
        if (auto_ack or self.auto_ack) and not message.acknowledged:
            message.ack()
        if enable_callbacks:
            self.receive(message.payload, message)
        return message

    def process_next(self) -> Any:
        """Fetch a message and call the callbacks: the older name of ``fetch(enable_callbacks=True)``."""
        warnings.warn(
            DeprecationWarning("process_next() is now fetch(enable_callbacks=True)"), stacklevel=2
        )
        return self.fetch(enable_callbacks=True)

    def discard_all(self, filterfunc: Callable[[Any], Any] | None = None) -> int:
        """Drop what waits in the queue and return how many there were.  May switch.

        Arguments:
            filterfunc: called with each message; only those for which it is true are dropped.  The
                others go back to the queue afterwards.

        Raises:
            ValueError: *filterfunc* with ``no_ack`` or ``auto_ack``: nothing could go back.
        """
        if filterfunc is None:
            return int(self.backend.queue_purge(self.queue))
        if self.no_ack or self.auto_ack:
            raise ValueError("discard_all() with a filter requeues messages: no_ack must be False")
        discarded, kept = 0, []
        try:
            while (message := self.fetch()) is not None:
                kept.append(message)
                if filterfunc(message):
                    kept.pop().ack()
                    discarded += 1
        finally:
            for message in kept:
                message.requeue()
        return discarded

    # As they come

    def consume(self, no_ack: bool | None = None) -> None:
        """Start to consume; the greenlet that drains the connection handles messages.  May switch."""
        self.check_callbacks()
        self.backend.declare_consumer(
            queue=self.queue,
            no_ack=no_ack or self.no_ack,
            callback=self._receive_callback,
            consumer_tag=self.consumer_tag,
            nowait=False,
        )
        self.channel_open = True

    def iterconsume(self, limit: int | None = None, no_ack: bool | None = None) -> Iterator[bool]:
        """Consume; yield True after each event that was handled, *limit* times at most."""
        self.consume(no_ack=no_ack)
        events: Iterator[bool] = self.backend.consume(limit=limit)
        return events

    def wait(self, limit: int | None = None) -> None:
        """Consume and handle *limit* events; without a limit it never returns.  May switch."""
        for _ in self.iterconsume(limit):
            pass

    def cancel(self) -> None:
        """Consume no more.  May switch."""
        if self.channel_open:
            self.channel_open = False
            self.backend.cancel(self.consumer_tag)

    def close(self) -> None:
        """Cancel, and close the channel.  May switch."""
        self.cancel()
        self.backend.close()
        self._closed = True


class ConsumerSet(Receiver):
    """Receives the messages of several queues.

    A consumer with callbacks of its own calls those; the others' messages go to the set's.

    Arguments:
        connection: a ``BrokerConnection`` of carrot's.
        from_dict: queue -> arguments of its consumer.
        consumers: consumers to take over.
        callbacks: called as ``callback(message_data, message)``.
        options: ``auto_ack``.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        from_dict: Mapping[str, Mapping[str, Any]] | None = None,
        consumers: list[Consumer] | None = None,
        callbacks: list[Callback] | None = None,
        **options: Any,
    ) -> None:
        known = ("from_dict", "consumers", "callbacks", "auto_ack")
        check_keywords(type(self).__name__, options, known, is_kombus=True)
        self.connection = connection
        self.options = options
        self.from_dict = from_dict or {}
        self.consumers: list[Consumer] = []
        self.callbacks = callbacks or []
        self.auto_ack = options.get("auto_ack", self.auto_ack)
        self.backend = connection.create_backend()
        self._open_consumers: set[str] = set()
        for consumer in consumers or ():
            self.add_consumer(consumer)
        for queue, arguments in self.from_dict.items():
            self.add_consumer_from_dict(queue, **arguments)

    def __enter__(self) -> ConsumerSet:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def add_consumer_from_dict(self, queue: str, **options: Any) -> None:
        """Add a consumer by the arguments of :class:`Consumer`; ``binding_key`` is its routing key."""
        routing_key = options.pop("binding_key", None) or options.pop("routing_key", None)
        self.consumers.append(
            Consumer(
                self.connection,
                queue=queue,
                routing_key=routing_key,
                backend=self.backend,
                **options,
            )
        )

    def add_consumer(self, consumer: Consumer) -> None:
        """Take over a consumer."""
        consumer.backend = self.backend
        self.consumers.append(consumer)

    def consume(self) -> None:
        """Ask the broker for messages of all queues.  May switch."""
        for consumer in self.consumers:
            receiver: Receiver = consumer if consumer.callbacks else self
            receiver.check_callbacks()
            self.backend.declare_consumer(
                queue=consumer.queue,
                no_ack=consumer.no_ack,
                callback=receiver._receive_callback,
                consumer_tag=consumer.consumer_tag,
                nowait=consumer is not self.consumers[-1],
            )
            self._open_consumers.add(consumer.consumer_tag)

    def iterconsume(self, limit: int | None = None) -> Iterator[bool]:
        """Consume; yield True after each event that was handled, *limit* times at most."""
        self.consume()
        events: Iterator[bool] = self.backend.consume(limit=limit)
        return events

    def discard_all(self) -> int:
        """Drop what waits in the queues and return how many there were.  May switch."""
        return sum(consumer.discard_all() for consumer in self.consumers)

    def cancel(self) -> None:
        """Consume no more.  May switch."""
        tags, self._open_consumers = self._open_consumers, set()
        for tag in tags:
            self.backend.cancel(tag)

    def close(self) -> None:
        """Cancel, and close the channel.  May switch."""
        self.cancel()
        for consumer in self.consumers:
            consumer.close()
        self.backend.close()


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
        known = {*self._init_opts, "exchange", "routing_key"}
        check_keywords(type(self).__name__, kwargs, known, is_kombus=True)
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
        known = ("exchange", "queue", "routing_key")
        check_keywords(type(self).__name__, kwargs, known, is_kombus=True)
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
