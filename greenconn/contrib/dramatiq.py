"""A broker for Dramatiq, with one shared connection, on every transport of greenconn.

Set the broker in the module of the actors::

    import dramatiq
    from greenconn.contrib.dramatiq import GreenconnBroker

    dramatiq.set_broker(GreenconnBroker("amqp://user:password@host/vhost"))

Run the workers with ``dramatiq-gevent``.  ``send`` returns when the broker has the message.  Delayed
messages and retries wait at the broker: they occupy no place in a worker, and survive its end.  Messages
that failed permanently are moved to the dead-letter queue ``<queue>.XQ``, as with Dramatiq's own broker
for RabbitMQ.

Under ``dramatiq-gevent``, Dramatiq's threads are greenlets, which share one connection for consuming and
one for publishing.  A program that only sends messages may use threads of any kind.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import gevent
from dramatiq import Broker, Consumer, Message, MessageProxy, Middleware
from dramatiq.common import current_millis
from dramatiq.errors import (
    ConnectionClosed,
    ConnectionFailed,
    DecodeError,
    QueueJoinTimeout,
)
from gevent import monkey
from gevent.queue import Empty
from gevent.queue import Queue as Inbox

import greenconn
from greenconn.connection import ARGUMENTS, Connection
from greenconn.defaults import publishing_connection
from greenconn.entity import Queue
from greenconn.entity.existence import ensure_declared
from greenconn.exceptions import (
    NotFound,
    OperationalError,
    RecoverableConnectionError,
    Unroutable,
)
from greenconn.green.deadline import Deadline
from greenconn.green.hub import PerHub
from greenconn.green.slot import Slot
from greenconn.publishing import publish
from greenconn.worker import spawn_consumer

if TYPE_CHECKING:
    from greenconn.abc import Channel

__all__ = ["GreenconnBroker"]

#: Milliseconds for which dead letters are kept; Dramatiq's own broker reads the same variable.
DEAD_MESSAGE_TTL: Final = int(os.environ.get("dramatiq_dead_message_ttl", 7 * 86_400_000))  # noqa: SIM112
#: Header with the time at which a delay ends, in ms: some brokers delay by whole seconds only, and the
#: rest passes in the worker.
ETA: Final = "x-dramatiq-eta"
#: Seconds that a worker holds a message at most for it, whatever its clock says.
LONGEST_HOLD: Final = 1.0
#: Errors of a connection, which Dramatiq retries.
_LOST: Final = (OperationalError, OSError, RecoverableConnectionError)
#: Seconds that a consumer has to requeue what its worker has not begun with.
CLOSING: Final = 10.0


class _Outcome(Enum):
    """The outcome of a message in a worker."""

    ACK = "ack"
    NACK = "nack"
    REQUEUE = "requeue"


class GreenconnBroker(Broker):
    """A Dramatiq broker that uses connections of greenconn.

    The connection is opened when the first message is sent or a worker starts.

    Arguments:
        url: the URL of the broker, or a list of URLs, as in :class:`greenconn.Connection`.  None,
            without connection arguments, uses the default connection.
        middleware: the list of middleware, as in ``dramatiq.Broker``.
        quorum: whether to declare quorum queues on RabbitMQ.  False declares classic queues with the
            same arguments as Dramatiq's own broker, so that both brokers can use the same queues.
        max_priority: the maximum priority of the queues, from 1 to 255.  None declares queues without
            priorities.  Queues with priorities are classic queues.  Set the priority of a message with
            its option ``broker_priority``.
        timeout: maximum seconds until the broker has accepted a message.
        connection_kwargs: further arguments of :class:`greenconn.Connection`.

    Raises:
        TypeError: a connection has no such argument.
        ValueError: *max_priority* is out of range.
    """

    def __init__(
        self,
        url: str | Iterable[str] | None = None,
        *,
        middleware: list[Middleware] | None = None,
        quorum: bool = True,
        max_priority: int | None = None,
        timeout: float = 30.0,
        **connection_kwargs: Any,
    ) -> None:
        super().__init__(middleware=middleware)
        if max_priority is not None and not 0 < max_priority <= 255:
            raise ValueError(f"max_priority must be from 1 to 255, got {max_priority!r}")
        unknown = sorted(connection_kwargs.keys() - ARGUMENTS)
        if unknown:
            raise TypeError(
                f"GreenconnBroker has no argument {unknown[0]!r}: put host, port, login and virtual "
                f"host into the url"
            )
        is_default = url is None and not connection_kwargs
        template = Connection(url, **connection_kwargs)  # to be checked; it never opens
        self._connections: PerHub[Connection | None] = PerHub(
            lambda: None if is_default else template.clone()
        )
        #: By hub, those that the program asked for.
        self._channels: PerHub[_KeptChannel] = PerHub(_KeptChannel)
        self._timeout = timeout
        self._max_priority = max_priority
        self._is_quorum = quorum and max_priority is None
        self.queues: dict[str, None] = {}
        #: By name, from the first use on: that of the dead letters, and the queue.
        self._entities: dict[str, tuple[Queue, Queue]] = {}
        #: Times, of this process, when messages that it has sent with a delay reach their queues.
        self._due: dict[str, list[float]] = {}

    @property
    def connection(self) -> Connection:
        """The connection on which this thread sends messages.

        It is opened when it is first needed, and again after it was lost or closed.  Deleting the
        attribute closes it.  On AMQP, workers in this process consume on another one.
        """
        connection = publishing_connection(self._connections.get())
        if connection.session.is_closed:
            connection.session.restart()
        return connection

    @connection.deleter
    def connection(self) -> None:
        del self.channel
        self.connection.close()

    @property
    def channel(self) -> Channel:
        """A channel of :attr:`connection`, for what the broker has no method for.  May switch.

        It is opened when it is first needed, and again after an error closed it.  Deleting the
        attribute closes it.  The broker itself uses other channels.
        """
        return self._channels.get().on(self.connection)

    @channel.deleter
    def channel(self) -> None:
        self._channels.get().close()

    @property
    def client(self) -> Any:
        """The client of redis-py, on Redis: it works on :attr:`connection`.  May switch.

        Raises:
            AttributeError: the broker is not Redis.
        """
        client = getattr(self.channel, "client", None)
        if client is None:
            raise AttributeError(f"{self.connection!r} has no client: only Redis has one")
        return client

    # -- queues

    def declare_queue(self, queue_name: str) -> None:
        """Register a queue; it is declared at the broker on its first use."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = None
            self.emit_after("declare_queue", queue_name)

    def _make_entities(self, name: str, connection: Connection) -> tuple[Queue, Queue]:
        is_amqp = connection.get_transport_cls().driver_type == "amqp"
        kind = {"x-queue-type": "quorum"} if self._is_quorum and is_amqp else {}
        arguments: dict[str, Any] = {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead_letter_name(name),
            **kind,
        }
        if self._max_priority is not None:
            arguments["x-max-priority"] = self._max_priority
        dead_arguments = {"x-message-ttl": DEAD_MESSAGE_TTL, **kind}
        return (
            Queue(dead_letter_name(name), durable=True, queue_arguments=dead_arguments),
            Queue(name, durable=True, queue_arguments=arguments),
        )

    def _ensure_queue(self, name: str, connection: Connection) -> Queue:
        """Return a queue after it was declared, with that of its dead letters.  May switch."""
        self.declare_queue(name)
        entities = self._entities.get(name)
        if entities is None:
            entities = self._entities[name] = self._make_entities(name, connection)
        deadline = Deadline(self._timeout)
        for each in entities:
            ensure_declared(connection.session, each, deadline)  # once in the life of a connection
        return entities[1]

    # -- messages

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Send a message, and return it when the broker has it.  May switch.

        Arguments:
            message: the message to send.
            delay: the milliseconds after which a worker may process the message.  The broker delays the
                message for the whole seconds of it.  None does not delay the message.

        Raises:
            ConnectionFailed: the connection failed, or the broker did not accept the message in time.
        """
        options: dict[str, Any] = {"priority": message.options.get("broker_priority")}
        if delay is not None:
            options["headers"] = {ETA: current_millis() + delay}
            if delay >= 1000:
                options["delay"] = delay // 1000
        self.emit_before("enqueue", message, delay)
        try:
            try:
                self._publish(message, options)
            except Unroutable:
                self._publish(message, options)  # its queue was deleted, and is declared again
        except _LOST as exc:
            raise ConnectionFailed(str(exc)) from exc
        if delay is not None:
            self._note_delay(message.queue_name, delay / 1000)
        self.emit_after("enqueue", message, delay)
        return message

    def _publish(self, message: Message[Any], options: dict[str, Any]) -> None:
        connection = self.connection
        publish(
            self._ensure_queue(message.queue_name, connection),
            message.encode(),
            connection=connection,
            timeout=self._timeout,
            content_type="application/octet-stream",
            content_encoding="binary",
            **options,
        )

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Return an iterator over the messages of a queue.

        Arguments:
            queue_name: the name of the queue.
            prefetch: the maximum number of unacknowledged messages of the iterator.
            timeout: the milliseconds without a message after which the iterator yields None.

        Raises:
            RuntimeError: the process is not monkey-patched, so its threads are not greenlets.
        """
        if not monkey.is_module_patched("threading"):
            raise RuntimeError(
                "the threads of Dramatiq's workers must be greenlets: run dramatiq-gevent instead of "
                "dramatiq"
            )
        return _Consumer(self, queue_name, prefetch, timeout / 1000)

    # -- for tests, mostly

    def flush(self, queue_name: str) -> None:
        """Purge a queue and its dead-letter queue.  May switch.

        Delayed messages that are not due are kept.
        """
        connection = self.connection
        for name in (queue_name, dead_letter_name(queue_name)):
            try:
                with connection.channel() as channel:
                    channel.queue_purge(name)
            except NotFound:
                pass

    def flush_all(self) -> None:
        """Purge all queues of actors and their dead-letter queues.  May switch."""
        for name in self.queues:
            self.flush(name)

    def get_queue_message_counts(self, queue_name: str) -> tuple[int, int, int]:
        """Return the numbers of ready messages, of delayed messages and of dead letters.  May switch.

        Delayed messages are counted only if this process has sent them.
        """
        connection = self.connection
        queue = self._ensure_queue(queue_name, connection)
        with connection.channel() as channel:
            waiting, dead = (
                int(channel.queue_declare(each, passive=True).message_count)
                for each in (queue.name, dead_letter_name(queue_name))
            )
        now = monotonic()
        due = self._due[queue_name] = [at for at in self._due.get(queue_name, ()) if at > now]
        return waiting, len(due), dead

    def join(
        self,
        queue_name: str,
        min_successes: int = 10,
        idle_time: int = 100,
        *,
        timeout: int | None = None,
    ) -> None:
        """Wait until a queue is empty and no message delayed by this process is pending.  May switch.

        Messages that workers have received but not acknowledged are not counted.

        Arguments:
            queue_name: the name of the queue.
            min_successes: the number of consecutive checks that must find the queue empty.
            idle_time: the milliseconds between two checks.
            timeout: maximum milliseconds to wait.  None waits without limit.

        Raises:
            QueueJoinTimeout: the queue was not empty when the timeout passed.
        """
        deadline = Deadline(None if timeout is None else timeout / 1000)
        successes = 0
        while successes < min_successes:
            if deadline.has_ended:
                raise QueueJoinTimeout(queue_name)
            waiting, delayed, _ = self.get_queue_message_counts(queue_name)
            successes = 0 if waiting or delayed else successes + 1
            gevent.sleep(idle_time / 1000)

    def _note_delay(self, name: str, delay: float) -> None:
        now = monotonic()
        self._due[name] = [at for at in self._due.get(name, ()) if at > now]
        self._due[name].append(now + delay)

    def close(self) -> None:
        """Close the connections of this thread, except the default connections.  May switch."""
        try:
            del self.channel
        finally:
            connection = self._connections.pop()
            if connection is not None:
                connection.close()


