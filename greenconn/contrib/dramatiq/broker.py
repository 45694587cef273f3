"""The broker of Dramatiq's interface, on every transport of greenconn.

Two classes have the arguments and attributes of Dramatiq's own brokers for RabbitMQ and Redis.

Programs with Dramatiq's own use names of pika, too: the arguments of its connections, its channel and
its exceptions.  What such programs need of them is here, over greenconn.  pika is not imported.  If the
program has imported ``pika.exceptions``, the errors of :class:`PikaChannel` are instances of those
classes, too.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

import gevent
from dramatiq import Broker, Consumer, Message, MessageProxy, Middleware
from dramatiq.common import current_millis
from dramatiq.errors import ConnectionClosed, ConnectionFailed, DecodeError, QueueJoinTimeout
from gevent import monkey, sleep
from gevent.queue import Empty
from gevent.queue import Queue as Inbox

import greenconn
from greenconn.checks import Seconds
from greenconn.connection import ARGUMENTS, Connection
from greenconn.defaults import publishing_connection
from greenconn.entity import Queue
from greenconn.entity.declaration import ensure_declared, existence_key
from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    NotFound,
    OperationalError,
    RecoverableConnectionError,
    Unroutable,
)
from greenconn.green.deadline import Deadline, TimeLimit
from greenconn.green.hub import PerHub, call_in_hub
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.publishing import publish
from greenconn.worker import spawn_consumer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.abc import Channel
    from greenconn.connection import ConnectionArguments


logger = logging.getLogger("greenconn.contrib.dramatiq")

#: Milliseconds for which dead letters are kept; Dramatiq's own broker reads the same variable.
DEAD_MESSAGE_TTL: Final = int(os.environ.get("dramatiq_dead_message_ttl", 7 * 86_400_000))  # noqa: SIM112
#: Errors of a connection, which Dramatiq retries.
_LOST: Final = (OperationalError, OSError, RecoverableConnectionError)


class NotAccepted(ConnectionClosed, ConnectionFailed):
    """The connection failed, or the broker did not accept a message or a queue in time.

    It is both of Dramatiq's errors, since programs catch the one or the other.
    """


class Entities(NamedTuple):
    """A queue of actors, and that of its dead letters."""

    dead_letters: Queue
    queue: Queue


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
        dead_message_ttl: the milliseconds for which dead letters are kept.  None uses the environment
            variable ``dramatiq_dead_message_ttl``, or seven days if that is not set.
        connection_kwargs: further arguments of :class:`greenconn.Connection`.

    Raises:
        TypeError: a connection has no such argument.
        ValueError: *max_priority* is out of range.
    """

    #: The class of :attr:`connection`, unless that is the default connection.
    _connection_class: ClassVar[type[Connection]] = Connection

    def __init__(
        self,
        url: str | Iterable[str] | None = None,
        *,
        middleware: list[Middleware] | None = None,
        quorum: bool = True,
        max_priority: int | None = None,
        timeout: Seconds = 30.0,
        dead_message_ttl: int | None = None,
        **connection_kwargs: Unpack[ConnectionArguments],
    ) -> None:
        super().__init__(middleware=middleware)
        if max_priority is not None and not 0 < max_priority <= 255:
            raise ValueError(f"max_priority must be from 1 to 255, got {max_priority!r}")
        unknown = sorted(connection_kwargs.keys() - ARGUMENTS)
        if unknown:
            raise TypeError(
                f"GreenconnBroker has no argument {unknown[0]!r}: put host, port, login and virtual "
                f"host into the url, or use RabbitmqBroker or RedisBroker"
            )
        is_default = url is None and not connection_kwargs
        where = () if url is None else (url,)
        template = self._connection_class(
            *where, **connection_kwargs
        )  # to be checked; it never opens
        self._connections: PerHub[Connection | None] = PerHub(
            lambda: None if is_default else template.clone()
        )
        #: By hub, those that the program asked for.
        self._channels: PerHub[_KeptChannel] = PerHub(lambda: _KeptChannel(self._open_channel))
        self._timeout = timeout
        self.max_priority = max_priority
        self.dead_message_ttl = DEAD_MESSAGE_TTL if dead_message_ttl is None else dead_message_ttl
        self._is_quorum = quorum and max_priority is None
        self.queues: set[str] = set()
        #: By name, from the first use on.
        self._entities: dict[str, Entities] = {}
        #: By queue, the number of messages that consumers of this process hold.
        self.held: Counter[str] = Counter()
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

    @property
    def consuming_connection(self) -> Connection | None:
        """The connection on which workers in this thread consume; None is the default connection."""
        return self._connections.get()

    def _open_channel(self, connection: Connection) -> Channel:
        """Return a new channel for the program.  May switch."""
        channel: Channel = connection.channel()
        return channel

    # -- queues

    def declare_queue(self, queue_name: str, *, ensure: bool = False) -> None:
        """Register a queue.  May switch, with *ensure*.

        Arguments:
            queue_name: the name of the queue.
            ensure: declare it at the broker now, not on its first use.

        Raises:
            ConnectionFailed, ConnectionClosed: the connection failed, or the broker did not answer in
                time.
        """
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)
        if ensure:
            try:
                self._ensure_queue(queue_name, self.connection)
            except _LOST as exc:
                raise NotAccepted(str(exc)) from exc

    def get_declared_queues(self) -> set[str]:
        """Return the names of the queues of actors."""
        return self.queues.copy()

    def entities(self, queue_name: str) -> Entities:
        """Return a queue, and that of its dead letters, as they are declared.  Never switches."""
        entities = self._entities.get(queue_name)
        if entities is None:
            kind = {"x-queue-type": "quorum"} if self._is_quorum and self._is_amqp else {}
            entities = self._entities[queue_name] = Entities(
                _durable(
                    dead_letter_name(queue_name), {"x-message-ttl": self.dead_message_ttl, **kind}
                ),
                _durable(queue_name, self._build_queue_arguments(queue_name)),
            )
        return entities

    @property
    def _is_amqp(self) -> bool:
        return bool(self.connection.get_transport_cls().driver_type == "amqp")

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        """Return the arguments of a queue.  Subclasses may replace this method, as with Dramatiq's."""
        arguments: dict[str, Any] = {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead_letter_name(queue_name),
        }
        if self._is_quorum and self._is_amqp:
            arguments["x-queue-type"] = "quorum"
        if self.max_priority is not None:
            arguments["x-max-priority"] = self.max_priority
        return arguments

    def _declare_queue(self, queue_name: str) -> Any:
        """Declare a queue.  Subclasses may replace this method, as with Dramatiq's.  May switch."""
        self._declare(self.entities(queue_name).queue)

    def _declare_xq_queue(self, queue_name: str) -> Any:
        """Declare the dead-letter queue of a queue, as :meth:`_declare_queue`.  May switch."""
        self._declare(self.entities(queue_name).dead_letters)

    def _declare(self, entity: Queue) -> None:
        ensure_declared(self.connection.session, entity, Deadline(self._timeout))

    def _ensure_queue(self, name: str, connection: Connection) -> Queue:
        """Return a queue after it was declared, with that of its dead letters.  May switch."""
        self.declare_queue(name)
        entities = self.entities(name)
        deadline = Deadline(self._timeout)
        connection.session.link(deadline)
        declared = connection.session.life.declared_entities  # once in the life of a connection
        declares = self._declare_xq_queue, self._declare_queue
        for entity, declare in zip(entities, declares, strict=True):
            key = existence_key(entity)
            if key not in declared:
                with TimeLimit(deadline, f"declaring {entity.name!r}"):
                    declare(name)
                declared.add(key)
        return entities.queue

    # -- messages

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Send a message, and return it when the broker has it.  May switch.

        Arguments:
            message: the message to send.
            delay: the milliseconds after which a worker may process the message.  The broker delays the
                message for the whole seconds of it.  None does not delay the message.

        Raises:
            ConnectionFailed, ConnectionClosed: the connection failed, or the broker did not accept the
                message in time.
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
            raise NotAccepted(str(exc)) from exc
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

    @property
    def consumer_class(self) -> type[GreenconnConsumer]:
        """The class of :meth:`consume`'s consumers, called with its arguments."""
        return GreenconnConsumer

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Return an iterator over the messages of a queue.

        Arguments:
            queue_name: the name of the queue.
            prefetch: the maximum number of unacknowledged messages of the iterator.
            timeout: the milliseconds without a message after which the iterator yields None.

        Raises:
            ConnectionFailed, ConnectionClosed: the queue could not be declared.
            RuntimeError: the process is not monkey-patched, so its threads are not greenlets.
        """
        if not monkey.is_module_patched("threading"):
            raise RuntimeError(
                "the threads of Dramatiq's workers must be greenlets: run dramatiq-gevent instead of "
                "dramatiq"
            )
        self.declare_queue(queue_name, ensure=True)
        return self.consumer_class(self, queue_name, prefetch, timeout)

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
        for name in self.queues.copy():
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
        """Wait until all messages of a queue were processed.  May switch.

        These are the messages that wait in the queue, those that this process has delayed, and those
        that workers in this process hold.

        Arguments:
            queue_name: the name of the queue.
            min_successes: the number of consecutive checks that must find no message.
            idle_time: the milliseconds between two checks.
            timeout: maximum milliseconds to wait.  None waits without limit.

        Raises:
            QueueJoinTimeout: there was a message when the timeout passed.
        """
        deadline = Deadline(None if timeout is None else timeout / 1000)
        successes = 0
        while True:
            waiting, delayed, _ = self.get_queue_message_counts(queue_name)
            is_done = not (waiting or delayed or self.held[queue_name])
            successes = successes + 1 if is_done else 0
            if successes >= min_successes:
                return
            if deadline.has_ended:
                if is_done:
                    return
                raise QueueJoinTimeout(queue_name)
            left = deadline.left()
            gevent.sleep(idle_time / 1000 if left is None else min(idle_time / 1000, left))

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
    """The channel that the program uses in one hub.

    Arguments:
        open_channel: returns a new channel of a connection.
    """

    def __init__(self, open_channel: Callable[[Connection], Channel]) -> None:
        self._open_channel = open_channel
        self._channel: Channel | None = None

    @property
    def opened(self) -> Channel | None:
        """The channel, if it is open."""
        return self._channel if self._channel is not None and self._channel.is_open else None

    def on(self, connection: Connection) -> Channel:
        """Return the channel, or a new one if it is closed.  May switch."""
        found = self._channel
        if found is None or not found.is_open:
            channel = self._open_channel(connection)
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


def dead_letter_name(queue_name: str) -> str:
    """Return the name of the dead-letter queue of a queue, the same as in Dramatiq."""
    return f"{queue_name}.XQ"


def _durable(name: str, arguments: dict[str, Any]) -> Queue:
    return Queue(name, durable=True, queue_arguments=arguments)


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


#: Parameters of pika -> arguments of a connection.
_ARGUMENTS: Final = {
    "heartbeat": "heartbeat",
    "host": "hostname",
    "port": "port",
    "socket_timeout": "connect_timeout",
    "stack_timeout": "connect_timeout",  # it includes the former
    "virtual_host": "virtual_host",
}
#: Parameters of pika -> transport options.
_OPTIONS: Final = {
    "blocked_connection_timeout": "blocked_timeout",
    "channel_max": "channel_max",
    "client_properties": "client_properties",
    "frame_max": "frame_max",
    "locale": "locale",
    "tcp_options": "socket_settings",
}
#: Accepted without effect: a broker of greenconn tries to connect until its ``timeout``.
_WITHOUT_EFFECT: Final = frozenset({"connection_attempts", "retry_delay"})
#: All parameters of pika.
PARAMETERS: Final = frozenset(
    {*_ARGUMENTS, *_OPTIONS, *_WITHOUT_EFFECT, "credentials", "ssl_options"}
)
#: Those of an address, which each broker of a list has for itself.
_ADDRESS: Final = ("hostname", "port", "virtual_host", "userid", "password")


def connection_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a connection for those of ``pika.ConnectionParameters``.

    Parameters that are None are left out, as in pika.

    Raises:
        TypeError: there is no such parameter, or a value has another type than in pika.
    """
    arguments: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in sorted(parameters.items()):  # so that stack_timeout is after socket_timeout
        if name not in PARAMETERS:
            raise TypeError(f"pika's connections have no parameter {name!r}")
        if value is None:
            continue
        if name == "heartbeat" and callable(value):
            raise TypeError("heartbeat must be a number of seconds, got a function")
        if name == "credentials":
            arguments.update(_login(value))
        elif name == "ssl_options":
            arguments["ssl"] = _tls(value)
        elif name in _ARGUMENTS:
            arguments[_ARGUMENTS[name]] = value
        elif name in _OPTIONS:
            options[_OPTIONS[name]] = value
    if options:
        arguments["transport_options"] = options
    return arguments


