"""The channel of every broker that holds a message until it is answered.

It is made of parts.  Its deliveries and its publisher are its own; consumers and answers are parts of
the link, which all its channels share.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from greenconn.abc import DeadlineLike
from greenconn.broker.consumers import StoreConsumer, Subscriptions
from greenconn.broker.deliveries import Acknowledger, DeliveredMessage, Deliveries
from greenconn.broker.entities import SharedEntities, SharingLink
from greenconn.encoding import plain_text
from greenconn.green.deadline import NEVER, Deadline
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.arguments import SupportedArguments
from greenconn.transport.virtual.consumer import Consumer, Feed
from greenconn.transport.virtual.entities import Entities
from greenconn.transport.virtual.life import ChannelLife, ChannelState, closes_channel
from greenconn.transport.virtual.publishing import Envelope

__all__ = ["BrokerLink", "Prepared", "PublishResult", "Publisher", "StoreChannel"]

_OPEN: Final = ChannelState.OPEN


class PublishResult(Protocol):
    """A publish that was begun."""

    def wait(self, deadline: DeadlineLike | None = None) -> object:
        """Return when the broker has the message.  May switch.

        Raises:
            Unroutable: it was mandatory, and reached no queue.
            PublishNacked: a queue is full and refuses more.
            PublishTimeout: nothing was heard before the deadline; the broker may have it.
            RecoverableConnectionError: the connection went first; the broker may have it.
        """


class Prepared:
    """A message in the form in which one transport publishes it."""

    __slots__ = ()


M = TypeVar("M")


class Publisher(Protocol[M]):
    """What one channel publishes with; *M* is what it prepares."""

    def prepare(
        self,
        body: Any,
        priority: int | None,
        content_type: str | None,
        content_encoding: str | None,
        headers: Mapping[str, Any] | None,
        properties: MutableMapping[str, Any] | None,
    ) -> M:
        """Return a message to publish: a snapshot of what may be changed later.  Never switches."""

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
        deadline: DeadlineLike | None,
    ) -> PublishResult:
        """Publish *message*; the result's ``wait`` tells what became of it.  May switch."""

    def flush(self, timeout: float | None) -> None:
        """Return when the broker has all that was published and answered.  May switch."""

    def end(self) -> None:
        """Note that the channel has ended.  Never switches."""


class BrokerLink(SharingLink):
    """A link to such a broker.

    Attributes:
        answers: take the answers of its channels.
        subscriptions: the queues that its channels consume from.
    """

    answers: Acknowledger
    subscriptions: Subscriptions

    def publisher(self, channel: StoreChannel[Any]) -> Publisher[Any]:
        """Return what *channel* publishes with."""
        raise NotImplementedError

    def flush_answers(self) -> None:
        """Return when all answers are on their way.  May switch.

        Where the connection is lost it does nothing: the next one tells them.

        Raises:
            TimeoutError: the broker took too little within ``reply_timeout``.
        """
        raise NotImplementedError


L = TypeVar("L", bound=BrokerLink)


