"""A message out of a broker that stores kombu's envelope, read when somebody looks at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from greenconn.encoding import as_text
from greenconn.exceptions import DecodeError
from greenconn.message import Message
from greenconn.transport.virtual.envelope import Contents

if TYPE_CHECKING:
    from greenconn.transport.virtual.port import ChannelPort

__all__ = ["Delivery"]

#: Slots that stay unset until somebody asks for one of them.
_LAZY: Final = frozenset(
    {"properties", "headers", "content_type", "content_encoding", "body", "errors"}
)


class Delivery(Message):
    """A message that a channel delivered; its envelope is read when it is first looked at.

    One that cannot be read has its raw bytes as body, and the reason in ``errors``, so that decoding
    it raises.

    Arguments:
        tag: what the channel calls it.
        number: position among all that this connection took.
        raw: what is shown where the envelope cannot be read.
        queue: where it was taken from, and goes back to.
        consumer: who gets it; None for ``basic_get``.
        waiting: messages left in the queue, for ``basic_get``, where that is known.

    Attributes:
        handle: what the broker knows it by.
        is_held: the broker holds it for us until it is answered.
    """

    __slots__ = ("consumer", "handle", "is_held", "number", "queue", "raw", "waiting")

    def __init__(
        self,
        channel: ChannelPort | None,
        tag: str,
        number: int,
        raw: bytes,
        queue: str,
        consumer: Any = None,
        waiting: int | None = None,
    ) -> None:
        self.channel = channel
        self.delivery_tag = self.handle = tag
        self.number = number
        self.raw = raw
        self.queue = queue
        self.consumer = consumer
        self.waiting = waiting
        self.is_held = True
        self.accept = None
        self._state = "RECEIVED"
        self._decoded_cache = None

    def _contents(self) -> Contents:
        """Return what is in the envelope.

        Raises:
            DecodeError: it cannot be read.
        """
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        # An unset slot: read what it stands for, once.
        if name == "delivery_info":
            self.delivery_info = self._delivery_info()
            return self.delivery_info
        if name in _LAZY:
            packed = self.__dict__.get("_packed")
            if packed is None:
                self._read()
            else:
                self._unpack(packed)
            return getattr(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _read(self) -> None:
        self.errors = []
        try:
            contents = self._contents()
        except DecodeError:
            self._note_error()
            contents = Contents({}, {}, None, None, self.raw)
        self.properties, self.headers, self.content_type, self.content_encoding, body = contents
        if self.errors:
            self.body = body
        elif self.headers.get("compression"):
            # Unpacked when the program asks for it: here nothing may switch.
            self._packed = body
            del self.errors
        else:
            self.body = as_text(body, self.content_encoding) if body.__class__ is bytes else body

    def _unpack(self, packed: Any) -> None:
        """Fill the slots that depend on the body.  May switch."""
        errors: list[Any] = []
        body = self._unpacked(packed, self.headers.get("compression"), errors)
        self.body, self.errors = body, errors
        self._packed = None

    @property
    def redelivered(self) -> bool:
        """Whether it was delivered before."""
        raise NotImplementedError

    def _delivery_info(self) -> dict[str, Any]:
        info = self.properties.get("delivery_info") or {}
        exchange, routing_key = info.get("exchange"), info.get("routing_key")
        found: dict[str, Any] = {
            "delivery_tag": self.delivery_tag,
            "redelivered": self.redelivered,
            "exchange": exchange if isinstance(exchange, str) else "",
            "routing_key": routing_key if isinstance(routing_key, str) else self.queue,
        }
        if self.consumer is not None:
            found["consumer_tag"] = self.consumer.tag
        if self.waiting is not None:
            found["message_count"] = self.waiting
        return found