def url_arguments(brokers: Iterable[Mapping[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Return the URLs for parameters of several brokers, and the other arguments of the connection.

    Raises:
        TypeError: as :func:`connection_arguments`.
        ValueError: the other parameters differ: they belong to all brokers.
    """
    urls: list[str] = []
    common: dict[str, Any] = {}
    for parameters in brokers:
        arguments = {"userid": "guest", "password": "guest", **connection_arguments(parameters)}
        address = {name: arguments.pop(name) for name in _ADDRESS if name in arguments}
        urls.append(Connection(**address, transport="amqp").as_uri(include_password=True))
        for name, value in arguments.items():
            if common.setdefault(name, value) != value:
                raise ValueError(f"{name} must be the same for all brokers, got {value!r}")
    return urls, common


def split_url(url: str) -> tuple[str, dict[str, Any]]:
    """Return a URL without pika's parameters in its query, and these as arguments of a connection."""
    address, _, query = url.partition("?")
    pairs = dict(parse_qsl(query, keep_blank_values=True))
    theirs = {name: _number(pairs.pop(name)) for name in PARAMETERS & pairs.keys()}
    return f"{address}?{urlencode(pairs)}" if pairs else address, connection_arguments(theirs)


def _number(text: str) -> float | str | None:
    if text in ("", "None"):
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


def _login(credentials: Any) -> dict[str, Any]:
    if hasattr(credentials, "username"):
        return {"userid": credentials.username, "password": credentials.password}
    if getattr(credentials, "TYPE", None) == "EXTERNAL":
        return {"login_method": "EXTERNAL"}
    raise TypeError(
        f"credentials must be those of pika, with username and password, got "
        f"{type(credentials).__name__}"
    )


def _tls(options: Any) -> dict[str, Any]:
    if not hasattr(options, "context"):
        raise TypeError(f"ssl_options must be pika.SSLOptions, with a context, got {options!r}")
    name = getattr(options, "server_hostname", None)
    return {"context": options.context, **({"server_hostname": name} if name else {})}


class PikaConnection(Connection):
    """A connection with the attributes of pika's blocking connection."""

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""
        return self.connected

    @property
    def is_closed(self) -> bool:
        """Whether the connection is not open."""
        return not self.connected

    def sleep(self, duration: float) -> None:
        """Wait for *duration* seconds.  May switch."""
        sleep(duration)


class _DeclareReply(NamedTuple):
    """The reply to a declaration; pika has its fields in ``reply.method``."""

    queue: str
    message_count: int
    consumer_count: int

    @property
    def method(self) -> _DeclareReply:
        """The reply."""
        return self


class _CountReply(int):
    """The number of messages that were dropped; pika has it in ``reply.method``."""

    @property
    def method(self) -> _CountReply:
        """The reply."""
        return self

    @property
    def message_count(self) -> int:
        """The number."""
        return int(self)


class PikaChannel:
    """A channel whose methods for queues have the arguments, replies and errors of pika.

    All other attributes are those of the channel of greenconn.

    Arguments:
        channel: the channel of greenconn.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    @property
    def is_closed(self) -> bool:
        """Whether the channel is closed."""
        return not self._channel.is_open

    def confirm_delivery(self) -> None:
        """Do nothing: a broker of greenconn always waits for confirms."""

    def queue_declare(
        self,
        queue: str,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> _DeclareReply:
        """Declare a queue, or look it up.  May switch."""
        with _errors_of_pika():
            reply = self._channel.queue_declare(
                queue=queue,
                passive=passive,
                durable=durable,
                exclusive=exclusive,
                auto_delete=auto_delete,
                arguments=arguments,
            )
        return _DeclareReply(*reply)

    def queue_purge(self, queue: str) -> _CountReply:
        """Drop the messages of a queue that no consumer has.  May switch."""
        with _errors_of_pika():
            return _CountReply(self._channel.queue_purge(queue) or 0)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False
    ) -> _CountReply:
        """Delete a queue.  May switch."""
        with _errors_of_pika():
            count = self._channel.queue_delete(queue, if_unused=if_unused, if_empty=if_empty)
        return _CountReply(count or 0)


def pika_errors(*names: str) -> tuple[type[Exception], ...]:
    """Return classes of ``pika.exceptions``; none if the program has not imported that module."""
    module = sys.modules.get("pika.exceptions")
    return () if module is None else tuple(getattr(module, name) for name in names)


@contextmanager
def _errors_of_pika() -> Iterator[None]:
    """Let errors of channels and connections be instances of pika's classes, too."""
    try:
        yield
    except (ChannelError, ConnectionError) as exc:
        is_refused = isinstance(exc, ChannelError)
        theirs = pika_errors("ChannelClosedByBroker" if is_refused else "AMQPConnectionError")
        if not theirs:
            raise
        values = exc.reply_text, exc.method_sig, exc.method_name, exc.reply_code
        raise _class_of_both(type(exc), theirs[0])(*values) from exc


def _class_of_both(ours: type[Exception], theirs: type[Exception]) -> type[Exception]:
    # pika's class has properties of these names, which ours could not set.
    return type(ours.__name__, (ours, theirs), {"reply_code": 0, "reply_text": None})


class RabbitmqBroker(GreenconnBroker):
    """A :class:`GreenconnBroker` that takes the place of Dramatiq's ``RabbitmqBroker``.

    It declares the same classic queues, unless *quorum* is true.

    Arguments:
        url: the URL of the broker, or several URLs: a list, or text separated by ``;``.
        confirm_delivery: accepted without effect: ``send`` always waits until RabbitMQ has the message.
        middleware: the list of middleware, as in ``dramatiq.Broker``.
        max_priority: the maximum priority of the queues, from 1 to 255; None for no priorities.
        parameters: in place of *url*, a list of dicts of parameters of ``pika.ConnectionParameters``.
        quorum: whether to declare quorum queues.
        kwargs: in place of *url*, the parameters of ``pika.ConnectionParameters``; and further arguments
            of :class:`GreenconnBroker`.

    Raises:
        RuntimeError: more than one of *url*, *parameters* and parameters of pika was given.
        TypeError: there is no such argument.
        ValueError: *max_priority* is out of range.
    """

    _connection_class = PikaConnection

    if TYPE_CHECKING:
        connection: PikaConnection
        channel: PikaChannel  # type: ignore[assignment]  # it has pika's arguments

    def __init__(
        self,
        *,
        confirm_delivery: bool = True,
        url: str | Iterable[str] | None = None,
        middleware: list[Middleware] | None = None,
        max_priority: int | None = None,
        parameters: Iterable[Mapping[str, Any]] | None = None,
        quorum: bool = False,
        **kwargs: Any,
    ) -> None:
        of_pika = {name: kwargs.pop(name) for name in PARAMETERS & kwargs.keys()}
        if (url is not None) + (parameters is not None) + bool(of_pika) > 1:
            raise RuntimeError("only one of url, parameters and pika's parameters must be given")
        if url is None:
            urls, arguments = url_arguments([of_pika] if parameters is None else parameters)
        else:
            urls, arguments = [], {}
            for each in url.split(";") if isinstance(url, str) else url:
                address, options = split_url(each)
                urls.append(address)
                arguments.update(options)
        options = {**arguments.pop("transport_options", {}), **kwargs.pop("transport_options", {})}
        if options:
            arguments["transport_options"] = options
        super().__init__(
            urls,
            middleware=middleware,
            max_priority=max_priority,
            quorum=quorum,
            **{**arguments, **kwargs},
        )
        self.confirm_delivery = confirm_delivery

    @property
    def state(self) -> SimpleNamespace:
        """An object with the ``connection`` and the ``channel`` of this thread, if they are open."""
        state = SimpleNamespace()
        if self.connection.connected:
            state.connection = self.connection
        channel = self._channels.get().opened
        if channel is not None:
            state.channel = channel
        return state

    def _open_channel(self, connection: Connection) -> Any:
        return PikaChannel(connection.channel())

    def _ensure_queue(self, name: str, connection: Connection) -> Queue:
        # Methods of subclasses that declare a queue may use self.channel, which is lost with its
        # connection, or raise errors of pika: they are called once more, as in Dramatiq.
        for is_last in (False, True):
            try:
                return super()._ensure_queue(name, connection)
            except (RecoverableConnectionError, *pika_errors("AMQPConnectionError")) as exc:
                if is_last or connection.session.is_closed:
                    raise NotAccepted(str(exc)) from exc
                del self.channel
        raise AssertionError("unreachable")


#: Arguments of redis-py -> arguments of a connection.
_REDIS_ARGUMENTS: Final = {
    "credential_provider": "credential_provider",
    "db": "virtual_host",
    "host": "hostname",
    "password": "password",
    "port": "port",
    "username": "userid",
}
#: Arguments of redis-py that are transport options of the same name.
_REDIS_OPTIONS: Final = frozenset(
    {
        "client_name",
        "health_check_interval",
        "max_connections",
        "socket_connect_timeout",
        "socket_keepalive",
        "socket_keepalive_options",
        "socket_timeout",
    }
)
#: Arguments of redis-py for TLS, which are keys of a connection's ``ssl``.
_TLS: Final = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_password",
    }
)
#: Arguments of redis-py that only say which class of connections it uses.
_UNIX: Final = frozenset({"unix_socket_path", "path"})
_PARAMETERS: Final = frozenset({*_REDIS_ARGUMENTS, *_REDIS_OPTIONS, *_TLS, *_UNIX, "ssl"})


class RedisBroker(GreenconnBroker):
    """A :class:`GreenconnBroker` that takes the place of Dramatiq's ``RedisBroker``.

    Messages are kept under other keys and in another form than Dramatiq's.

    Arguments:
        url: the URL of the server, as in ``redis.Redis.from_url``.
        middleware: the list of middleware, as in ``dramatiq.Broker``.
        namespace: prefix of all keys, before a dot.  None uses no prefix.
        maintenance_chance: accepted without effect: messages of dead workers are found by time.
        heartbeat_timeout: milliseconds after which the messages of a worker that shows no sign of life
            are requeued.  None is 30 seconds.
        dead_message_ttl: milliseconds for which dead letters are kept, as in :class:`GreenconnBroker`.
        client: a client of redis-py, which is :attr:`client`.  Messages are sent to its server and
            database, on a connection of greenconn.
        kwargs: in place of *url* and *client*, the arguments of ``redis.Redis`` for an address, a login,
            TLS and timeouts; and further arguments of :class:`GreenconnBroker`.

    Raises:
        TypeError: there is no such argument, or the client has no address of one server.
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        middleware: list[Middleware] | None = None,
        namespace: str | None = None,
        maintenance_chance: int | None = None,
        heartbeat_timeout: int | None = None,
        dead_message_ttl: int | None = None,
        client: Any = None,
        **kwargs: Any,
    ) -> None:
        parameters = {name: kwargs.pop(name) for name in _PARAMETERS & kwargs.keys()}
        if client is not None:
            parameters = _parameters_of(client)
        if url is not None:
            url, parameters = _split_url(url, parameters)
        address, arguments, options = _arguments(parameters)
        if namespace is not None:
            options["global_keyprefix"] = f"{namespace}."
        if maintenance_chance is not None:
            logger.info("maintenance_chance has no effect: dead workers are found by time")
        if heartbeat_timeout is not None:
            options["lease"] = heartbeat_timeout / 1000
        options.update(kwargs.pop("transport_options", {}))
        super().__init__(
            _url(**address) if url is None else url,
            middleware=middleware,
            dead_message_ttl=dead_message_ttl,
            **{**arguments, "transport_options": options, **kwargs},
        )
        self._client = client

    @property
    def client(self) -> Any:
        """The client that was given, or one that works on :attr:`connection`.  May switch."""
        return super().client if self._client is None else self._client

    def join(
        self,
        queue_name: str,
        min_successes: int = 10,
        idle_time: int = 100,
        *,
        interval: int | None = None,
        timeout: int | None = None,
    ) -> None:
        """Wait until all messages of a queue were processed.  May switch.

        Arguments:
            queue_name, min_successes, idle_time, timeout: as in :class:`GreenconnBroker`.
            interval: Dramatiq's name for *idle_time*.
        """
        if interval is not None:
            idle_time = interval
        super().join(queue_name, min_successes, idle_time, timeout=timeout)


def _parameters_of(client: Any) -> dict[str, Any]:
    """Return the arguments of redis-py with which *client* connects."""
    pool: Any = getattr(client, "connection_pool", None)
    known = getattr(pool, "connection_kwargs", {})
    if not {"host", "path"} & known.keys():
        raise TypeError(
            f"client must be a redis.Redis with the address of one server, got "
            f"{type(client).__name__}: give Sentinel or a cluster as a url"
        )
    found = {name: value for name, value in known.items() if name in _PARAMETERS}
    if any(each.__name__ == "SSLConnection" for each in pool.connection_class.__mro__):
        found["ssl"] = True
    return found


def _split_url(url: str, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a URL as greenconn has it, and *parameters* without what the URL says.

    redis-py names the database in the query, too, and a socket by ``unix://``.
    """
    address, _, query = url.partition("?")
    pairs = dict(parse_qsl(query, keep_blank_values=True))
    database = pairs.pop("db", None)
    parts = urlsplit(address)
    left = {name: value for name, value in parameters.items() if name not in _REDIS_ARGUMENTS}
    if parts.scheme == "unix":
        address = f"redis+socket{address.removeprefix('unix')}"
        pairs["virtual_host"] = database or "0"
    elif database is not None:
        address = f"{address[: len(address) - len(parts.path)]}/{database}"
    return f"{address}?{urlencode(pairs)}" if pairs else address, left


def _arguments(
    parameters: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the address, the other arguments of a connection, and its transport options."""
    address: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    options: dict[str, Any] = {}
    tls: dict[str, Any] = {}
    for name, value in parameters.items():
        if value is None or (name == "ssl" and not value):
            continue
        if name == "credential_provider":
            arguments[name] = value
        elif name in _REDIS_ARGUMENTS:
            address[_REDIS_ARGUMENTS[name]] = str(value) if name == "db" else value
        elif name in _REDIS_OPTIONS:
            options[name] = value
        elif name in _UNIX:
            address["path"] = value
        elif name in _TLS:
            tls[name] = value
    if parameters.get("ssl"):
        arguments["ssl"] = tls or True
    return address, arguments, options


def _url(path: str | None = None, **address: Any) -> str:
    """Return the URL of a server.

    Arguments:
        path: the path of a UNIX socket, in place of a host.
        address: arguments of a connection.
    """
    url = Connection(**address, transport="redis").as_uri(include_password=True)
    if path is None:
        return url
    login = urlsplit(url).netloc.rpartition("@")
    return (
        f"redis+socket://{''.join(login[:2])}{path}?virtual_host={address.get('virtual_host', 0)}"
    )
