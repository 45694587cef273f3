"""The queues of the memory broker, for the directory of one link.  None of it switches."""

from __future__ import annotations

from greenconn.broker.queue_port import QueueStore
from greenconn.transport.memory.broker import Broker
from greenconn.transport.virtual.declaration import Declaration

__all__ = ["MemoryQueues"]


class MemoryQueues(QueueStore):
    """The queues of the virtual host.  Nothing is remembered: the broker is this process'."""

    __slots__ = ("_broker",)

    ends_exclusive = True

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def find(self, name: str) -> Declaration | None:
        queue = self._broker.queues.get(name)
        return None if queue is None else queue.declared

    def make(self, name: str, declared: Declaration) -> Declaration:
        return self._broker.add_queue(name, declared).declared

    def touch(self, name: str) -> None:
        self._broker.queues[name].touch()

    def counts(self, name: str) -> tuple[int, int]:
        queue = self._broker.queues[name]
        return len(queue), len(queue.consumers)

    def purge(self, name: str) -> int:
        return self._broker.queues[name].purge()

    def drop(self, name: str) -> int:
        return self._broker.delete_queue(name)
