"""Publishing through hooks: a publish is decided when the hooks return."""

from __future__ import annotations

from collections.abc import Callable

from greenconn.abc import DeadlineLike
from greenconn.broker.channel import PublishResult
from greenconn.green.deadline import Deadline
from greenconn.transport.virtual.port import ChannelPort
from greenconn.transport.virtual.publishing import (
    Decided,
    DecidedPublisher,
    Envelope,
    no_immediate,
    return_message,
    unroutable,
)

__all__ = ["HookPublisher"]


class HookPublisher(DecidedPublisher):
    """The publisher of one channel.

    Arguments:
        channel: gets back what reached no queue.
        put: puts a message where it belongs: an exchange, a routing key and ``mandatory``; False: it
            reached no queue.  May switch.
        is_confirming: every publish tells what became of it.
    """

    def __init__(
        self,
        channel: ChannelPort,
        put: Callable[[Envelope, str, str, bool], bool],
        is_confirming: bool,
    ) -> None:
        super().__init__(channel)
        self._put = put
        self._is_confirming = is_confirming

    def publish(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> None:
        """Publish *message*.  May switch, as the hooks may."""
        if self._is_confirming:
            self.begin(message, exchange, routing_key, mandatory, immediate, deadline).wait()
            return
        if immediate:
            raise no_immediate()
        if not self._put(message, exchange, routing_key, mandatory):
            return_message(self._channel, message, exchange, routing_key)

    def begin(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: DeadlineLike | None,
    ) -> PublishResult:
        """Publish *message*; the result's ``wait`` tells what became of it.  May switch."""
        if immediate:
            raise no_immediate()
        if self._put(message, exchange, routing_key, mandatory):
            return Decided(None)
        return Decided(unroutable(exchange, routing_key))
