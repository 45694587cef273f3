"""Messages of an AMQP channel: outgoing ones are packed once, deliveries parsed at the first use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import amqp

from greenconn.encoding import as_text
from greenconn.exceptions import BodyTooLarge, DecodeError
from greenconn.message import Message, computed_slot, staged_slot
from greenconn.serialization import loads
from greenconn.transport.amqp.properties import (
    content_kind,
    pack_properties,
    readable_properties,
    text_of,
    unpack_properties,
)
from greenconn.wire.amqp import body_size

#: Bytes that a delivery takes beside its body and its header.
DELIVERY_OVERHEAD: Final = 512

#: How far a delivery has been read.
_RAW, _HEADER_READ, _BODY_READ = range(3)

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
        kind = body.__class__
        if kind is str or (kind is not bytes and isinstance(body, str)):
            content_encoding = content_encoding or "utf-8"
            body = body.encode(content_encoding)
        elif kind is not bytes:
            body = memoryview(body).tobytes()  # bytes() would make zeros of a number
        self.body: bytes = body
        self.packed = pack_properties(priority, content_type, content_encoding, headers, properties)

    @classmethod
    def packed_as(cls, packed: bytes, body: bytes) -> Outgoing:
        """Return one whose property block is known."""
        made = cls.__new__(cls)
        made.packed, made.body = packed, body
        return made

    @classmethod
    def of(cls, message: Outgoing | amqp.Message) -> Outgoing:
        """Return *message*, converted if it is an ``amqp.Message`` that a program has made."""
        if isinstance(message, Outgoing):
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
    """Return exchange and routing key from two short strings; a missing one is empty."""
    route = _routes.get(raw)
    if route is None:
        middle = 1 + sum(raw[:1])
        end = middle + 1 + sum(raw[middle : middle + 1])
        route = (
            text_of(raw[1:middle]),
            text_of(raw[middle + 1 : end]),
        )
        if len(_routes) >= 1024:
            _routes.clear()
        _routes[raw] = route
    return route


_set_properties, _set_headers, _set_content_type, _set_content_encoding, _set_body, _set_errors = (
    vars(Message)[name].__set__
    for name in ("properties", "headers", "content_type", "content_encoding", "body", "errors")
)
_headers, _content_type, _content_encoding = (
    vars(Message)[name].__get__ for name in ("headers", "content_type", "content_encoding")
)


class Delivery(Message):
    """A message of ``basic.deliver`` or ``basic.get-ok``.

    Only the delivery tag is read at first; header and body are decoded at the first use.  A payload that
    is used before any property is decoded without unpacking the properties, if their block is known.

    Arguments:
        method: the payload of the method frame.
        header: that of the content header frame.
        raw: the body as received.
        consumer_tag: None for a message that was got.
    """

    __slots__ = ("_header", "_method", "_stage", "consumer_tag", "raw")

    _stage: int

    properties = staged_slot("properties", _HEADER_READ)
    headers = staged_slot("headers", _HEADER_READ)
    content_type = staged_slot("content_type", _HEADER_READ)
    content_encoding = staged_slot("content_encoding", _HEADER_READ)
    body = staged_slot("body", _BODY_READ)
    errors = staged_slot("errors", _BODY_READ)
    delivery_info = computed_slot("delivery_info")

    def __init__(
        self,
        channel: Any,
        delivery_tag: int,
        method: bytes,
        header: bytes,
        raw: bytes,
        consumer_tag: str | None,
    ) -> None:
        self.channel = channel
        self.delivery_tag = delivery_tag
        self.consumer_tag = consumer_tag
        self.raw = raw
        self.accept = None
        self._method = method
        self._header = header
        self._stage = _RAW
        self._state = "RECEIVED"
        self._decoded_cache = None

    def size(self) -> int:
        """Return the approximate bytes of memory that it takes before it is decoded."""
        return len(self.raw) + len(self._header) + DELIVERY_OVERHEAD

    @property
    def is_of_stream(self) -> bool:
        """Whether it was read from a stream, which keeps it when it is acknowledged or rejected."""
        return self.consumer_tag in self.channel.streams and isinstance(
            self.headers.get("x-stream-offset"), int
        )

    def _send_refusal(self, requeue: bool) -> None:
        if self.is_of_stream:
            # RabbitMQ ends the whole connection for a reject; an ack has it send the next one.
            self.channel.basic_ack(self.delivery_tag)
        else:
            self.channel.basic_reject(self.delivery_tag, requeue)

    def _is_rolled_back(self) -> bool:
        channel = self.channel
        return bool(channel.is_transactional and channel.is_rolled_back(self.delivery_tag))

    def _send_back(self) -> None:
        if self.is_of_stream:
            self.channel.give_credit(self.delivery_tag)
        else:
            self.channel.requeue_unseen(self.delivery_tag)

    def _decode(self) -> Any:
        if self._stage == _RAW:
            kind = content_kind(self._header[12:])
            if kind is not None:
                content_type, encoding = kind
                return loads(as_text(self.raw, encoding), content_type, encoding, self.accept)
            self._read(_HEADER_READ)
        if self._stage == _HEADER_READ and not _headers(self).get("compression"):
            encoding = _content_encoding(self)
            return loads(as_text(self.raw, encoding), _content_type(self), encoding, self.accept)
        return super()._decode()

    def _read(self, stage: int) -> None:
        """Fill the slots up to *stage*."""
        # By the slots themselves: the properties above would look at the stage each time.
        if self._stage == _RAW:
            try:
                properties = unpack_properties(self._header)
            except DecodeError:
                self._leave_unread()
                return
            self._stage = _HEADER_READ
            _set_properties(self, properties)
            _set_headers(self, properties.get("application_headers") or {})
            _set_content_type(self, properties.get("content_type"))
            _set_content_encoding(self, properties.get("content_encoding"))
        if self._stage < stage:
            errors: list[Any] = []
            body: Any
            compression = self.headers.get("compression")
            if compression:
                body = self._unpacked(self.raw, compression, errors)
            else:
                body = as_text(self.raw, self.content_encoding)
            # Unpacking may have let others run: the stage changes when both are there.
            _set_body(self, body)
            _set_errors(self, errors)
            self._stage = _BODY_READ

    def _leave_unread(self) -> None:
        """Have decoding raise, as not all of the header can be read; keep what can."""
        self._stage = _BODY_READ
        _set_errors(self, [])
        self._note_error()
        properties = self.properties = readable_properties(self._header)
        self.headers = properties.get("application_headers") or {}
        self.content_type = properties.get("content_type")
        self.content_encoding = properties.get("content_encoding")
        _set_body(self, self.raw)

    def _delivery_info(self) -> dict[str, Any]:
        method, tag = self._method, self.consumer_tag
        # The method's ids, for a delivery the consumer tag, the delivery tag, then redelivered.
        redelivered = 12 if tag is None else 13 + method[4]
        info: dict[str, Any] = {
            "delivery_tag": self.delivery_tag,
            "redelivered": method[redelivered : redelivered + 1] == b"\1",
        }
        if tag is None:
            info["exchange"], info["routing_key"] = split_route(method[13:-4])
            info["message_count"] = int.from_bytes(method[-4:], "big")
        else:
            info["exchange"], info["routing_key"] = split_route(method[redelivered + 1 :])
            info["consumer_tag"] = tag
        return info


class BodilessDelivery(Delivery):
    """A delivery whose body was above ``max_message_size``, and was not kept.

    Reading or decoding its body raises ``BodyTooLarge``.  It is acknowledged or rejected like any other.
    """

    __slots__ = ()

    @property
    def body(self) -> Any:
        """Raise ``BodyTooLarge``: an empty body would be taken for that of the message."""
        raise self._error()

    @property
    def errors(self) -> list[Any]:  # type: ignore[override]  # there is nothing to write to
        """Why it cannot be decoded."""
        return [(BodyTooLarge, self._error(), None)]

    def _error(self) -> BodyTooLarge:
        limit = self.channel.connection.options.max_message_size
        return BodyTooLarge(
            f"body of {body_size(self._header)} bytes is above max_message_size ({limit} bytes): raise "
            f"that transport option to process the message"
        )

    def _decode(self) -> Any:
        raise self._error()

    def _body_length(self) -> int:
        return body_size(self._header)

    def _read(self, stage: int) -> None:
        super()._read(_HEADER_READ)


class ReturnedMessage(Message):
    """A message that the broker returned as unroutable."""

    __slots__ = ()

    def __init__(self, channel: Any, exchange: str, routing_key: str, header: bytes, body: bytes):
        error: DecodeError | None = None
        try:
            properties = unpack_properties(header)
        except DecodeError as exc:
            properties, error = readable_properties(header), exc
        super().__init__(
            body=as_text(body, properties.get("content_encoding")),
            channel=channel,
            content_type=properties.get("content_type"),
            content_encoding=properties.get("content_encoding"),
            delivery_info={"exchange": exchange, "routing_key": routing_key},
            properties=properties,
            headers=properties.get("application_headers") or {},
        )
        if error is not None:
            self.errors.append((DecodeError, error, None))
