"""Publishing to the memory broker: a message is in its queues when the call returns."""

from __future__ import annotations

import warnings
from typing import Final

from gevent import get_hub

from greenconn.abc import DeadlineLike
from greenconn.exceptions import ChannelError, PublishNacked
from greenconn.green.deadline import Deadline
from greenconn.options import MemoryOptions
from greenconn.transport.memory.broker import Broker, Outcome
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.life import ChannelState
from greenconn.transport.virtual.port import ChannelPort
from greenconn.transport.virtual.publishing import (
    Decided,
    DecidedPublisher,
    Envelope,
    no_immediate,
    return_message,
    too_large,
    undeliverable,
    unroutable,
    warn_of_message,
)

__all__ = ["MemoryPublisher"]

_OPEN: Final = ChannelState.OPEN
#: The outcome of a message that needs no report.
_DONE: Final = Decided(None)


class MemoryPublisher(DecidedPublisher):
    """The publisher of one channel.

    Arguments:
        channel: is closed by what the broker refuses.
        broker: has the queues.
        options: of the link.
    """

    def __init__(self, channel: ChannelPort, broker: Broker, options: MemoryOptions) -> None:
        super().__init__(channel)
        self._broker = broker
        self._hub = channel.connection.home.hub
        self._is_confirming = options.confirm_publish
        self._max_size = options.max_message_size
        self._last_queue = options.deadletter_queue

    def publish(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> None:
        """Publish *message*.  May switch, before anything is published."""
        if self._is_confirming:
            self.begin(message, exchange, routing_key, mandatory, immediate, deadline).wait()
            return
        outcome = self._put(message, exchange, routing_key, immediate)
        if mandatory and outcome is Outcome.UNROUTED:
            return_message(self._channel, message, exchange, routing_key)

    def begin(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: DeadlineLike | None,
    ) -> Decided:
        """Publish *message*; the result's ``wait`` tells what became of it.  May switch."""
        outcome = self._put(message, exchange, routing_key, immediate)
        if outcome is Outcome.REFUSED:
            return Decided(
                PublishNacked(
                    f"a queue is full and refused the message (exchange {exchange!r}, "
                    f"routing key {routing_key!r})"
                )
            )
        if mandatory and outcome is Outcome.UNROUTED:
            return Decided(unroutable(exchange, routing_key))
        return _DONE

    def _put(self, message: Envelope, exchange: str, routing_key: str, immediate: bool) -> Outcome:
        """Put *message* into its queues, and tell what became of it.  May switch before that."""
        if immediate:
            raise no_immediate()
        self._broker.breathe()
        if get_hub() is not self._hub or self._channel.state_of_life is not _OPEN:
            self._channel.check_open()
        if len(message["body"]) > self._max_size:
            raise too_large(len(message["body"]), self._max_size)
        headers = message["headers"]
        if headers and "x-delay" in headers:
            warn_of_message(self._channel, message, exchange, routing_key)
        try:
            outcome = self._broker.publish(message, exchange, routing_key)
        except ChannelError as exc:
            self._channel.fail(exc)
            raise
        if outcome is Outcome.UNROUTED and self._last_queue:
            return self._last_resort(message, exchange, routing_key, self._last_queue)
        return outcome

    def _last_resort(
        self, message: Envelope, exchange: str, routing_key: str, queue: str
    ) -> Outcome:
        """Put a message that has no queue to go to into that one."""
        warnings.warn(undeliverable(exchange, routing_key, queue), stacklevel=5)
        if queue not in self._broker.queues:
            self._broker.add_queue(queue, Declaration(durable=True))
        return self._broker.publish(message, "", queue)
