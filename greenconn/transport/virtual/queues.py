"""The channel methods that declare and delete queues which are kept elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amqp.protocol import queue_declare_ok_t

from greenconn.encoding import plain_text
from greenconn.transport.refusal import Method, in_use, no_queue, not_empty
from greenconn.transport.virtual.arguments import ArgumentOf
from greenconn.transport.virtual.entities import EntityMethods
from greenconn.transport.virtual.life import closes_channel
from greenconn.transport.virtual.names import generated_name
from greenconn.transport.virtual.polled import PolledConsuming

__all__ = ["QueueMethods"]


class QueueMethods(EntityMethods, PolledConsuming):
    """Queues over the hooks."""

    _last_queue = ""

    def _row(
        self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None
    ) -> tuple[str, Any, str]:
        """Return kombu's row of a binding."""
        raise NotImplementedError

    def _check_queue(self, queue: str, method: Method) -> str:
        return queue or self._last_queue

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
        """Make a queue.  May switch.

        Arguments:
            queue: its name; empty makes one up.
            passive: only check that it exists.

        Returns:
            its name, how many messages wait, and 0.

        Raises:
            NotFound: passive, and it does not exist.
        """
        queue = plain_text(queue)
        name = queue or generated_name("amq.gen-")
        options = {
            "durable": durable,
            "exclusive": exclusive,
            "auto_delete": auto_delete,
            "arguments": arguments,
        }
        if not passive:
            self.warn_of_unsupported(ArgumentOf.QUEUE, name, arguments)
            self._new_queue(name, **options)
        elif not self._has_queue(name, **options):
            raise no_queue(name, self.virtual_host, Method.QUEUE_DECLARE)
        self._last_queue = name
        self.connection.declared.add(name)
        return queue_declare_ok_t(name, self._size(name), 0)

    @closes_channel
    def queue_delete(
        self,
        queue: str = "",
        if_unused: bool = False,
        if_empty: bool = False,
        nowait: bool = False,
    ) -> int:
        """Delete a queue and its bindings; return how many messages it had.  May switch.

        Raises:
            PreconditionFailed: *if_unused*, and this connection consumes from it; *if_empty*, and
                it is not.
        """
        queue = plain_text(queue)
        size = self._size(queue)
        consumers = [
            (channel, each)
            for channel in self.connection.channels.values()
            for each in channel.consumers.values()
            if each.queue == queue
        ]
        if if_unused and consumers:
            raise in_use("queue", queue, self.virtual_host, Method.QUEUE_DELETE)
        if if_empty and size:
            raise not_empty(queue, self.virtual_host, Method.QUEUE_DELETE)
        rows: list[tuple[Any, ...]] = [
            (each.exchange, *self._row(queue, each.exchange, each.routing_key, each.arguments))
            for each in self.state.queue_bindings(queue)
        ]
        for channel, consumer in consumers:
            channel.cancelled_by_broker(consumer)
        self.state.queue_bindings_delete(queue)
        self.connection.declared.discard(queue)
        for row in rows or [()]:
            self._delete(queue, *row)
        return size

    @closes_channel
    def queue_purge(self, queue: str = "", nowait: bool = False) -> int:
        """Drop the messages of a queue and return how many there were.  May switch."""
        queue = plain_text(queue)
        return self._purge(self._check_queue(queue, Method.QUEUE_PURGE)) or 0

    def after_reply_message_received(self, queue: str) -> None:
        """A reply queue has done its work: delete it.  May switch."""
        self.queue_delete(queue)
