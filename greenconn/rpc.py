"""Remote procedure calls over queues: ``call`` waits for the reply of a ``spawn_server``.

All callers of one connection share one channel and one consumer of replies.  On RabbitMQ they use direct
reply-to, which needs no queue but requires that requests are published on the channel that consumes the
replies; elsewhere replies go to an exclusive queue.  A reply whose caller has left is dropped.

A request carries ``reply_to`` and ``correlation_id``; a reply that is an error carries the name of the
exception's class in the header ``greenconn-error`` and its text as body.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from gevent import Timeout

from greenconn.checks import check_has_run, check_runs
from greenconn.connection import Connection
from greenconn.defaults import consuming_connection, publishing_connection
from greenconn.entity import Exchange, Queue
from greenconn.entity.existence import is_expected, wait_declared
from greenconn.exceptions import (
    NEVER_REPEATED,
    OperationalError,
    RemoteError,
    ReplyTimeout,
    SerializationError,
    SerializerNotInstalled,
    Unroutable,
)
from greenconn.green.blocking_monitor import name_of
from greenconn.green.deadline import Deadline
from greenconn.green.single_flight import SingleFlight
from greenconn.green.slot import Slot
from greenconn.identity import uuid
from greenconn.listeners import LISTENERS
from greenconn.log import message_fields
from greenconn.publishing.calls import publisher_of
from greenconn.publishing.message import TRANSIENT, OutgoingMessage, PublishOptions
from greenconn.publishing.publisher import Publisher
from greenconn.schemas import reply_converter_of, schema_of
from greenconn.serialization import prepare_accept_content
from greenconn.session.session import Session
from greenconn.worker import ConsumerGreenlet, Interrupted, spawn_consumer
from greenconn.worker.consumer import check_consumer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.message import Message
    from greenconn.publishing.message import PublishArguments
    from greenconn.transport.base import Link
    from greenconn.worker.options import ServerArguments

__all__ = ["call", "spawn_server"]

T = TypeVar("T")

logger = logging.getLogger("greenconn.rpc")

DIRECT_REPLY_TO: Final = "amq.rabbitmq.reply-to"
ERROR_HEADER: Final = "greenconn-error"
#: Content types that a caller takes as reply unless it says otherwise.
ACCEPTED: Final = frozenset({"application/json", "text/plain", "application/data"})
#: Seconds that a server takes to send a reply.
REPLY_TIMEOUT: Final = 30.0
#: Options of ``spawn_consumer`` that a server has no use for: each call has one reply.
NOT_FOR_SERVERS: Final = ("retry", "batch_size", "batch_interval", "no_ack", "on_decode_error")
#: The target of all replies: their routing key is the name of a queue.
_DEFAULT_EXCHANGE: Final = Exchange("")


@overload
def call(
    queue: str | Queue,
    body: Any,
    *,
    schema: type[T],
    connection: Connection | str | None = None,
    timeout: float | None = 30.0,
    accept: Iterable[str] | None = None,
    **options: Unpack[PublishArguments],
) -> T: ...


@overload
def call(
    queue: str | Queue,
    body: Any,
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    timeout: float | None = 30.0,
    accept: Iterable[str] | None = None,
    **options: Unpack[PublishArguments],
) -> Any: ...


def call(
    queue: str | Queue,
    body: Any,
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    timeout: float | None = 30.0,
    accept: Iterable[str] | None = None,
    **options: Unpack[PublishArguments],
) -> Any:
    """Send *body* to the server of *queue* and return its reply.  May switch.

    Any number of greenlets may call at once.  The server declares the queue, not the caller; a call
    waits for a server in this thread that is about to declare it.

    Arguments:
        queue: the queue of the server.
        schema: the type that the reply is converted to, as bodies are for
            :func:`greenconn.spawn_consumer`; None leaves it as it was decoded.
        connection: a ``Connection``, of which one clone is used; a URL; None is the default one.
        timeout: seconds for the whole call; None waits for ever.
        accept: serializers or content types that the reply may have; None: JSON, text and bytes.
        options: as for :func:`greenconn.publish`; ``delivery_mode`` is transient unless it is given.
            With ``expiration`` a server that was down does not execute calls whose callers have left.

    Raises:
        RemoteError: the server's function raised; has the name of the class and the text.
        ReplyTimeout: no reply in time; the call may have been executed.  (Requests are not confirmed,
            so this is also raised when a full queue refused it.)
        Unroutable: the queue does not exist.
        PublishTimeout, ConnectionBlocked: the request was not sent.
        OperationalError: the connection was lost before the reply came; it may have been executed.
        ContentDisallowed: the content type of the reply is not in *accept*.
        DecodeError: the reply does not fit *schema*.

    Example::

        total = greenconn.rpc.call("add", [1, 2])
    """
    deadline = Deadline(timeout)
    accepted = ACCEPTED if accept is None else prepare_accept_content(accept)
    if not isinstance(queue, (str, Queue)):
        raise TypeError(f"queue must be the name of a queue, or a Queue, got {queue!r}")
    for name in ("correlation_id", "reply_to"):
        if name in options:
            raise TypeError(f"call has no option {name!r}: replies are correlated by it")
    convert = None if schema is None else reply_converter_of(schema)
    message = PublishOptions.of(queue, options, TRANSIENT).message(body)
    reply = _client_of(publishing_connection(connection)).call(message, deadline)
    reply.accept = accepted
    result = reply.decode()
    remote_type = reply.headers.get(ERROR_HEADER)
    if remote_type is not None:
        raise RemoteError(f"{remote_type}: {result}", remote_type=str(remote_type))
    return result if convert is None else convert(result)


def spawn_server(
    queue: str | Queue | Iterable[str | Queue],
    function: Callable[[Any], object],
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    serializer: str | None = None,
    around: Callable[[Message], AbstractContextManager[Any]] | None = None,
    **options: Unpack[ServerArguments],
) -> ConsumerGreenlet:
    """Serve calls: reply to each with the result of ``function(body)``.  Returns at once.

    An exception of the function is logged here, and raised in the caller as ``RemoteError``.

    Arguments:
        queue: the queue of the calls: a name (declared as a durable queue if it does not exist), a
            ``Queue``, or a list of them.
        function: called with the body.  The serializer must be able to encode its result.
        schema: of the body, as for :func:`greenconn.spawn_consumer`; the caller of one that does not fit
            gets a ``RemoteError``.
        connection: as for :func:`greenconn.spawn_consumer`.
        serializer: of the replies; None: JSON, or for text and bytes their own content types.
        around: called with each request; the function runs within the context that it returns.
        options: as for :func:`greenconn.spawn_consumer`, e.g. ``concurrency``, ``prefetch_count``,
            ``name``, ``handler_timeout``.

    Example::

        server = greenconn.rpc.spawn_server("add", sum, concurrency=10)
    """
    _check_function(function, options)
    server = _Server(function, publisher_of(publishing_connection(connection)), serializer, around)
    consumer = spawn_consumer(
        queue,
        server.serve,
        schema=schema_of(function) if schema is None else schema,
        connection=consuming_connection(connection),
        on_decode_error=server.refuse,
        **options,
    )
    consumer.answers_calls = True
    return consumer


def _check_function(function: object, options: Mapping[str, Any]) -> None:
    for name in options:
        if name in NOT_FOR_SERVERS:
            raise TypeError(f"spawn_server has no option {name!r}: each call has one reply")
    if not callable(function):
        raise TypeError(f"function must be a callable, got {function!r}")
    check_runs("function", function)


def check_server(queue: Any, function: Any, options: Mapping[str, Any]) -> None:
    """Check the arguments of :func:`spawn_server`.  Never switches.

    Raises:
        TypeError, ValueError: one of them is wrong.
    """
    further = {name: options[name] for name in options.keys() - {"serializer", "around"}}
    _check_function(function, further)
    if further.get("schema") is None:
        further["schema"] = schema_of(function)
    check_consumer(queue, _any_handler, further)


def _any_handler(body: Any, message: Message) -> None:
    """Stand for the handler of a server."""


class _Server:
    """A server: it calls the function and sends the replies."""

    def __init__(
        self,
        function: Callable[[Any], Any],
        publisher: Publisher,
        serializer: str | None,
        around: Callable[[Message], AbstractContextManager[Any]] | None,
    ) -> None:
        self._function = function
        self._around = around
        self._publisher = publisher
        self._serializer = serializer

    def serve(self, body: Any, message: Message) -> None:
        """Handle one request; the broker has the reply before the request is acknowledged."""
        try:
            if self._around is None:
                result = self._function(body)
            else:
                with self._around(message):
                    result = self._function(body)
            check_has_run("the function", result)
        except Exception as exc:
            logger.exception(
                "RPC function %s of queue %r failed",
                *self._where(message),
                extra=self._fields(message),
            )
            self._reply_error(message, exc)
            return
        except (Timeout, Interrupted) as exc:
            self._reply_error(message, exc)
            raise
        try:
            self._reply(message, result, None, self._serializer)
        except (SerializationError, SerializerNotInstalled) as exc:
            logger.exception(
                "the result of RPC function %s of queue %r cannot be sent",
                *self._where(message),
                extra=self._fields(message),
            )
            self._reply_error(message, exc)

    def _where(self, message: Message) -> tuple[str, object]:
        """Return the function's name and the queue, which is the routing key of a call, for the log."""
        return name_of(self._function), message.delivery_info.get("routing_key")

    def _fields(self, message: Message) -> dict[str, object]:
        return message_fields(message, queue=message.delivery_info.get("routing_key"))

    def refuse(self, message: Message, exc: Exception) -> None:
        """Reply with an error to a request that cannot be decoded."""
        self._reply_error(message, exc)

    def _reply_error(self, message: Message, exc: BaseException) -> None:
        self._reply(message, str(exc), {ERROR_HEADER: _name_of(type(exc))}, None)

    def _reply(
        self, message: Message, result: Any, headers: dict[str, str] | None, serializer: str | None
    ) -> None:
        """Send a reply to the queue that the caller named.  May switch."""
        reply_to = message.properties.get("reply_to")
        if not reply_to:
            return
        options = {
            "routing_key": reply_to,
            "correlation_id": message.properties.get("correlation_id"),
            "delivery_mode": "transient",
            "headers": headers,
            "serializer": serializer,
            # The caller may have left.
            "mandatory": False,
        }
        reply = PublishOptions(_DEFAULT_EXCHANGE, options).message(result)
        self._publisher.publish(reply, Deadline(REPLY_TIMEOUT))


