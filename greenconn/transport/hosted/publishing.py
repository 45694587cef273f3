"""Publishing through a channel of kombu's, which says nothing of what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from greenconn.encoding import plain_text
from greenconn.transport.virtual.channel import ChannelPort
from greenconn.transport.virtual.publishing import DecidedPublisher, Envelope, copied

__all__ = ["HostedPublisher"]


class HostedPublisher(DecidedPublisher):
    """The publisher of one channel.

    Arguments:
        channel: ours.
        raw: kombu's channel.
        put: lets it publish a message with an exchange and a routing key.  May switch.
    """

    def __init__(
        self, channel: ChannelPort, raw: Any, put: Callable[[Envelope, str, str], object]
    ) -> None:
        super().__init__(channel)
        self._raw = raw
        self._put = put

    def prepare(
        self,
        body: Any,
        priority: int | None,
        content_type: str | None,
        content_encoding: str | None,
        headers: Mapping[str, Any] | None,
        properties: MutableMapping[str, Any] | None,
    ) -> Envelope:
        """Return a message to publish: a snapshot of what may be changed later.  Never switches."""
        prepared: Envelope = self._raw.prepare_message(
            body,
            priority,
            content_type if content_type.__class__ is str else plain_text(content_type),
            content_encoding if content_encoding.__class__ is str else plain_text(content_encoding),
            copied(headers) if headers else headers,
            copied(properties) if properties else properties,
        )
        return prepared

    def _decide(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool, immediate: bool
    ) -> None:
        self._put(message, exchange, routing_key)
