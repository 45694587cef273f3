"""A channel that has no broker's channel behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import wraps
from typing import Any, ClassVar, Concatenate, Final, ParamSpec, TypeVar

from amqp.protocol import queue_declare_ok_t
from gevent import get_hub

from greenconn.abc import Sink
from greenconn.encoding import plain_text
from greenconn.exceptions import AMQPNotImplementedError, ChannelError, RecoverableChannelError
from greenconn.green.state import moved
from greenconn.transport.base import StdChannel
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.arguments import (
    ArgumentOf,
    SupportedArguments,
    warn_of_unsupported,
)
from greenconn.transport.virtual.consumer import Consumer, Feed
from greenconn.transport.virtual.entities import Entities
from greenconn.transport.virtual.link import VirtualLink
from greenconn.transport.virtual.names import generated_name
from greenconn.transport.virtual.prefetch import Prefetch, PrefetchView
from greenconn.transport.virtual.state import BrokerState

__all__ = ["CHANNEL_MOVES", "ChannelLife", "ChannelState", "closes_channel"]

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound="ChannelLife")


class ChannelState(Enum):
    """The stages of a channel's life."""

    #: It can be used.
    OPEN = "open"
    #: It was closed by its user, by a refusal of the broker, or with its link.
    CLOSED = "closed"


CHANNEL_MOVES: Final[Mapping[ChannelState, frozenset[ChannelState]]] = {
    ChannelState.OPEN: frozenset({ChannelState.CLOSED}),
    ChannelState.CLOSED: frozenset(),
}
#: Asked for with each call, and to look up a member of an Enum costs more than all else in check_open.
_OPEN: Final = ChannelState.OPEN


