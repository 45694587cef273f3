"""Publishing through hooks: a publish is decided when the hooks return."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenconn.abc import DeadlineLike
from greenconn.broker.channel import PublishResult
from greenconn.green.deadline import Deadline
from greenconn.transport.virtual.publishing import (
    Decided,
    Envelope,
    no_immediate,
    prepared,
    return_message,
    unroutable,
)

if TYPE_CHECKING:
    from greenconn.transport.hooks.channel import Channel
    from greenconn.transport.hooks.link import HookLink

__all__ = ["HookPublisher"]


class HookPublisher:
    """What one channel publishes with.

    Arguments:
        channel: has the hooks.
        link: knows whether every publish is to tell what became of it.
    """

    #: Makes a message to publish.
    prepare = staticmethod(prepared)

    def __init__(self, channel: Channel, link: HookLink) -> None:
        self._channel = channel
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

    def flush(self, timeout: float | None) -> None:
        """Raise unless the channel can be used: the broker has all when a call returns."""
        self._channel.check_open()

    def end(self) -> None:
        """Note that the channel has ended: nothing was begun that it would have to finish."""
