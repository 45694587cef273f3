"""The exchanges, queues and bindings of a channel to the memory broker.  None of it switches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amqp.protocol import queue_declare_ok_t

from greenconn.transport.memory.link import MemoryLink
from greenconn.transport.memory.queue import Queue
from greenconn.transport.refusal import Method, in_use, not_empty
from greenconn.transport.virtual.arguments import ArgumentOf
from greenconn.transport.virtual.entities import Entities
from greenconn.transport.virtual.life import ChannelLife
from greenconn.transport.virtual.state import BrokerState

__all__ = ["MemoryEntities"]


class MemoryEntities(Entities):
    """Exchanges, queues and bindings of the virtual host."""

    def __init__(self, channel: ChannelLife) -> None:
        super().__init__(channel)
        assert isinstance(channel.connection, MemoryLink)
        self._link = channel.connection
        self._broker = channel.connection.broker

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings of the virtual host."""
        return self._broker.state

    def queue(self, name: str, method: Method) -> Queue:
        """Return the queue *name*; '' is the one this channel declared last.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        return self._broker.queue(self.queue_name(name), self._link, method)

    def check_queue(self, queue: str, method: Method) -> str:
        """Return the name of the queue that *queue* means.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        return self.queue(queue, method).name

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
        """Make a queue, or check that the existing one is the same."""
        if passive:
            found = self.queue(queue, Method.QUEUE_DECLARE)
            found.touch()
        else:
            found = self._broker.declare_queue(
                queue,
                self._link,
                durable=durable,
                exclusive=exclusive,
                auto_delete=auto_delete,
                arguments=arguments,
            )
            self._channel.warn_of_unsupported(ArgumentOf.QUEUE, found.name, arguments)
        self.last_queue = found.name
        return queue_declare_ok_t(found.name, len(found), len(found.consumers))

    def purge_queue(self, queue: str) -> int:
        """Drop the messages that wait in a queue and return how many there were."""
        return self.queue(queue, Method.QUEUE_PURGE).purge()

    def delete_queue(self, queue: str, if_unused: bool, if_empty: bool) -> int:
        """Delete a queue and return how many messages it had; 0 when there is none."""
        method = Method.QUEUE_DELETE
        if self.queue_name(queue) not in self._broker.queues:
            return 0
        found = self.queue(queue, method)
        vhost = self._channel.virtual_host
        if if_unused and found.consumers:
            raise in_use("queue", found.name, vhost, method)
        if if_empty and len(found):
            raise not_empty(found.name, vhost, method)
        return self._broker.delete_queue(found)
