"""Remote control of an application's processes by broadcast commands (kombu.pidbox).

A :class:`Mailbox` belongs to an application; each process of the application runs a :class:`Node`.
``cast`` and ``abcast`` send a command; ``call`` and ``multi_call`` also collect the replies.

A node consumes from a queue of its own, ``<hostname>.<namespace>.pidbox``.  All replies to one mailbox
go to its reply queue; each carries the ticket of the call that it answers, so that several greenlets
can call at once.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

from gevent.lock import BoundedSemaphore

from greenconn.caching import LRUCache, cached_property, maybe_evaluate
from greenconn.checks import Seconds, check_has_run, check_runs, in_seconds
from greenconn.clocks import LamportClock
from greenconn.common import oid_from
from greenconn.entity import Exchange, Queue, maybe_declare
from greenconn.exceptions import (
    ChannelError,
    InconsistencyError,
    ResourceLocked,
    SerializationError,
    SerializerNotInstalled,
    error_text,
)
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.green.inbox import Inbox
from greenconn.identity import uuid
from greenconn.log import get_logger
from greenconn.matcher import match
from greenconn.messaging import Consumer, Producer
from greenconn.serialization import prepare_accept_content

if TYPE_CHECKING:
    from greenconn import messaging  # a node has a method of the class's name
    from greenconn.abc import Channel
    from greenconn.connection import Connection
    from greenconn.message import Message

__all__ = ["REPLY_QUEUE_EXPIRES", "W_PIDBOX_IN_USE", "Mailbox", "Node"]

logger = get_logger("greenconn.pidbox")

#: Seconds after which the broker deletes an unused reply queue.
REPLY_QUEUE_EXPIRES: Final = 10

#: Limit of tickets without a caller whose replies are kept, and of the replies kept for each.
UNCLAIMED: Final = 100
#: Limit of logical clocks.  No process counts this far; a higher value would soon overflow a header.
LATEST: Final = 1 << 62

#: Errors that concern a single reply or its address, not the connection.
_UNSENT: Final = (ChannelError, SerializationError, SerializerNotInstalled, TypeError, ValueError)

W_PIDBOX_IN_USE: Final = (
    "A node named {node.hostname} is already using this process mailbox: shut down the other one, "
    "or give each node a name of its own."
)

Handler = Callable[..., Any]


class Node:
    """A process that executes the commands sent to a mailbox.

    A handler is called as ``handler(state, **arguments)``; its return value is the reply.

    Arguments:
        hostname: the name of the node, by which a command can address it.
        state: the first argument of each handler.
        channel: the channel to consume and to reply on.
        handlers: command names -> handlers.
        mailbox: the :class:`Mailbox` that the node belongs to.

    Attributes:
        refused: the number of messages that were not valid commands or could not be decoded.
    """

    hostname: Any = None
    mailbox: Any = None
    handlers: Any = None
    state: Any = None
    channel: Any = None

    def __init__(
        self,
        hostname: str,
        state: Any = None,
        channel: Channel | None = None,
        handlers: dict[str, Handler] | None = None,
        mailbox: Any = None,
    ) -> None:
        self.channel = channel
        self.mailbox = mailbox
        self.hostname = hostname
        self.state = state
        self.adjust_clock = mailbox.clock.adjust
        self.handlers = {} if handlers is None else handlers
        self.refused = 0

    def Consumer(  # noqa: N802 - kombu's name
        self,
        channel: Channel | None = None,
        no_ack: bool = True,
        accept: Any = None,
        **options: Any,
    ) -> messaging.Consumer:
        """Return a consumer of the node's queue.  May switch.

        Warns if another node already consumes from that queue.

        Arguments:
            channel: None is the channel of the node.
            accept: accepted content types; None is those of the mailbox.
            options: further arguments of :class:`greenconn.Consumer`.

        Raises:
            InconsistencyError: the queue is exclusive to another connection.
        """
        queue = self.mailbox.get_queue(self.hostname)
        queue.on_declared = self._warn_of_others
        try:
            return Consumer(
                channel or self.channel,
                [queue],
                no_ack=no_ack,
                accept=self.mailbox.accept if accept is None else accept,
                **options,
            )
        except ChannelError as exc:
            # By code, since a transport may raise a class of its own.
            if getattr(exc, "code", None) != ResourceLocked.code:
                raise
            raise InconsistencyError(W_PIDBOX_IN_USE.format(node=self)) from exc

    def _warn_of_others(self, name: str, messages: int, consumers: int) -> None:
        if consumers:
            warnings.warn(W_PIDBOX_IN_USE.format(node=self), stacklevel=2)

    def handler(self, fun: Handler) -> Handler:
        """Register *fun* as the handler of the command with its name, and return it.

        Raises:
            TypeError: *fun* is ``async def`` or a generator, so that calling it would run nothing.
        """
        check_runs("handler", fun)
        self.handlers[fun.__name__] = fun
        return fun

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Log and count a command that cannot be decoded."""
        self.refused += 1
        logger.error("cannot decode a command to %s: %s", self.hostname, error_text(exc, repr))

    def listen(
        self, channel: Channel | None = None, callback: Callable[[Any, Any], Any] | None = None
    ) -> messaging.Consumer:
        """Start to consume commands, and return the consumer.  May switch.

        A command is executed in the greenlet that drains the connection.

        Arguments:
            channel: None is the channel of the node.
            callback: called as ``callback(body, message)``; None is :meth:`handle_message`.
        """
        consumer = self.Consumer(
            channel=channel,
            callbacks=[callback or self.handle_message],
            on_decode_error=self.on_decode_error,
        )
        consumer.consume()
        return consumer

    def dispatch(
        self,
        method: str,
        arguments: Mapping[str, Any] | None = None,
        reply_to: Mapping[str, Any] | None = None,
        ticket: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Execute a command and return its reply.  Switches to send the reply if *reply_to* is given.

        If the handler raises, the reply is ``{"error": repr(exc)}``.

        Arguments:
            method: the name of the command.
            arguments: keyword arguments of the handler.
            reply_to: the exchange and the routing key for the reply; None sends none.
            ticket: the ticket of the call, sent back with the reply.
        """
        arguments = arguments or {}
        logger.debug(
            "%s received %.100r%s", self.hostname, method, ", with reply" if reply_to else ""
        )
        handle = self.handle_call if reply_to else self.handle_cast
        try:
            reply = handle(method, arguments)
        except Exception as exc:
            logger.exception("the command %.100r failed at %s", method, self.hostname)
            reply = {"error": error_text(exc, repr)}
        if reply_to:
            self._reply_to(reply_to, {self.hostname: reply}, ticket)
        return reply

    def _reply_to(self, address: Mapping[str, Any], reply: Any, ticket: str | None) -> None:
        """Send a reply to *address*, which came with the command: log it if that is impossible."""
        try:
            # By keyword, like kombu: an override may accept only those that it uses.
            self.reply(
                reply,
                exchange=address["exchange"],
                routing_key=address["routing_key"],
                ticket=ticket,
            )
        except _UNSENT as exc:
            self._refuse(f"cannot send the reply: {error_text(exc)}")

    def handle(self, method: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Call the handler of a command and return its reply.

        Raises:
            KeyError: no handler is registered for *method*.
            TypeError: the handler returned a coroutine or a generator, so that nothing ran.
        """
        reply = self.handlers[method](self.state, **(arguments or {}))
        if reply is not None:
            check_has_run("the handler", reply)
        return reply

    def handle_call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Execute a command whose sender waits for the reply."""
        return self.handle(method, arguments)

    def handle_cast(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Execute a command whose sender does not wait for a reply."""
        return self.handle(method, arguments)

    def handle_message(self, body: Mapping[str, Any], message: Message | None = None) -> Any:
        """Execute the command in *body* if it is addressed to this node, and return its reply.

        A malformed command is logged and counted in :attr:`refused`.
        """
        if message:
            self.adjust_clock(clock_of(message))
        if not _is_command(body):
            self._refuse("invalid command: body must be a mapping with the keys of a command")
            return None
        try:
            is_meant = self._is_meant(body)
        except Exception as exc:  # a registered matcher is user code
            self._refuse(f"invalid command: cannot match the pattern: {error_text(exc, repr)}")
            return None
        return self.dispatch(**body) if is_meant else None

    def _refuse(self, why: str) -> None:
        self.refused += 1
        logger.error("node %s: %s", self.hostname, why)

    dispatch_from_message = handle_message

    def _is_meant(self, body: Mapping[str, Any]) -> bool:
        destination = body.get("destination")
        if destination:
            return self.hostname in ([destination] if isinstance(destination, str) else destination)
        pattern, matcher = body.get("pattern"), body.get("matcher")
        if pattern and matcher:
            return bool(match(self.hostname, pattern, matcher))
        return True

    def reply(
        self, data: Any, exchange: str, routing_key: str, ticket: str | None, **kwargs: Any
    ) -> None:
        """Send a reply.  May switch."""
        self.mailbox._publish_reply(
            data,
            exchange,
            routing_key,
            ticket,
            channel=self.channel,
            serializer=self.mailbox.serializer,
        )


def _is_command(body: Any) -> bool:
    """Return whether *body* has the form of a command as :class:`Mailbox` sends it."""
    if not isinstance(body, Mapping) or not all(isinstance(name, str) for name in body):
        return False
    address = body.get("reply_to")
    return (
        isinstance(body.get("method"), str)
        and "self" not in body
        and isinstance(body.get("arguments") or {}, Mapping)
        and isinstance(body.get("destination") or (), (str, list, tuple))
        and isinstance(body.get("pattern") or "", str)
        and isinstance(body.get("matcher") or "", str)
        and (
            not address
            or (
                isinstance(address, Mapping)
                and isinstance(address.get("exchange"), str)
                and isinstance(address.get("routing_key"), str)
            )
        )
    )


class Mailbox:
    """A client that sends commands to the nodes of an application and collects their replies.

    Any number of greenlets may use one mailbox on one connection.

    Arguments:
        namespace: the name of the application.
        type: type of the command exchange; "fanout" reaches all nodes.
        connection: the connection to use; ``mailbox(connection)`` returns a copy with another one.
        clock: a logical clock; its value is a header of each command and reply.
        accept: accepted content types of commands and replies.
        serializer: serializer of commands and replies.
        producer_pool: the pool to acquire producers from; may be lazy.
        queue_ttl: seconds after which a command expires in a node's queue.
        queue_expires: seconds after which an unused queue of a node is deleted.
        queue_durable: whether queues survive a restart of the broker, and their last consumer.
        queue_exclusive: whether queues are exclusive to their connection.
        reply_queue_ttl: seconds after which a reply expires in the reply queue.
        reply_queue_expires: seconds after which an unused reply queue is deleted.

    Raises:
        ValueError: both *queue_exclusive* and *queue_durable* are true.
    """

    node_cls: ClassVar[type[Node]] = Node
    exchange_fmt: str = "%s.pidbox"
    reply_exchange_fmt: str = "reply.%s.pidbox"

    namespace: Any = None
    connection: Any = None
    type: str = "direct"
    exchange: Any = None
    reply_exchange: Any = None
    accept: Any = ["json"]
    serializer: Any = None

    def __init__(
        self,
        namespace: str,
        type: str = "direct",
        connection: Connection | None = None,
        clock: LamportClock | None = None,
        accept: Collection[str] | None = None,
        serializer: str | None = None,
        producer_pool: Any = None,
        queue_ttl: Seconds | None = None,
        queue_expires: Seconds | None = None,
        queue_durable: bool = False,
        queue_exclusive: bool = True,
        reply_queue_ttl: Seconds | None = None,
        reply_queue_expires: Seconds | None = 10.0,
    ) -> None:
        if queue_exclusive and queue_durable:
            raise ValueError(
                "queue_exclusive and queue_durable cannot both be True: an exclusive queue is "
                "deleted with its connection"
            )
        self.namespace = namespace
        self.connection = connection
        self.type = type
        self.clock = LamportClock() if clock is None else clock
        self.exchange = _exchange(self.exchange_fmt % namespace, type)
        self.reply_exchange = _exchange(self.reply_exchange_fmt % namespace, "direct")
        if accept is not None:
            self.accept = accept
        if serializer is not None:
            self.serializer = serializer
        self.queue_ttl = queue_ttl
        self.queue_expires = queue_expires
        self.queue_durable = queue_durable
        self.queue_exclusive = queue_exclusive
        self.reply_queue_ttl = reply_queue_ttl
        self.reply_queue_expires = reply_queue_expires
        self._producer_pool = producer_pool
        self._replies = Replies()

    def __call__(self, connection: Connection) -> Mailbox:
        bound = copy(self)
        bound.connection = connection
        # A reply queue of its own: two connections cannot share an exclusive queue.
        bound.__dict__.pop("reply_queue", None)
        bound._replies = Replies()
        return bound

    def Node(  # noqa: N802 - kombu's name
        self,
        hostname: str | None = None,
        state: Any = None,
        channel: Channel | None = None,
        handlers: dict[str, Callable[..., Any]] | None = None,
    ) -> Node:
        """Return a node of this mailbox.

        Arguments:
            hostname: the name of the node; None is the name of this host.
            state, channel, handlers: see :class:`Node`.
        """
        name = hostname or platform.node()
        return self.node_cls(name, state, channel, handlers, mailbox=self)

    # Commands

    def call(
        self,
        destination: Collection[str],
        command: str,
        kwargs: Mapping[str, Any] | None = None,
        timeout: Seconds | None = None,
        callback: Callable[[Any], Any] | None = None,
        channel: Channel | None = None,
    ) -> Any:
        """Send a command to the named nodes and return their replies.  May switch.

        Arguments:
            destination: names of nodes.
            command: the name of the command.
            kwargs: arguments of the command.
            timeout: seconds to collect replies; None waits until each destination has replied.
            callback: called with each reply when it arrives.

        Returns:
            A list of ``{hostname: reply}``.

        Raises:
            ValueError: *destination* is not a list or tuple.
        """
        return self._broadcast(
            command,
            kwargs,
            destination,
            reply=True,
            timeout=timeout,
            callback=callback,
            channel=channel,
        )

    def cast(
        self,
        destination: Collection[str],
        command: str,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Send a command to the named nodes without waiting for replies.  May switch.

        Raises:
            ValueError: *destination* is not a list or tuple.
        """
        return self._broadcast(command, kwargs, destination, reply=False)

    def abcast(self, command: str, kwargs: Mapping[str, Any] | None = None) -> Any:
        """Send a command to all nodes without waiting for replies.  May switch."""
        return self._broadcast(command, kwargs, reply=False)

    def multi_call(
        self,
        command: str,
        kwargs: Mapping[str, Any] | None = None,
        timeout: Seconds | None = 1,
        limit: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        channel: Channel | None = None,
    ) -> Any:
        """Send a command to all nodes and return their replies.  May switch.

        Arguments:
            command: the name of the command.
            kwargs: arguments of the command.
            timeout: seconds to collect replies; None waits for *limit* replies.
            limit: the number of replies to return after; None collects until *timeout*.
            callback: called with each reply when it arrives.

        Returns:
            A list of ``{hostname: reply}``.
        """
        return self._broadcast(
            command,
            kwargs,
            reply=True,
            timeout=timeout,
            limit=limit,
            callback=callback,
            channel=channel,
        )

    # Queues

    @property
    def oid(self) -> str:
        """The identifier of this mailbox, which is the routing key of its replies."""
        return oid_from(self)

    def get_reply_queue(self) -> Queue:
        """Return a new entity for the reply queue."""
        oid = self.oid
        return Queue(
            f"{oid}.{self.reply_exchange.name}",
            exchange=self.reply_exchange,
            routing_key=oid,
            durable=self.queue_durable,
            exclusive=self.queue_exclusive,
            auto_delete=not self.queue_durable,
            expires=self.reply_queue_expires,
            message_ttl=self.reply_queue_ttl,
        )

    @cached_property
    def reply_queue(self) -> Queue:
        """The reply queue of this mailbox."""
        return self.get_reply_queue()

    def get_queue(self, hostname: str) -> Queue:
        """Return a new entity for the queue of a node."""
        return Queue(
            f"{hostname}.{self.namespace}.pidbox",
            exchange=self.exchange,
            durable=self.queue_durable,
            exclusive=self.queue_exclusive,
            auto_delete=not self.queue_durable,
            expires=self.queue_expires,
            message_ttl=self.queue_ttl,
        )

    @cached_property
    def producer_pool(self) -> Any:
        """The pool to acquire producers from, or None."""
        return maybe_evaluate(self._producer_pool)

    @contextmanager
    def producer_or_acquire(
        self, producer: Any = None, channel: Channel | None = None
    ) -> Iterator[Any]:
        """Yield *producer*, one acquired from the pool, or a new one on *channel*.  May switch."""
        if producer:
            yield producer
        elif self.producer_pool:
            with self.producer_pool.acquire(block=True) as pooled:
                yield pooled
        else:
            yield Producer(channel, auto_declare=False)

    # Messages

    def _publish_reply(
        self,
        reply: Any,
        exchange: str,
        routing_key: str,
        ticket: str | None,
        channel: Channel | None = None,
        producer: Any = None,
        **opts: Any,
    ) -> None:
        target = _exchange(exchange, "direct")
        with self.producer_or_acquire(producer, self._channel(channel)) as used:
            try:
                used.publish(
                    reply,
                    exchange=target,
                    routing_key=routing_key,
                    declare=[target],
                    headers={"ticket": ticket, "clock": self.clock.forward()},
                    retry=True,
                    **opts,
                )
            except InconsistencyError:
                pass  # the reply queue was deleted: its caller no longer waits

    def _publish(
        self,
        type: str,
        arguments: Mapping[str, Any],
        destination: Collection[str] | None = None,
        reply_ticket: str | None = None,
        channel: Channel | None = None,
        timeout: Seconds | None = None,
        serializer: str | None = None,
        producer: Any = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        message = {
            "method": type,
            "arguments": arguments,
            "destination": destination,
            "pattern": pattern,
            "matcher": matcher,
        }
        channel = self._channel(channel)
        if reply_ticket:
            maybe_declare(self.reply_queue(channel))
            reply_to = {"exchange": self.reply_exchange.name, "routing_key": self.oid}
            message.update(ticket=reply_ticket, reply_to=reply_to)
        expires = time() + in_seconds(timeout) if timeout else 0
        with self.producer_or_acquire(producer, channel) as used:
            used.publish(
                message,
                exchange=self.exchange.name,
                declare=[self.exchange],
                headers={"clock": self.clock.forward(), "expires": expires},
                serializer=serializer or self.serializer,
                retry=True,
            )

    def _broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Collection[str] | None = None,
        reply: bool = False,
        timeout: Seconds | None = 1,
        limit: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        channel: Channel | None = None,
        serializer: str | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> Any:
        if destination is not None and not isinstance(destination, (list, tuple)):
            raise ValueError(f"destination must be a list of node names, got {destination!r}")
        for name, text in (("pattern", pattern), ("matcher", matcher)):
            if text is not None and not isinstance(text, str):
                raise ValueError(f"{name} must be text or None, got {text!r}")
        channel = self._channel(channel)
        publish = partial(
            self._publish,
            command,
            arguments or {},
            destination=destination,
            channel=channel,
            timeout=timeout,
            serializer=serializer,
            pattern=pattern,
            matcher=matcher,
        )
        if not reply:
            publish()
            return None
        if limit is None and destination:
            limit = len(destination)
        ticket = uuid()
        # Consumed before the command is sent: the queue of replies is deleted with its last consumer,
        # which may be another greenlet's.
        with self._replies_to(ticket, channel):
            publish(reply_ticket=ticket)
            return self._collect(
                ticket, limit=limit, timeout=timeout, callback=callback, channel=channel
            )

    def _collect(
        self,
        ticket: str,
        limit: int | None = None,
        timeout: Seconds | None = 1,
        callback: Callable[[Any], Any] | None = None,
        channel: Channel | None = None,
        accept: Collection[str] | None = None,
    ) -> list[Any]:
        """Collect and return the replies with *ticket*.  May switch."""
        deadline = Deadline(timeout)
        accepted = prepare_accept_content(self.accept if accept is None else accept)
        replies = []
        with self._replies_to(ticket, self._channel(channel)) as inbox:
            for message in taken_from(inbox, limit, deadline):
                self.clock.adjust(clock_of(message))
                message.accept = accepted
                try:
                    body = message.decode()
                except (SerializationError, SerializerNotInstalled) as exc:
                    logger.error("cannot decode a reply to %s: %s", self.namespace, error_text(exc))
                    continue
                if callback:
                    callback(body)
                replies.append(body)
        return replies

    @contextmanager
    def _replies_to(self, ticket: str, channel: Channel) -> Iterator[Inbox[Any]]:
        """Consume the replies with *ticket* while the context is open.  May switch."""
        if (inbox := self._replies.inbox_of(ticket)) is not None:
            yield inbox  # consumed since before the command was sent
            return
        queue = self.reply_queue
        consumer = Consumer(channel, [queue], no_ack=True)
        consumer.sink = self._replies
        try:
            with self._replies.of(ticket) as inbox, ExitStack() as running:
                # The last one that ends deletes the queue: not between declaring and consuming.
                with self._replies.lock:
                    running.enter_context(consumer)
                try:
                    yield inbox
                finally:
                    with self._replies.lock:
                        running.close()
        finally:
            if self._replies.is_idle:
                channel.after_reply_message_received(queue.name)

    def _channel(self, channel: Channel | None) -> Channel:
        return channel or self.connection.default_channel


def _exchange(name: str, type: str) -> Exchange:
    return Exchange(name, type=type, durable=False, delivery_mode="transient")


class Replies:
    """The sink of all consumers of a mailbox's reply queue.

    Several greenlets may collect at once.  The broker delivers a reply to any of their consumers; its
    ticket tells which greenlet it belongs to.  A reply to an unknown ticket is kept for later: a caller
    may publish its command before it collects.

    Attributes:
        lock: held while a consumer begins or ends.
    """

    def __init__(self) -> None:
        self.taken: Callable[[Any], None] | None = None
        self.lock = BoundedSemaphore()
        self._collecting: dict[str, Inbox[Any]] = {}
        self._unclaimed: LRUCache[str, list[Any]] = LRUCache(limit=UNCLAIMED)

    # Called by the reader of the connection: these never switch.

    def deliver(self, message: Message) -> None:
        """Pass a reply to the greenlet that collects its ticket; drop one that has expired."""
        if self.taken is not None:
            self.taken(message)
        headers = message.headers
        ticket, expires = headers.get("ticket"), headers.get("expires")
        if isinstance(expires, (int, float)) and 0 < expires < time():
            return
        if ticket is None and len(self._collecting) == 1:
            # From a node that sends no tickets: it belongs to the only greenlet that collects.
            next(iter(self._collecting.values())).put(message)
        elif not isinstance(ticket, str):
            return  # no greenlet can collect it
        elif ticket in self._collecting:
            self._collecting[ticket].put(message)
        elif ticket in self._unclaimed:
            kept = self._unclaimed[ticket]
            if len(kept) < UNCLAIMED:
                kept.append(message)
        else:
            self._unclaimed[ticket] = [message]

    def cancelled(self, exc: BaseException) -> None:
        """Raise *exc* in all greenlets that collect, as the consumer was cancelled."""
        for inbox in self._collecting.values():
            inbox.fail(exc)

    def requeue_unseen(self) -> None:
        """Do nothing: replies need no ack."""

    # Called by the greenlets that collect.

    @property
    def is_idle(self) -> bool:
        """Whether no greenlet collects."""
        return not self._collecting

    def inbox_of(self, ticket: str) -> Inbox[Any] | None:
        """Return the inbox of a greenlet that collects; None: none does with *ticket*."""
        return self._collecting.get(ticket)

    @contextmanager
    def of(self, ticket: str) -> Iterator[Inbox[Any]]:
        """Yield an inbox that gets the replies with *ticket* while the context is open."""
        inbox = self._collecting[ticket] = Inbox()
        for message in self._unclaimed.data.pop(ticket, ()):
            inbox.put(message)
        try:
            yield inbox
        finally:
            del self._collecting[ticket]


def taken_from(inbox: Inbox[Any], limit: int | None, deadline: Deadline) -> Iterator[Any]:
    """Yield messages until the deadline, at most *limit* (None or 0: unlimited).  May switch."""
    taken = 0
    while not limit or taken < limit:
        try:
            message = inbox.get(deadline)
        except TimeoutError as exc:
            if is_thrown(exc):
                raise
            return
        taken += 1
        yield message


def clock_of(message: Message) -> int:
    """Return the logical clock in the headers of *message*; 0 if it is missing or implausible."""
    clock = message.headers.get("clock")
    return clock if isinstance(clock, int) and 0 < clock < LATEST else 0
