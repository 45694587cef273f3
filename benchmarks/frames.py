"""AMQP frames by hand: what the raw loop sends, and what sets the stage for the others.

Only what the benchmarks need, so that they load no library into a process that measures another.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct, pack, unpack_from

HEAD = Struct(">BHI")  # kind, channel, size of the payload
END = b"\xce"
BASIC = 60
PUBLISH = 40


def text(value: str) -> bytes:
    """A short string."""
    encoded = value.encode()
    return bytes([len(encoded)]) + encoded


def long_text(value: bytes) -> bytes:
    """A long string."""
    return pack(">I", len(value)) + value


def table(values: Mapping[str, str | int | None]) -> bytes:
    """A table of texts, numbers and voids."""
    return long_text(b"".join(text(name) + _item(value) for name, value in values.items()))


def _item(value: str | int | None) -> bytes:
    if value is None:
        return b"V"
    return b"S" + long_text(value.encode()) if isinstance(value, str) else b"I" + pack(">i", value)


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """One frame."""
    return HEAD.pack(kind, channel, len(payload)) + payload + END


def method(channel: int, class_id: int, method_id: int, arguments: bytes = b"") -> bytes:
    """A method frame."""
    return frame(1, channel, pack(">HH", class_id, method_id) + arguments)


class Properties:
    """The few properties that the benchmarks send and read, in the order of the wire."""

    #: Name, bit of the flags.
    FIELDS = (
        ("content_type", 15),
        ("content_encoding", 14),
        ("headers", 13),
        ("delivery_mode", 12),
        ("priority", 11),
        ("correlation_id", 10),
        ("reply_to", 9),
    )

    @staticmethod
    def encode(**values: str | int | bytes) -> bytes:
        """The property block of *values*, and a table of headers, which kombu sends empty, too."""
        values.setdefault("headers", b"\0\0\0\0")
        flags, block = 0, b""
        for name, bit in Properties.FIELDS:
            value = values.get(name)
            if value is None:
                continue
            flags |= 1 << bit
            if isinstance(value, bytes):
                block += value
            else:
                block += text(value) if isinstance(value, str) else bytes([value])
        return pack(">H", flags) + block

    @staticmethod
    def decode(block: bytes) -> dict[str, str]:
        """The texts of a property block; later fields are left alone."""
        (flags,) = unpack_from(">H", block)
        at, values = 2, {}
        for name, bit in Properties.FIELDS:
            if not flags >> bit & 1:
                continue
            if name == "headers":
                at += 4 + unpack_from(">I", block, at)[0]
            elif name in ("delivery_mode", "priority"):
                at += 1
            else:
                size = block[at]
                values[name] = block[at + 1 : at + 1 + size].decode()
                at += 1 + size
        return values


#: The properties of a JSON message.
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
#: The properties of a message of bytes.
BINARY = {"content_type": "application/data", "content_encoding": "binary"}


def publish(
    queue: str, body: bytes, properties: bytes, *, channel: int = 1, frame_max: int = 131072
) -> bytes:
    """All frames of a message to *queue*."""
    address = b"\0\0" + text("") + text(queue) + b"\0"
    parts = [
        method(channel, BASIC, PUBLISH, address),
        frame(2, channel, pack(">HHQ", BASIC, 0, len(body)) + properties),
    ]
    room = frame_max - 8
    parts += [frame(3, channel, body[at : at + room]) for at in range(0, len(body), room)]
    return b"".join(parts)
