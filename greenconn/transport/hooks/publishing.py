"""Publishing through hooks: a publish is decided when the hooks return."""

from __future__ import annotations

from collections.abc import Callable

from greenconn.transport.virtual.channel import ChannelPort
from greenconn.transport.virtual.publishing import (
    DecidedPublisher,
    Envelope,
    no_immediate,
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
        super().__init__(channel, is_confirming)
        self._put = put

    def _decide(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool, immediate: bool
    ) -> Exception | None:
        if immediate:
            raise no_immediate()
        is_put = self._put(message, exchange, routing_key, mandatory)
        return None if is_put else unroutable(exchange, routing_key)
