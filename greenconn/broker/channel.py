"""The channel of every broker but AMQP's, composed of parts.

Each channel has its own deliveries and publisher.  Consumers and settlements are parts of the link,
shared by all its channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from functools import wraps
from operator import attrgetter
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
)

from amqp.protocol import queue_declare_ok_t
from gevent import get_hub

from greenconn.abc import Sink
from greenconn.broker.consuming import ConsumedFeed, Consumer, Prefetch, PrefetchView, StoreConsumer
from greenconn.broker.deliveries import Deliveries
from greenconn.broker.entities import (
    ArgumentOf,
    Entities,
    SharedEntities,
    SupportedArguments,
    warn_of_unsupported,
)
from greenconn.broker.envelope import Envelope
from greenconn.broker.errors import Method
from greenconn.broker.exchanges import BrokerState, ExchangeDeclaration
from greenconn.broker.queues import Declaration, generated_name
from greenconn.checks import check_prefetch_count
from greenconn.delays import DELAY, DelayedRoute, header_route, refused_delay
from greenconn.encoding import plain_text
from greenconn.exceptions import (
    AMQPNotImplementedError,
    ChannelError,
    NotFound,
    RecoverableChannelError,
    Unroutable,
    raise_error,
)
from greenconn.green.deadline import NEVER, Deadline
from greenconn.transport.base import StdChannel

if TYPE_CHECKING:
    from greenconn.broker.deliveries import DeliveredMessage
    from greenconn.broker.link import BrokerLink

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound="StoreChannel[Any]")


def closes_channel(
    method: Callable[Concatenate[C, P], R],
) -> Callable[Concatenate[C, P], R]:
    """Make *method* need an open channel, and close the channel when the broker refuses it."""

    @wraps(method)
    def checked(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.cause is not None or get_hub() is not self.connection.hub_affinity.hub:
            self.check_open()
        try:
            return method(self, *args, **kwargs)
        except ChannelError as exc:
            self.fail(exc)
            raise

    return checked


_TURN: Final = attrgetter("turn")
_DELIVERY_LIMIT: Final = "x-delivery-limit"


class PublishResult(Protocol):
    """The outcome of a publish that was begun."""

    def wait(self, deadline: Deadline | None = None) -> object:
        """Return when the broker has the message.  May switch.

        Raises:
            Unroutable: it was mandatory, and reached no queue.
            PublishNacked: a queue is full and refuses it.
            PublishTimeout: no reply came before the deadline; the broker may have it.
            RecoverableConnectionError: the connection was lost before; the broker may have it.
        """


class Prepared:
    """A message in the form in which one transport publishes it."""

    __slots__ = ()


M = TypeVar("M")


class Publisher(Protocol[M]):
    """The publisher of one channel; *M* is the type of its prepared messages."""

    def prepare(
        self,
        body: Any,
        priority: int | None,
        content_type: str | None,
        content_encoding: str | None,
        headers: Mapping[str, Any] | None,
        properties: MutableMapping[str, Any] | None,
    ) -> M:
        """Return a message to publish, a snapshot of the arguments.  Never switches."""

    def publish(
        self,
        message: M,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> None:
        """Publish *message* and return when it is stored.  May switch."""

    def begin(
        self,
        message: M,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> PublishResult:
        """Publish *message*; the result's ``wait`` returns or raises its outcome.  May switch."""

    def give_back(self, error: Unroutable, message: M) -> bool:
        """Call the channel's handlers of returned messages; False: it has none.  May switch."""

    def replacement(self, message: M, queue: str) -> Callable[[Any], object] | None:
        """Return what stores *message* in the place of a held one of *queue*.  May switch.

        None: the broker cannot do both in one step.  What is returned never switches.
        """

    def flush(self, timeout: float | None) -> None:
        """Return when the broker has all publishes and acks.  May switch."""

    def end(self) -> None:
        """Note that the channel has ended.  Never switches."""


L = TypeVar("L", bound="BrokerLink")


