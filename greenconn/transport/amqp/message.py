"""Messages of an AMQP channel: packed once on the way out, decoded when asked for on the way in."""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any, Final

from greenconn.message import Message
from greenconn.transport.amqp.properties import pack_properties, unpack_properties

__all__ = ["Delivery", "Outgoing", "ReturnedMessage"]

_message_count = Struct(">I")

#: Values decoded from the raw parts; they are slots that stay unset until somebody asks.
_FROM_HEADER: Final = frozenset({"properties", "headers", "content_type", "content_encoding"})
#: ``(exchange, routing key)`` of the raw arguments that follow the delivery tag.
_routes: dict[bytes, tuple[str, str]] = {}


class Outgoing:
    """A message that is ready to be framed.

    Attributes:
        packed: its property block.
        body: bytes.
    """

    __slots__ = ("body", "packed")

    def __init__(
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
    ) -> None:
        if body.__class__ is str:
            content_encoding = content_encoding or "utf-8"
            body = body.encode(content_encoding)
        elif body.__class__ is not bytes:
            body = bytes(body)
        self.body: bytes = body
        self.packed = pack_properties(priority, content_type, content_encoding, headers, properties)

    @classmethod
    def packed_as(cls, packed: bytes, body: bytes) -> Outgoing:
        """One whose property block is known."""
        made = cls.__new__(cls)
        made.packed, made.body = packed, body
        return made

    @classmethod
    def of(cls, message: Any) -> Outgoing:
        """Take an ``amqp.Message`` too, for programs that make their own."""
        if isinstance(message, cls):
            return message
        properties = dict(message.properties)
        return cls(
            message.body,
            properties.pop("priority", None),
            properties.pop("content_type", None),
            properties.pop("content_encoding", None),
            properties.pop("application_headers", None),
            properties,
        )


def split_route(raw: bytes) -> tuple[str, str]:
    """Exchange and routing key: two short strings."""
    route = _routes.get(raw)
    if route is None:
        middle = 1 + raw[0]
        end = middle + 1 + raw[middle]
        route = (
            raw[1:middle].decode("utf-8", "surrogatepass"),
            raw[middle + 1 : end].decode("utf-8", "surrogatepass"),
        )
        if len(_routes) >= 1024:
            _routes.clear()
        _routes[raw] = route
    return route


class Delivery(Message):
    """A message of ``basic.deliver`` or ``basic.get-ok``.

    Only the delivery tag was read; ``properties``, ``headers``, ``body``, ``errors`` and
    ``delivery_info`` are computed at their first use.

    Arguments:
        tail: the method's arguments from the delivery tag on (8 bytes), then redelivered (1), exchange
            and routing key; after a get also the message count.
        header: the content header frame's payload.
        raw: the body as received.
        consumer_tag: None for a message that was got.
    """

    __slots__ = ("_header", "_tail", "consumer_tag", "raw")

    def __init__(
        self,
        channel: Any,
        delivery_tag: int,
        tail: bytes,
        header: bytes,
        raw: bytes,
        consumer_tag: str | None,
    ) -> None:
        self.channel = channel
        self.delivery_tag = delivery_tag
        self._tail = tail
        self._header = header
        self.raw = raw
        self.consumer_tag = consumer_tag
        self.accept = None
        self._state = "RECEIVED"
        self._decoded_cache = None

    def __getattr__(self, name: str) -> Any:
        # An unset slot: decode what it stands for, once.
        if name in _FROM_HEADER:
            properties = unpack_properties(self._header)
            self.properties = properties
            self.headers = properties.get("application_headers") or {}
            self.content_type = properties.get("content_type")
            self.content_encoding = properties.get("content_encoding")
            return getattr(self, name)
        if name == "body":
            self.body = self._text()
            return self.body
        if name == "delivery_info":
            self.delivery_info = self._delivery_info()
            return self.delivery_info
        if name == "errors":
            self.errors = []
            if self.headers.get("compression"):
                self.body = self._text()  # what may go wrong
            return self.errors
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _text(self) -> Any:
        compression = self.headers.get("compression")
        if compression:
            self.errors = []
            return self._unpacked(self.raw, compression)
        # As amqp's auto_decode: text where the encoding is one of text, else the bytes.
        encoding = self.content_encoding
        if encoding and encoding != "binary":
            try:
                return self.raw.decode(encoding)
            except (LookupError, UnicodeError):
                pass
        return self.raw

    def _delivery_info(self) -> dict[str, Any]:
        tail = self._tail
        exchange, routing_key = split_route(
            tail[9:] if self.consumer_tag is not None else tail[9:-4]
        )
        info: dict[str, Any] = {
            "delivery_tag": self.delivery_tag,
            "redelivered": bool(tail[8] & 1),
            "exchange": exchange,
            "routing_key": routing_key,
        }
        if self.consumer_tag is None:
            info["message_count"] = _message_count.unpack(tail[-4:])[0]
        else:
            info["consumer_tag"] = self.consumer_tag
        return info


class ReturnedMessage(Message):
    """A message that the broker returned as unroutable."""

    __slots__ = ()

    def __init__(self, channel: Any, exchange: str, routing_key: str, header: bytes, body: bytes):
        properties = unpack_properties(header)
        super().__init__(
            body=body,
            channel=channel,
            content_type=properties.get("content_type"),
            content_encoding=properties.get("content_encoding"),
            delivery_info={"exchange": exchange, "routing_key": routing_key},
            properties=properties,
            headers=properties.get("application_headers") or {},
        )
