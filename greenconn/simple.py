"""Queues with the interface of Python's own (kombu's ``SimpleQueue`` and ``SimpleBuffer``).

Deliveries come straight to the simple queue, not by way of ``drain_events``: where several greenlets
get from several simple queues of one connection, none takes a message out of another's reach.  Who
waits in ``get`` drains the connection beside that, so that callbacks of other consumers run meanwhile
as they do with kombu.

Who gets one message and closes the queue would have many others delivered and requeued.  So the first
one is asked for by itself, and consuming begins when that finds none, or with the second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any, ClassVar

from greenconn.checks import Seconds
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import ConnectionError
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.green.hub import forget_at_fork, yield_to_hub
from greenconn.green.slot import SingleFlight
from greenconn.messaging import Consumer, Producer
from greenconn.messaging.consumer import ConsumerInbox
from greenconn.session.session import Session
from greenconn.transport.base import Link, is_open

if TYPE_CHECKING:
    from typing_extensions import Self

    from greenconn.abc import ChannelOrConnection
    from greenconn.message import Message

__all__ = ["SimpleBuffer", "SimpleQueue"]


def _nothing() -> None:
    """Do nothing: ``drain_events`` has handled the message."""


class SimpleBase:
    """A queue made of a producer and a consumer.

    Any number of greenlets may use one; each message goes to one of them.

    Arguments:
        channel: what the two were made with; only for kombu's signature.
        producer: publishes what is put.
        consumer: consumes from one queue.
        no_ack: messages need no ack.
    """

    Empty: ClassVar[type[Empty]] = Empty

    def __init__(
        self,
        channel: ChannelOrConnection | None,
        producer: Producer,
        consumer: Any,
        no_ack: bool = False,
    ) -> None:
        self.producer = producer
        self.consumer = consumer
        self.no_ack = no_ack
        self.buffer: deque[Any] = deque()
        self._flight = SingleFlight("simple-queue")
        self._arrivals: ConsumerInbox | None = None
        #: None was asked for yet.
        self._is_first = True
        #: The message that was asked for is still wanted.
        self._is_asking = False
        forget_at_fork(self)
        self.consumer.register_callback(self._receive)
        if isinstance(consumer, Consumer) and isinstance(self.channel.connection, Link):
            self._arrivals = consumer.sink = ConsumerInbox(consumer, no_ack)

    @property
    def channel(self) -> Any:
        """The channel to use now.  May switch."""
        return self.consumer.channel

    @property
    def queue(self) -> Any:
        """The queue, bound to the channel."""
        return self.consumer.queues[0]

    def get(self, block: bool = True, timeout: Seconds | None = None) -> Any:
        """Take the oldest message.  May switch.

        Arguments:
            block: wait for one.
            timeout: seconds to wait; None waits.

        Raises:
            Empty: none came in time.
            ConnectionError, ChannelError: what ended the connection or the consumer.
        """
        if not block:
            return self.get_nowait()
        deadline = Deadline(timeout)
        while not self.buffer:
            try:
                event = self._next_event(deadline)
            except TimeoutError as exc:
                if is_thrown(exc):
                    raise
                yield_to_hub()  # if the deadline was 0, who polls lets the others run
                raise self.Empty() from None
            event()
        return self.buffer.popleft()

    def get_nowait(self) -> Any:
        """Take the oldest message if there is one now.  May switch.

        Raises:
            Empty: there is none.
        """
        arrivals = self._arrivals
        while arrivals is not None and not self.buffer and arrivals.hand_over_next():
            pass  # one that cannot be decoded may leave the buffer empty
        if self.buffer:
            return self.buffer.popleft()
        message = self.queue.get(no_ack=self.no_ack, accept=self.consumer.accept)
        if not message:
            yield_to_hub()  # who polls lets the others run
            raise self.Empty()
        return message

    def put(
        self,
        message: Any,
        serializer: str | None = None,
        headers: dict[str, Any] | None = None,
        compression: str | None = None,
        routing_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Publish *message*, with the options of ``Producer.publish``.  May switch."""
        self.producer.publish(
            message,
            serializer=serializer,
            routing_key=routing_key,
            headers=headers,
            compression=compression,
            **kwargs,
        )

    def clear(self) -> int:
        """Delete the waiting messages and return their number.  May switch."""
        return int(self.consumer.purge())

    def qsize(self) -> int:
        """Return the number of messages at the broker, without those delivered.  May switch."""
        _, size, _ = self.queue.queue_declare(passive=True)
        return int(size)

    def close(self) -> None:
        """End consuming; what was delivered and not taken goes back to the queue.  May switch."""
        self._is_asking = False
        try:
            self.consumer.cancel()
        finally:
            left, self.buffer = self.buffer, deque()
            for message in () if self.no_ack else left:
                with suppress(Exception):
                    message.put_back()
            if self._arrivals is not None:
                self._arrivals.requeue_unseen()

    def forget(self) -> None:
        """After a fork, in the child: begin anew.  Never switches."""
        self.buffer = deque()
        self._is_asking = False
        self._flight.forget()
        if self._arrivals is not None:
            self._arrivals.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.qsize()

    def __bool__(self) -> bool:
        return True

    def _consume(self, deadline: Deadline) -> None:
        """Consume, if that is not under way or done.  May switch.

        What was begun goes on when a deadline ends, so short ones get there, too.
        """
        consumer = self.consumer
        if not isinstance(consumer, Consumer):
            consumer.consume(no_ack=self.no_ack)
            return
        subscriptions = consumer._subscriptions
        session = getattr(consumer.connection, "session", None)
        while not subscriptions.are_placed_on(consumer._channel):
            if isinstance(session, Session) and not session.is_closed:
                # A broker that is away is waited for as long as the caller does.
                session.wait_ready(deadline)
                if subscriptions.are_placed_on(consumer._channel):
                    return
            self._flight.run("consume", partial(consumer.consume, no_ack=self.no_ack), deadline)

    def _next_event(self, deadline: Deadline) -> Callable[[], Any]:
        """Wait for a message or another event of the connection, and return what handles it."""
        arrivals = self._arrivals
        if arrivals is None:
            self._consume(deadline)
            self.channel.connection.client.drain_events(timeout=deadline.left())
            return _nothing
        arrivals.check()
        is_first, self._is_first = self._is_first, False
        if is_first and self._may_ask():
            self._is_asking = True
            self._flight.run("ask", partial(self._ask, arrivals), deadline)
            if len(arrivals.inbox):
                return arrivals.hand_over_next
        self._consume(deadline)
        # Nothing switches from here until both lines are joined, or a loss could pass unheard.
        return arrivals.next_event(self.consumer._channel.connection, deadline)

    def _may_ask(self) -> bool:
        """Return whether one message may be asked for without consuming.

        What needs no ack would be lost with the reply.  Of a queue with a single active consumer, others
        may take nothing, a stream is only consumed, and consuming waits for a broker that is away.
        """
        consumer = self.consumer
        if self.no_ack or consumer._subscriptions.placed:
            return False
        if consumer._channel is None or not is_open(consumer._channel):
            return False
        queue = self.queue
        arguments = queue.queue_arguments or {}
        return not (
            queue.no_declare
            or arguments.get("x-single-active-consumer")
            or arguments.get("x-queue-type") == "stream"
        )

    def _ask(self, arrivals: ConsumerInbox) -> None:
        """Have the oldest message delivered, if one waits.  May switch."""
        try:
            channel = self.consumer._channel
            message = channel.basic_get(self.queue._name_on(channel))
        except (ConnectionError, OSError):
            return  # consuming waits for the next one
        if message is not None and self._is_asking:
            arrivals.deliver_asked(message)
        elif message is not None:
            message.put_back()

    def _receive(self, message_data: Any, message: Message) -> None:
        self.buffer.append(message)


