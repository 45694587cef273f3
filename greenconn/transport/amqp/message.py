"""Messages of an AMQP channel: outgoing ones are packed once, deliveries parsed at the first use.

The property block of a message is 16 flag bits and the values of the properties whose bit is set (spec
4.2.6.1).  amqp's own serialiser takes 6 us for it; nearly all publishers repeat the same content type,
mode and priority, so these are kept, both ways, and what differs with each message (identifiers,
``reply_to``) comes behind them on the wire and is packed and parsed alone.
"""

from __future__ import annotations

from calendar import timegm
from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import Decimal
from struct import Struct, error
from typing import Any, Final, TypeAlias

import amqp
import msgspec
from amqp.exceptions import FrameSyntaxError
from amqp.serialization import dumps

from greenconn.encoding import as_text, charsets, plain_text
from greenconn.exceptions import BodyTooLarge, DecodeError
from greenconn.message import Message, computed_slot, staged_slot
from greenconn.serialization import loads
from greenconn.wire.amqp import UNREADABLE, body_size, header_error, is_finite

#: Bytes that a delivery takes beside its body and its header.
DELIVERY_OVERHEAD: Final = 512

#: How far a delivery has been read.
_RAW, _HEADER_READ, _BODY_READ = range(3)

#: ``(exchange, routing key)`` of the raw arguments that follow the delivery tag.
_routes: dict[bytes, tuple[str, str]] = {}


class Outgoing(msgspec.Struct, eq=False):
    """A message that is ready to be framed.

    Attributes:
        packed: its property block.
        body: bytes.
    """

    packed: bytes
    body: bytes

    @classmethod
    def of(cls, message: Outgoing | amqp.Message) -> Outgoing:
        """Return *message*, converted if it is an ``amqp.Message`` that a program has made."""
        if isinstance(message, Outgoing):
            return message
        properties = dict(message.properties)
        return prepared(
            message.body,
            properties.pop("priority", None),
            properties.pop("content_type", None),
            properties.pop("content_encoding", None),
            properties.pop("application_headers", None),
            properties,
        )


def prepared(
    body: Any,
    priority: int | None = None,
    content_type: str | None = None,
    content_encoding: str | None = None,
    headers: Mapping[str, Any] | None = None,
    properties: Mapping[str, Any] | None = None,
    _Message: Any = None,  # noqa: N803 - kombu's name
) -> Outgoing:
    """Pack a message for ``basic_publish``.  Never switches.

    Raises:
        ValueError: a property does not fit its field.
    """
    kind = body.__class__
    if kind is str or (kind is not bytes and isinstance(body, str)):
        content_encoding = content_encoding or "utf-8"
        body = body.encode(content_encoding)
    elif kind is not bytes:
        body = memoryview(body).tobytes()  # bytes() would make zeros of a number
    packed = pack_properties(priority, content_type, content_encoding, headers, properties)
    return Outgoing(packed, body)


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

    def _came_with(self, name: str) -> bool:
        # Most messages are handled without unpacking their header frame.
        return name.encode() in self._header and name in self.headers

    def _decode(self) -> Any:
        if self._stage == _RAW:
            kind = content_kind(self._header[12:])
            if kind is not None:
                content_type, encoding, known = kind
                body: str | bytes = self.raw
                try:  # as as_text(), without the call
                    if known is not None:
                        body = str(self.raw, known)
                except (UnicodeError, TypeError):
                    pass
                return loads(body, content_type, encoding, self.accept)
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
            _set_properties(self, properties)
            _set_headers(self, properties.get("application_headers") or {})
            _set_content_type(self, properties.get("content_type"))
            _set_content_encoding(self, properties.get("content_encoding"))
            self._stage = _HEADER_READ
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


