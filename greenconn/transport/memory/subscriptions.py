"""The queues of the memory broker that the channels of one link consume from.  None of it switches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenconn.broker.directory import Directory
from greenconn.transport.memory.broker import Broker
from greenconn.transport.memory.message import Message
from greenconn.transport.memory.queue import Queue
from greenconn.transport.refusal import Method, refused
from greenconn.transport.virtual.consumer import Consumer

if TYPE_CHECKING:
    from greenconn.transport.virtual.port import ChannelPort

__all__ = ["MemorySubscriptions"]


class MemorySubscriptions:
    """See :class:`~greenconn.broker.consumers.Subscriptions`.

    Arguments:
        broker: has the queues.
        directory: knows which of them the link may use.
    """

    __slots__ = ("_broker", "_directory")

    def __init__(self, broker: Broker, directory: Directory) -> None:
        self._broker = broker
        self._directory = directory

    def feed(self, queue: str, method: Method) -> Queue:
        """Return the queue, which gives its messages to its consumers itself.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        found = self._broker.queues.get(queue)
        if found is None or found.declared.owner is not None:
            self._directory.check(queue, method)
            found = self._broker.queues[queue]
        return found

    def start(self, consumer: Consumer) -> None:
        """Let *consumer* have messages.

        Raises:
            AccessRefused: it may not consume beside another one.
        """
        queue = _queue_of(consumer)
        if queue.has_exclusive_consumer or (consumer.exclusive and queue.consumers):
            raise refused(
                f"queue '{queue.name}' in vhost '{self._broker.virtual_host}' in exclusive use",
                Method.BASIC_CONSUME,
            )
        queue.join(consumer)

    def left(self, consumer: Consumer) -> None:
        """Forget a consumer: its queue may be of no use any more."""
        _queue_of(consumer).leave(consumer)

    def ended(self, consumer: Consumer) -> None:
        """Forget a consumer whose queue is gone: so the queue did itself."""

    def serve(self, consumer: Consumer) -> None:
        """Do nothing: where a consumer has room that is not parked, nothing waits."""

    def get(self, channel: ChannelPort, queue: str) -> Message | None:
        """Take one message for *channel*; None when none waits.

        Raises:
            NotFound: there is no such queue.
        """
        found = self.feed(queue, Method.BASIC_GET)
        entry = found.take()
        if entry is None:
            return None
        return Message(channel, next(self._broker.tags), entry, waiting=found.store.count)


def _queue_of(consumer: Consumer) -> Queue:
    assert isinstance(consumer.feed, Queue)
    return consumer.feed
