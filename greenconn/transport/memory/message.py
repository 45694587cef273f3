"""A message that the memory broker delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from greenconn.message import Message as BaseMessage
from greenconn.transport.memory.store import Entry
from greenconn.transport.virtual.publishing import copied

if TYPE_CHECKING:
    from greenconn.transport.virtual.consumer import Consumer
    from greenconn.transport.virtual.port import ChannelPort

__all__ = ["Message"]


class Message(BaseMessage):
    """A delivered message, with tables of its own.

    ``headers``, ``properties``, ``delivery_info`` and a ``body`` that is not text are made when they
    are first looked at.  The body is what AMQP makes of it: text where the encoding is one of text,
    else bytes.

    Arguments:
        entry: the message in its queue.
        consumer: who gets it; None for ``basic_get``.
        waiting: messages left in the queue, for ``basic_get``.
    """

    __slots__ = ("_waiting", "consumer", "entry", "redelivered")

    #: The broker does not hold what was delivered: only the channel has it.
    is_held: ClassVar[bool] = False

    def __init__(
        self,
        channel: ChannelPort | None,
        delivery_tag: int,
        entry: Entry,
        consumer: Consumer | None = None,
        waiting: int | None = None,
    ) -> None:
        self.channel = channel
        self.delivery_tag = delivery_tag
        self.accept = None
        self._state = "RECEIVED"
        self._decoded_cache = None
        self.entry = entry
        self.consumer = consumer
        self.redelivered = entry.redelivered
        self._waiting = waiting
        envelope = entry.envelope
        self.content_type = envelope["content-type"]
        self.content_encoding = envelope["content-encoding"]
        headers = envelope["headers"]
        self._compression = headers["compression"] if headers and "compression" in headers else None
        if self._compression is None:
            self.errors = []
            body = envelope["body"]
            if body.__class__ is str:
                self.body = body

    def __getattr__(self, name: str) -> Any:
        # Only for slots that are not filled yet.
        if name == "headers":
            value = copied(self.entry.envelope["headers"])
        elif name == "properties":
            value = copied(self.entry.envelope["properties"])
        elif name == "delivery_info":
            value = self._delivery_info()
        elif name in ("body", "errors") and self._compression:
            # When the program asks for it: the broker never switches, and this may.
            errors: list[Any] = []
            body = self._unpacked(self.entry.envelope["body"], self._compression, errors)
            self.body, self.errors = body, errors
            return body if name == "body" else errors
        elif name == "body":
            value = self._text()
        elif name == "errors":
            value = []
        else:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        setattr(self, name, value)
        return value

    def _text(self) -> Any:
        body, encoding = self.entry.envelope["body"], self.content_encoding
        if encoding and encoding != "binary" and isinstance(body, bytes):
            try:
                return body.decode(encoding)
            except (LookupError, UnicodeError):
                pass
        return body

    def _delivery_info(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "delivery_tag": self.delivery_tag,
            "redelivered": self.redelivered,
            "exchange": self.entry.exchange,
            "routing_key": self.entry.routing_key,
        }
        if self.consumer is not None:
            found["consumer_tag"] = self.consumer.tag
        if self._waiting is not None:
            found["message_count"] = self._waiting
        return found