_flags = Struct(">H")
_octet = Struct(">B")
_long = Struct(">I")
_long_long = Struct(">Q")
_signed = Struct(">i")
_int = Struct(">Bi")
_text_start = Struct(">BI")
#: The values of a table that have a fixed size, by their type (AMQP 0-9-1, 4.2.1, and its errata).
_numbers: Final = {
    ord(kind): Struct(form)
    for kind, form in (
        *zip("bBtsUuIi", (">b", ">B", ">?", ">h", ">h", ">H", ">i", ">I"), strict=True),
        *zip("lLTfdDV", (">q", ">q", ">q", ">f", ">d", ">Bi", ">"), strict=True),
    )
}
#: What is raised by bytes that are no property block.
_NO_BLOCK: Final = (*UNREADABLE, TypeError, OSError, FrameSyntaxError)

#: Name, flag bit, kind: s short string, t table, o octet, T timestamp (spec 1.8, class basic).
_Fields: TypeAlias = "tuple[tuple[str, int, str], ...]"
_EARLY: Final[_Fields] = (
    ("content_type", 0x8000, "s"),
    ("content_encoding", 0x4000, "s"),
    ("application_headers", 0x2000, "t"),
    ("delivery_mode", 0x1000, "o"),
    ("priority", 0x0800, "o"),
)
_LATE: Final[_Fields] = (
    ("correlation_id", 0x0400, "s"),
    ("reply_to", 0x0200, "s"),
    ("expiration", 0x0100, "s"),
    ("message_id", 0x0080, "s"),
    ("timestamp", 0x0040, "T"),
    ("type", 0x0020, "s"),
    ("user_id", 0x0010, "s"),
    ("app_id", 0x0008, "s"),
    ("cluster_id", 0x0004, "s"),
)

#: Flags of blocks that differ with every message, or may: not worth keeping.  Nor are headers,
#: unless their table is empty.
_VARYING: Final = 0x0400 | 0x0200 | 0x0080 | 0x0040
_KEPT: Final = 512
#: The byte before a short string of so many bytes.
_LENGTHS: Final = tuple(bytes((length,)) for length in range(256))
#: The type and the length before a string of so many bytes in a table.
_TEXT_STARTS: Final = tuple(_text_start.pack(0x53, length) for length in range(256))

#: The names of the items of tables, packed, and unpacked again.
_names: dict[str, bytes] = {}
_read_names: dict[bytes, str | bytes] = {}
_packed: dict[tuple[Any, ...], bytes] = {}
_unpacked: dict[bytes, dict[str, Any]] = {}
#: Which of the late fields properties with these names have.
_named: dict[tuple[str, ...], _Fields] = {}
#: Which early and which late fields a block with these flags has.
_present: dict[int, tuple[_Fields, _Fields]] = {}
#: Flags -> the start of the last block with them, as far as it may repeat, its properties, and the
#: fields that follow.
_starts: dict[int, tuple[bytes, dict[str, Any], _Fields]] = {}
_NO_START: Final[tuple[bytes, dict[str, Any], _Fields]] = b"", {}, ()
#: Content type, encoding and character set of the blocks in ``_unpacked``.
_kinds: dict[bytes, tuple[str | None, str | None, str | None]] = {}
#: Those of a block, if it is a known one.  None: ask ``unpack_properties``; the
#: next such block is known if it is worth keeping.
content_kind: Final = _kinds.get


def pack_properties(
    priority: int | None,
    content_type: str | None,
    content_encoding: str | None,
    headers: Mapping[str, Any] | None,
    properties: Mapping[str, Any] | None,
) -> bytes:
    """Return the property flags and list of a message.

    Arguments:
        priority: 0 to 255, or None.
        headers: an empty table is sent too, as kombu does: readers in other languages look into it.
        properties: further ones by their names in the specification; unknown names and None are
            left out, as kombu does.

    Raises:
        ValueError: a value does not fit its field; names the field.
    """
    mode = properties.get("delivery_mode") if properties else None
    key = (content_type, content_encoding, headers is None, mode, priority)
    block = _packed.get(key)
    if block is None:
        block = _pack((content_type, content_encoding, headers and {}, mode, priority))
        if len(_packed) >= _KEPT:
            _packed.clear()
        _packed[key] = block
    if headers:  # in the place of the empty table
        at = 2
        for early in (content_type, content_encoding):
            if early is not None:
                at += 1 + block[at]
        block = block[:at] + _field("application_headers", "t", headers) + block[at + 4 :]
    if not properties or (mode is not None and len(properties) == 1):
        return block
    return _append(block[0] << 8 | block[1], [b"", block[2:]], properties)


