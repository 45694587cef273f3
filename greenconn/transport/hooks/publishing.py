"""Publishing through hooks: a publish is decided when the hooks return."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenconn.abc import DeadlineLike
from greenconn.broker.channel import PublishResult
from greenconn.green.deadline import Deadline
from greenconn.transport.virtual.publishing import (
    Decided,
    DecidedPublisher,
    Envelope,
    no_immediate,
    return_message,
    unroutable,
)

if TYPE_CHECKING:
    from greenconn.transport.hooks.channel import Channel
    from greenconn.transport.hooks.link import HookLink

__all__ = ["HookPublisher"]


class HookPublisher(DecidedPublisher):
    """The publisher of one channel.

    Arguments:
        channel: has the hooks.
        link: knows whether every publish is to tell what became of it.
    """

    _channel: Channel

    def __init__(self, channel: Channel, link: HookLink) -> None:
        super().__init__(channel)
        self._link = link

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
        if self._link.is_confirming:
            self.begin(message, exchange, routing_key, mandatory, immediate, deadline).wait()
            return
        if immediate:
            raise no_immediate()
        if not self._channel.put_message(message, exchange, routing_key, mandatory):
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
        if self._channel.put_message(message, exchange, routing_key, mandatory):
            return Decided(None)
        return Decided(unroutable(exchange, routing_key))
