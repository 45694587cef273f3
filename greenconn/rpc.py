"""Calls over queues: ``call`` waits for the reply, ``spawn_server`` gives it.

All callers of one connection share one channel and one reader of replies.  On RabbitMQ that is its
direct reply-to, which needs no queue but demands that requests leave on the channel that consumes the
replies; elsewhere it is an exclusive queue.  A reply that comes when its caller has left is dropped.

A request carries ``reply_to`` and ``correlation_id``; a reply that is an error carries the name of the
exception's class in the header ``greenconn-error`` and its text as body.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from greenconn.connection import Connection
from greenconn.defaults import consuming_connection, publishing_connection
from greenconn.entity import Queue
from greenconn.exceptions import (
    NEVER_REPEATED,
    OperationalError,
    PublishTimeout,
    RemoteError,
    ReplyTimeout,
    SerializationError,
)
from greenconn.green.deadline import Deadline
from greenconn.green.single import SingleFlight
from greenconn.green.slot import Slot
from greenconn.identity import uuid
from greenconn.messaging import Producer
from greenconn.publishing.letter import Letter, Stationery
from greenconn.publishing.line import Line
from greenconn.session.session import Session
from greenconn.worker import ConsumerGreenlet, spawn_consumer

__all__ = ["call", "spawn_server"]

logger = logging.getLogger("greenconn.rpc")

DIRECT_REPLY_TO: Final = "amq.rabbitmq.reply-to"
ERROR_HEADER: Final = "greenconn-error"
#: Content types that a caller takes as reply unless it says otherwise.
ACCEPTED: Final = frozenset({"application/json", "text/plain", "application/data"})


def call(
    queue: str | Queue,
    body: Any,
    *,
    connection: Connection | str | None = None,
    timeout: float | None = 30.0,
    **options: Any,
) -> Any:
    """Send *body* to the server of *queue* and return its reply.  May switch.

    Arguments:
        queue: where the server consumes.
        connection: a ``Connection``, of which one clone is used; a URL; None is the default one.
        timeout: seconds for all of it.  None waits.
        options: as for :func:`greenconn.publish`.

    Raises:
        RemoteError: the server's function raised; has the class's name and the text.
        ReplyTimeout: no reply in time; the call may have been carried out.
        PublishTimeout, Unroutable, ...: the request did not arrive, see :func:`greenconn.publish`.
        OperationalError: the connection was lost before the reply came; it may have been carried out.
    """
    deadline = Deadline(timeout)
    correlation_id = uuid()
    stationery = Stationery(queue, {**options, "correlation_id": correlation_id})
    caller = _caller_of(publishing_connection(connection))
    reply = caller.ask(stationery.letter(body), correlation_id, deadline)
    reply.accept = ACCEPTED
    remote_type = reply.headers.get(ERROR_HEADER)
    if remote_type is not None:
        raise RemoteError(f"{remote_type}: {reply.decode()}", remote_type=str(remote_type))
    return reply.decode()


def spawn_server(
    queue: str | Queue,
    function: Callable[[Any], Any],
    *,
    connection: Connection | str | None = None,
    **options: Any,
) -> ConsumerGreenlet:
    """Serve calls: ``function(body)`` for each, its result is the reply.

    What it raises becomes the caller's ``RemoteError``, and is logged here.

    Arguments:
        queue: where calls come in.
        connection: as for :func:`greenconn.spawn_consumer`.
        options: the same, e.g. ``concurrency``, ``prefetch_count``, ``name``.
    """
    replies = publishing_connection(connection)
    return spawn_consumer(
        queue,
        partial(_serve, function, Producer(replies)),
        connection=consuming_connection(connection),
        **options,
    )


def _serve(function: Callable[[Any], Any], producer: Producer, body: Any, message: Any) -> None:
    """Handle one request: the reply leaves before the request is acknowledged."""
    properties = message.properties
    headers: dict[str, Any] = {}
    try:
        result = function(body)
    except Exception as exc:
        logger.exception("an rpc function failed")
        headers[ERROR_HEADER] = type(exc).__name__
        result = str(exc)
    reply_to = properties.get("reply_to")
    if not reply_to:
        return
    send = partial(
        producer.publish,
        routing_key=reply_to,
        correlation_id=properties.get("correlation_id"),
        delivery_mode="transient",
    )
    try:
        send(result, headers=headers)
    except SerializationError as exc:
        logger.exception("the result of an rpc function cannot be sent")
        send(str(exc), headers={ERROR_HEADER: type(exc).__name__})


class _Replies:
    """The sink of one channel's replies: one life, no longer."""

    def __init__(self) -> None:
        self.taken: Callable[[Any], None] | None = None
        self.waiting: dict[str, Slot[Any]] = {}

    def deliver(self, message: Any) -> None:
        if self.taken is not None:
            self.taken(message)
        slot = self.waiting.pop(message.properties.get("correlation_id"), None)
        if slot is not None:
            slot.offer(message)

    def cancelled(self, exc: BaseException) -> None:
        waiting, self.waiting = self.waiting, {}
        error = OperationalError(f"the reply is lost, the call may have been carried out: {exc}")
        error.__cause__ = exc
        for slot in waiting.values():
            slot.fail(error)