def _pack(values: tuple[Any, ...]) -> bytes:
    """Return a block of the first fields."""
    flags = 0
    parts = []
    for (name, bit, kind), value in zip(_EARLY, values, strict=True):
        if value is not None:
            flags |= bit
            parts.append(_field(name, kind, value))
    return _flags.pack(flags) + b"".join(parts)


def _append(flags: int, parts: list[bytes], properties: Mapping[str, Any]) -> bytes:
    """Complete a block whose first fields are in *parts*, behind room for the flags."""
    names = tuple(properties)
    fields = _named.get(names)
    if fields is None:
        fields = tuple(field for field in _LATE if field[0] in properties)
        if len(_named) >= _KEPT:
            _named.clear()
        _named[names] = fields
    for name, bit, kind in fields:
        value = properties[name]
        if value.__class__ is str and kind == "s" and len(value) < 64:
            # Nearly all.  No character takes more than 4 bytes, so it fits.
            flags |= bit
            text = value.encode("utf-8", "surrogatepass")
            parts += (_LENGTHS[len(text)], text)
        elif value is not None:
            flags |= bit
            parts.append(_field(name, kind, value))
    parts[0] = _flags.pack(flags)
    return b"".join(parts)


def _field(name: str, kind: str, value: Any) -> bytes:
    try:
        if kind == "s":
            if value.__class__ is not bytes:
                if value.__class__ is not str:
                    # Not what str() makes of a str of another class: an Enum would give its name.
                    value = plain_text(value) if isinstance(value, str) else str(value)
                value = value.encode("utf-8", "surrogatepass")
            text: bytes = value
            return _octet.pack(len(text)) + text
        if kind == "o":
            return _octet.pack(int(value))
        if kind == "t":
            return _pack_table(value if value.__class__ is dict else dict(value))
        if isinstance(value, datetime):
            value = timegm(value.utctimetuple())
        return _long_long.pack(int(value))
    except (ValueError, OverflowError, TypeError, FrameSyntaxError, error) as exc:
        if kind == "t":
            # The codec's text has the value, which may be a secret.
            raise ValueError(
                header_error(value) or "the headers are too large to be sent"
            ) from None
        raise ValueError(f"message property {name}={value!r} cannot be sent: {exc}") from exc


def _pack_table(table: Mapping[Any, Any]) -> bytes:
    """Return a table as amqp writes it, in a third of the time.

    Raises:
        ValueError, TypeError, FrameSyntaxError, struct.error: it has what no table can have.
    """
    parts: list[bytes] = []
    append = parts.append
    for key, value in table.items():
        append((_names.get(key) if key.__class__ is str else None) or _pack_name(key))
        if value.__class__ is str:  # most are
            text = value.encode("utf-8", "surrogatepass")
            size = len(text)
            append(_TEXT_STARTS[size] if size < 256 else _text_start.pack(0x53, size))
            append(text)
        else:
            append(b"V" if value is None else _pack_item(value))
    block = b"".join(parts)
    return _long.pack(len(block)) + block


def _pack_name(key: Any) -> bytes:
    """Return the name of an item of a table."""
    raw = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    name = _octet.pack(len(raw)) + raw
    if key.__class__ is str:
        if len(_names) >= _KEPT:
            _names.clear()
        _names[key] = name
    return name


def _pack_item(value: Any) -> bytes:
    """Return a value of a table or an array, with its type in front."""
    if value is None:
        return b"V"
    kind = value.__class__
    if kind is int and -(2**31) < value < 2**31:
        return _int.pack(0x49, value)
    if kind is bool:
        return b"t\1" if value else b"t\0"
    if kind is dict:
        return b"F" + _pack_table(value) if value else b"F\0\0\0\0"
    if kind is list or kind is tuple:
        block = b"".join(map(_pack_item, value))
        return b"A" + _long.pack(len(block)) + block
    item: bytes = dumps("A", ([value],))[4:]
    if not is_finite(value):
        raise ValueError("a float is not finite")
    return item


