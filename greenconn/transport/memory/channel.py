"""A channel to the memory broker."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from amqp.protocol import queue_declare_ok_t

from greenconn.encoding import plain_text
from greenconn.exceptions import ChannelError
from greenconn.transport.memory.broker import Queues
from greenconn.transport.memory.deliveries import DeliveringMethods
from greenconn.transport.memory.link import MemoryLink
from greenconn.transport.memory.queue import Queue
from greenconn.transport.refusal import (
    Method,
    in_use,
    not_empty,
)
from greenconn.transport.virtual.arguments import ArgumentOf, SupportedArguments
from greenconn.transport.virtual.entities import EntityMethods
from greenconn.transport.virtual.life import closes_channel
from greenconn.transport.virtual.policy import QueuePolicy
from greenconn.transport.virtual.publishing import (
    Envelope,
    Outcome,
    PublishingMethods,
    UndeliverableWarning,
    too_large,
    warn_of_message,
)
from greenconn.transport.virtual.state import BrokerState

__all__ = ["Channel"]


class Channel(EntityMethods, DeliveringMethods, PublishingMethods):
    """A channel.  Its calls take effect at once; only publishing may switch.

    Arguments:
        connection: the link.
    """

    connection: MemoryLink
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
        self._last_queue = ""
        self._init_deliveries()

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings of the virtual host."""
        return self._broker.state

    @property
    def queues(self) -> Queues:
        """The queues of the virtual host by their names; ``clear`` deletes them."""
        return Queues(self._broker)

    # -- queues

    def _queue(self, name: str, method: Method) -> Queue:
        """Return the queue *name*; '' is the one this channel declared last."""
        return self._broker.queue(name or self._last_queue, self.connection, method)

    def _check_queue(self, queue: str, method: Method) -> str:
        return self._queue(queue, method).name

    @closes_channel
    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> queue_declare_ok_t:
        """Make a queue, or check that the existing one is the same.

        Arguments:
            queue: its name; empty lets the broker choose one.
            passive: only check that it exists.
            exclusive: for this connection only, and deleted with it.
            auto_delete: deleted when its last consumer leaves.
            arguments: ``x-message-ttl`` and the like, as RabbitMQ has them.

        Returns:
            its name, how many messages wait, how many consumers it has.

        Raises:
            NotFound: passive, and it does not exist.
            PreconditionFailed: it differs from the existing one, or an argument cannot be.
            ResourceLocked: it is exclusive to another connection.
            AccessRefused: the name is reserved.
        """
        queue = plain_text(queue)
        if passive:
            found = self._queue(queue, Method.QUEUE_DECLARE)
            found.touch()
        else:
            found = self._broker.declare_queue(
                queue or "",
                self.connection,
                durable=durable,
                exclusive=exclusive,
                auto_delete=auto_delete,
                arguments=arguments,
            )
            self.warn_of_unsupported(ArgumentOf.QUEUE, found.name, arguments)
        self._last_queue = found.name
        return queue_declare_ok_t(found.name, len(found), len(found.consumers))

    @closes_channel
    def queue_purge(self, queue: str = "", nowait: bool = False) -> int:
        """Drop the messages that wait in a queue and return how many there were."""
        queue = plain_text(queue)
        return self._queue(queue, Method.QUEUE_PURGE).purge()

    @closes_channel
    def queue_delete(
        self,
        queue: str = "",
        if_unused: bool = False,
        if_empty: bool = False,
        nowait: bool = False,
    ) -> int:
        """Delete a queue and return how many messages it had; 0 when there is none.

        Raises:
            PreconditionFailed: it is used or not empty, and was to be deleted only if not.
        """
        queue = plain_text(queue)
        method = Method.QUEUE_DELETE
        if (queue or self._last_queue) not in self._broker.queues:
            return 0
        found = self._queue(queue, method)
        if if_unused and found.consumers:
            raise in_use("queue", found.name, self.virtual_host, method)
        if if_empty and len(found):
            raise not_empty(found.name, self.virtual_host, method)
        return self._broker.delete_queue(found)

    def after_reply_message_received(self, queue: str) -> None:
        """Nothing to do: a reply queue lives until its owner deletes it."""

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