def closes_channel(
    method: Callable[Concatenate[C, P], R],
) -> Callable[Concatenate[C, P], R]:
    """Make *method* need an open channel, and close the channel when the broker refuses it."""

    @wraps(method)
    def checked(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.state_of_life is not _OPEN or get_hub() is not self.connection.home.hub:
            self.check_open()
        try:
            return method(self, *args, **kwargs)
        except ChannelError as exc:
            self.fail(exc)
            raise

    return checked


class ChannelLife(StdChannel):
    """A channel with consumers.

    It is open until it is closed by its user, by a refusal of the broker, or with its link.

    Arguments:
        connection: the link.
        channel_id: its number on the link; None takes a free one.

    Attributes:
        connection: the link.
        events: event name (``basic_return``, ``basic_ack``) -> handlers.
        no_ack_consumers: tags of the consumers whose messages need no answer.
        prefetch: the bounds of its deliveries.
        entities: its exchanges, queues and bindings.
    """

    #: The arguments that this transport implements; the log warns of others.
    supported_arguments: SupportedArguments = SupportedArguments()
    #: What declares, binds and deletes.
    entities_class: ClassVar[type[Entities]] = Entities
    #: What stands for a consumer.
    consumer_class: ClassVar[type[Consumer]] = Consumer

    def __init__(self, connection: VirtualLink, channel_id: int | None = None) -> None:
        self.connection = connection
        self.channel_id = connection.admit(self, channel_id)
        self.events: defaultdict[str, set[Callable[..., Any]]] = defaultdict(set)
        self.no_ack_consumers: set[str] = set()
        #: Active consumers by tag, in the order in which they were started.
        self.consumers: dict[str, Consumer] = {}
        self.prefetch = Prefetch()
        self.entities = self.entities_class(self)
        self.state_of_life: ChannelState = _OPEN
        #: Why it is closed.
        self.cause: BaseException | None = None

    def __repr__(self) -> str:
        state = self.state_of_life.value
        return f"<{type(self).__name__} {self.channel_id}: {state} at {id(self):#x}>"

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self.state_of_life is _OPEN

    @property
    def closed(self) -> bool:
        """Whether it cannot be used any more (kombu's name)."""
        return not self.is_open

    @property
    def virtual_host(self) -> str:
        """For messages."""
        return getattr(self.connection.client, "virtual_host", None) or "/"

    def check_hub(self) -> None:
        """Raise if the caller is in another thread than the link.

        Raises:
            WrongHub: names both threads and the remedy.
        """
        self.connection.home.check(self.connection)

    def check_open(self) -> None:
        """Raise unless it can be used here and now.

        Raises:
            RecoverableConnectionError: its link is closed or lost.
            RecoverableChannelError: it was closed; ``__cause__`` is why.
            WrongHub: called from another thread.
        """
        home = self.connection.home
        if get_hub() is not home.hub:
            home.check(self.connection)
        if self.state_of_life is not _OPEN:
            self.connection.check_open()
            raise RecoverableChannelError(
                f"channel {self.channel_id} is closed ({self.cause})"
            ) from self.cause

    def warn_of_unsupported(
        self, kind: ArgumentOf, name: str, arguments: Mapping[str, Any] | None
    ) -> None:
        """Log those of *arguments* that this transport does not implement.  Never switches.

        Arguments:
            name: of the queue or exchange, or what messages go to.
        """
        if arguments:
            client = self.connection.client
            warn_of_unsupported(self.supported_arguments, client, kind, name, arguments)

    def flush(self, timeout: float | None = None) -> None:
        """Raise unless it can be used: the broker has all when a call returns.

        Arguments:
            timeout: of no use here.

        Raises:
            RecoverableConnectionError, RecoverableChannelError: it is gone.
        """
        self.check_open()

    def close(self) -> None:
        """Close it: consumers end, and what was not answered goes back to its queues.

        Again: does nothing.

        Raises:
            WrongHub: called from another thread.
        """
        if self.state_of_life is _OPEN:
            self.check_open()
            self.end(RecoverableChannelError(f"channel {self.channel_id} was closed"))

    def fail(self, exc: BaseException) -> None:
        """Close it because the broker refused something.

        Consumers of callbacks have no other way to learn of it than the connection's events.
        """
        if self.state_of_life is not _OPEN:
            return
        is_drained = any(each.sink is None for each in self.consumers.values())
        self.end(exc)
        if is_drained:
            told = RecoverableChannelError(f"channel {self.channel_id} is closed ({exc})")
            told.__cause__ = exc
            self.connection.events.put((_raise, told))

    def end(self, exc: BaseException) -> None:
        """End its life for the reason *exc*.  Never switches.  Again: does nothing."""
        if self.state_of_life is not _OPEN:
            return
        self._move(ChannelState.CLOSED)
        self.cause = exc
        self.connection.dismiss(self)
        consumers = list(self.consumers.values())
        self._release(consumers)
        self.consumers.clear()
        self.no_ack_consumers.clear()
        for consumer in consumers:
            consumer.lose(exc)

    def _move(self, state: ChannelState) -> None:
        self.state_of_life = moved(self.state_of_life, state, CHANNEL_MOVES, "a channel")

    def forget(self, exc: BaseException) -> None:
        """In the child of a fork: it is the parent's.  Tells nobody; never switches."""
        self._move(ChannelState.CLOSED)
        self.cause = exc
        for consumer in self.consumers.values():
            consumer.is_active = False
        self.consumers.clear()

    def cancelled_by_broker(self, consumer: Consumer) -> None:
        """The queue of a consumer of this channel is gone.  Never switches."""
        raise NotImplementedError

    def _release(self, consumers: list[Consumer]) -> None:
        """Stop *consumers* and give back whatever this channel still holds.  Never switches."""
        raise NotImplementedError

    # -- exchanges, queues and bindings

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings."""
        return self.entities.state

    @closes_channel
    def exchange_declare(
        self,
        exchange: str = "",
        type: str = "direct",
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = False,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Make an exchange, or check that the existing one is the same.  May switch.

        Arguments:
            exchange: its name; empty means the ready-made one of that type, ``amq.<type>``.
            passive: only check that it exists.

        Raises:
            NotFound: passive, and it does not exist.
            PreconditionFailed: it differs from the existing one, or there is no such type.
            AccessRefused: the name is reserved.
        """
        self.entities.declare_exchange(
            plain_text(exchange),
            plain_text(type),
            passive=passive,
            durable=durable,
            auto_delete=auto_delete,
            arguments=arguments,
        )

    @closes_channel
    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange and its bindings; one that is not there is no error.  May switch.

        Raises:
            PreconditionFailed: *if_unused*, and something is bound to it.
            AccessRefused: it is one of the ready-made exchanges.
        """
        self.entities.delete_exchange(plain_text(exchange), if_unused)

    @closes_channel
    def exchange_bind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Bind exchange *destination* to exchange *source*; again: changes nothing.

        Raises:
            NotFound: one of the exchanges does not exist.
            AccessRefused: one of them is the default exchange.
        """
        self.entities.bind_exchange(
            plain_text(destination), plain_text(source), plain_text(routing_key), arguments
        )

    @closes_channel
    def exchange_unbind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Remove a binding between exchanges; one that is not there is no error."""
        self.entities.unbind_exchange(
            plain_text(destination), plain_text(source), plain_text(routing_key), arguments
        )

    @closes_channel
    def queue_bind(
        self,
        queue: str = "",
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Bind a queue to an exchange; again: changes nothing.

        Raises:
            NotFound: the queue or the exchange does not exist.
            AccessRefused: the exchange is the default one.
        """
        self.entities.bind_queue(
            plain_text(queue), plain_text(exchange), plain_text(routing_key), arguments
        )

    @closes_channel
    def queue_unbind(
        self,
        queue: str = "",
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Remove a binding of a queue; one that is not there is no error."""
        self.entities.unbind_queue(
            plain_text(queue), plain_text(exchange), plain_text(routing_key), arguments
        )

    def list_bindings(self) -> Iterator[tuple[str, str, str]]:
        """``(queue, exchange, routing key)`` of every binding to a queue."""
        return self.entities.list_bindings()

    def get_bindings(self) -> list[dict[str, str]]:
        """Every binding to a queue: ``destination``, ``source``, ``routing_key``."""
        return [
            {"destination": queue, "source": exchange, "routing_key": key}
            for queue, exchange, key in self.list_bindings()
        ]

    @closes_channel
    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> queue_declare_ok_t:
        """Make a queue, or check that the existing one is the same.  May switch.

        Arguments:
            queue: its name; empty makes one up.
            passive: only check that it exists.
            exclusive: for this connection only, and deleted with it.
            auto_delete: deleted when its last consumer leaves.
            arguments: ``x-message-ttl`` and the like; the page of the transport lists those that
                count there.

        Returns:
            its name, how many messages wait, how many consumers it has.

        Raises:
            NotFound: passive, and it does not exist.
            PreconditionFailed: it differs from the existing one, or an argument cannot be.
            ResourceLocked: it is exclusive to another connection.
            AccessRefused: the name is reserved.
        """
        return self.entities.declare_queue(
            plain_text(queue),
            passive=passive,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            arguments=arguments,
        )

    @closes_channel
    def queue_purge(self, queue: str = "", nowait: bool = False) -> int:
        """Drop the messages that wait in a queue and return how many there were.  May switch."""
        return self.entities.purge_queue(plain_text(queue))

    @closes_channel
    def queue_delete(
        self,
        queue: str = "",
        if_unused: bool = False,
        if_empty: bool = False,
        nowait: bool = False,
    ) -> int:
        """Delete a queue and its bindings; return how many messages it had.  May switch.

        Raises:
            PreconditionFailed: *if_unused*, and somebody consumes from it; *if_empty*, and it is not.
            ResourceLocked: it is exclusive to another connection.
        """
        return self.entities.delete_queue(plain_text(queue), if_unused, if_empty)

    # -- consumers

    @property
    def qos(self) -> Any:
        """The prefetch and what is unanswered, as kombu's programs read them."""
        return PrefetchView(self.prefetch)

    def _feed_of(self, queue: str, method: Method) -> tuple[str, Feed]:
        """Return the name of the queue that *queue* means, and where its messages come from.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        raise NotImplementedError

    def _started(self, consumer: Consumer) -> None:
        """Let *consumer* have messages.

        Raises:
            AccessRefused: it may not consume beside another one.
        """
        raise NotImplementedError

    def _cancelled(self, consumer: Consumer) -> None:
        """Its user cancelled *consumer*: stop it and give back what he has not seen."""
        raise NotImplementedError

    @closes_channel
    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        """Bound the deliveries that may be unanswered at once (RabbitMQ's meaning).

        Arguments:
            prefetch_size: bytes; must be 0.
            prefetch_count: messages; 0 is no limit.
            apply_global: for all consumers of this channel together, from now on; else for each
                consumer that is started from now on by itself.

        Raises:
            AMQPNotImplementedError: a limit in bytes.
        """
        if prefetch_size:
            raise AMQPNotImplementedError("NOT_IMPLEMENTED - prefetch_size is not 0", (60, 10))
        if not apply_global:
            self.prefetch.count = prefetch_count
            return
        self.prefetch.limit = prefetch_count
        self.serve()

    @closes_channel
    def basic_consume(
        self,
        queue: str = "",
        consumer_tag: str = "",
        no_local: bool = False,
        no_ack: bool = False,
        exclusive: bool = False,
        nowait: bool = False,
        callback: Callable[[Any], Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        on_cancel: Callable[[str], Any] | None = None,
        *,
        sink: Sink | None = None,
    ) -> str:
        """Start a consumer and return its tag.

        Arguments:
            consumer_tag: unique on this channel; empty lets the broker choose.
            no_ack: messages need no answer and are gone when they are delivered.
            exclusive: nobody else may consume from this queue.
            callback: called with each message, by ``drain_events``.
            arguments: ``x-priority``: of two consumers that have room, the higher is served first.
            on_cancel: called with the tag when the broker ends the consumer, by ``drain_events``.
            sink: takes the messages instead; ``drain_events`` never sees them.

        Raises:
            NotFound: there is no such queue.
            ResourceLocked: it is exclusive to another connection.
            AccessRefused: it has an exclusive consumer, or *exclusive* and it has any.
            ValueError: the tag is in use on this channel.
        """
        queue, consumer_tag = plain_text(queue), plain_text(consumer_tag)
        tag = consumer_tag or generated_name("amq.ctag-")
        if tag in self.consumers:
            raise ValueError(f"consumer tag {tag!r} is in use on this channel")
        name, feed = self._feed_of(queue, Method.BASIC_CONSUME)
        self.warn_of_unsupported(ArgumentOf.CONSUMER, name, arguments)
        consumer = self.consumer_class(
            self,
            feed,
            tag,
            name,
            callback=callback,
            sink=sink,
            no_ack=no_ack,
            exclusive=exclusive,
            limit=self.prefetch.count,
            arguments=arguments,
            on_cancel=on_cancel,
        )
        self.consumers[tag] = consumer
        if no_ack:
            self.no_ack_consumers.add(tag)
        try:
            self._started(consumer)
        except BaseException:
            self._forget(consumer)
            raise
        return tag

    @closes_channel
    def basic_cancel(self, consumer_tag: str, nowait: bool = False) -> str:
        """End a consumer and return its tag; one that is not there is no error.

        Messages that became events and were not drained go back to the queue; what was delivered
        and not answered stays with this channel.
        """
        consumer_tag = plain_text(consumer_tag)
        consumer = self.consumers.get(consumer_tag)
        if consumer is not None:
            self._forget(consumer)
            self._cancelled(consumer)
        return consumer_tag

    @closes_channel
    def flow(self, active: bool = True) -> bool:
        """Stop deliveries to the consumers of this channel, or let them go on."""
        self.prefetch.is_flowing = bool(active)
        self.serve()
        return self.prefetch.is_flowing

    def take_over(self, old: ChannelLife) -> None:
        """Work as *old* did, a channel that is dead: its bounds, its handlers of events."""
        self.prefetch.count = old.prefetch.count
        self.prefetch.limit = old.prefetch.limit
        for name, handlers in old.events.items():
            self.events[name] |= handlers

    def _forget(self, consumer: Consumer) -> None:
        self.consumers.pop(consumer.tag, None)
        self.no_ack_consumers.discard(consumer.tag)

    def serve(self) -> None:
        """Let its consumers have what its bounds leave.  Never switches."""
        for consumer in list(self.consumers.values()):
            consumer.wake()


def _raise(exc: BaseException) -> None:
    raise exc