class SimpleQueue(SimpleBase):
    """A durable queue; messages are to be acknowledged.

    Arguments:
        channel: a connection or a channel.
        name: name of the queue, of a direct exchange and of the binding; or a Queue.
        no_ack: messages need no ack; None is the class's.
        queue_opts, exchange_opts: arguments of Queue and Exchange.
        queue_args: arguments of the declaration.
        serializer, compression: of what is put.
        accept: names of serializers or content types of what is taken.
    """

    no_ack: bool = False
    queue_opts: dict[str, Any] = {}
    queue_args: dict[str, Any] = {}
    exchange_opts: dict[str, Any] = {"type": "direct"}

    def __init__(
        self,
        channel: ChannelOrConnection | None,
        name: str | Queue,
        no_ack: bool | None = None,
        queue_opts: dict[str, Any] | None = None,
        queue_args: dict[str, Any] | None = None,
        exchange_opts: dict[str, Any] | None = None,
        serializer: str | None = None,
        compression: str | None = None,
        accept: Iterable[str] | None = None,
    ) -> None:
        if isinstance(name, Queue):
            queue = name
        else:
            queue = Queue(
                name,
                Exchange(name, **{**self.exchange_opts, **(exchange_opts or {})}),
                name,
                queue_arguments={**self.queue_args, **(queue_args or {})},
                **{**self.queue_opts, **(queue_opts or {})},
            )
        consumer = Consumer(channel, queue, accept=accept)
        producer = Producer(
            channel,
            queue.exchange,
            serializer=serializer,
            routing_key=queue.routing_key,
            compression=compression,
        )
        super().__init__(channel, producer, consumer, self.no_ack if no_ack is None else no_ack)


class SimpleBuffer(SimpleQueue):
    """A queue of this connection alone, deleted when it ends; messages need no ack."""

    no_ack = True
    queue_opts = {"durable": False, "auto_delete": True, "exclusive": True}
    exchange_opts = {"durable": False, "delivery_mode": "transient", "auto_delete": True}