class StoreChannel(ChannelLife, Generic[L]):
    """A channel.  Any greenlet of its connection's hub may call any method at any time.

    Arguments:
        connection: the link.

    Attributes:
        deliveries: what is not answered.
    """

    connection: L
    entities_class: ClassVar[type[Entities]] = SharedEntities
    consumer_class: ClassVar[type[Consumer]] = StoreConsumer
    #: What the channels do, whatever the store is.
    supported_arguments: SupportedArguments = SupportedArguments(
        queue=frozenset(
            {
                "x-dead-letter-exchange",
                "x-dead-letter-routing-key",
                "x-delivery-limit",
                "x-max-priority",
                "x-message-ttl",
            }
        ),
        exchange=frozenset({"alternate-exchange"}),
        consumer=frozenset({"x-priority"}),
        message=frozenset({"priority", "expiration", "x-delay", "CC", "BCC"}),
    )

    def __init__(self, connection: L, channel_id: int | None = None) -> None:
        super().__init__(connection, channel_id)
        self.deliveries = Deliveries(self, connection.answers)
        self._publisher = connection.publisher(self)

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
        """Return what ``basic_publish`` takes: a snapshot of what may be changed later.

        Arguments:
            body: text or bytes, which are not copied.
            priority: 0 is the lowest.

        Raises:
            TypeError: the body is something else.
        """
        return self._publisher.prepare(
            body, priority, content_type, content_encoding, headers, properties
        )

    @closes_channel
    def confirm_select(self, nowait: bool = False) -> None:
        """Ask for confirms.  A publish returns when the broker has it, so nothing changes."""

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
            message: of ``prepare_message``.
            mandatory: one that reaches no queue comes back: an event calls the handlers in
                ``events['basic_return']`` with ``(exc, exchange, routing_key, message)``.
            timeout: seconds for all of it; None is the connection's ``reply_timeout``.
            confirm_timeout: seconds for the broker's answer, within *timeout*.

        Raises:
            NotFound: there is no such exchange; the channel is closed.
            PublishTimeout: nothing was heard in time; the broker may have it.
        """
        if exchange.__class__ is not str:
            exchange = plain_text(exchange)
        if routing_key.__class__ is not str:
            routing_key = plain_text(routing_key)
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

        Raises:
            Unroutable: *mandatory*, and it reached no queue.
            PublishNacked: a queue is full and refuses more.
            NotFound: there is no such exchange; the channel is closed.
            Exception: otherwise as :meth:`basic_publish`.
        """
        deadline = _deadline(timeout, confirm_timeout)
        self.begin_publish(message, exchange, routing_key, mandatory, immediate, deadline).wait(
            deadline
        )

    def begin_publish(
        self,
        message: Prepared | Envelope,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        deadline: DeadlineLike | None = None,
    ) -> PublishResult:
        """Publish *message*; the result's ``wait`` tells what became of it.  May switch.

        Raises:
            NotFound: there is no such exchange; the channel is closed.
            ContentTooLarge: the body is above ``max_message_size``.
        """
        if exchange.__class__ is not str:
            exchange = plain_text(exchange)
        if routing_key.__class__ is not str:
            routing_key = plain_text(routing_key)
        return self._publisher.begin(message, exchange, routing_key, mandatory, immediate, deadline)

    def flush(self, timeout: float | None = None) -> None:
        """Return when the broker has what was published and answered.  May switch.

        Raises:
            TimeoutError: it was not within *timeout* seconds; None is ``reply_timeout``.
            RecoverableConnectionError, RecoverableChannelError: the channel is gone.
            Exception: what became of a publish that nobody has waited for.
        """
        self._publisher.flush(timeout)

    def flush_answers(self) -> None:
        """Return when all answers to deliveries are on their way.  May switch.

        Where the connection is lost it does nothing.

        Raises:
            TimeoutError: the broker took too little within ``reply_timeout``.
        """
        self.connection.flush_answers()

    # -- getting

    @closes_channel
    def basic_get(self, queue: str = "", no_ack: bool = False) -> DeliveredMessage | None:
        """Take the next message of a queue; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
        if queue.__class__ is not str:
            queue = plain_text(queue)
        name = self.entities.queue_name(queue)
        delivery = self.connection.subscriptions.get(self, name)
        if delivery is None:
            return None
        if no_ack:
            if delivery.is_held:
                self.connection.answers.done(delivery)
        elif self.state_of_life is _OPEN:
            self.deliveries.unanswered[delivery.delivery_tag] = delivery
        else:
            self.connection.answers.return_unseen(delivery)
            self.check_open()
        return delivery

    def message_to_python(self, raw_message: Any) -> Any:
        """Return *raw_message*: messages come ready."""
        return raw_message

    # -- answers

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        """Say that a delivery is done.  Never switches: the broker is told when this turn ends.

        For a delivery of a connection that is gone it counts until the connection is there again,
        and does nothing afterwards: the message is back in its queue.

        Arguments:
            multiple: all deliveries of this channel up to this one; with tag 0 all there are.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        self.deliveries.ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Refuse a delivery: it goes back to its queue, or is a dead letter.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        self.deliveries.reject(delivery_tag, requeue)

    def basic_nack(self, delivery_tag: Any, multiple: bool = False, requeue: bool = True) -> None:
        """Refuse a delivery, or all up to it."""
        self.deliveries.reject(delivery_tag, requeue, multiple=multiple)

    @closes_channel
    def basic_recover(self, requeue: bool = False) -> None:
        """Give everything that was delivered and not answered back to its queues.

        Raises:
            AMQPNotImplementedError: *requeue* is false, which RabbitMQ does not know either.
        """
        self.deliveries.recover(requeue)

    # -- consumers

    def _feed_of(self, queue: str, method: Method) -> tuple[str, Feed]:
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
        """Return its consumers, those that are served first in front."""
        return list(self.consumers.values())

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

        As all that a broker refuses: whoever uses a channel that is open relies on its consumers.
        """
        if self.consumers.get(consumer.tag) is consumer:
            self.fail(error)

    # -- the end

    def end(self, exc: BaseException) -> None:
        """End its life for the reason *exc*.  Never switches.  Again: does nothing."""
        super().end(exc)
        self._publisher.end()

    def _release(self, consumers: list[Consumer]) -> None:
        for consumer in consumers:
            consumer.stop()
        self.deliveries.release()
        for consumer in consumers:
            self.connection.subscriptions.left(consumer)


def _deadline(timeout: float | None, confirm_timeout: float | None) -> Deadline | None:
    """Return when a publish must be over; None: after the connection's ``reply_timeout``."""
    if confirm_timeout is None:
        return None if timeout is None else Deadline(timeout)
    return (NEVER if timeout is None else Deadline(timeout)).within(confirm_timeout)
