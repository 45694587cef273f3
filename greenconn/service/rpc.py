"""Remote procedure calls (request/reply) over queues: ``call`` and ``spawn_server``.

Programs import it by ``from greenconn import rpc``.

All callers of one connection share one channel and one consumer of replies.  On RabbitMQ they use direct
reply-to, which needs no queue but requires that requests are published on the channel that consumes the
replies.  On other brokers, replies go to an exclusive queue.  A reply is dropped if its caller no longer
waits.

A request carries the properties ``reply_to`` and ``correlation_id``.  An error reply carries the name of
the exception class in the header ``greenconn-error`` and the text of the exception as its body.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from gevent import Timeout

from greenconn.broker.queues import is_name
from greenconn.checks import Seconds, check_has_run, check_keywords, check_runs, shows
from greenconn.connection import Connection
from greenconn.defaults import consuming_connection, publishing_connection
from greenconn.encoding import safe_repr
from greenconn.entity import Exchange, Queue
from greenconn.entity.declaration import expected_queues, is_expected, wait_declared
from greenconn.exceptions import (
    NEVER_REPEATED,
    OperationalError,
    RemoteError,
    ReplyTimeout,
    SerializationError,
    SerializerNotInstalled,
    Unroutable,
    error_text,
)
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.green.slot import SingleFlight, Slot
from greenconn.green.supervisor import name_of
from greenconn.identity import uuid
from greenconn.listeners import LISTENERS
from greenconn.log import message_fields
from greenconn.publishing import publisher_of
from greenconn.publishing.publisher import (
    DEFAULTS,
    SHORT,
    TRANSIENT,
    OutgoingMessage,
    PublishArguments,
    Publisher,
    PublishOptions,
)
from greenconn.schemas import reply_converter_of, schema_of
from greenconn.serialization import prepare_accept_content
from greenconn.session.session import Session, begin_channel
from greenconn.worker import ConsumerGreenlet, Interrupted, spawn_consumer
from greenconn.worker.consumer import check_consumer
from greenconn.worker.failures import own_traceback
from greenconn.worker.options import CONSUMER_OPTIONS, ServerArguments, option_defaults

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.message import Message
    from greenconn.transport.base import Link


T = TypeVar("T")

logger = logging.getLogger("greenconn.rpc")

DIRECT_REPLY_TO: Final = "amq.rabbitmq.reply-to"
ERROR_HEADER: Final = "greenconn-error"
#: Content types of replies that a caller accepts by default.
ACCEPTED: Final = frozenset({"application/json", "text/plain", "application/data"})
#: Maximum seconds for sending a reply.
REPLY_TIMEOUT: Final = 30.0
#: Options of ``spawn_consumer`` that a server does not support, because each request has one reply.
NOT_FOR_SERVERS: Final = ("retry", "batch_size", "batch_interval", "no_ack", "on_decode_error")
#: Options of a publish by which replies are correlated.
CORRELATION: Final = ("correlation_id", "reply_to")
#: The defaults of the options of a request, but None.
CALL_DEFAULTS: Final = {**DEFAULTS, "delivery_mode": "transient"}
_SERVER_OPTIONS: Final = CONSUMER_OPTIONS.difference(NOT_FOR_SERVERS) | {"around", "serializer"}
#: Callers for which a server keeps what their replies have in common.
KEPT: Final = 1024
#: The target of all replies: their routing key is the name of a queue.
_DEFAULT_EXCHANGE: Final = Exchange("")


def server_defaults() -> dict[str, Any]:
    """Return the defaults of the options of servers, by name."""
    return {**option_defaults(), **_with_on_error({})}


@overload
def call(
    queue: str | Queue,
    body: Any,
    *,
    schema: type[T],
    connection: Connection | str | None = None,
    timeout: Seconds | None = 30.0,
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
    timeout: Seconds | None = 30.0,
    accept: Iterable[str] | None = None,
    **options: Unpack[PublishArguments],
) -> Any: ...


@shows(PublishArguments, defaults=lambda: CALL_DEFAULTS, without=CORRELATION)
def call(
    queue: str | Queue,
    body: Any,
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    timeout: Seconds | None = 30.0,
    accept: Iterable[str] | None = None,
    **options: Unpack[PublishArguments],
) -> Any:
    """Send *body* to the server of *queue* and return its reply.  May switch.

    Any number of greenlets may call concurrently.  The server declares the queue, not the caller.  If a
    server in this thread is about to declare the queue, the call waits for it.

    Arguments:
        queue: the queue of the server: a name or a ``Queue``.
        body: content of the request, of a type that the serializer can encode.
        schema: type to which the reply is converted, as bodies are for :func:`greenconn.spawn_consumer`.
            None returns the decoded reply unconverted.
        connection: a ``Connection``, of which one clone is used, or a URL.  None uses the default
            connection.
        timeout: maximum seconds for the whole call.  None waits without limit.
        accept: names of serializers or content types to accept in the reply.  None accepts JSON, text
            and bytes.
        options: options of the request, as for :func:`greenconn.publish`.  ``delivery_mode`` defaults to
            ``'transient'``.  With ``expires``, a server that was unavailable does not execute requests
            whose callers no longer wait.

    Returns:
        The result of the server's function.

    Raises:
        RemoteError: the function of the server raised an exception; the error has the name of its class
            and its text.
        ReplyTimeout: no reply arrived in time; the call may have been executed.  Requests are sent
            without publisher confirms, so a request that a full queue rejected also ends with this
            error.
        Unroutable: the queue does not exist.
        PublishTimeout, ConnectionBlocked: the request was not sent.
        OperationalError: the connection was lost before the reply arrived; the call may have been
            executed.
        ContentDisallowed: the content type of the reply is not in *accept*.
        DecodeError: the reply does not fit *schema*, or is above ``max_message_size`` (AMQP).

    Example::

        total = greenconn.rpc.call("add", [1, 2])
    """
    deadline = Deadline(timeout)
    accepted = ACCEPTED if accept is None else prepare_accept_content(accept)
    if not isinstance(queue, (str, Queue)):
        raise TypeError(f"queue must be the name of a queue, or a Queue, got {queue!r}")
    if options:
        for name in CORRELATION:
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


@shows(ServerArguments, defaults=server_defaults)
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
    """Start an RPC server, which replies to each request with ``function(body)``.  Returns at once.

    An exception of the function is logged by the server and raised in the caller as ``RemoteError``.

    Arguments:
        queue: the queue of the requests: a name, a ``Queue``, or a list of them.  A queue given by name
            is declared as a durable queue if it does not exist.
        function: function that is called with the body.  The serializer must be able to encode its
            result.
        schema: type to which the body is converted, as for :func:`greenconn.spawn_consumer`.  The caller
            gets a ``RemoteError`` if the body does not fit.
        connection: a ``Connection`` or a URL, as for :func:`greenconn.spawn_consumer`.  None uses the
            default connection.
        serializer: serializer of the replies.  None uses JSON; text and bytes are sent with their own
            content types.
        around: function that is called with each request message and returns a context manager, within
            which *function* runs.  None uses no context.
        options: options of the consumer, as for :func:`greenconn.spawn_consumer`, for example
            ``concurrency``, ``prefetch_count``, ``name`` or ``handler_timeout``.  ``retry``, ``no_ack``,
            ``batch_size``, ``batch_interval`` and ``on_decode_error`` are not available, because each
            request has one reply.  A request that failed was answered, and is kept as a dead letter
            only with ``dead_letter`` or ``on_error="dead_letter"``.

    Returns:
        The running consumer of the requests.

    Raises:
        TypeError: an option is unknown or not available, or a value has the wrong type.
        ValueError: a value is out of range, or two options exclude each other.

    Example::

        server = greenconn.rpc.spawn_server("add", sum, concurrency=10)
    """
    _check_options(options, "spawn_server")
    _check_function(function)
    server = _Server(function, publisher_of(publishing_connection(connection)), serializer, around)
    consumer = spawn_consumer(
        queue,
        server.serve,
        schema=schema_of(function) if schema is None else schema,
        connection=consuming_connection(connection),
        on_decode_error=server.refuse,
        **_with_on_error(options),
    )
    consumer.answers_calls = True
    return consumer


def _with_on_error(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options in which a request that failed is not kept: its caller got the error."""
    on_error = "dead_letter" if options.get("dead_letter") else "reject"
    return {"on_error": on_error, **options}