def _name_of(kind: type[BaseException]) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


class _Replies:
    """The sink of the replies on one channel, until that is lost."""

    __slots__ = ("taken", "waiting")

    def __init__(self) -> None:
        self.taken: Callable[[Any], None] | None = None
        self.waiting: dict[str, Slot[Any]] = {}

    # In the reader.

    def deliver(self, message: Message) -> None:
        """Pass a reply to its caller, or drop it if that has left."""
        if self.taken is not None:
            self.taken(message)
        slot = self._slot_of(message)
        if slot is not None:
            slot.offer(message)

    def returned(self, exc: Exception, exchange: str, routing_key: str, message: Message) -> None:
        """Fail a call whose request was returned."""
        slot = self._slot_of(message)
        if slot is not None:
            text = f"{exc}: a call with routing key {routing_key!r} reached no queue"
            slot.fail(Unroutable(text, exchange=exchange, routing_key=routing_key))

    def _slot_of(self, message: Message) -> Slot[Any] | None:
        # Other programs may publish anything to the queue.
        correlation_id = message.properties.get("correlation_id")
        return self.waiting.get(correlation_id) if isinstance(correlation_id, str) else None

    def requeue_unseen(self) -> None:
        """Do nothing: replies need no ack."""

    def cancelled(self, exc: BaseException) -> None:
        """Fail all calls, as no more replies will come."""
        waiting, self.waiting = self.waiting, {}
        error = OperationalError(f"the reply is lost, the call may have been executed: {exc}")
        error.__cause__ = exc
        for slot in waiting.values():
            slot.fail(error)


