"""The queues of the memory broker as one link knows them.  None of it switches."""

from __future__ import annotations

from greenconn.broker.directory import Directory, DirectoryLink
from greenconn.transport.memory.broker import Broker
from greenconn.transport.virtual.declaration import Declaration

__all__ = ["MemoryQueues"]


class MemoryQueues(Directory):
    """The queues of the virtual host."""

    __slots__ = ("_broker",)

    def __init__(self, link: DirectoryLink, broker: Broker) -> None:
        super().__init__(link)
        self._broker = broker

    def settle(self) -> None:
        """Do nothing: what a link does counts at once."""

    def find(self, name: str) -> Declaration | None:
        """Return how a queue was declared; None when there is none."""
        queue = self._broker.queues.get(name)
        return None if queue is None else queue.declared

    def _make(self, name: str, declared: Declaration) -> Declaration:
        self._own.discard(name)  # the broker knows whose it is
        return self._broker.add_queue(name, declared).declared

    def touch(self, name: str) -> None:
        """A queue was declared: its time without use begins anew."""
        self._broker.queues[name].touch()

    def counts(self, name: str) -> tuple[int, int]:
        """Return the numbers of a queue's waiting messages and consumers."""
        queue = self._broker.queues[name]
        return len(queue), len(queue.consumers)

    def purge(self, name: str) -> int:
        """Drop the messages that wait in a queue, and return how many there were."""
        return self._broker.queues[name].purge()

    def drop(self, name: str) -> int:
        """Delete a queue, and return how many messages it had."""
        return self._broker.delete_queue(name)