class _KeptChannel:
    """The channel that the program uses in one hub."""

    def __init__(self) -> None:
        self._channel: Channel | None = None

    def on(self, connection: Connection) -> Channel:
        """Return the channel, or a new one if it is closed.  May switch."""
        found = self._channel
        if found is None or not found.is_open:
            channel: Channel = connection.channel()
            found = self._channel
            if found is not None and found.is_open:
                channel.close()  # another greenlet was faster
            else:
                found = self._channel = channel
        return found

    def close(self) -> None:
        """Close the channel.  May switch."""
        channel, self._channel = self._channel, None
        if channel is not None and channel.is_open:
            channel.close()


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


class _Consumer(Consumer):
    """An iterator over the messages of a queue.

    The consumer of greenconn survives losses of the connection; each of its handlers waits for the
    outcome of one message, so that a message is acked, rejected or requeued where it came from.
    """

    def __init__(
        self, broker: GreenconnBroker, queue_name: str, prefetch: int, timeout: float
    ) -> None:
        self._timeout = timeout
        self._inbox: Inbox[_Delivery] = Inbox()
        #: Those without an outcome.
        self._outstanding: dict[int, _Delivery] = {}
        self._is_closing = False
        try:
            queue = broker._ensure_queue(queue_name, broker.connection)
        except _LOST as exc:
            raise ConnectionFailed(str(exc)) from exc
        self._consumer = spawn_consumer(
            queue,
            self._handle,
            connection=broker._connections.get(),
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
        self._outstanding[id(delivery)] = delivery
        try:
            outcome = _Outcome.REQUEUE
            _hold(message.headers.get(ETA))
            if not self._is_closing:
                self._inbox.put(delivery)
                outcome = delivery.wait()
        finally:
            del self._outstanding[id(delivery)]
        if outcome is _Outcome.NACK:
            message.reject()
        elif outcome is _Outcome.REQUEUE:
            message.requeue()

    def __next__(self) -> MessageProxy | None:
        """Return the next message, or None if none arrives in time.  May switch.

        Raises:
            ConnectionClosed: the broker refused the consumer permanently.
        """
        try:
            return self._inbox.get(timeout=self._timeout)
        except Empty:
            if self._consumer.ready():
                raise ConnectionClosed(str(self._consumer.exception)) from None
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
        self._is_closing = True
        for delivery in list(self._outstanding.values()):
            delivery.settle(_Outcome.REQUEUE)
        self._consumer.stop(CLOSING)


def _hold(eta: object) -> None:
    """Wait for the rest of a delay.  May switch."""
    if isinstance(eta, int):
        seconds = (eta - current_millis()) / 1000
        if seconds > 0:
            gevent.sleep(min(seconds, LONGEST_HOLD))


def _settle(message: MessageProxy, outcome: _Outcome) -> None:
    if isinstance(message, _Delivery):
        message.settle(outcome)


def dead_letter_name(queue_name: str) -> str:
    """Return the name of the dead-letter queue of a queue, the same as in Dramatiq."""
    return f"{queue_name}.XQ"
