"""One life of a connection over a transport of kombu's: publishing and reading queues."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from gevent.lock import RLock

from greenconn.broker.channel import Publisher, StoreChannel
from greenconn.broker.claiming import StoreFeed
from greenconn.broker.feed import FeedState
from greenconn.broker.port import Claimed
from greenconn.encoding import plain_text
from greenconn.exceptions import RecoverableConnectionError
from greenconn.identity import uuid
from greenconn.message import Message
from greenconn.transport.hooks.link import HookedLink
from greenconn.transport.hooks.store import PACE, TakenMessage
from greenconn.transport.hosted.channel import HostedChannel, HostedMessage
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.publishing import Envelope, SynchronousPublisher, copied

if TYPE_CHECKING:
    from greenconn.transport.hosted.transport import HostedTransport


class HostedPublisher(SynchronousPublisher):
    """The publisher of one channel.

    Arguments:
        channel: ours.
        raw: kombu's channel.
        put: lets it publish a message with an exchange and a routing key.  May switch.
    """

    def __init__(
        self, channel: StoreChannel[Any], raw: Any, put: Callable[[Envelope, str, str], object]
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


class QueueReader:
    """Takes the messages of a queue out, through a channel that does nothing else.

    So its prefetch is what its consumers have room for.

    Arguments:
        prefetch: of the consumer that is the first one, for a transport that takes it.

    Attributes:
        connection: the link.
        lock: the link's.
        raw: the channel.
    """

    def __init__(self, link: HostedLink, queue: str, prefetch: int) -> None:
        self.connection: Final = link
        self.lock: Final = link.lock
        self._queue = queue
        self._tag = uuid()
        self._unacked = 0
        self._is_active = True
        self.raw = link.open_channel()
        try:
            self.raw.basic_qos(0, prefetch, False)
            self.raw.basic_consume(queue, False, self._take, self._tag)
        except BaseException:
            self.raw.close()
            raise
        #: The callback of each queue, which kombu's transport has one of.
        self._callbacks = link.raw._callbacks
        #: What makes a message of what the queue holds, and calls ``_take``.
        self._receive = self._callbacks[queue]

    def poll(self, wanted: Mapping[str, int]) -> None:
        """Take out what there is as long as it is wanted, but not for long.  May switch.

        Arguments:
            wanted: queue -> how many messages there is room for; changes while they come.
        """
        raw, queue = self.raw, self._queue
        with self.lock:
            if not self._is_active:
                return
            raw.qos.prefetch_count = self._unacked + wanted.get(queue, 0)
            self._callbacks[queue] = self._receive  # a former reader's end removes it
            ends_at = monotonic() + PACE
            try:
                while queue in wanted:
                    raw.drain_events(callback=self._deliver)
                    if monotonic() > ends_at:
                        break
            except Empty:
                pass

    def _deliver(self, raw_message: Any, queue: str) -> None:
        self._receive(raw_message)

    def _take(self, taken: Any) -> None:
        self._unacked += 1
        queue = self._queue
        self.connection.store.arrive(HostedMessage(taken, queue, self), queue)

    def note_settled(self, queue: str) -> None:
        """Note that one of its messages was settled.  May switch.  Call with the lock."""
        self._unacked -= 1
        if not self._is_active:
            self._close_unused()
        feed = self.connection.feeds.get(queue)
        if feed is not None and feed.state is FeedState.DRY:
            feed.wake()  # a ``QoS`` with a say of its own may want more now

    def leave(self) -> None:
        """Take no more.  What was taken can still be settled.  May switch."""
        with self.lock:
            self._is_active = False
            self.raw.basic_cancel(self._tag)
            self._close_unused()

    def _close_unused(self) -> None:
        if not self._unacked:
            self.raw.close()


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
        self.hub_affinity.check(self)
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

    def put_back(self, message: TakenMessage) -> None:
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
        self.wake(queue)

    def poll(self, wanted: Mapping[str, int], timeout: float) -> None:
        """Look into each queue.  May switch."""
        for queue in list(wanted):
            reader = self._readers.get(queue)
            if reader is not None:
                reader.poll(wanted)

    def retire(self, feed: StoreFeed) -> None:
        """Forget a feed that is not used any more.  Never switches."""
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
        """Requeue what is not settled, and close.  May switch."""
        was_open = self.is_open
        super().close()
        if was_open:
            with self.lock:
                self.raw.close_connection(self.connected)
