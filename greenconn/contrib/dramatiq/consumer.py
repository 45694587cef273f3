"""The consumer of one queue, which a worker of Dramatiq iterates over."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import gevent
from dramatiq import Consumer, Message, MessageProxy
from dramatiq.common import current_millis
from dramatiq.errors import ConnectionClosed, DecodeError
from gevent.queue import Empty
from gevent.queue import Queue as Inbox

import greenconn
from greenconn.green.deadline import Deadline
from greenconn.green.hub import call_in_hub
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.worker import spawn_consumer

if TYPE_CHECKING:
    from greenconn.contrib.dramatiq.broker import GreenconnBroker

#: Header with the time at which a delay ends, in ms: some brokers delay by whole seconds only, and the
#: rest passes in the worker.
ETA: Final = "x-dramatiq-eta"
#: Seconds that a worker holds a message at most for it, whatever its clock says.
LONGEST_HOLD: Final = 1.0
#: Seconds that a consumer has to requeue what its worker has not begun with.
CLOSING: Final = 10.0


class _Outcome(Enum):
    """The outcome of a message in a worker."""

    ACK = "ack"
    NACK = "nack"
    REQUEUE = "requeue"


class _Delivery(MessageProxy):
    """A message in a worker, and the slot for its outcome."""

    def __init__(self, message: Message[Any], is_redelivered: bool) -> None:
        super().__init__(message)
        self.redelivered = is_redelivered
        self._outcome: Slot[_Outcome] = Slot()

    def settle(self, outcome: _Outcome) -> None:
        """Settle the message with *outcome*.  A second call does nothing.  Never switches."""
        self._outcome.offer(outcome)

    def wait(self) -> _Outcome:
        """Return the outcome.  May switch."""
        return self._outcome.wait(Deadline())


class _Receiver:
    """The part of a consumer that receives messages.

    The consumer of greenconn survives losses of the connection; each of its handlers waits for the
    outcome of one message, so that a message is acked, rejected or requeued where it came from.

    Attributes:
        inbox: the messages that the worker has not taken.
        outstanding: the messages without an outcome.
    """

    def __init__(self, broker: GreenconnBroker, queue_name: str, prefetch: int) -> None:
        self.inbox: Inbox[_Delivery] = Inbox()
        self.outstanding: dict[int, _Delivery] = {}
        self.is_closing = False
        self.hub = gevent.get_hub()
        self._held = broker.held
        self._queue_name = queue_name
        self.greenlet = spawn_consumer(
            broker.entities(queue_name).queue,
            self._handle,
            connection=broker.consuming_connection,
            concurrency=prefetch,
            prefetch_count=prefetch,
            name=f"dramatiq:{queue_name}",
        )

    def _handle(self, body: Any, message: greenconn.Message) -> None:
        try:
            content: Message[Any] = Message.decode(bytes(message.body))
        except DecodeError:
            message.reject()
            raise
        delivery = _Delivery(content, bool(message.delivery_info.get("redelivered")))
        self.outstanding[id(delivery)] = delivery
        self._held[self._queue_name] += 1
        try:
            outcome = _Outcome.REQUEUE
            _hold(message.headers.get(ETA))
            if not self.is_closing:
                self.inbox.put(delivery)
                outcome = delivery.wait()
        finally:
            del self.outstanding[id(delivery)]
            self._held[self._queue_name] -= 1
        if outcome is _Outcome.NACK:
            message.reject()
        elif outcome is _Outcome.REQUEUE:
            message.requeue()

    def close(self) -> None:
        """Stop the consumer and requeue messages without an outcome.  May switch."""
        self.is_closing = True
        for delivery in list(self.outstanding.values()):
            delivery.settle(_Outcome.REQUEUE)
        self.greenlet.stop(CLOSING)

    def abandon(self) -> None:
        """Close it in a greenlet, as its consumer was dropped.  In the hub, never switches."""
        spawn("dramatiq-close", self.close)


class GreenconnConsumer(Consumer):
    """An iterator over the messages of a queue.

    A consumer that the program drops is closed.

    Arguments:
        broker: the broker, which has declared the queue.
        queue_name: the name of the queue.
        prefetch: the maximum number of unacknowledged messages.
        timeout: the milliseconds without a message after which the iterator yields None.
    """

    def __init__(
        self, broker: GreenconnBroker, queue_name: str, prefetch: int, timeout: int
    ) -> None:
        self.broker = broker
        self.queue_name = queue_name
        self.prefetch = prefetch
        self.timeout = timeout
        # It does not refer to this object, so that this one is collected when it is dropped.
        self._receiver = _Receiver(broker, queue_name, prefetch)

    @property
    def outstanding_message_count(self) -> int:
        """The number of messages that were received and have no outcome."""
        return len(self._receiver.outstanding)

    def __next__(self) -> MessageProxy | None:
        """Return the next message, or None if none arrives in time.  May switch.

        Raises:
            ConnectionClosed: the broker refused the consumer permanently.
        """
        receiver = self._receiver
        try:
            return receiver.inbox.get(timeout=self.timeout / 1000)
        except Empty:
            if receiver.greenlet.ready():
                raise ConnectionClosed(str(receiver.greenlet.exception)) from None
            return None

    def ack(self, message: MessageProxy) -> None:
        """Acknowledge a message."""
        _settle(message, _Outcome.ACK)

    def nack(self, message: MessageProxy) -> None:
        """Reject a message; the broker moves it to the dead-letter queue."""
        _settle(message, _Outcome.NACK)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Requeue messages."""
        for message in messages:
            _settle(message, _Outcome.REQUEUE)

    def close(self) -> None:
        """Stop the consumer and requeue messages without an outcome.  May switch."""
        self._receiver.close()

    def __del__(self) -> None:
        receiver: _Receiver | None = getattr(self, "_receiver", None)
        if receiver is not None and not receiver.is_closing:
            call_in_hub(receiver.hub, receiver.abandon)


def _hold(eta: object) -> None:
    """Wait for the rest of a delay.  May switch."""
    if isinstance(eta, int):
        milliseconds = min(eta - current_millis(), LONGEST_HOLD * 1000)
        if milliseconds > 0:
            gevent.sleep(milliseconds / 1000)


def _settle(message: MessageProxy, outcome: _Outcome) -> None:
    if isinstance(message, _Delivery):
        message.settle(outcome)
