"""The channel methods that start, bound and end consumers."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from greenconn.abc import Sink
from greenconn.encoding import plain_text
from greenconn.exceptions import AMQPNotImplementedError
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.arguments import ArgumentOf
from greenconn.transport.virtual.consumer import Consumer, Feed
from greenconn.transport.virtual.life import ChannelLife, closes_channel
from greenconn.transport.virtual.prefetch import PrefetchView

__all__ = ["ConsumingMethods", "generated_name"]


def generated_name(prefix: str) -> str:
    """A name such as a server makes: *prefix* and 22 letters that nobody else has."""
    return prefix + base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()


class ConsumingMethods(ChannelLife):
    """Consumers and their bounds.

    Attributes:
        prefetch_count: unanswered deliveries for each consumer started from now on; 0 is no limit.
        prefetch_limit: unanswered deliveries for all consumers of the channel; 0 is no limit.
        in_flight: unanswered deliveries of all its consumers now.
        is_flowing: deliveries have not been stopped by ``flow(False)``.
    """

    prefetch_count = 0
    prefetch_limit = 0
    in_flight = 0
    is_flowing = True
    #: What stands for a consumer.
    consumer_class: ClassVar[type[Consumer]] = Consumer

    @property
    def qos(self) -> Any:
        """The prefetch and what is unanswered, as kombu's programs read them."""
        return PrefetchView(self)

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
            self.prefetch_count = prefetch_count
            return
        self.prefetch_limit = prefetch_count
        self._wake_consumers()

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
            limit=self.prefetch_count,
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
        self.is_flowing = bool(active)
        self._wake_consumers()
        return self.is_flowing

    def take_over(self, old: ConsumingMethods) -> None:
        """Work as *old* did, a channel that is dead: its bounds, its handlers of events."""
        self.prefetch_count = old.prefetch_count
        self.prefetch_limit = old.prefetch_limit
        for name, handlers in old.events.items():
            self.events[name] |= handlers

    def _forget(self, consumer: Consumer) -> None:
        self.consumers.pop(consumer.tag, None)
        self.no_ack_consumers.discard(consumer.tag)

    def _wake_consumers(self) -> None:
        """Something that bounded them all has changed.  Never switches."""
        for consumer in list(self.consumers.values()):
            consumer.wake()
