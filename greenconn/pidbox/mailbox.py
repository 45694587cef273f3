"""The mailbox of an application."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from time import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

from greenconn.caching import cached_property, maybe_evaluate
from greenconn.clocks import LamportClock
from greenconn.entity import Exchange, Queue, maybe_declare
from greenconn.exceptions import InconsistencyError, SerializationError, SerializerNotInstalled
from greenconn.green.deadline import Deadline
from greenconn.identity import oid_from, uuid
from greenconn.log import get_logger
from greenconn.messaging import Consumer, Producer
from greenconn.pidbox.node import Node
from greenconn.pidbox.replies import Replies, clock_of, taken_from
from greenconn.serialization import prepare_accept_content

if TYPE_CHECKING:
    from greenconn.abc import Channel, Connection

__all__ = ["REPLY_QUEUE_EXPIRES", "Mailbox"]

logger = get_logger("greenconn.pidbox")

#: Seconds after which the broker deletes an unused queue of replies.
REPLY_QUEUE_EXPIRES: Final = 10


class Mailbox:
    """Sends commands to the nodes of an application, and collects what they reply.

    Any number of greenlets may use one mailbox on one connection.

    Arguments:
        namespace: the name of the application.
        type: of the exchange: "direct", or "fanout" so that commands reach all nodes.
        connection: a connection; ``mailbox(connection)`` gives a mailbox with another one.
        clock: a logical clock that is sent along.
        accept: content types of commands and replies.
        serializer: of commands and replies.
        producer_pool: where producers come from; may be lazy.
        queue_ttl: seconds that a command lives in a node's queue.
        queue_expires: seconds after which an unused queue of a node is deleted.
        queue_durable: whether queues survive the broker, and their last consumer.
        queue_exclusive: whether queues are for their connection alone.
        reply_queue_ttl, reply_queue_expires: of the queue of replies.

    Raises:
        ValueError: the queues shall be exclusive and durable.
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
        queue_ttl: float | None = None,
        queue_expires: float | None = None,
        queue_durable: bool = False,
        queue_exclusive: bool = True,
        reply_queue_ttl: float | None = None,
        reply_queue_expires: float | None = 10.0,
    ) -> None:
        if queue_exclusive and queue_durable:
            raise ValueError(
                "queue_exclusive and queue_durable cannot both be True: an exclusive queue goes with "
                "its connection"
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
        # Its own queue of replies: two connections cannot share an exclusive one.
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
        """Make a node, by default with the name of this host."""
        name = hostname or platform.node()
        return self.node_cls(name, state, channel, handlers, mailbox=self)

    # Commands

    def call(
        self,
        destination: Collection[str],
        command: str,
        kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        callback: Callable[[Any], Any] | None = None,
        channel: Channel | None = None,
    ) -> Any:
        """Send a command to some nodes and return their replies.  May switch.

        Arguments:
            destination: names of nodes.
            kwargs: arguments of the command.
            timeout: seconds for all replies; None waits for as many as there are destinations.
            callback: called with each reply as it comes.

        Returns:
            A list of ``{hostname: reply}``.

        Raises:
            ValueError: *destination* is no list.
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
        """Send a command to some nodes, without replies.  May switch."""
        return self._broadcast(command, kwargs, destination, reply=False)

    def abcast(self, command: str, kwargs: Mapping[str, Any] | None = None) -> Any:
        """Send a command to all nodes, without replies.  May switch."""
        return self._broadcast(command, kwargs, reply=False)

    def multi_call(
        self,
        command: str,
        kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = 1,
        limit: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        channel: Channel | None = None,
    ) -> Any:
        """Send a command to all nodes and return what they reply within *timeout*.  May switch.

        Arguments:
            timeout: seconds for all replies.
            limit: return when there are so many.
            callback: called with each reply as it comes.
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
        """What tells this mailbox from any other: the routing key of its replies."""
        return oid_from(self)

    def get_reply_queue(self) -> Queue:
        """Make the queue of this mailbox's replies."""
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
        """The queue of this mailbox's replies."""
        return self.get_reply_queue()

    def get_queue(self, hostname: str) -> Queue:
        """Make the queue of a node."""
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
        """The pool of producers, if there is one."""
        return maybe_evaluate(self._producer_pool)

    @contextmanager
    def producer_or_acquire(
        self, producer: Any = None, channel: Channel | None = None
    ) -> Iterator[Any]:
        """Use *producer*, one of the pool, or one on *channel*.  May switch."""
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
                pass  # the queue has gone, and with it who asked

    def _publish(
        self,
        type: str,
        arguments: Mapping[str, Any],
        destination: Collection[str] | None = None,
        reply_ticket: str | None = None,
        channel: Channel | None = None,
        timeout: float | None = None,
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
        expires = time() + timeout if timeout else 0
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
        timeout: float | None = 1,
        limit: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        channel: Channel | None = None,
        serializer: str | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> Any:
        if destination is not None and not isinstance(destination, (list, tuple)):
            raise ValueError(f"destination must be a list of names of nodes, got {destination!r}")
        for name, text in (("pattern", pattern), ("matcher", matcher)):
            if text is not None and not isinstance(text, str):
                raise ValueError(f"{name}={text!r}: it is text")
        channel = self._channel(channel)
        ticket = uuid() if reply else None
        self._publish(
            command,
            arguments or {},
            destination=destination,
            reply_ticket=ticket,
            channel=channel,
            timeout=timeout,
            serializer=serializer,
            pattern=pattern,
            matcher=matcher,
        )
        if ticket is None:
            return None
        if limit is None and destination:
            limit = len(destination)
        return self._collect(
            ticket, limit=limit, timeout=timeout, callback=callback, channel=channel
        )

    def _collect(
        self,
        ticket: str,
        limit: int | None = None,
        timeout: float | None = 1,
        callback: Callable[[Any], Any] | None = None,
        channel: Channel | None = None,
        accept: Collection[str] | None = None,
    ) -> list[Any]:
        """Return the replies with *ticket*.  May switch."""
        deadline = Deadline(timeout)
        accepted = prepare_accept_content(self.accept if accept is None else accept)
        channel = self._channel(channel)
        queue = self.reply_queue
        consumer = Consumer(channel, [queue], no_ack=True)
        consumer.sink = self._replies
        replies = []
        try:
            with self._replies.of(ticket) as inbox, consumer:
                for message in taken_from(inbox, limit, deadline):
                    self.clock.adjust(clock_of(message))
                    message.accept = accepted
                    try:
                        body = message.decode()
                    except (SerializationError, SerializerNotInstalled) as exc:
                        logger.error("a reply to %s cannot be decoded: %s", self.namespace, exc)
                        continue
                    if callback:
                        callback(body)
                    replies.append(body)
        finally:
            if self._replies.is_idle:
                channel.after_reply_message_received(queue.name)
        return replies

    def _channel(self, channel: Channel | None) -> Channel:
        return channel or self.connection.default_channel


def _exchange(name: str, type: str) -> Exchange:
    return Exchange(name, type=type, durable=False, delivery_mode="transient")
