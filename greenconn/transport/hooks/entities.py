"""Exchanges, queues and bindings over kombu's hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from amqp.protocol import queue_declare_ok_t

from greenconn.transport.refusal import Method, in_use, no_queue, not_empty
from greenconn.transport.virtual.arguments import ArgumentOf
from greenconn.transport.virtual.entities import Entities
from greenconn.transport.virtual.exchange import Router
from greenconn.transport.virtual.names import generated_name
from greenconn.transport.virtual.state import Binding, BrokerState

if TYPE_CHECKING:
    from greenconn.transport.hooks.channel import Channel


__all__ = ["HookedEntities"]


class HookedEntities(Entities):
    """Exchanges and bindings of this process, and queues over the hooks of *channel*.

    May switch, as the hooks may.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._hooks = channel

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings that all channels of the transport share."""
        return self._hooks.connection.state

    def _router_factory(self, exchange: str, type: str) -> Callable[[], Router] | None:
        kind = self._hooks.exchange_types.get(type)
        return None if kind is None else lambda: kind.router(exchange)

    def _bound(self, binding: Binding) -> None:
        if self._hooks.supports_fanout and not binding.to_exchange:
            row = self._row(binding)
            self._hooks._queue_bind(binding.source, *row)

    def _row(self, binding: Binding) -> tuple[str, Any, str]:
        """Return kombu's row of a binding of a queue."""
        return self._hooks.binding_row(
            binding.destination, binding.source, binding.routing_key, binding.arguments
        )

    def declare_queue(
        self,
        queue: str,
        *,
        passive: bool,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Mapping[str, Any] | None,
    ) -> queue_declare_ok_t:
        """Make a queue.

        Returns:
            its name, how many messages wait, and 0.

        Raises:
            NotFound: passive, and it does not exist.
        """
        hooks = self._hooks
        name = queue or generated_name("amq.gen-")
        options = {
            "durable": durable,
            "exclusive": exclusive,
            "auto_delete": auto_delete,
            "arguments": arguments,
        }
        if not passive:
            hooks.warn_of_unsupported(ArgumentOf.QUEUE, name, arguments)
            hooks._new_queue(name, **options)
        elif not hooks._has_queue(name, **options):
            raise no_queue(name, hooks.virtual_host, Method.QUEUE_DECLARE)
        self.last_queue = name
        hooks.connection.declared.add(name)
        return queue_declare_ok_t(name, hooks._size(name), 0)

    def delete_queue(self, queue: str, if_unused: bool, if_empty: bool) -> int:
        """Delete a queue and its bindings; return how many messages it had.

        Raises:
            PreconditionFailed: *if_unused*, and this connection consumes from it; *if_empty*, and
                it is not.
        """
        hooks = self._hooks
        size = hooks._size(queue)
        consumers = [
            (channel, each)
            for channel in hooks.connection.channels.values()
            for each in channel.consumers.values()
            if each.queue == queue
        ]
        if if_unused and consumers:
            raise in_use("queue", queue, hooks.virtual_host, Method.QUEUE_DELETE)
        if if_empty and size:
            raise not_empty(queue, hooks.virtual_host, Method.QUEUE_DELETE)
        rows: list[tuple[Any, ...]] = [
            (
                each.exchange,
                *hooks.binding_row(queue, each.exchange, each.routing_key, each.arguments),
            )
            for each in self.state.queue_bindings(queue)
        ]
        for channel, consumer in consumers:
            channel.cancelled_by_broker(consumer)
        self.state.queue_bindings_delete(queue)
        hooks.connection.declared.discard(queue)
        for row in rows or [()]:
            hooks._delete(queue, *row)
        return size

    def purge_queue(self, queue: str) -> int:
        """Drop the messages of a queue and return how many there were."""
        return self._hooks._purge(self.queue_name(queue)) or 0
