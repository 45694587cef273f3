"""Producers and consumers as carrot's programs know them (kombu.compat)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from greenconn import messaging
from greenconn.compat.import_alias import install_as_carrot, install_as_kombu
from greenconn.entity import Exchange, Queue

if TYPE_CHECKING:
    from greenconn.abc import Channel, ChannelOrConnection
    from greenconn.connection import Connection


__all__ = [
    "Consumer",
    "ConsumerSet",
    "Publisher",
    "entry_to_queue",
    "install_as_carrot",
    "install_as_kombu",
]

entry_to_queue = Queue.from_dict


def _iterconsume(
    connection: Connection,
    consumer: messaging.Consumer,
    no_ack: bool | None = False,
    limit: int | None = None,
) -> Iterator[Any]:
    """Yield once for each event that was handled, *limit* times at most (None, 0: for ever)."""
    consumer.consume(no_ack=no_ack)
    for _ in islice(count(), limit or None):
        yield connection.drain_events()


class Publisher(messaging.Producer):
    """A producer with an exchange of its own, whose attributes may be those of the class.

    Arguments:
        connection: a connection or a channel.
        exchange: its name, or an Exchange.
        routing_key: of messages that say none.
        exchange_type: of the exchange, if it is given by name.
        durable: whether the exchange survives the broker.
        auto_delete: whether it goes with its last queue.
        channel: instead of *connection*.
        kwargs: of :class:`greenconn.Producer`.
    """

    exchange: Any = ""
    exchange_type = "direct"
    routing_key: str = ""
    durable = True
    auto_delete = False

    _closed = False

    def __init__(
        self,
        connection: Connection,
        exchange: Exchange | str | None = None,
        routing_key: str | None = None,
        exchange_type: str | None = None,
        durable: bool | None = None,
        auto_delete: bool | None = None,
        channel: Channel | None = None,
        **kwargs: Any,
    ) -> None:
        exchange = exchange or self.exchange
        self.exchange_type = exchange_type or self.exchange_type
        self.routing_key = routing_key or self.routing_key
        if durable is not None:
            self.durable = durable
        if auto_delete is not None:
            self.auto_delete = auto_delete
        if not isinstance(exchange, Exchange):
            exchange = Exchange(
                exchange,
                type=self.exchange_type,
                durable=self.durable,
                auto_delete=self.auto_delete,
            )
        super().__init__(channel or connection, exchange, self.routing_key, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """Publish: see :meth:`greenconn.Producer.publish`."""
        return self.publish(*args, **kwargs)

    def close(self) -> None:
        """Let the channel go."""
        super().close()
        self._closed = True

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    @property
    def backend(self) -> Any:
        """The channel."""
        return self.channel


class FetchIterator:
    """Iterates over what ``fetch()`` gives."""

    def fetch(self) -> Any:
        """Return the next message, or None if the queue is empty.  May switch."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return self.iterqueue(infinite=True)

    def iterqueue(self, limit: int | None = None, infinite: bool = False) -> Iterator[Any]:
        """Yield messages as :meth:`fetch` gives them.  May switch.

        Arguments:
            limit: messages at most; None is without limit.
            infinite: go on when the queue is empty, with None.
        """
        for _ in islice(count(), limit or None):
            message = self.fetch()
            if message is None and not infinite:
                return
            yield message


