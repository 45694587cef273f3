"""A message that a channel of kombu's has taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from greenconn.broker.port import Claimed, Settlement
from greenconn.message import Message
from greenconn.transport.hooks.qos import keeps_only_here
from greenconn.transport.virtual.publishing import Envelope

if TYPE_CHECKING:
    from gevent.lock import RLock

    from greenconn.transport.virtual.consumer import Consumer

__all__ = ["HostedMessage"]

_DONE: Final = Settlement.ACK
_BACK: Final = Settlement.REQUEUE


class Reader(Protocol):
    """The receiver of messages that were taken out; it is notified when they are settled.

    Attributes:
        connection: the link.
        lock: of kombu's transport.
        raw: kombu's channel.
    """

    @property
    def connection(self) -> object: ...
    @property
    def lock(self) -> RLock: ...
    @property
    def raw(self) -> Any: ...

    def note_settled(self, queue: str) -> None:
        """Note that a message of *queue* was settled.  May switch.  Called with the lock."""


class HostedMessage(Message):
    """A message of ours for one of kombu's.

    Arguments:
        taken: kombu's.
        queue: where it was.
        reader: has kombu's channel, which gets the outcome.

    Attributes:
        consumer: who gets it; None for ``basic_get``.
    """

    __slots__ = ("_reader", "_tag", "_taken", "consumer", "queue")

    #: Whether its channel holds it until it is settled.
    is_held = True
    #: kombu's channel puts it back in the end.
    is_noted = True

    def __init__(self, taken: Any, queue: str, reader: Reader) -> None:
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
        self._taken = taken
        self._reader = reader
        #: What kombu's channel calls it: one message that went to two queues has one tag in both.
        self._tag = taken.delivery_tag

    @property
    def claimed(self) -> Claimed:
        """The claim of the store."""
        return Claimed(self.queue, None, self)

    @property
    def link(self) -> object:
        """The link that took it out."""
        return self._reader.connection

    @property
    def is_gone_from_broker(self) -> bool:
        """Whether we must requeue it, since neither the broker nor a ``QoS`` of its own does."""
        raw = self._reader.raw
        return bool(raw.do_restore) and keeps_only_here(raw.qos)

    def serializable(self) -> Envelope:
        """Return the envelope with which it can be put back."""
        stored: Envelope = self._taken.serializable()
        return stored

    def settle(self, settlement: Settlement) -> None:
        """Tell kombu's channel what becomes of it.  May switch."""
        reader = self._reader
        with reader.lock:
            if settlement is _DONE:
                reader.raw.basic_ack(self._tag)
            else:
                reader.raw.basic_reject(self._tag, requeue=settlement is _BACK)
            reader.note_settled(self.queue)
