"""One life of a connection over a transport of kombu's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gevent.lock import RLock

from greenconn.broker.channel import Publisher, StoreChannel
from greenconn.broker.claiming import StoreFeed
from greenconn.broker.port import Claimed
from greenconn.exceptions import RecoverableConnectionError
from greenconn.message import Message
from greenconn.transport.hooks.link import HookedLink
from greenconn.transport.hooks.store import Taken
from greenconn.transport.hosted.channel import HostedChannel
from greenconn.transport.hosted.message import HostedMessage
from greenconn.transport.hosted.publishing import HostedPublisher
from greenconn.transport.hosted.queue import QueueReader
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.publishing import Envelope

if TYPE_CHECKING:
    from greenconn.transport.hosted.transport import HostedTransport

__all__ = ["HostedLink"]


class HostedLink(HookedLink):
    """A link with kombu's transport, which one greenlet at a time may use.

    Arguments:
        raw: the transport; it is opened here.
    """

    def __init__(self, transport: HostedTransport, raw: Any) -> None:
        self.connected = raw.establish_connection()
        self.raw = raw
        #: Held around each call of the transport: what it waits for may let other greenlets run.
        self.lock = RLock()
        self._readers: dict[str, QueueReader] = {}
        super().__init__(transport)

    def open_channel(self) -> Any:
        """Open one of kombu's channels.  May switch."""
        self.home.check(self)
        self.check_open()
        with self.lock:
            return self.raw.create_channel(self.connected)

    def hooks(self, queue: str) -> Any:
        """Return one of kombu's channels.

        Raises:
            RecoverableConnectionError: there is none.
        """
        for channel in self.channels.values():
            if isinstance(channel, HostedChannel):
                return channel.raw
        raise RecoverableConnectionError(f"no channel consumes queue {queue!r}")

    def put_back(self, message: Taken) -> None:
        """Put a message back that a former life has taken out.  May switch."""
        with self.lock:
            raw = self.open_channel()
            try:
                raw._put(message.queue, message.serializable() | {"redelivered": True})
            finally:
                raw.close()
        self.store.wake(message.queue)

    def read(self, queue: str, prefetch: int) -> None:
        """Begin to take messages out of a queue; again: does nothing.  May switch."""
        with self.lock:
            if queue not in self._readers:
                reader = QueueReader(self, queue, prefetch)
                if queue in self.feeds:
                    self._readers[queue] = reader
                else:
                    reader.leave()  # its consumer has gone meanwhile
        self.ripen(queue)

    def look(self, wanted: Mapping[str, int], timeout: float) -> None:
        """Look into each queue.  May switch."""
        for queue in list(wanted):
            reader = self._readers.get(queue)
            if reader is not None:
                reader.look(wanted)

    def retire(self, feed: StoreFeed) -> None:
        """Forget a feed if nobody uses it any more.  Never switches."""
        super().retire(feed)
        reader = None if feed.queue in self.feeds else self._readers.pop(feed.queue, None)
        if reader is not None and self.lost is None:
            self.later("cancelling a consumer", reader.leave)

    def publisher(self, channel: StoreChannel[Any]) -> Publisher[Envelope]:
        """Return what *channel* publishes with."""
        assert isinstance(channel, HostedChannel)
        return HostedPublisher(channel, channel.raw, channel.put_message)

    def delivery(self, claimed: Claimed, consumer: Consumer) -> Message:
        """Return the message that *consumer* is given for what was claimed."""
        message: HostedMessage = claimed.handle
        message.consumer = consumer
        message.delivery_info["consumer_tag"] = consumer.tag
        consumer.channel.receive_message(message)
        return message

    def close(self) -> None:
        """Close it; what was not answered is given back first.  May switch."""
        was_open = self.is_open
        super().close()
        if was_open:
            with self.lock:
                self.raw.close_connection(self.connected)
