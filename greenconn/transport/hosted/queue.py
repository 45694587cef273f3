"""One queue that is consumed from through a channel of kombu's."""

from __future__ import annotations

from collections.abc import Mapping
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from greenconn.broker.feed import Feed, FeedState, Source
from greenconn.broker.port import Claimed
from greenconn.identity import uuid
from greenconn.transport.hooks.store import PACE, HookStore
from greenconn.transport.hosted.message import HostedMessage

if TYPE_CHECKING:
    from gevent.lock import RLock

__all__ = ["QueueReader"]


class ReaderLink(Protocol):
    """The link that queues are read on.

    Attributes:
        lock: held around each call of kombu's transport.
        raw: kombu's transport.
    """

    @property
    def lock(self) -> RLock: ...
    @property
    def raw(self) -> Any: ...
    @property
    def store(self) -> HookStore: ...
    @property
    def feeds(self) -> Mapping[str, Feed[Claimed, Source[Claimed]]]: ...

    def open_channel(self) -> Any:
        """Open one of kombu's channels.  May switch."""


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

    def __init__(self, link: ReaderLink, queue: str, prefetch: int) -> None:
        self.connection: Final = link
        self.lock: Final = link.lock
        self._queue = queue
        self._tag = uuid()
        self._unanswered = 0
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

    def look(self, wanted: Mapping[str, int]) -> None:
        """Take out what there is as long as it is wanted, but not for long.  May switch.

        Arguments:
            wanted: queue -> how many messages there is room for; changes while they come.
        """
        raw, queue = self.raw, self._queue
        with self.lock:
            if not self._is_active:
                return
            raw.qos.prefetch_count = self._unanswered + wanted.get(queue, 0)
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
        self._unanswered += 1
        queue = self._queue
        self.connection.store.arrive(HostedMessage(taken, queue, self), queue)

    def note_settled(self, queue: str) -> None:
        """Note that one of its messages was answered.  May switch.  Call with the lock."""
        self._unanswered -= 1
        if not self._is_active:
            self._close_unused()
        feed = self.connection.feeds.get(queue)
        if feed is not None and feed.state is FeedState.DRY:
            feed.ripen()  # a ``QoS`` with a say of its own may want more now

    def leave(self) -> None:
        """Take no more.  What was taken can still be answered.  May switch."""
        with self.lock:
            self._is_active = False
            self.raw.basic_cancel(self._tag)
            self._close_unused()

    def _close_unused(self) -> None:
        if not self._unanswered:
            self.raw.close()