def _check_options(options: Iterable[str], called: str) -> None:
    for name in options:
        if name in NOT_FOR_SERVERS:
            raise TypeError(f"{called}() has no option {name!r}: each call has one reply")
    check_keywords(called, options, _SERVER_OPTIONS)


def _check_function(function: object) -> None:
    if not callable(function):
        raise TypeError(f"function must be a callable, got {function!r}")
    check_runs("function", function)


def check_server(
    queue: Any, function: Any, options: Mapping[str, Any], called: str = "spawn_server"
) -> None:
    """Check the arguments of :func:`spawn_server`.  Never switches.

    Arguments:
        called: the function that the program has called, for errors.

    Raises:
        TypeError, ValueError: an argument is invalid.
    """
    _check_options(options, called)
    _check_function(function)
    further = {name: options[name] for name in options.keys() - {"serializer", "around"}}
    if further.get("schema") is None:
        further["schema"] = schema_of(function)
    check_consumer(queue, _any_handler, _with_on_error(further), called)


def _any_handler(body: Any, message: Message) -> None:
    """Accept any arguments, in place of the handler of a server."""


class _Server:
    """An RPC server, which calls the function and sends the replies."""

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
        #: The options of replies without an error, by ``reply_to``.
        self._common: dict[str, PublishOptions] = {}

    def serve(self, body: Any, message: Message) -> None:
        """Handle one request, and acknowledge it after the broker has the reply."""
        try:
            if self._around is None:
                result = self._function(body)
            else:
                with self._around(message):
                    result = self._function(body)
            check_has_run("the function", result)
        except Exception as exc:
            logger.error(
                "RPC function %s of queue %r failed",
                *self._where(message),
                exc_info=(type(exc), exc, own_traceback(exc)),
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
        """Return the name of the function and the queue, which is the routing key of a request, for the
        log.
        """
        return name_of(self._function), message.delivery_info.get("routing_key")

    def _fields(self, message: Message) -> dict[str, object]:
        return message_fields(message, queue=message.delivery_info.get("routing_key"))

    def refuse(self, message: Message, exc: Exception) -> None:
        """Reply with an error to a request that cannot be decoded."""
        self._reply_error(message, exc)

    def _reply_error(self, message: Message, exc: BaseException) -> None:
        self._reply(message, error_text(exc), {ERROR_HEADER: _name_of(type(exc))}, None)

    def _reply(
        self, message: Message, result: Any, headers: dict[str, str] | None, serializer: str | None
    ) -> None:
        """Send a reply to the queue that the caller specified.  May switch."""
        reply_to = message.properties.get("reply_to")
        if not reply_to:
            return
        correlation_id = message.properties.get("correlation_id")
        options = {
            "routing_key": reply_to,
            "delivery_mode": "transient",
            "headers": headers,
            "serializer": serializer,
            # The caller may have left.
            "mandatory": False,
        }
        if (
            headers is None
            and reply_to.__class__ is str
            and correlation_id.__class__ is str
            and len(correlation_id) < 64  # whatever its characters, it is no longer than it may be
        ):
            # A caller has many calls, and what their replies have in common is checked once.
            common = self._common.get(reply_to)
            if common is None:
                if not self._can_reply(reply_to, message):
                    return
                if len(self._common) >= KEPT:
                    self._common.clear()
                common = self._common[reply_to] = PublishOptions(_DEFAULT_EXCHANGE, options)
            reply = common.message(result)
            reply.own = {"correlation_id": correlation_id}
        else:
            if not self._can_reply(reply_to, message):
                return
            # No caller waits for one of another type.
            options["correlation_id"] = correlation_id if _is_short(correlation_id) else None
            reply = PublishOptions(_DEFAULT_EXCHANGE, options).message(result)
        self._publisher.publish(reply, Deadline(REPLY_TIMEOUT))

    def _can_reply(self, reply_to: object, message: Message) -> bool:
        """Return whether *reply_to*, which any publisher can write, may name a queue; log if not."""
        if _is_short(reply_to):
            return True
        logger.warning(
            "a request of queue %r gets no reply: reply_to must be the name of a queue, got %s",
            message.delivery_info.get("routing_key"),
            safe_repr(reply_to)[:100],
            extra=self._fields(message),
        )
        return False


def _is_short(value: object) -> bool:
    """Return whether *value* is text that a property can have."""
    return is_name(value) and len(value.encode()) <= SHORT


def _name_of(kind: type[BaseException]) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


class _Replies:
    """The sink of the replies on one channel, until the channel is lost."""

    keeps_messages = False

    def __init__(self) -> None:
        self.taken: Callable[[Any], None] | None = None
        self.waiting: dict[str, Slot[Any]] = {}

    # In the reader.

    def deliver(self, message: Message) -> None:
        """Pass a reply to its caller, or drop it if the caller no longer waits."""
        if self.taken is not None:
            self.taken(message)
        # Other programs may publish anything to the queue.
        correlation_id = message.properties.get("correlation_id")
        slot = self.waiting.get(correlation_id) if correlation_id.__class__ is str else None
        if slot is not None:
            slot.offer(message)

    def returned(self, exc: Exception, exchange: str, routing_key: str, message: Message) -> None:
        """Fail a call whose request was returned."""
        slot = self.waiting.get(str(message.properties.get("correlation_id")))
        if slot is not None:
            slot.fail(Unroutable(str(exc), exchange=exchange, routing_key=routing_key))

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
        self._expected = expected_queues()
        #: Correlation ids: a unique name, and a number.
        self._name = uuid()
        self._numbers = count(1)

    def call(self, message: OutgoingMessage, deadline: Deadline) -> Any:
        """Send the request to a server that may be about to start, and return the reply.  May switch."""
        session, name = self._session, message.options.routing_key
        while True:
            is_awaited = bool(self._expected) and is_expected(session, name)
            try:
                return self.ask(message, deadline)
            except Unroutable as exc:
                if not is_awaited and not is_expected(session, name):
                    raise Unroutable(
                        f"a call to {message.options} of {self._publisher.label} reached no queue: "
                        f"start its server first, or check the name ({exc})",
                        exchange=exc.exchange,
                        routing_key=exc.routing_key,
                    ) from exc
                message.maybe_delivered = False
            try:
                wait_declared(session, name, deadline)
            except TimeoutError as exc:
                if is_thrown(exc):
                    raise
                raise self._publisher.timed_out(message, deadline, exc) from exc

    def ask(self, message: OutgoingMessage, deadline: Deadline) -> Any:
        """Send the request and return the reply.  May switch.

        The reply shows that the request arrived, so the request is sent without a publisher confirm,
        which would wake the caller once more.  The return of an unroutable request ends the wait.
        """
        reply_channel, at = self._reply_channel, deadline.at
        if (
            reply_channel is None
            or not reply_channel.channel.is_open
            or (at is not None and monotonic() >= at)
        ):
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
            if slot.has_expired:
                raise ReplyTimeout(
                    f"no reply from {message.options} of {self._publisher.label} within "
                    f"{deadline.timeout:g} s: the call may have been executed"
                ) from exc
            if is_thrown(exc):
                raise
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
        """Return the open channel.  Failures to open it are retried, as no request has been sent."""
        try:
            return self._publisher.retry(lambda: self._ready_channel(deadline), deadline)
        except NEVER_REPEATED:
            raise
        except self._publisher.lasting_errors as exc:
            if is_thrown(exc):
                raise
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
        channel = begin_channel(session.broker.transport, link)
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
