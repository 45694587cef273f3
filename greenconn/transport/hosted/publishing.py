"""Publishing through a channel of kombu's, which says nothing of what became of it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from greenconn.abc import DeadlineLike
from greenconn.encoding import plain_text
from greenconn.transport.virtual.publishing import Decided, DecidedPublisher, Envelope, copied

if TYPE_CHECKING:
    from greenconn.transport.hosted.channel import HostedChannel

__all__ = ["HostedPublisher"]


class HostedPublisher(DecidedPublisher):
    """The publisher of one channel.

    Arguments:
        channel: has one of kombu's.
    """

    _channel: HostedChannel

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
        prepared: Envelope = self._channel.raw.prepare_message(
            body,
            priority,
            plain_text(content_type),
            plain_text(content_encoding),
            copied(headers) if headers else headers,
            copied(properties) if properties else properties,
        )
        return prepared

    def publish(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: DeadlineLike | None,
    ) -> None:
        """Publish *message*; it returns when the transport has it.  May switch."""
        self._channel.put_message(message, exchange, routing_key)

    def begin(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: DeadlineLike | None,
    ) -> Decided:
        """Publish *message*; it returns when the transport has it.  May switch."""
        self._channel.put_message(message, exchange, routing_key)
        return Decided(None)
