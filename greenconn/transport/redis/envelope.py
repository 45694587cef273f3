"""Messages: kombu's envelope, written from cached parts, and parsed when it is first read.

``{"body": ..., "content-encoding": ..., "content-type": ..., "headers": {...}, "properties":
{..., "delivery_info": {...}, "priority": n, "body_encoding": "base64", "delivery_tag": "..."}}``

Published messages of one kind differ in body and tag only, so the rest is kept: by what
``prepare_message`` knows, and by where the message goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from msgspec.json import Encoder

from greenconn.broker import envelope
from greenconn.broker.channel import Prepared
from greenconn.broker.envelope import (
    UNSENDABLE,
    Envelope,
    copied,
    encoded,
    mark_redelivered,
    read_envelope,
    unsendable,
)
from greenconn.broker.port import Claimed
from greenconn.broker.settlements import DELIVERY_COUNT
from greenconn.delays import DELAY
from greenconn.jsoncodec import dumps

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel


#: Bytes above which a message goes over a connection of its own.
LARGE: Final = 1024 * 1024
#: Kinds of messages, and places they go to, that are remembered.
KEPT: Final = 1024

_NO_HEADERS: Final[dict[str, Any]] = {}
#: Return bytes as text in base 64 in quotes, in half the time of binascii.
_base64_json: Final = Encoder().encode
#: (content encoding, content type, delivery mode) -> the middle of the envelope.
_middles: dict[tuple[Any, Any, Any], bytes] = {}


class Outgoing(Prepared):
    """A message that is ready to be sent anywhere: a snapshot of what may be changed later.

    Attributes:
        body: as it was given, text or bytes.
        raw: the same as bytes.
        priority: as it was given.
        headers, properties: as they were given, copied; for messages that come back.
        is_plain: it goes to the one queue that its routing key names, over the common connection.
        ignored: what RabbitMQ would obey and a list of Redis cannot (expiration).
    """

    __slots__ = (
        "body",
        "content_encoding",
        "content_type",
        "delivery_info",
        "headers",
        "ignored",
        "is_plain",
        "middle",
        "priority",
        "properties",
        "raw",
    )

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
            self.raw = encoded(body, content_encoding)
        elif body.__class__ is bytes:
            self.raw = body
        elif isinstance(body, (bytearray, memoryview)):
            self.raw = body = bytes(body)
        else:
            raise TypeError(f"a body must be text or bytes, got {type(body).__name__}")
        self.body = body
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.headers = copied(headers) if headers else _NO_HEADERS
        self.delivery_info: dict[str, Any] | None = None
        self.ignored = _NO_HEADERS
        self.is_plain = len(self.raw) <= LARGE
        properties = properties or _NO_HEADERS
        if not headers and len(properties) == 1 and "delivery_mode" in properties:
            mode = properties["delivery_mode"]
            self.priority: Any = priority or 0
            self.properties: dict[str, Any] = {"delivery_mode": mode}
            key = (content_encoding, content_type, mode)
            middle = _middles.get(key)
            if middle is None:
                middle = self._middle()
                if len(_middles) >= KEPT:
                    _middles.clear()
                _middles[key] = middle
            self.middle = middle
            return
        own = self.properties = copied(properties)
        if "expiration" in own:
            self.ignored = {"expiration": own["expiration"]}
            self.is_plain = False
        if "CC" in self.headers or "BCC" in self.headers or DELAY in self.headers:
            self.is_plain = False
        self.priority = own.pop("priority", priority or 0)
        self.delivery_info = own.pop("delivery_info", None)
        if self.delivery_info:  # of a message that is sent on
            self.delivery_info.pop("redelivered", None)
        for name in ("body_encoding", "delivery_tag"):
            own.pop(name, None)  # of a message that is sent on
        self.middle = self._middle()

    @classmethod
    def of(cls, message: Outgoing | dict[str, Any]) -> Outgoing:
        """Take kombu's dict too, for programs that make their own."""
        if isinstance(message, Outgoing):
            return message
        return cls(
            message["body"],
            None,
            message.get("content-type"),
            message.get("content-encoding"),
            message.get("headers"),
            message.get("properties"),
        )

    def _middle(self) -> bytes:
        """From behind the body up to the value of ``delivery_info``."""
        return self.with_headers(self.headers)

    def with_headers(self, headers: Mapping[str, Any]) -> bytes:
        """Return the same with other headers.

        Raises:
            ValueError: one of them, or a property, is nothing for JSON.
        """
        try:
            properties, shown = dumps(self.properties)[1:-1], dumps(headers)
        except UNSENDABLE:
            raise unsendable(headers, self.properties) from None
        return (
            f', "content-encoding": {dumps(self.content_encoding)}, "content-type": '
            f'{dumps(self.content_type)}, "headers": {shown}, "properties": '
            f'{{{properties}{", " if properties else ""}"delivery_info": '
        ).encode()

    def body_json(self, encoding: str | None) -> bytes:
        """Return the body as it stands in the envelope."""
        if encoding:
            return _base64_json(self.raw)
        return dumps(self.body).encode()

    def route_json(self, exchange: str, routing_key: str, encoding: str | None) -> bytes:
        """From the value of ``delivery_info`` up to the delivery tag."""
        info = {**(self.delivery_info or {}), "exchange": exchange, "routing_key": routing_key}
        return (
            f'{dumps(info)}, "priority": {dumps(self.priority)}, "body_encoding": '
            f'{dumps(encoding)}, "delivery_tag": "'
        ).encode()

    def as_envelope(self) -> dict[str, Any]:
        """Kombu's dict, for events."""
        return {
            "body": self.body,
            "content-encoding": self.content_encoding,
            "content-type": self.content_type,
            "headers": copied(self.headers),
            "properties": {**self.properties, "priority": self.priority},
        }


