"""Publishing to the memory broker: a message is in its queues when the call returns."""

from __future__ import annotations

import warnings
from typing import Final

from gevent import get_hub

from greenconn.delays import delay_of
from greenconn.exceptions import ChannelError
from greenconn.options import MemoryOptions
from greenconn.transport.memory.broker import Broker, Outcome
from greenconn.transport.virtual.channel import ChannelPort, ChannelState
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.publishing import (
    Envelope,
    SynchronousPublisher,
    no_immediate,
    queue_full,
    too_large,
    undeliverable,
    unroutable,
)

__all__ = ["MemoryPublisher"]

_OPEN: Final = ChannelState.OPEN


class MemoryPublisher(SynchronousPublisher):
    """The publisher of one channel.

    Arguments:
        channel: is closed by what the broker refuses.
        broker: has the queues.
        options: of the link.
    """

    def __init__(self, channel: ChannelPort, broker: Broker, options: MemoryOptions) -> None:
        super().__init__(channel, options.confirm_publish)
        self._broker = broker
        self._hub = channel.connection.hub_affinity.hub
        self._max_size = options.max_message_size
        self._last_queue = options.deadletter_queue

    def _decide(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool, immediate: bool
    ) -> Exception | None:
        if immediate:
            raise no_immediate()
        self._broker.yield_if_due()
        if get_hub() is not self._hub or self._channel.state_of_life is not _OPEN:
            self._channel.check_open()
        if len(message["body"]) > self._max_size:
            raise too_large(len(message["body"]), self._max_size)
        headers = message["headers"]
        delay = delay_of(headers) if headers else 0.0
        try:
            outcome = self._broker.publish(message, exchange, routing_key, delay)
        except ChannelError as exc:
            self._channel.fail(exc)
            raise
        if outcome is Outcome.UNROUTED and self._last_queue:
            outcome = self._last_resort(message, exchange, routing_key, self._last_queue)
        if outcome is Outcome.REFUSED:
            return queue_full(exchange, routing_key)
        if mandatory and outcome is Outcome.UNROUTED:
            return unroutable(exchange, routing_key)
        return None

    def _last_resort(
        self, message: Envelope, exchange: str, routing_key: str, queue: str
    ) -> Outcome:
        """Put a message that has no queue to go to into that one."""
        warnings.warn(undeliverable(exchange, routing_key, queue), stacklevel=5)
        if queue not in self._broker.queues:
            self._broker.add_queue(queue, Declaration(durable=True))
        return self._broker.publish(message, "", queue)
