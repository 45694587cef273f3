"""A consumer of one queue over a channel of kombu's that is its own."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty
from typing import TYPE_CHECKING, Any

from greenconn.message import Message

if TYPE_CHECKING:
    from greenconn.abc import Sink
    from greenconn.transport.hosted.channel import HostedChannel

__all__ = ["HostedConsumer", "message_of"]


def message_of(raw: Any, channel: HostedChannel) -> Message:
    """Return a message of ours for one of kombu's."""
    message = Message(
        body=raw.body,
        delivery_tag=raw.delivery_tag,
        content_type=raw.content_type,
        content_encoding=raw.content_encoding,
        delivery_info=raw.delivery_info,
        properties=raw.properties,
        headers=raw.headers,
        channel=channel,
    )
    message.errors = list(raw.errors)
    return message


class HostedConsumer:
    """Polls its queue while it has room.

    With a channel of its own its prefetch is its own too, and kombu's transport, which keeps one
    callback for each queue, may have several consumers of one.

    Arguments:
        channel: ours, which the messages are answered on.
        raw: kombu's, used for nothing else.
        target: called with each message in who drains; or a *sink* that takes them.
    """

    def __init__(
        self,
        channel: HostedChannel,
        raw: Any,
        queue: str,
        tag: str,
        no_ack: bool,
        *,
        callback: Callable[[Any], Any] | None,
        sink: Sink | None,
    ) -> None:
        self.channel = channel
        self.raw = raw
        self.queue = queue
        self.tag = tag
        self.sink = sink
        self._no_ack = no_ack
        self._callback = callback
        self.is_active = True
        link = channel.connection
        raw.basic_consume(queue, no_ack, self._take, tag)
        #: What makes a message of what the queue holds, and calls ``_take``.
        self._receive = link.raw._callbacks[queue]

    # Of the poller

    def has_room(self) -> bool:
        """Whether the prefetch lets it take one more."""
        return self.is_active and bool(self.raw.qos.can_consume())

    def poll(self) -> bool:
        """Look for a message; False when there was none.  May switch."""
        link = self.channel.connection
        with link.lock:
            if not self.is_active:
                return False
            link.raw._callbacks[self.queue] = self._receive  # another consumer's, perhaps
            try:
                self.raw.drain_events(callback=self._deliver)
            except Empty:
                return False
            return True

    def _deliver(self, raw_message: Any, queue: str) -> None:
        self._receive(raw_message)

    def _take(self, raw_message: Any) -> None:
        message = message_of(raw_message, self.channel)
        message.delivery_info["consumer_tag"] = self.tag
        if not self._no_ack:
            self.channel.note(message, self.raw)
        if self.sink is not None:
            self.sink.deliver(message)
        else:
            self.channel.connection.events.put((self._handle, message))

    def _handle(self, message: Message) -> None:
        """In who drains."""
        if self._callback is not None:
            self._callback(message)

    # Of the channel

    def stop(self) -> None:
        """Take no more.  What was taken can still be answered.  May switch."""
        if self.is_active:
            self.is_active = False
            with self.channel.connection.lock:
                self.raw.basic_cancel(self.tag)

    def lose(self, exc: BaseException) -> None:
        """Its link or channel has ended.  Never switches."""
        self.is_active = False
        if self.sink is not None:
            self.sink.cancelled(exc)
