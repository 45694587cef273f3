"""What a channel to the memory broker delivers, and the answers to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from greenconn.encoding import plain_text
from greenconn.transport.memory.broker import Broker
from greenconn.transport.memory.message import Message
from greenconn.transport.memory.queue import Queue
from greenconn.transport.memory.store import Entry
from greenconn.transport.refusal import Method, refused, unknown_delivery_tag
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.life import closes_channel
from greenconn.transport.virtual.refusing import RefusingMethods

__all__ = ["DeliveringMethods"]


class DeliveringMethods(RefusingMethods):
    """Consumers, gets and answers.  None of it switches."""

    _broker: Broker

    def _init_deliveries(self) -> None:
        self._last_tag = 0
        self.unanswered: dict[int, Entry] = {}

    def _queue(self, name: str, method: Method) -> Queue:
        """Return the queue *name*; '' is the one this channel declared last."""
        raise NotImplementedError

    def deliver(self, consumer: Consumer, entry: Entry) -> None:
        """Hand *entry* to a consumer of this channel.  Never switches."""
        tag = self._last_tag = self._last_tag + 1
        if not consumer.no_ack:
            entry.consumer = consumer
            self.unanswered[tag] = entry
            consumer.unacked += 1
            self.prefetch.in_flight += 1
        consumer.hand_over(entry, Message(self, tag, entry, consumer.tag))

    @closes_channel
    def basic_get(self, queue: str = "", no_ack: bool = False) -> Message | None:
        """Take the next message of a queue; None when none waits.

        Raises:
            NotFound: there is no such queue.
        """
        queue = plain_text(queue)
        found = self._queue(queue, Method.BASIC_GET)
        entry = found.take()
        if entry is None:
            return None
        self._last_tag += 1
        if not no_ack:
            self.unanswered[self._last_tag] = entry
        return Message(self, self._last_tag, entry, waiting=len(found))

    # -- answers

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        """Say that a delivery is done.

        For a delivery of a connection that is gone it does nothing: the message is back in its
        queue.

        Arguments:
            multiple: all deliveries up to this one; with tag 0 all there are.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        if self.connection.lost is not None:
            return
        self.check_open()
        if multiple:
            for each in self._free(self._up_to(delivery_tag)):
                each.wake()
            return
        entry = self.unanswered.pop(delivery_tag, None)
        if entry is None:
            raise unknown_delivery_tag(delivery_tag, Method.BASIC_ACK)
        consumer = entry.consumer
        if consumer is not None:
            consumer.unacked -= 1
            self.prefetch.in_flight -= 1
            if self.prefetch.limit:
                self.serve()
            elif consumer.is_parked:
                consumer.wake()

    def _free(self, entries: Iterable[Entry]) -> list[Consumer]:
        """Free the room that *entries* took, and return whose it was."""
        freed: dict[Consumer, None] = {}
        for entry in entries:
            if entry.consumer is not None:
                entry.consumer.unacked -= 1
                self.prefetch.in_flight -= 1
                freed[entry.consumer] = None
        # A limit of the whole channel held all its consumers.
        return list(self.consumers.values() if self.prefetch.limit else freed)

    def _refuse(self, entries: list[Entry], requeue: bool) -> None:
        consumers = self._free(entries)
        if requeue:
            give_back(entries)
        else:
            for entry in entries:
                self._broker.dead_letter(entry, "rejected")
        for consumer in consumers:
            consumer.wake()

    # -- consumers

    def _feed_of(self, queue: str, method: Method) -> tuple[str, Queue]:
        found = self._queue(queue, method)
        return found.name, found

    def _started(self, consumer: Consumer) -> None:
        queue = _queue_of(consumer)
        if queue.has_exclusive_consumer or (consumer.exclusive and queue.consumers):
            raise refused(
                f"queue '{queue.name}' in vhost '{self.virtual_host}' in exclusive use",
                Method.BASIC_CONSUME,
            )
        queue.join(consumer)

    def _cancelled(self, consumer: Consumer) -> None:
        unseen = self._stop(consumer)
        give_back(unseen)
        _queue_of(consumer).leave(consumer)

    def cancelled_by_broker(self, consumer: Consumer) -> None:
        """The queue of a consumer of this channel is gone.  Never switches."""
        self._forget(consumer)
        self._stop(consumer)
        consumer.cancelled_by_broker()
        if self.prefetch.limit:
            self.serve()

    def _stop(self, consumer: Consumer) -> list[Entry]:
        """Stop a consumer, and take back what became events that nobody has drained."""
        unseen: list[Entry] = consumer.stop()
        if consumer.no_ack or not unseen:
            return unseen
        found = {id(entry) for entry in unseen}
        tags = [tag for tag, entry in self.unanswered.items() if id(entry) in found]
        entries = [self.unanswered.pop(tag) for tag in tags]
        self._free(entries)
        return entries

    def _release(self, consumers: list[Consumer]) -> None:
        entries: list[Entry] = []
        for consumer in consumers:
            unseen = consumer.stop()
            if consumer.no_ack:
                entries += unseen
        entries += self.unanswered.values()
        self.unanswered.clear()
        # All are back before anybody else may become the one who is served.
        give_back(entries)
        for consumer in consumers:
            _queue_of(consumer).leave(consumer)


def give_back(entries: Iterable[Entry]) -> None:
    """Put *entries* back into their queues."""
    by_queue: dict[Queue, list[Entry]] = {}
    for entry in entries:
        by_queue.setdefault(entry.queue, []).append(entry)
    for queue, group in by_queue.items():
        queue.put_back(group)
    for queue in by_queue:
        queue.settle()


def _queue_of(consumer: Consumer) -> Queue:
    assert isinstance(consumer.feed, Queue)
    return consumer.feed
