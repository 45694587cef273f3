"""The property block of a message: packed once for the many that are alike, decoded when asked for.

A block is 16 flag bits and the values of the properties whose bit is set (spec 4.2.6.1).  amqp's own
serialiser takes 6 us for it; nearly all publishers repeat the same block, so blocks without headers
or identifiers are kept, both ways.
"""

from __future__ import annotations

from calendar import timegm
from collections.abc import Mapping
from datetime import datetime
from struct import Struct, error
from typing import Any, Final

from amqp.exceptions import FrameSyntaxError
from amqp.serialization import decode_properties_basic, dumps

__all__ = ["content_kind", "pack_properties", "unpack_properties"]

_flags = Struct(">H")
_long_long = Struct(">Q")

#: Name, flag bit, kind: s short string, t table, o octet, T timestamp (spec 1.8, class basic).
_FIELDS: Final = (
    ("content_type", 0x8000, "s"),
    ("content_encoding", 0x4000, "s"),
    ("application_headers", 0x2000, "t"),
    ("delivery_mode", 0x1000, "o"),
    ("priority", 0x0800, "o"),
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

_packed: dict[tuple[Any, ...], bytes] = {}
_unpacked: dict[bytes, dict[str, Any]] = {}
#: Content type and encoding of the same blocks.
_kinds: dict[bytes, tuple[str | None, str | None]] = {}


def pack_properties(
    priority: int | None,
    content_type: str | None,
    content_encoding: str | None,
    headers: Mapping[str, Any] | None,
    properties: Mapping[str, Any] | None,
) -> bytes:
    """The property flags and list of a message.

    Arguments:
        priority: 0 to 255, or None.
        headers: an empty table is sent too, as kombu does: readers in other languages look into it.
        properties: further ones by their names in the specification; unknown names and None are
            left out, as kombu does.

    Raises:
        ValueError: a value does not fit its field; names the field.
    """
    if not headers and (not properties or (len(properties) == 1 and "delivery_mode" in properties)):
        mode = properties["delivery_mode"] if properties else None
        key = (priority, content_type, content_encoding, mode, headers is None)
        block = _packed.get(key)
        if block is None:
            block = _pack(
                {
                    "priority": priority,
                    "content_type": content_type,
                    "content_encoding": content_encoding,
                    "application_headers": headers,
                    "delivery_mode": mode,
                }
            )
            if len(_packed) >= _KEPT:
                _packed.clear()
            _packed[key] = block
        return block
    return _pack(
        {
            **(properties or {}),
            "priority": priority,
            "content_type": content_type,
            "content_encoding": content_encoding,
            "application_headers": headers,
        }
    )


def _pack(values: Mapping[str, Any]) -> bytes:
    flags = 0
    parts = [b""]
    for name, bit, kind in _FIELDS:
        value = values.get(name)
        if value is None:
            continue
        flags |= bit
        try:
            if kind == "s":
                text = (
                    value
                    if isinstance(value, bytes)
                    else str(value).encode("utf-8", "surrogatepass")
                )
                parts.append(bytes((len(text),)))
                parts.append(text)
            elif kind == "o":
                parts.append(bytes((int(value),)))
            elif kind == "t":
                parts.append(dumps("F", (dict(value),)))
            else:
                if isinstance(value, datetime):
                    value = timegm(value.utctimetuple())
                parts.append(_long_long.pack(int(value)))
        except (ValueError, OverflowError, TypeError, FrameSyntaxError, error) as exc:
            raise ValueError(f"message property {name}={value!r} cannot be sent: {exc}") from exc
    parts[0] = _flags.pack(flags)
    return b"".join(parts)


def unpack_properties(header: bytes) -> dict[str, Any]:
    """The properties of a content header frame, as a dict of its own.

    Arguments:
        header: the frame's payload: class, weight, body size (12 bytes), then the block.
    """
    block = header[12:]
    known = _unpacked.get(block)
    if known is not None:
        known = known.copy()
        if "application_headers" in known:
            known["application_headers"] = {}  # whoever writes into it writes into his own
        return known
    properties: dict[str, Any] = decode_properties_basic(block, 0)[0]
    if (
        len(block) < 256
        and not _flags.unpack_from(block)[0] & _VARYING
        and not properties.get("application_headers")
    ):
        if len(_unpacked) >= _KEPT:
            _unpacked.clear()
            _kinds.clear()
        _unpacked[block] = properties.copy()
        _kinds[block] = (properties.get("content_type"), properties.get("content_encoding"))
    return properties


def content_kind(header: bytes) -> tuple[str | None, str | None] | None:
    """Content type and encoding of a content header frame without headers, if they are known.

    None: ask :func:`unpack_properties`, and the next such block is known if it is worth keeping.

    Arguments:
        header: as there.
    """
    return _kinds.get(header[12:])