class _ReplyChannel:
    """A channel that sends requests and receives their replies.  May switch."""

    __slots__ = ("channel", "replies", "reply_to")

    def __init__(self, channel: Any, link: Link) -> None:
        self.channel = channel
        self.replies = _Replies()
        capabilities = (getattr(link, "server_properties", None) or {}).get("capabilities") or {}
        if capabilities.get("direct_reply_to"):
            self.reply_to = DIRECT_REPLY_TO
        else:
            self.reply_to = channel.queue_declare(
                queue="", exclusive=True, auto_delete=True, durable=False
            ).queue
        channel.return_sink = self.replies.returned
        channel.basic_consume(queue=self.reply_to, no_ack=True, sink=self.replies)


class _RpcClient:
    """The calls over one connection."""

    def __init__(self, session: Session, publisher: Publisher) -> None:
        self._session = session
        self._publisher = publisher
        self._flight = SingleFlight("rpc-channel")
        self._reply_channel: _ReplyChannel | None = None
        #: Correlation ids: a unique name, and a number.
        self._name = uuid()
        self._numbers = count(1)

    def call(self, message: OutgoingMessage, deadline: Deadline) -> Any:
        """Send the request to a server, which may be about to start; return the reply.  May switch."""
        session, name = self._session, message.options.routing_key
        while True:
            is_awaited = is_expected(session, name)
            try:
                return self.ask(message, deadline)
            except Unroutable:
                if not is_awaited and not is_expected(session, name):
                    raise
                message.maybe_delivered = False
            try:
                wait_declared(session, name, deadline)
            except TimeoutError as exc:
                raise self._publisher.timed_out(message, deadline, exc) from exc

    def ask(self, message: OutgoingMessage, deadline: Deadline) -> Any:
        """Send the request and return the reply.  May switch.

        The reply shows that the request arrived, so no confirm is waited for (which would wake the
        caller once more); the return of an unroutable request ends the wait.
        """
        reply_channel = self._reply_channel
        if reply_channel is None or not reply_channel.channel.is_open or deadline.has_ended:
            reply_channel = self._open_channel(message, deadline)
        correlation_id = f"{self._name}.{next(self._numbers)}"
        message.own = {"correlation_id": correlation_id, "reply_to": reply_channel.reply_to}
        slot: Slot[Any] = Slot()
        waiting = reply_channel.replies.waiting
        waiting[correlation_id] = slot
        try:
            if (observers := LISTENERS.publishing) is None:
                message.request(reply_channel.channel, deadline)
            else:
                observation = message.observe(observers, self._publisher.label)
                observation.run(message.request, reply_channel.channel, deadline)
            return slot.wait(deadline)
        except NEVER_REPEATED:
            raise
        except self._lost_errors as exc:
            if slot.has_left and isinstance(exc, TimeoutError):
                raise ReplyTimeout(
                    f"no reply from {message.options} of {self._publisher.label} within "
                    f"{deadline.timeout:g} s: the call may have been executed"
                ) from exc
            raise OperationalError(
                f"a call to {message.options} failed, it may have been executed: {exc}"
            ) from exc
        finally:
            waiting.pop(correlation_id, None)

    @property
    def _lost_errors(self) -> tuple[type[BaseException], ...]:
        broker = self._session.broker
        return (*broker.connection_errors, *broker.channel_errors, TimeoutError)

    def _open_channel(self, message: OutgoingMessage, deadline: Deadline) -> _ReplyChannel:
        """Return the open channel.  Nothing is sent yet, so failures to open it are retried."""
        try:
            return self._publisher.retry(lambda: self._ready_channel(deadline), deadline)
        except NEVER_REPEATED:
            raise
        except self._publisher.lasting_errors as exc:
            raise self._publisher.timed_out(message, deadline, exc) from exc

    def _ready_channel(self, deadline: Deadline) -> _ReplyChannel:
        reply_channel = self._reply_channel
        if reply_channel is None or not reply_channel.channel.is_open:
            reply_channel = self._flight.run("reply-channel", self._make_channel, deadline)
        if deadline.has_ended:
            raise TimeoutError("the timeout has expired")
        return reply_channel

    def _make_channel(self) -> _ReplyChannel:
        session = self._session
        link = session.link(Deadline(session.broker.connect_timeout))
        channel = session.broker.transport.create_channel(link)
        try:
            self._reply_channel = reply_channel = _ReplyChannel(channel, link)
        except BaseException:
            if channel.is_open:
                channel.close()
            raise
        return reply_channel


def _client_of(connection: Connection) -> _RpcClient:
    """Return the RPC client of a connection, which lives as long as its session.  Never switches."""
    session = connection.session
    client = session.services.rpc_client
    if not isinstance(client, _RpcClient):
        client = session.services.rpc_client = _RpcClient(session, publisher_of(connection))
    return client