def text_of(raw: bytes) -> str:
    """Return a short string as text; bytes that are not UTF-8 become ``\\xff``."""
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "backslashreplace")


def unpack_properties(header: bytes) -> dict[str, Any]:
    """Return the properties of a content header frame, as a dict of its own.

    A header with a time stamp that no ``datetime`` can be is an integer (seconds, perhaps negative).

    Arguments:
        header: the frame's payload: class, weight, body size (12 bytes), then the block.

    Raises:
        DecodeError: it is cut off, or holds what no property can be; see :func:`readable_properties`.
    """
    block = header[12:]
    known = _unpacked.get(block)
    if known is not None:
        known = known.copy()
        if "application_headers" in known:
            known["application_headers"] = {}  # so that a program that changes it changes its own
        return known
    try:
        flags: int = _flags.unpack_from(block)[0]
        properties = _unpack(block, flags)
    except _NO_BLOCK as exc:
        # Brokers do not check properties: a time stamp of the year 60,000, endless nesting, the types of
        # another protocol.
        properties, is_whole = _salvage(block)
        if is_whole:
            return properties
        raise DecodeError(
            f"the properties of a message cannot be read: {type(exc).__name__}"
        ) from exc
    if len(block) < 256 and not flags & _VARYING and not properties.get("application_headers"):
        if len(_unpacked) >= _KEPT:
            _unpacked.clear()
            _kinds.clear()
        _unpacked[block] = properties.copy()
        encoding = properties.get("content_encoding")
        _kinds[block] = (properties.get("content_type"), encoding, charsets[encoding])
    return properties


def _unpack(block: bytes, flags: int) -> dict[str, Any]:
    """Parse a block.  Messages that differ in identifiers alone have the same early fields."""
    start, properties, late = _starts.get(flags, _NO_START)
    if start and block.startswith(start):
        properties = properties.copy()
        if "application_headers" in properties:
            properties["application_headers"] = {}  # see unpack_properties
        _parse(block, len(start), late, properties)
        return properties
    fields = _present.get(flags)
    if fields is None:
        fields = _fields_of(_EARLY, flags), _fields_of(_LATE, flags)
        if len(_present) >= _KEPT:
            _present.clear()
            _starts.clear()
        _present[flags] = fields
    early, late = fields
    properties = {}
    position = _parse(block, 2, early, properties)
    # A string that was cut off may go on in the next block.
    if position <= min(len(block), 256) and not properties.get("application_headers"):
        _starts[flags] = block[:position], properties.copy(), late
    _parse(block, position, late, properties)
    return properties


def _fields_of(known: _Fields, flags: int) -> _Fields:
    return tuple(field for field in known if flags & field[1])


def _parse(
    block: bytes,
    position: int,
    fields: _Fields,
    properties: dict[str, Any],
) -> int:
    """Add the values of *fields*, which begin at *position*, and return where they end."""
    for name, _, kind in fields:
        if kind == "s":
            start = position + 1
            position = start + block[position]
            try:
                properties[name] = block[start:position].decode()
            except UnicodeDecodeError:
                properties[name] = text_of(block[start:position])
        elif kind == "o":
            properties[name] = block[position]
            position += 1
        elif kind == "t":
            if block[position : position + 4] == b"\0\0\0\0":
                properties[name] = {}
                position += 4
            else:
                properties[name], position = _table(block, position)
        else:
            properties[name] = _long_long.unpack_from(block, position)[0]
            position += 8
    return position


def readable_properties(header: bytes) -> dict[str, Any]:
    """Return those of the properties of a content header frame that can be read; see there."""
    return _salvage(header[12:])[0]