class StoreChannel(StdChannel, Generic[L]):
    """A channel.  Any greenlet of its connection's hub may call any method at any time.

    It is open until it is closed by its user, by a refusal of the broker, or with its link.

    Arguments:
        connection: the link.
        channel_id: its number on the link; None for a free one.

    Attributes:
        connection: the link.
        deliveries: its unacknowledged deliveries.
        events: event name (``basic_return``, ``basic_ack``) -> handlers.
        no_ack_consumers: tags of the consumers whose messages need no ack.
        prefetch: the limits of its unacknowledged deliveries.
        entities: its exchanges, queues and bindings.
    """

    connection: L
    #: The class of ``entities``.
    entities_class: ClassVar[type[Entities]] = SharedEntities
    #: The class of its consumers.
    consumer_class: ClassVar[type[Consumer]] = StoreConsumer
    #: Its ``queue_declare`` counts no messages with *nowait*, and reports errors all the same.
    may_skip_counts: ClassVar[bool] = True
    #: The arguments that this transport implements; the log warns of others.  These are implemented by
    #: the channel, whatever the store.
    supported_arguments: SupportedArguments = SupportedArguments(
        queue=frozenset(
            {
                "x-dead-letter-exchange",
                "x-dead-letter-routing-key",
                _DELIVERY_LIMIT,
                "x-max-priority",
                "x-message-ttl",
            }
        ),
        exchange=frozenset({"alternate-exchange"}),
        consumer=frozenset({"x-priority"}),
        message=frozenset({"priority", "expiration", DELAY, "CC", "BCC"}),
    )

    def __init__(self, connection: L, channel_id: int | None = None) -> None:
        self.connection = connection
        self.channel_id = connection.take_channel_id(channel_id)
        self.events: defaultdict[str, set[Callable[..., Any]]] = defaultdict(set)
        self.no_ack_consumers: set[str] = set()
        #: Active consumers by tag, in the order of their start.
        self.consumers: dict[str, Consumer] = {}
        self.prefetch = Prefetch()
        self.entities = self.entities_class(self)
        #: The error that closed it; None while it is open.
        self.cause: BaseException | None = None
        self.deliveries = Deliveries(self, connection.settlements)
        self._publisher = connection.publisher(self)
        # Last, as the end of the link ends all that it has: none that a signal left half made.
        connection.channels[self.channel_id] = self

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<{type(self).__name__} {self.channel_id}: {state} at {id(self):#x}>"

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self.cause is None

    @property
    def closed(self) -> bool:
        """Whether it cannot be used any more (kombu's name)."""
        return not self.is_open

    @property
    def unacked_count(self) -> int:
        """The number of deliveries that are not acknowledged."""
        return len(self.deliveries.unacked)

    @property
    def virtual_host(self) -> str:
        """The virtual host, for messages."""
        return getattr(self.connection.client, "virtual_host", None) or "/"

    def check_hub(self) -> None:
        """Raise if the caller is in another thread than the link.

        Raises:
            WrongHub: names both threads and the remedy.
        """
        self.connection.hub_affinity.check(self.connection)

    def check_open(self) -> None:
        """Raise unless it can be used.

        Raises:
            RecoverableConnectionError: its link is closed or lost.
            RecoverableChannelError: it was closed; the error that closed it is ``__cause__``.
            WrongHub: called from another thread.
        """
        hub_affinity = self.connection.hub_affinity
        if get_hub() is not hub_affinity.hub:
            hub_affinity.check(self.connection)
        if self.cause is not None:
            self.connection.check_open()
            raise RecoverableChannelError(
                f"channel {self.channel_id} is closed ({self.cause})"
            ) from self.cause

    def warn_of_unsupported(
        self, kind: ArgumentOf, name: str, arguments: Mapping[str, Any] | None
    ) -> None:
        """Log those of *arguments* that this transport does not implement.  Never switches.

        Arguments:
            name: the name of the queue or exchange, or of the target of a message.
        """
        if arguments:
            client = self.connection.client
            warn_of_unsupported(self.supported_arguments, client, kind, name, arguments)

    def delayed_route(
        self,
        exchange: str,
        routing_key: str,
        delay: float,
        headers: Mapping[str, Any] | None,
        properties: Mapping[str, Any],
    ) -> DelayedRoute:
        """Return how a message is published that is delayed; see ``delays.delayed_route``.

        Never switches.
        """
        if DELAY not in self.supported_arguments.message:
            raise refused_delay(self, delay)
        return header_route(exchange, routing_key, delay, headers)

    def close(self) -> None:
        """Close it: cancel its consumers and requeue its unacknowledged messages.  May switch.

        A second call does nothing.

        Raises:
            WrongHub: called from another thread.
        """
        if self.cause is None:
            self.check_open()
            try:
                self._withdraw()
            finally:
                self.end(RecoverableChannelError(f"channel {self.channel_id} was closed"))

    def _withdraw(self) -> None:
        """Have the sinks requeue what no handler has begun, and give them no more.  May switch."""
        if _DELIVERY_LIMIT not in self.supported_arguments.queue:
            return  # nothing counts
        sinks = []
        for consumer in self.consumers.values():
            if consumer.sink is not None and not consumer.no_ack:
                consumer.is_active = False
                sinks.append(consumer.sink)
        for sink in sinks:
            sink.requeue_unseen()

    def fail(self, exc: BaseException) -> None:
        """Close it, as the broker refused an operation.

        If callbacks consume, ``drain_events`` raises the error, since nothing else would.
        """
        if self.cause is not None:
            return
        is_drained = any(each.sink is None for each in self.consumers.values())
        self.connection.note_refusal(exc)
        self.end(exc)
        if is_drained:
            error = RecoverableChannelError(f"channel {self.channel_id} is closed ({exc})")
            error.__cause__ = exc
            self.connection.events.put((raise_error, error))

    def forget(self, exc: BaseException) -> None:
        """Forget it in the child of a fork, as the parent owns it.  Never switches."""
        self.cause = exc
        for consumer in self.consumers.values():
            consumer.is_active = False
        self.consumers.clear()

    def end(self, exc: BaseException) -> None:
        """End its life with the error *exc*, once.  Never switches."""
        if self.cause is not None:
            return
        self.cause = exc
        self.connection.remove_channel(self)
        consumers = list(self.consumers.values())
        self._release(consumers)
        self.consumers.clear()
        self.no_ack_consumers.clear()
        for consumer in consumers:
            consumer.lose(exc)
        self._publisher.end()

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
        """Declare an exchange; an existing one must be the same.  May switch.

        Arguments:
            exchange: its name; empty is the predeclared one of the type, ``amq.<type>``.
            passive: only check that it exists.

        Raises:
            NotFound: passive, and it does not exist.
            PreconditionFailed: it differs from the existing one, or there is no such type.
            AccessRefused: the name is reserved.
        """
        declared = ExchangeDeclaration(
            type=plain_text(type) or "direct",
            durable=bool(durable),
            auto_delete=bool(auto_delete),
            arguments=dict(arguments or {}),
        )
        self.entities.declare_exchange(plain_text(exchange), declared, passive=passive)

    @closes_channel
    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange and its bindings; a missing exchange is no error.  May switch.

        Raises:
            PreconditionFailed: *if_unused*, and something is bound to it.
            AccessRefused: the exchange is predeclared.
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
        """Bind exchange *destination* to exchange *source*; an existing binding is no error.

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
        """Remove a binding between exchanges; a missing binding is no error."""
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
        """Bind a queue to an exchange; an existing binding is no error.

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
        """Remove a binding of a queue; a missing binding is no error."""
        self.entities.unbind_queue(
            plain_text(queue), plain_text(exchange), plain_text(routing_key), arguments
        )

    def list_queues(self) -> list[str]:
        """Return the names of the queues that exist, in order.  May switch.

        Raises:
            NotImplementedError: the broker cannot list them.
        """
        directory = self.connection.directory
        directory.settle()
        return directory.names()

    def count_queues(self, names: Collection[str]) -> Mapping[str, tuple[int, int]]:
        """Return the numbers of waiting messages and of consumers of queues.  May switch.

        One that has ended has none.  This does not count as a use of the queues.
        """
        directory = self.connection.directory
        directory.settle()
        return directory.counts(names)

    def list_bindings(self) -> Iterator[tuple[str, str, str]]:
        """Yield ``(queue, exchange, routing key)`` for each binding of a queue."""
        return self.entities.list_bindings()

    def get_bindings(self) -> list[dict[str, str]]:
        """Return ``destination``, ``source`` and ``routing_key`` of each binding of a queue."""
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
        """Declare a queue; an existing one must be the same.  May switch.

        Arguments:
            queue: its name; empty for a generated one.
            passive: only check that it exists.
            exclusive: only this connection may use it, and it is deleted with the connection.
            auto_delete: it is deleted when its last consumer leaves.
            nowait: the numbers are not wanted, and are 0; some brokers count each message for them.
            arguments: ``x-message-ttl`` and the like; the page of the transport lists those that are
                supported.

        Returns:
            its name and its numbers of waiting messages and of consumers.

        Raises:
            NotFound: passive, and it does not exist.
            PreconditionFailed: it differs from the existing one, or an argument is not allowed.
            ResourceLocked: it is exclusive to another connection.
            AccessRefused: the name is reserved.
        """
        declared = Declaration(
            durable=bool(durable),
            auto_delete=bool(auto_delete),
            owner=self.connection.owner if exclusive else None,
            arguments=dict(arguments or {}),
        )
        return self.entities.declare_queue(
            plain_text(queue), declared, passive=passive, counted=not nowait
        )

    def has_dead_letters(
        self, queue: str, routing_key: str = "", headers: Mapping[str, Any] | None = None
    ) -> bool:
        """Return whether a rejected message of *queue* is stored in another queue.  May switch.

        Arguments:
            routing_key, headers: of the message.
        """
        link = self.connection
        default = getattr(getattr(link, "options", None), "dead_letter_queue", None)
        target = link.directory.declaration(queue).policy.dead_letter_target(queue, default)
        if target is None:
            return False
        key = routing_key if target.routing_key is None else target.routing_key
        try:
            queues = link.routing.routes(target.exchange, key, headers or {})
        except NotFound:
            return False
        return any(each != queue and link.directory.is_there(each) for each in queues)

    @closes_channel
    def queue_purge(self, queue: str = "", nowait: bool = False) -> int:
        """Purge a queue and return the number of messages that were deleted.  May switch."""
        return self.entities.purge_queue(plain_text(queue))

    @closes_channel
    def queue_delete(
        self,
        queue: str = "",
        if_unused: bool = False,
        if_empty: bool = False,
        nowait: bool = False,
    ) -> int:
        """Delete a queue and its bindings; return its number of messages.  May switch.

        Raises:
            PreconditionFailed: *if_unused*, and it has consumers; *if_empty*, and it has messages.
            ResourceLocked: it is exclusive to another connection.
        """
        return self.entities.delete_queue(plain_text(queue), if_unused, if_empty)

    # -- publishing

    def prepare_message(
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: MutableMapping[str, Any] | None = None,
    ) -> Any:
        """Return a message for ``basic_publish``, a snapshot of the arguments.

        Arguments:
            body: text or bytes, which are not copied.
            priority: 0 is the lowest.

        Raises:
            TypeError: the body is of another type.
        """
        return self._publisher.prepare(
            body, priority, content_type, content_encoding, headers, properties
        )

    @closes_channel
    def confirm_select(self, nowait: bool = False) -> None:
        """Do nothing: a publish always returns when the broker has the message."""

    def basic_publish(
        self,
        message: Prepared | Envelope,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Publish *message*, and return when the broker has it.  May switch.

        Arguments:
            message: the result of ``prepare_message``.
            mandatory: a message that reaches no queue is returned: an event calls the handlers in
                ``events['basic_return']`` with ``(exc, exchange, routing_key, message)``.  With the
                option ``confirm_publish`` it is as in :meth:`basic_publish_confirm`.
            timeout: seconds for the whole call; None is the connection's ``reply_timeout``.
            confirm_timeout: seconds for the broker's reply, within *timeout*.

        Raises:
            NotFound: there is no such exchange; the channel is closed.
            PublishTimeout: no reply came in time; the broker may have the message.
        """
        if exchange.__class__ is not str:
            exchange = _name_text("exchange", exchange)
        if routing_key.__class__ is not str:
            routing_key = _name_text("routing_key", routing_key)
        self._publisher.publish(
            message,
            exchange,
            routing_key,
            mandatory,
            immediate,
            (
                None
                if timeout is None and confirm_timeout is None
                else _deadline(timeout, confirm_timeout)
            ),
        )

    def basic_publish_confirm(
        self,
        message: Prepared | Envelope,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Publish *message*, and raise unless the broker has it.  May switch.

        Arguments:
            mandatory: a message that reaches no queue is given to the handlers in
                ``events['basic_return']``, before this returns, and raises if there are none.

        Raises:
            Unroutable: *mandatory*, and it reached no queue.
            PublishNacked: a queue is full and refuses it.
            NotFound: there is no such exchange; the channel is closed.
            Exception: otherwise as :meth:`basic_publish`.
        """
        deadline = _deadline(timeout, confirm_timeout)
        result = self.begin_publish(message, exchange, routing_key, mandatory, immediate, deadline)
        try:
            result.wait(deadline)
        except Unroutable as exc:
            if not self._publisher.give_back(exc, message):
                raise

    def begin_publish(
        self,
        message: Prepared | Envelope,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        deadline: Deadline | None = None,
    ) -> PublishResult:
        """Publish *message*; the result's ``wait`` returns or raises its outcome.  May switch.

        Raises:
            NotFound: there is no such exchange; the channel is closed.
            ContentTooLarge: the body is above ``max_message_size``.
        """
        if exchange.__class__ is not str:
            exchange = _name_text("exchange", exchange)
        if routing_key.__class__ is not str:
            routing_key = _name_text("routing_key", routing_key)
        return self._publisher.begin(message, exchange, routing_key, mandatory, immediate, deadline)

    def flush(self, timeout: float | None = None) -> None:
        """Return when the broker has all publishes and acks.  May switch.

        Raises:
            TimeoutError: not within *timeout* seconds; None is ``reply_timeout``.
            RecoverableConnectionError, RecoverableChannelError: the channel was closed.
            Exception: the error of a publish that no caller has waited for.
        """
        self._publisher.flush(timeout)

    def flush_acks(self) -> None:
        """Return when all acks and rejects are on their way.  May switch.

        After the loss of the connection this does nothing.

        Raises:
            TimeoutError: the broker read too little within ``reply_timeout``.
        """
        self.connection.flush_acks()

    # -- getting

    @closes_channel
    def basic_get(self, queue: str = "", no_ack: bool = False) -> DeliveredMessage | None:
        """Return the next message of a queue; None if it is empty.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
        if queue.__class__ is not str:
            queue = plain_text(queue)
        name = self.entities.queue_name(queue)
        delivery = self.connection.subscriptions.get(self, name)
        if delivery is None and self.connection.recall(name):
            delivery = self.connection.subscriptions.get(self, name)
        if delivery is None:
            return None
        if no_ack:
            if delivery.is_held:
                self.connection.settlements.ack(delivery)
        elif self.cause is None:
            self.deliveries.unacked[delivery.delivery_tag] = delivery
        else:
            self.connection.settlements.requeue_unseen(delivery)
            self.check_open()
        return delivery

    def message_to_python(self, raw_message: Any) -> Any:
        """Return *raw_message*, which is a message already."""
        return raw_message

    # -- acks, requeues and rejects

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        """Acknowledge a delivery.  Never switches: the ack leaves when this turn ends.

        An ack of a delivery of a lost connection is sent by the next one.  Once that is open, such an
        ack does nothing, since the message was requeued.

        Arguments:
            multiple: all deliveries of this channel up to this one; with tag 0 all.

        Raises:
            PreconditionFailed: this channel has no unacknowledged delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        self.deliveries.ack(delivery_tag, multiple)

    def replace_delivery(self, delivery_tag: Any, message: Prepared | Envelope, queue: str) -> bool:
        """Store *message* in the place of a delivery, in one step.  May switch, before that.

        It leaves when this turn ends, as an ack does.

        Arguments:
            message: the result of ``prepare_message``, with a delay.
            queue: of the delivery.

        Returns:
            False: the broker has no such step, or does not hold the delivery for this channel any more;
            nothing was done.

        Raises:
            ContentTooLarge: the body is above ``max_message_size``.
            RecoverableChannelError: the channel was closed meanwhile.
            WrongHub: called from another thread.
        """
        self.check_hub()
        if self.cause is not None:
            return False
        replace = self._publisher.replacement(message, queue)
        return replace is not None and self.deliveries.replace(delivery_tag, queue, replace)

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Reject a delivery: requeue it, or dead-letter or drop it.

        Raises:
            PreconditionFailed: this channel has no unacknowledged delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        self.deliveries.reject(delivery_tag, requeue)

    def basic_nack(self, delivery_tag: Any, multiple: bool = False, requeue: bool = True) -> None:
        """Reject a delivery, or all up to it."""
        self.deliveries.reject(delivery_tag, requeue, multiple=multiple)

    def requeue_unseen(self, delivery_tag: Any) -> None:
        """Requeue a delivery with which no handler has begun.  May switch.

        It does not count against a delivery limit, where the store can tell.  Acknowledged or rejected
        before, or the channel is gone: does nothing.

        Raises:
            WrongHub: called from another thread.
        """
        self.deliveries.requeue_unseen(delivery_tag)

    @closes_channel
    def basic_recover(self, requeue: bool = False) -> None:
        """Requeue all unacknowledged messages.

        Raises:
            AMQPNotImplementedError: *requeue* is false, which RabbitMQ does not support either.
        """
        self.deliveries.recover(requeue)

    # -- consumers

    @property
    def qos(self) -> Any:
        """The prefetch and the unacknowledged deliveries, under kombu's names."""
        return PrefetchView(self.prefetch)

    @closes_channel
    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        """Limit the unacknowledged deliveries (with RabbitMQ's meaning of *apply_global*).

        Arguments:
            prefetch_size: bytes; must be 0.
            prefetch_count: messages; 0 is no limit.
            apply_global: whether for all consumers of this channel together, from now on; else for
                each consumer that starts from now on.

        Raises:
            AMQPNotImplementedError: a limit in bytes.
            ValueError: *prefetch_count* is not an integer, at least 0.
        """
        if prefetch_size:
            raise AMQPNotImplementedError("NOT_IMPLEMENTED - prefetch_size must be 0", (60, 10))
        check_prefetch_count(prefetch_count)
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
            no_ack: messages need no ack and are gone when they are delivered.
            exclusive: whether no other consumer may consume from this queue.
            callback: called with each message, by ``drain_events``.
            arguments: ``x-priority``: of two consumers that have room, the higher is served first.
            on_cancel: called with the tag when the broker ends the consumer, by ``drain_events``.
            sink: takes the messages instead; ``drain_events`` never sees them.

        Raises:
            NotFound: there is no such queue.
            ResourceLocked: it is exclusive to another connection.
            AccessRefused: it has an exclusive consumer, or *exclusive* and it has any, or is one with a
                single active consumer.
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
        and not settled stays with this channel.
        """
        consumer_tag = plain_text(consumer_tag)
        consumer = self.consumers.get(consumer_tag)
        if consumer is not None:
            try:
                self._forget(consumer)
                self._cancelled(consumer)
            except BaseException:
                self.consumers[consumer_tag] = consumer  # for the end of the channel to cancel
                raise
        return consumer_tag

    @closes_channel
    def flow(self, active: bool = True) -> bool:
        """Stop deliveries to the consumers of this channel, or let them go on."""
        self.prefetch.is_flowing = bool(active)
        self.serve()
        return self.prefetch.is_flowing

    def take_over(self, old: StoreChannel[Any]) -> None:
        """Work as *old* did, a channel that is dead: its bounds, its handlers of events."""
        self.prefetch.count = old.prefetch.count
        self.prefetch.limit = old.prefetch.limit
        for name, handlers in old.events.items():
            self.events[name] |= handlers

    def _forget(self, consumer: Consumer) -> None:
        self.consumers.pop(consumer.tag, None)
        self.no_ack_consumers.discard(consumer.tag)

    def _feed_of(self, queue: str, method: Method) -> tuple[str, ConsumedFeed]:
        name = self.entities.queue_name(queue)
        return name, self.connection.subscriptions.feed(name, method)

    def _started(self, consumer: Consumer) -> None:
        self.connection.subscriptions.start(consumer)

    def serve(self) -> None:
        """Let its consumers have what its limit leaves, in their order.  Never switches."""
        for consumer in self._in_order():
            if consumer.is_parked:
                consumer.wake()
            else:
                self.connection.subscriptions.serve(consumer)

    def _in_order(self) -> list[Consumer]:
        """Return its consumers, those that are served first in front: those that had least."""
        return sorted(self.consumers.values(), key=_TURN)

    def _cancelled(self, consumer: Consumer) -> None:
        self.deliveries.stop(consumer)
        self.connection.subscriptions.left(consumer)

    def cancelled_by_broker(self, consumer: Consumer) -> None:
        """End a consumer whose queue is gone.  Never switches."""
        self._forget(consumer)
        self.deliveries.drop(consumer)
        self.connection.subscriptions.ended(consumer)
        consumer.cancelled_by_broker()

    def refuse(self, consumer: Consumer, error: BaseException) -> None:
        """End this channel: the broker does not let *consumer* consume.  Never switches.

        As all that a broker refuses: the user of an open channel relies on its consumers.
        """
        if self.consumers.get(consumer.tag) is consumer:
            self.fail(error)

    # -- the end

    def _release(self, consumers: list[Consumer]) -> None:
        self.deliveries.release(consumers)
        for consumer in consumers:
            self.connection.subscriptions.left(consumer)


def _name_text(what: str, value: Any) -> str:
    """Return a name as plain text.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be text, got {value!r}")
    return plain_text(value)


def _deadline(timeout: float | None, confirm_timeout: float | None) -> Deadline | None:
    """Return when a publish must be over; None: after the connection's ``reply_timeout``."""
    if confirm_timeout is None:
        return None if timeout is None else Deadline(timeout)
    return (NEVER if timeout is None else Deadline(timeout)).within(confirm_timeout)
