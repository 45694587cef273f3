"""What a channel to the memory broker delivers, and the answers to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from greenconn.exceptions import AMQPNotImplementedError
from greenconn.transport.memory.broker import Broker
from greenconn.transport.memory.message import Message
from greenconn.transport.memory.queue import Queue
from greenconn.transport.memory.store import Entry
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.consuming import ConsumingMethods
from greenconn.transport.virtual.life import closes_channel
from greenconn.transport.virtual.refusal import Method, refused, unknown_delivery_tag

__all__ = ["DeliveringMethods"]


class DeliveringMethods(ConsumingMethods):
    """Consumers, gets and answers.  None of it switches."""

    _broker: Broker

    def _init_deliveries(self) -> None:
        self._last_tag = 0
        #: Delivery tag -> what was delivered and not answered, in the order of delivery.
        self._unacked: dict[int, Entry] = {}

    def _queue(self, name: str, method: Method) -> Queue:
        """Return the queue *name*; '' is the one this channel declared last."""
        raise NotImplementedError

    def deliver(self, consumer: Consumer, entry: Entry) -> None:
        """Hand *entry* to a consumer of this channel.  Never switches."""
        tag = self._last_tag = self._last_tag + 1
        if not consumer.no_ack:
            entry.consumer = consumer
            self._unacked[tag] = entry
            consumer.unacked += 1
            self.in_flight += 1
        consumer.hand_over(entry, Message(self, tag, entry, consumer.tag))

    @closes_channel
    def basic_get(self, queue: str = "", no_ack: bool = False) -> Message | None:
        """Take the next message of a queue; None when none waits.

        Raises:
            NotFound: there is no such queue.
        """
        found = self._queue(queue, Method.BASIC_GET)
        entry = found.take()
        if entry is None:
            return None
        self._last_tag += 1
        if not no_ack:
            self._unacked[self._last_tag] = entry
        return Message(self, self._last_tag, entry, waiting=len(found))

    def message_to_python(self, raw_message: Any) -> Any:
        """Return *raw_message*: messages come ready."""
        return raw_message

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
        entry = self._unacked.pop(delivery_tag, None)
        if entry is None:
            raise unknown_delivery_tag(delivery_tag, Method.BASIC_ACK)
        consumer = entry.consumer
        if consumer is not None:
            consumer.unacked -= 1
            self.in_flight -= 1
            if self.prefetch_limit:
                self._wake_consumers()
            elif consumer.is_parked:
                consumer.wake()

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Refuse a delivery: it goes back to its place, or to the dead-letter exchange.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        if self.connection.lost is not None:
            return
        self.check_open()
        entry = self._unacked.pop(delivery_tag, None)
        if entry is None:
            raise unknown_delivery_tag(delivery_tag, Method.BASIC_REJECT)
        self._refuse([entry], requeue)

    def basic_nack(self, delivery_tag: Any, multiple: bool = False, requeue: bool = True) -> None:
        """Refuse a delivery, or all up to it."""
        if not multiple:
            self.basic_reject(delivery_tag, requeue)
            return
        if self.connection.lost is not None:
            return
        self.check_open()
        self._refuse(self._up_to(delivery_tag), requeue)

    @closes_channel
    def basic_recover(self, requeue: bool = False) -> None:
        """Give everything that was delivered and not answered back to its queues.

        Raises:
            AMQPNotImplementedError: *requeue* is false, which RabbitMQ does not know either.
        """
        if not requeue:
            raise AMQPNotImplementedError(
                "NOT_IMPLEMENTED - basic.recover with requeue=False", Method.BASIC_RECOVER.value
            )
        for consumer in self.consumers.values():
            consumer.forget_backlog()
        entries = list(self._unacked.values())
        self._unacked.clear()
        self._refuse(entries, True)

    def _up_to(self, tag: int) -> list[Entry]:
        """Take out all deliveries up to *tag*, or all for tag 0."""
        unacked = self._unacked
        if tag and tag not in unacked:
            raise unknown_delivery_tag(tag, Method.BASIC_ACK)
        tags = [each for each in unacked if each <= tag] if tag else list(unacked)
        return [unacked.pop(each) for each in tags]

    def _free(self, entries: Iterable[Entry]) -> list[Consumer]:
        """Free the room that *entries* took, and return whose it was."""
        freed: dict[Consumer, None] = {}
        for entry in entries:
            if entry.consumer is not None:
                entry.consumer.unacked -= 1
                self.in_flight -= 1
                freed[entry.consumer] = None
        # A limit of the whole channel held all its consumers.
        return list(self.consumers.values() if self.prefetch_limit else freed)

    def _refuse(self, entries: list[Entry], requeue: bool) -> None:
        """Give *entries* back, or up; then let their consumers have more."""
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
        if self.prefetch_limit:
            self._wake_consumers()

    def _stop(self, consumer: Consumer) -> list[Entry]:
        """Stop a consumer, and take back what became events that nobody has drained."""
        unseen: list[Entry] = consumer.stop()
        if consumer.no_ack or not unseen:
            return unseen
        found = {id(entry) for entry in unseen}
        tags = [tag for tag, entry in self._unacked.items() if id(entry) in found]
        entries = [self._unacked.pop(tag) for tag in tags]
        self._free(entries)
        return entries

    def _release(self, consumers: list[Consumer]) -> None:
        entries: list[Entry] = []
        for consumer in consumers:
            unseen = consumer.stop()
            if consumer.no_ack:
                entries += unseen
        entries += self._unacked.values()
        self._unacked.clear()
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