class _Desk:
    """A channel that sends requests and receives their replies."""

    __slots__ = ("channel", "replies", "reply_to")

    def __init__(self, channel: Any, link: Any) -> None:
        self.channel = channel
        self.replies = _Replies()
        capabilities = (getattr(link, "server_properties", None) or {}).get("capabilities") or {}
        if capabilities.get("direct_reply_to"):
            self.reply_to = DIRECT_REPLY_TO
        else:
            self.reply_to = channel.queue_declare(
                queue="", exclusive=True, auto_delete=True, durable=False
            ).queue
        channel.basic_consume(queue=self.reply_to, no_ack=True, sink=self.replies)


class _Caller:
    """All calls over one connection."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._line = Line(session)
        self._flight = SingleFlight("rpc-channel")
        self._desk: _Desk | None = None

    def ask(self, letter: Letter, correlation_id: str, deadline: Deadline) -> Any:
        """Send the request and return the reply.  May switch."""
        while True:
            try:
                self._line.connect(deadline)
                self._line.ensure_target(letter.stationery, deadline)
                desk = self._open_desk(deadline)
                break
            except NEVER_REPEATED:
                raise
            except self._session.broker.connection_errors as exc:
                # Nothing was sent yet, so another try is safe.
                if deadline.has_ended:
                    raise PublishTimeout(
                        f"{self._session.broker.label} took no call to {letter.stationery}: {exc}",
                        maybe_delivered=False,
                    ) from exc
        slot: Slot[Any] = Slot()
        waiting = desk.replies.waiting
        waiting[correlation_id] = slot
        letter.stationery.properties["reply_to"] = desk.reply_to
        try:
            self._send(letter, desk, deadline)
            return slot.wait(deadline)
        except TimeoutError as exc:
            if not slot.has_left:
                raise
            raise ReplyTimeout(
                f"no reply from {letter.stationery} within {deadline.timeout:g} s"
            ) from exc
        finally:
            waiting.pop(correlation_id, None)

    def _send(self, letter: Letter, desk: _Desk, deadline: Deadline) -> None:
        broker = self._session.broker
        try:
            letter.send(desk.channel, deadline)
        except NEVER_REPEATED:
            raise
        except (*broker.connection_errors, *broker.transport.channel_errors) as exc:
            raise OperationalError(
                f"a call to {letter.stationery} failed, it may have been carried out: {exc}"
            ) from exc

    def _open_desk(self, deadline: Deadline) -> _Desk:
        desk = self._desk
        if desk is None or not desk.channel.is_open:
            desk = self._flight.run("desk", self._make_desk, deadline)
        return desk

    def _make_desk(self) -> _Desk:
        session = self._session
        link = session.link(Deadline(session.broker.connect_timeout))
        self._desk = desk = _Desk(session.broker.transport.create_channel(link), link)
        return desk


def _caller_of(connection: Connection) -> _Caller:
    """The caller of a connection; it lives as long as that."""
    companions = connection.session.companions
    caller = companions.get("rpc")
    if not isinstance(caller, _Caller):
        caller = companions["rpc"] = _Caller(connection.session)
    return caller
