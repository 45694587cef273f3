"""Several consumers on one channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from greenconn.compat.carrot.messaging.consumer import Callback, Consumer, Receiver

if TYPE_CHECKING:
    from greenconn.compat.carrot.connection import BrokerConnection

__all__ = ["ConsumerSet"]


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
