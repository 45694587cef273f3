"""A message that a channel of kombu's has taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.broker.port import Claimed, Settlement
from greenconn.message import Message

if TYPE_CHECKING:
    from greenconn.transport.hosted.link import HostedLink
    from greenconn.transport.hosted.queue import QueueReader
    from greenconn.transport.virtual.consumer import Consumer

__all__ = ["HostedMessage"]


class HostedMessage(Message):
    """A message of ours for one of kombu's.

    Arguments:
        taken: kombu's.
        queue: where it was.
        link: has the lock of kombu's transport.
        raw: kombu's channel, which is told what becomes of it.
        reader: counts those that it has taken; None: ``basic_get`` has.

    Attributes:
        consumer: who gets it; None for ``basic_get``.
    """

    __slots__ = ("_link", "_raw", "_reader", "_tag", "consumer", "queue")

    #: Whether its channel holds it until it is answered.
    is_held = True

    def __init__(
        self, taken: Any, queue: str, link: HostedLink, raw: Any, reader: QueueReader | None = None
    ) -> None:
        super().__init__(
            body=taken.body,
            delivery_tag=taken.delivery_tag,
            content_type=taken.content_type,
            content_encoding=taken.content_encoding,
            delivery_info=taken.delivery_info,
            properties=taken.properties,
            headers=taken.headers,
        )
        self.errors = list(taken.errors)
        self.queue = queue
        self.consumer: Consumer | None = None
        self._link = link
        self._raw = raw
        self._reader = reader
        #: What kombu's channel calls it: one message that went to two queues has one tag in both.
        self._tag = taken.delivery_tag

    @property
    def claimed(self) -> Claimed:
        """What the store's claims give."""
        return Claimed(self.queue, None, self)

    def settle(self, settlement: Settlement) -> None:
        """Tell kombu's channel what becomes of it.  May switch."""
        with self._link.lock:
            if settlement is Settlement.DONE:
                self._raw.basic_ack(self._tag)
            else:
                self._raw.basic_reject(self._tag, requeue=settlement is Settlement.BACK)
            if self._reader is not None:
                self._reader.note_settled()
        feed = self._link.feeds.get(self.queue)
        if feed is not None and feed.is_dry:
            feed.ripen()  # a ``QoS`` with a say of its own may want more now
