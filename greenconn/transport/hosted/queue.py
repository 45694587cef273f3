"""One queue that is consumed from through a channel of kombu's."""

from __future__ import annotations

from queue import Empty
from typing import TYPE_CHECKING, Any

from greenconn.identity import uuid
from greenconn.transport.hosted.message import HostedMessage

if TYPE_CHECKING:
    from greenconn.transport.hosted.link import HostedLink

__all__ = ["QueueReader"]


class QueueReader:
    """Takes the messages of a queue out, through a channel that does nothing else.

    So its prefetch is what its consumers have room for.

    Arguments:
        prefetch: of the consumer that is the first one, for a transport that is told of it.
    """

    def __init__(self, link: HostedLink, queue: str, prefetch: int) -> None:
        self._link = link
        self._queue = queue
        self._tag = uuid()
        self._unanswered = 0
        self._is_active = True
        self._raw = link.open_channel()
        try:
            self._raw.basic_qos(0, prefetch, False)
            self._raw.basic_consume(queue, False, self._take, self._tag)
        except BaseException:
            self._raw.close()
            raise
        #: What makes a message of what the queue holds, and calls ``_take``.
        self._receive = link.raw._callbacks[queue]

    def look(self, room: int) -> None:
        """Take out what there is, once.  May switch.

        Arguments:
            room: messages that are wanted.
        """
        link = self._link
        with link.lock:
            if not self._is_active:
                return
            self._raw.qos.prefetch_count = self._unanswered + room
            link.raw._callbacks[self._queue] = self._receive  # a former reader's end removes it
            try:
                self._raw.drain_events(callback=self._deliver)
            except Empty:
                pass

    def _deliver(self, raw_message: Any, queue: str) -> None:
        self._receive(raw_message)

    def _take(self, taken: Any) -> None:
        self._unanswered += 1
        message = HostedMessage(taken, self._queue, self._link, self._raw, self)
        self._link.store.arrive(message, self._queue)

    def note_settled(self) -> None:
        """One of its messages was answered.  May switch.  Call with the link's lock."""
        self._unanswered -= 1
        if not self._is_active:
            self._close_unused()

    def leave(self) -> None:
        """Take no more.  What was taken can still be answered.  May switch."""
        with self._link.lock:
            self._is_active = False
            self._raw.basic_cancel(self._tag)
            self._close_unused()

    def _close_unused(self) -> None:
        if not self._unanswered:
            self._raw.close()