def _salvage(block: bytes) -> tuple[dict[str, Any], bool]:
    """Return what can be read of a block that amqp cannot read, and whether that is all of it."""
    properties: dict[str, Any] = {}
    is_whole = True
    try:
        flags = _flags.unpack_from(block)[0]
        position = 2
        for field in _fields_of((*_EARLY, *_LATE), flags):
            if field[2] == "t":
                start = position + 4
                position = start + _long.unpack_from(block, position)[0]
                # The fields behind the table can be read, whatever is in it.
                properties[field[0]], is_whole = _salvage_table(block[:position], start)
            else:
                position = _parse(block, position, (field,), properties)
    except _NO_BLOCK:
        is_whole = False
    return properties, is_whole and position <= len(block)


def _salvage_table(block: bytes, position: int) -> tuple[dict[Any, Any], bool]:
    """Return the readable items of a table that ends where *block* does, and whether these are all."""
    table: dict[Any, Any] = {}
    is_whole = True
    try:
        while position < len(block):
            start = position + 1
            position = start + block[position]
            name = _table_text(block[start:position])
            try:
                table[name], position = _item(block, position)
            except RecursionError:
                is_whole = False
                position += 5 + _long.unpack_from(block, position + 1)[0]
    except _NO_BLOCK:
        is_whole = False
    return table, is_whole


def _table(block: bytes, position: int) -> tuple[dict[Any, Any], int]:
    """Return the table whose length is at *position*, and where it ends."""
    end: int = position + 4 + _long.unpack_from(block, position)[0]
    position += 4
    table: dict[Any, Any] = {}
    while position < end:
        start = position + 1
        position = start + block[position]
        raw = block[start:position]
        name = _read_names.get(raw)
        if name is None:
            name = _table_text(raw)
            if len(_read_names) >= _KEPT:
                _read_names.clear()
            _read_names[raw] = name
        kind = block[position]
        if kind == 0x53:  # S, as most are
            start = position + 5
            position = start + _long.unpack_from(block, position + 1)[0]
            try:
                table[name] = block[start:position].decode()
            except UnicodeDecodeError:
                table[name] = block[start:position]
        elif kind == 0x56:  # V
            table[name] = None
            position += 1
        elif kind == 0x49:  # I
            table[name] = _signed.unpack_from(block, position + 1)[0]
            position += 5
        elif kind == 0x74:  # t
            table[name] = block[position + 1] != 0
            position += 2
        else:
            table[name], position = _item(block, position)
    if position != end or end > len(block):
        raise FrameSyntaxError("a table is cut off")
    return table, end


def _item(block: bytes, position: int) -> tuple[Any, int]:
    """Return the value at *position* of a table or an array, as amqp reads it, and where it ends."""
    kind = block[position]
    position += 1
    number = _numbers.get(kind)
    if number is not None:
        values = number.unpack_from(block, position)
        position += number.size
        if kind == 0x54:  # T
            return _time(values[0]), position
        if kind == 0x44:  # D
            return Decimal(values[1]) / Decimal(10 ** values[0]), position
        return (values[0] if values else None), position
    if kind == 0x46:  # F
        return _table(block, position)
    start = position + 4
    end: int = start + _long.unpack_from(block, position)[0]
    if end > len(block):
        raise FrameSyntaxError("a value is cut off")
    if kind == 0x53:  # S
        return _table_text(block[start:end]), end
    if kind == 0x78:  # x
        return block[start:end], end
    if kind == 0x41:  # A
        array = []
        while start < end:
            value, start = _item(block, start)
            array.append(value)
        return array, end
    raise FrameSyntaxError(f"no type of AMQP: {kind}")


def _time(seconds: int) -> datetime | int:
    """Return a time stamp as amqp does: in UTC, without a zone; one of no year as its seconds.

    amqp takes a negative one, of a time before 1970, for one of the far future.
    """
    try:
        if seconds >= 0:
            return datetime.fromtimestamp(seconds, tz=timezone.utc).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        pass
    return seconds


def _table_text(raw: bytes) -> str | bytes:
    """Return text of a table; bytes that are not UTF-8 stay bytes, as in amqp."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