class Consumer(FetchIterator, messaging.Consumer):
    """A consumer of one queue on a channel of its own; attributes may be those of the class.

    Arguments:
        connection: where its channel is opened.
        queue: the name of the queue.
        exchange: the name of the exchange that the queue is bound to.
        routing_key: of the binding.
        exchange_type: of the exchange.
        durable: whether queue and exchange survive the broker.
        exclusive: whether the queue is for this connection alone.
        auto_delete: whether queue and exchange go when they are not used any more.
        kwargs: of :class:`greenconn.Consumer`.
    """

    queue = ""
    exchange = ""
    routing_key = ""
    exchange_type = "direct"
    durable = True
    exclusive = False
    auto_delete = False

    _closed = False

    def __init__(
        self,
        connection: Connection,
        queue: str | None = None,
        exchange: str | None = None,
        routing_key: str | None = None,
        exchange_type: str | None = None,
        durable: bool | None = None,
        exclusive: bool | None = None,
        auto_delete: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.queue = queue or self.queue
        self.exchange = exchange or self.exchange
        self.routing_key = routing_key or self.routing_key
        self.exchange_type = exchange_type or self.exchange_type
        if durable is not None:
            self.durable = durable
        if exclusive is not None:
            self.exclusive = exclusive
        if auto_delete is not None:
            self.auto_delete = auto_delete
        self.backend: ChannelOrConnection = connection.channel()
        super().__init__(self.backend, self._make_queue(), **kwargs)

    def _make_queue(self) -> Queue:
        exchange = Exchange(
            self.exchange,
            type=self.exchange_type,
            durable=self.durable,
            auto_delete=self.auto_delete,
        )
        return Queue(
            self.queue,
            exchange=exchange,
            routing_key=self.routing_key,
            durable=self.durable,
            exclusive=self.exclusive,
            auto_delete=self.auto_delete,
        )

    def revive(self, channel: ChannelOrConnection) -> None:
        """Go on with another channel."""
        self.backend = channel
        super().revive(channel)

    def close(self) -> None:
        """Cancel, and close the channel."""
        self.cancel()
        self.backend.close()
        self._closed = True

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def fetch(self, no_ack: bool | None = None, enable_callbacks: bool = False) -> Any:
        """Return the next message, or None if the queue is empty.

        Arguments:
            no_ack: the message needs no ack; None is what the consumer says.
            enable_callbacks: call the callbacks as well.
        """
        if enable_callbacks:
            self.check_callbacks()  # before it takes a message
        message = self.queues[0].get(self.no_ack if no_ack is None else no_ack)
        if message and enable_callbacks:
            self.receive(message.payload, message)
        return message

    def process_next(self) -> Any:
        """Carrot's old name of :meth:`fetch`.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("Use fetch(enable_callbacks=True)")

    def discard_all(self, filterfunc: Callable[..., Any] | None = None) -> Any:
        """Purge the queue and return how many messages it held.

        Raises:
            NotImplementedError: a *filterfunc* is given; brokers discard all or nothing.
        """
        if filterfunc is not None:
            raise NotImplementedError("discard_all() purges the queues: filterfunc must be None")
        return self.purge()

    def iterconsume(self, limit: int | None = None, no_ack: bool | None = None) -> Iterator[Any]:
        """Consume; each step handles one event, *limit* at most."""
        return _iterconsume(self.connection, self, no_ack, limit)

    def wait(self, limit: int | None = None) -> list[Any]:
        """Handle *limit* events."""
        return list(self.iterconsume(limit))


class ConsumerSet(messaging.Consumer):
    """A consumer of several queues.

    Arguments:
        connection: where a channel is opened if none is given.
        from_dict: names of queues, each with the arguments of ``Queue.from_dict``.
        consumers: whose queues are taken over.
        channel: stays open when the set is closed.
        kwargs: of :class:`greenconn.Consumer`.
    """

    def __init__(
        self,
        connection: Connection,
        from_dict: Mapping[str, Mapping[str, Any]] | None = None,
        consumers: Iterable[messaging.Consumer] | None = None,
        channel: Channel | None = None,
        **kwargs: Any,
    ) -> None:
        self._provided_channel = bool(channel)
        self.backend: ChannelOrConnection = channel or connection.channel()
        queues = [queue for consumer in consumers or () for queue in consumer.queues]
        queues += [Queue.from_dict(name, **options) for name, options in (from_dict or {}).items()]
        super().__init__(self.backend, queues, **kwargs)

    def iterconsume(self, limit: int | None = None, no_ack: bool = False) -> Iterator[Any]:
        """Consume; each step handles one event, *limit* at most."""
        return _iterconsume(self.connection, self, no_ack, limit)

    def discard_all(self) -> Any:
        """Purge the queues and return how many messages they held."""
        return self.purge()

    def add_consumer_from_dict(self, queue: str, **options: Any) -> Any:
        """Add a queue by the arguments of ``Queue.from_dict``."""
        return self.add_queue(Queue.from_dict(queue, **options))

    def add_consumer(self, consumer: messaging.Consumer) -> None:
        """Add another consumer's queues."""
        for queue in consumer.queues:
            self.add_queue(queue)

    def revive(self, channel: ChannelOrConnection) -> None:
        """Go on with another channel."""
        self.backend = channel
        super().revive(channel)

    def close(self) -> None:
        """Cancel, and close the channel if it is the set's own."""
        self.cancel()
        if not self._provided_channel:
            self.backend.close()
