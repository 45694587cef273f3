"""A channel to the memory broker."""

from __future__ import annotations

import warnings

from greenconn.exceptions import ChannelError
from greenconn.transport.memory.broker import Queues
from greenconn.transport.memory.deliveries import DeliveringMethods
from greenconn.transport.memory.entities import MemoryEntities
from greenconn.transport.memory.link import MemoryLink
from greenconn.transport.memory.queue import Queue
from greenconn.transport.refusal import (
    Method,
)
from greenconn.transport.virtual.arguments import SupportedArguments
from greenconn.transport.virtual.policy import QueuePolicy
from greenconn.transport.virtual.publishing import (
    Envelope,
    Outcome,
    PublishingMethods,
    UndeliverableWarning,
    too_large,
    warn_of_message,
)

__all__ = ["Channel"]


class Channel(DeliveringMethods, PublishingMethods):
    """A channel.  Its calls take effect at once; only publishing may switch.

    Arguments:
        connection: the link.
    """

    connection: MemoryLink
    entities: MemoryEntities
    entities_class = MemoryEntities
    supported_arguments = SupportedArguments(
        queue=QueuePolicy.ARGUMENTS,
        exchange=frozenset({"alternate-exchange"}),
        consumer=frozenset({"x-priority"}),
        message=frozenset({"priority", "expiration", "CC", "BCC"}),
    )

    def __init__(self, connection: MemoryLink, channel_id: int | None = None) -> None:
        super().__init__(connection, channel_id)
        self._broker = connection.broker
        self._max_size = connection.options.max_message_size
        self._init_deliveries()

    @property
    def queues(self) -> Queues:
        """The queues of the virtual host by their names; ``clear`` deletes them."""
        return Queues(self._broker)

    def _queue(self, name: str, method: Method) -> Queue:
        return self.entities.queue(name, method)

    # -- publishing

    def _publish(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool = False
    ) -> Outcome:
        self._broker.breathe()
        self.check_open()
        body = message["body"]
        if len(body) > self._max_size:
            raise too_large(len(body), self._max_size)
        headers = message["headers"]
        if headers and "x-delay" in headers:
            warn_of_message(self, message, exchange, routing_key)
        try:
            outcome = self._broker.publish(message, exchange, routing_key)
        except ChannelError as exc:
            self.fail(exc)
            raise
        if outcome is Outcome.UNROUTED and self.connection.options.deadletter_queue:
            return self._last_resort(self.connection.options.deadletter_queue, message)
        return outcome

    def _last_resort(self, queue: str, message: Envelope) -> Outcome:
        warnings.warn(
            UndeliverableWarning(f"a message had no queue to go to: it went to {queue!r}"),
            stacklevel=4,
        )
        if queue not in self._broker.queues:
            self._broker.declare_queue(queue, self.connection, durable=True)
        return self._broker.publish(message, "", queue)