def marked_redelivered(
    raw: bytes, *, is_counted: bool = True
) -> tuple[bytes, int, dict[str, Any] | None]:
    """Mark a message as delivered before.

    Arguments:
        is_counted: False: no handler had begun with it, so that it has as many deliveries as before.

    Returns:
        the message, how often it was delivered, and its envelope; one that cannot be read stays as
        it is, with 0 and None.
    """
    try:
        envelope = read_envelope(raw)
        headers = envelope.get("headers")
        if not isinstance(headers, dict):
            headers = envelope["headers"] = {}
        known = headers.get(DELIVERY_COUNT)
        deliveries = known if isinstance(known, int) and known > 0 else 0
        if is_counted:
            deliveries += 1
            headers[DELIVERY_COUNT] = deliveries
        # Where kombu marks it, too.
        headers["redelivered"] = True
        mark_redelivered(envelope)
        return dumps(envelope).encode(), deliveries, envelope
    except Exception:
        return raw, 0, None


class Delivery(envelope.Delivery):
    """A message as it lies in the list, held under a field which is its delivery tag, too.

    Attributes:
        is_broadcast: it came from a fan-out channel, and nothing holds it.
        is_repeated: a consumer of this connection has requeued it.
    """

    __slots__ = ()
    is_broadcast = False
    is_repeated = False

    @property
    def claimed(self) -> Claimed:
        """Return the claim, which outlives the link."""
        return Claimed(self.queue, None, self.handle)

    @property
    def envelope(self) -> Envelope | None:
        """As it was stored; None where it cannot be read."""
        try:
            found = read_envelope(self.raw)
        except (ValueError, TypeError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    @property
    def deliveries(self) -> int:
        """Return the number of earlier deliveries, as far as the message tells."""
        known = self.headers.get(DELIVERY_COUNT)
        return known if isinstance(known, int) and known > 0 else 0

    @property
    def redelivered(self) -> bool:
        return bool(self.is_repeated or super().redelivered or self.headers.get("redelivered"))


class Broadcast(Delivery):
    """A message that came from a fan-out channel."""

    __slots__ = ("is_repeated",)
    is_broadcast = True

    def __init__(
        self,
        channel: StoreChannel[Any] | None,
        tag: str,
        number: int,
        raw: bytes,
        queue: str,
        consumer: Any = None,
    ) -> None:
        super().__init__(channel, tag, number, raw, queue, consumer)
        self.is_held = False
        self.is_repeated = False

    def given_to(self, consumer: Any) -> Broadcast:
        """Return the same for a consumer."""
        given = Broadcast(
            consumer.channel, self.delivery_tag, self.number, self.raw, self.queue, consumer
        )
        given.is_repeated = self.is_repeated
        return given


def number_of(field: str) -> int:
    """Return the position of a field among all that its owner took; 0 where that is not known."""
    _, _, number = field.rpartition(".")
    return int(number) if number.isdecimal() else 0
