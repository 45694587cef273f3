"""A message that the memory broker delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.message import Message as BaseMessage
from greenconn.transport.memory.store import Entry
from greenconn.transport.virtual.publishing import copied

if TYPE_CHECKING:
    from greenconn.transport.memory.deliveries import DeliveringMethods

__all__ = ["Message"]


class Message(BaseMessage):
    """A delivered message, with tables of its own.

    ``headers``, ``properties``, ``delivery_info`` and ``body`` are made when they are first looked
    at.  The body is what AMQP makes of it: text where the encoding is one of text, else bytes.
    """

    __slots__ = ("_consumer_tag", "_entry", "_redelivered", "_waiting")

    def __init__(
        self,
        channel: DeliveringMethods | None,
        delivery_tag: int,
        entry: Entry,
        consumer_tag: str | None = None,
        waiting: int | None = None,
    ) -> None:
        """Make the delivery of *entry*.

        Arguments:
            consumer_tag: who gets it; None for ``basic_get``.
            waiting: messages left in the queue, for ``basic_get``.
        """
        self.channel = channel
        self.delivery_tag = delivery_tag
        self.accept = None
        self._state = "RECEIVED"
        self._decoded_cache = None
        self._entry = entry
        self._redelivered = entry.redelivered
        self._consumer_tag = consumer_tag
        self._waiting = waiting
        envelope = entry.envelope
        self.content_type = envelope["content-type"]
        self.content_encoding = envelope["content-encoding"]
        headers = envelope["headers"]
        self._compression = headers["compression"] if headers and "compression" in headers else None
        if self._compression is None:
            self.errors = []

    def __getattr__(self, name: str) -> Any:
        # Only for slots that are not filled yet.
        if name == "headers":
            value = copied(self._entry.envelope["headers"])
        elif name == "properties":
            value = copied(self._entry.envelope["properties"])
        elif name == "delivery_info":
            value = self._delivery_info()
        elif name in ("body", "errors") and self._compression:
            # When the program asks for it: the broker never switches, and this may.
            errors: list[Any] = []
            body = self._unpacked(self._entry.envelope["body"], self._compression, errors)
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
        body, encoding = self._entry.envelope["body"], self.content_encoding
        if encoding and encoding != "binary" and isinstance(body, bytes):
            try:
                return body.decode(encoding)
            except (LookupError, UnicodeError):
                pass
        return body

    def _delivery_info(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "delivery_tag": self.delivery_tag,
            "redelivered": self._redelivered,
            "exchange": self._entry.exchange,
            "routing_key": self._entry.routing_key,
        }
        if self._consumer_tag is not None:
            found["consumer_tag"] = self._consumer_tag
        if self._waiting is not None:
            found["message_count"] = self._waiting
        return found
