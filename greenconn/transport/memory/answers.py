"""The answers to what channels to the memory broker were delivered.  None of it switches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from greenconn.transport.memory.message import Message
from greenconn.transport.memory.queue import Queue
from greenconn.transport.memory.store import Entry

if TYPE_CHECKING:
    from greenconn.transport.memory.broker import Broker

__all__ = ["Answers"]


class Answers:
    """See :class:`~greenconn.broker.deliveries.Acknowledger`.

    Only its channel has a message that was delivered, so that one which was handled is of no interest
    to the broker.
    """

    __slots__ = ("_broker",)

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def done(self, delivery: Message) -> None:
        """Do nothing: the message is gone with its delivery."""

    def done_late(self, tag: Any) -> None:
        """Do nothing: the message went back to its queue when the link ended."""

    def give_back(self, deliveries: Iterable[Message]) -> None:
        """Put *deliveries* back to their places in their queues."""
        by_queue: dict[Queue, list[Entry]] = {}
        for each in deliveries:
            by_queue.setdefault(each.entry.queue, []).append(each.entry)
        for queue, entries in by_queue.items():
            queue.put_back(entries)
        for queue in by_queue:
            queue.settle()

    def return_unseen(self, delivery: Message) -> None:
        """Put a delivery back that nobody has seen."""
        self.give_back([delivery])

    def dead_letter(self, deliveries: Iterable[Message], reason: str) -> None:
        """Make dead letters of *deliveries*, or drop them."""
        for each in deliveries:
            self._broker.dead_letter(each.entry, reason)
