"""Consuming from queues that have to be asked for messages."""

from __future__ import annotations

from collections.abc import Callable, Collection
from queue import Empty
from typing import TYPE_CHECKING, Any, ClassVar, Final

from greenconn.encoding import plain_text
from greenconn.green.supervisor import spawn
from greenconn.identity import uuid
from greenconn.transport.refusal import (
    Method,
    no_queue,
    no_recover_in_place,
    refused,
    unknown_delivery_tag,
)
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.cycle import FairCycle
from greenconn.transport.virtual.envelope import Message as StoredMessage
from greenconn.transport.virtual.hooks import AbstractChannel
from greenconn.transport.virtual.life import ChannelLife, closes_channel
from greenconn.transport.virtual.publishing import Envelope
from greenconn.transport.virtual.qos import QoS as Unanswered
from greenconn.transport.virtual.turns import Turns

if TYPE_CHECKING:
    from greenconn.transport.virtual.transport import PolledLink

__all__ = ["PolledConsuming"]

#: Seconds that a hook may wait where the transport has no interval: others want to be looked for, too.
LOOK: Final = 1.0


class PolledConsuming(ChannelLife, AbstractChannel):
    """Consumers, gets and answers over the hooks.

    It is the feed of its own consumers: those that have room wait in ``_turns``, by queue, and the
    link's poller asks for their queues.
    """

    connection: PolledLink
    Message: ClassVar[type[StoredMessage]] = StoredMessage
    QoS: ClassVar[type[Unanswered]] = Unanswered
    #: Whether what was not answered is given back when the channel closes.
    do_restore: ClassVar[bool] = True

    def _init_polling(self) -> None:
        self._turns: dict[str, Turns] = {}
        self._active_queues: list[str] = []
        #: Tag -> whose delivery it is (None: of ``basic_get``), for all that is not answered.
        self._owners: dict[Any, Consumer | None] = {}
        self._qos: Unanswered | None = None
        self._cycle: FairCycle[str] | None = None
        #: Whether the last look has found something.
        self._has_found = False

    @property
    def qos(self) -> Unanswered:
        """What was delivered and not answered."""
        if self._qos is None:
            self._qos = self.QoS(self)
        return self._qos

    @property
    def cycle(self) -> FairCycle[str]:
        """Asks the queues whose consumers have room, in turn."""
        if self._cycle is None:
            self._reset_cycle()
        assert self._cycle is not None
        return self._cycle

    def _reset_cycle(self) -> None:
        self._cycle = FairCycle(self._get_and_deliver, self._active_queues, Empty)

    @property
    def _consumers(self) -> Collection[str]:
        """The tags of the consumers (kombu's name, which transports use)."""
        return self.consumers.keys()

    @property
    def _tag_to_queue(self) -> dict[str, str]:
        """Whose consumers they are (kombu's name, which transports use)."""
        return {tag: consumer.queue for tag, consumer in self.consumers.items()}

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        """Return a stored body as it was published."""
        raise NotImplementedError

    # -- polling

    def has_room(self) -> bool:
        """Whether some consumer of this channel may be given a message."""
        return self.is_open and bool(self._active_queues)

    def poll(self) -> bool:
        """Look for one message; False when there was none.  May switch."""
        self._has_found = False
        try:
            self.drain_events(
                timeout=self.connection.poller.interval or LOOK, callback=self._deliver
            )
        except Empty:
            return False
        # A hook may return without having delivered anything.
        return self._has_found

    def drain_events(
        self, timeout: float | None = None, callback: Callable[[Envelope, str], Any] | None = None
    ) -> Any:
        """Take what there is, once, from the queues whose consumers have room.  May switch.

        The poller calls it; programs drain their connection.

        Arguments:
            timeout: seconds that the broker may be waited for.
            callback: called with each message and the name of its queue.

        Raises:
            Empty: there was nothing.
        """
        if not self._active_queues or (self._asks_qos and not self.qos.can_consume()):
            raise Empty
        get_many = getattr(self, "_get_many", None)
        if get_many is not None:
            return get_many(self._active_queues, timeout=timeout)
        return self._poll(self.cycle, callback or self._deliver, timeout=timeout)

    @property
    def _asks_qos(self) -> bool:
        """Whether the transport has a say of its own in who may be given a message."""
        return self.QoS.can_consume is not Unanswered.can_consume

    def resume(self, consumer: Consumer) -> None:
        """A consumer has room: poll for it.  Never switches."""
        self._turns.setdefault(consumer.queue, Turns()).add(consumer)
        if consumer.queue not in self._active_queues:
            self._active_queues.append(consumer.queue)
        self.connection.poller.add(self)

    def _deliver(self, raw: Envelope, queue: str) -> None:
        """Hand a message that was taken from *queue* to one of its consumers.  May switch."""
        self._has_found = True
        message = self._message(raw, queue)
        turns = self._turns.get(queue)
        consumer = None if turns is None else turns.take()
        if turns is not None and not turns:
            self._settle_queue(queue)
        if consumer is None:
            # A transport that takes several at once may have taken more than there was room for.
            consumer = next((each for each in self.consumers.values() if each.queue == queue), None)
        if consumer is None:
            # It was cancelled while the broker was asked.
            self._restore_at_beginning(message)
            return
        message.delivery_info["consumer_tag"] = consumer.tag
        if not consumer.no_ack:
            self._note(message, consumer)
            consumer.unacked += 1
            self.prefetch.in_flight += 1
        consumer.hand_over(message, message)
        consumer.wake()

    def _message(self, raw: Envelope, queue: str) -> StoredMessage:
        message = self.Message(raw, channel=self)
        message.queue = queue
        return message

    def _settle_queue(self, queue: str) -> None:
        if queue in self._active_queues:
            self._active_queues.remove(queue)
        self._turns.pop(queue, None)

    def _note(self, message: StoredMessage, owner: Consumer | None) -> None:
        # One message that went to two queues has one tag in both.
        if message.delivery_tag is None or message.delivery_tag in self._owners:
            message.delivery_tag = uuid()
        self._owners[message.delivery_tag] = owner
        self.qos.append(message, message.delivery_tag)

    def _answered(self, delivery_tag: Any) -> None:
        """A delivery is settled: its place is free.  Never switches."""
        consumer = self._owners.pop(delivery_tag, None)
        if consumer is not None:
            consumer.unacked -= 1
            self.prefetch.in_flight -= 1
            if self.prefetch.limit:
                self.serve()
            else:
                consumer.wake()

    # -- consumers

    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        """Bound what may be unanswered at once; see :class:`ChannelLife`."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        # For transports that take several messages at once and ask how many.
        self.qos.prefetch_count = prefetch_count

    def _feed_of(self, queue: str, method: Method) -> tuple[str, PolledConsuming]:
        if not self._is_there(queue):
            raise no_queue(queue, self.virtual_host, method)
        return queue, self

    def _is_there(self, queue: str) -> bool:
        return queue in self.connection.declared or self._has_queue(queue)

    def _started(self, consumer: Consumer) -> None:
        others = [
            each
            for channel in self.connection.channels.values()
            for each in channel.consumers.values()
            if each.queue == consumer.queue and each is not consumer
        ]
        if any(each.exclusive for each in others) or (consumer.exclusive and others):
            raise refused(
                f"queue '{consumer.queue}' in vhost '{self.virtual_host}' in exclusive use",
                Method.BASIC_CONSUME,
            )
        consumer.wake()

    def _cancelled(self, consumer: Consumer) -> None:
        for message in self._stop(consumer):
            self._give_back(message)

    def _stop(self, consumer: Consumer) -> list[Any]:
        unseen = consumer.stop()
        turns = self._turns.get(consumer.queue)
        if turns is not None:
            turns.discard(consumer)
            if not turns:
                self._settle_queue(consumer.queue)
        return unseen

    def cancelled_by_broker(self, consumer: Consumer) -> None:
        """The queue of a consumer of this channel is gone.  Never switches."""
        self._forget(consumer)
        for message in self._stop(consumer):
            if message.delivery_tag in self._owners:
                self.qos.ack(message.delivery_tag)
        consumer.cancelled_by_broker()

    def _give_back(self, message: StoredMessage) -> None:
        """Put a message back that its consumer has not seen.  May switch."""
        if message.delivery_tag in self._owners:
            self.qos.reject(message.delivery_tag, requeue=True)
        else:
            self._restore_at_beginning(message)

    def _release(self, consumers: list[Consumer]) -> None:
        unseen = [
            message for consumer in consumers for message in self._stop(consumer) if consumer.no_ack
        ]
        unanswered = len(self._owners)
        self._owners.clear()
        # This may be the reader, or the hub: what talks to the broker has a greenlet of its own.
        if self.connection.lost is None and (unseen or unanswered):
            spawn("restore", self._restore_all, unseen)

    def _restore_all(self, unseen: list[StoredMessage]) -> None:
        for message in unseen:
            self._restore_at_beginning(message)
        self.qos.restore_unacked_once()

    def close(self) -> None:
        """Close it: consumers end, and what was not answered is given back.  May switch."""
        if self.is_open:
            for tag in list(self.consumers):
                self.basic_cancel(tag)
            self.qos.restore_unacked_once()
        super().close()

    # -- messages

    @closes_channel
    def basic_get(self, queue: str = "", no_ack: bool = False) -> StoredMessage | None:
        """Take the next message of a queue; None when there is none.  May switch."""
        queue = plain_text(queue)
        try:
            message = self._message(self._get(queue), queue)
        except Empty:
            return None
        if not no_ack:
            self._note(message, None)
        return message

    def message_to_python(self, raw_message: Any) -> Any:
        """Return the message in an envelope; a message is returned as it is."""
        if isinstance(raw_message, dict):
            return self.Message(raw_message, channel=self)
        return raw_message

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        """Say that a delivery is done.  May switch, where the broker must be told.

        Arguments:
            multiple: all deliveries of this channel up to this one.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
        """
        self._answer(delivery_tag, multiple, Method.BASIC_ACK, self.qos.ack)

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Refuse a delivery: with *requeue* it is put back, else it is dropped.  May switch."""

        def reject(tag: Any) -> None:
            self.qos.reject(tag, requeue=requeue)

        self._answer(delivery_tag, False, Method.BASIC_REJECT, reject)

    def _answer(
        self, delivery_tag: Any, multiple: bool, method: Method, answer: Callable[[Any], None]
    ) -> None:
        if not self.is_open and not self.connection.is_open:
            return  # The connection is gone, and the delivery is the broker's matter again.
        self.check_open()
        if delivery_tag not in self._owners and not (multiple and not delivery_tag):
            raise unknown_delivery_tag(delivery_tag, method)
        for tag in self._up_to(delivery_tag) if multiple else [delivery_tag]:
            answer(tag)
            self._answered(tag)  # also where the QoS is one that keeps its own accounts

    def _up_to(self, delivery_tag: Any) -> list[Any]:
        """The tags of all unanswered deliveries up to this one; all for 0."""
        tags = list(self._owners)
        return tags[: tags.index(delivery_tag) + 1] if delivery_tag else tags

    def basic_recover(self, requeue: bool = False) -> None:
        """Put everything back that was delivered and not answered.  May switch.

        Raises:
            AMQPNotImplementedError: *requeue* is false.
        """
        self.check_open()
        if not requeue:
            raise no_recover_in_place()
        for consumer in self.consumers.values():
            consumer.forget_backlog()
        self.qos.restore_unacked()

    def _restore(self, message: StoredMessage) -> None:
        """Put *message* back where it came from.  May switch."""
        raise NotImplementedError

    def _restore_at_beginning(self, message: StoredMessage) -> None:
        """Put *message* back where it came from, to the head if the broker can.  May switch."""
        self._restore(message)
