"""What untrusted peers may send: strategies that the targets are made of."""

from __future__ import annotations

import itertools
import json
from struct import pack
from typing import Any

from hypothesis import strategies as st

#: Text that has surprised somebody somewhere.
texts = st.sampled_from(
    [
        "",
        "\0",
        "\ud800",
        "x" * 300,
        "../..",
        "{}",
        "%s",
        "ü",
        "\r\n",
        "utf-8\0",
        "NaN",
        "1e999",
        "-1",
    ]
) | st.text(max_size=12)

numbers = (
    st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.sampled_from([0, 1, -1, 255, 256, 2**31, 2**63, 2**64])
)

#: Any value that JSON has (with Python's additions).
anything = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def as_json(value: Any) -> bytes:
    """A value as JSON."""
    return json.dumps(value).encode()


# Fields of AMQP tables (spec 4.2.5.5, and RabbitMQ's own letters).

_SCALARS = (
    st.tuples(st.sampled_from(b"tbB"), st.binary(min_size=1, max_size=1))
    | st.tuples(st.sampled_from(b"sUu"), st.binary(min_size=2, max_size=2))
    | st.tuples(st.sampled_from(b"Iif"), st.binary(min_size=4, max_size=4))
    | st.tuples(st.sampled_from(b"D"), st.binary(min_size=5, max_size=5))
    | st.tuples(st.sampled_from(b"LldT"), st.binary(min_size=8, max_size=8))
    | st.tuples(st.sampled_from(b"V"), st.just(b""))
    | st.tuples(st.sampled_from(b"Sx"), st.binary(max_size=20).map(lambda each: _sized(each)))
).map(lambda pair: bytes((pair[0],)) + pair[1])


def _sized(content: bytes) -> bytes:
    return pack(">I", len(content)) + content


def _named(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(bytes((len(name),)) + name + value for name, value in pairs)


_NAMES = st.sampled_from(
    [b"compression", b"x-death", b"CC", b"BCC", b"clock", b"ticket", b"expires", b"\xff", b""]
) | st.binary(max_size=10)

#: A field with its letter: of any type, in any depth.
field = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda each: b"A" + _sized(b"".join(each)))
        | st.lists(st.tuples(_NAMES, inner), max_size=4).map(
            lambda each: b"F" + _sized(_named(each))
        )
    ),
    max_leaves=8,
)

#: A table, with its length.
table = st.lists(st.tuples(_NAMES, field), max_size=5).map(lambda each: _sized(_named(each)))

_METHODS = st.sampled_from(
    [
        *((10, each) for each in (10, 20, 30, 41, 50, 51, 60, 61, 71, 99)),
        *((20, each) for each in (11, 20, 40, 41, 99)),
        *((40, 11), (50, 11), (50, 31), (50, 41), (90, 11), (85, 11), (0, 0), (65535, 65535)),
        *((60, each) for each in (11, 21, 30, 31, 40, 50, 60, 71, 72, 80, 111, 120)),
    ]
)


def _string(content: bytes) -> bytes:
    return bytes((len(content),)) + content


#: Arguments that might be some method's.
_ARGUMENTS = st.lists(
    st.binary(max_size=8)
    | st.binary(max_size=20).map(_string)
    | st.just(_string(b"tag"))
    | st.integers(0, 2**64 - 1).map(lambda each: pack(">Q", each))
    | table,
    max_size=5,
).map(b"".join)


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


_CHANNELS = st.sampled_from([0, 1, 1, 1, 2, 3, 77, 65535])

#: A frame with a method of some kind and arguments of any kind.
method = st.builds(
    lambda channel, ids, arguments: _frame(1, channel, pack(">HH", *ids) + arguments),
    _CHANNELS,
    _METHODS,
    _ARGUMENTS,
)

_HEADERS = st.builds(
    lambda channel, size, flags, block: _frame(
        2, channel, pack(">HHQH", 60, 0, size, flags) + block
    ),
    _CHANNELS,
    st.sampled_from([0, 1, 4, 4, 5000, 2**31, 2**40, 2**64 - 1]),
    st.integers(0, 65535),
    st.binary(max_size=40) | table,
)

_BODIES = st.builds(
    lambda channel, body: _frame(3, channel, body),
    _CHANNELS,
    st.sampled_from([b"", b"body", b"x" * 5000]) | st.binary(max_size=10),
)

_OTHERS = st.builds(
    _frame, st.sampled_from([0, 4, 8, 8, 9, 255]), _CHANNELS, st.binary(max_size=12)
)

_DELIVERY = st.builds(
    lambda channel, tag, number, flags, block: (
        _frame(1, channel, pack(">HH", 60, 60) + _string(tag) + pack(">QB", number, 0) + b"\0\3key")
        + _frame(2, channel, pack(">HHQH", 60, 0, 4, flags) + block)
        + _frame(3, channel, b"body")
    ),
    _CHANNELS,
    st.sampled_from([b"tag", b"tag", b"none", b""]),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 0x8000, 0x2000, 0xFFFC, 0x0040]),
    st.just(b"") | table | st.binary(max_size=30),
)

#: What a broker might send: frames that are right by themselves, in any order.
frames = st.lists(_DELIVERY | method | _HEADERS | _BODIES | _OTHERS, min_size=1, max_size=8)


@st.composite
def mutated(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of which some were changed, lost, doubled or added; or none."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["change", "lose", "double", "add", "end"]))
        if what == "change" and at < len(data):
            data[at] ^= draw(st.integers(1, 255))
        elif what == "lose":
            del data[at : at + draw(st.integers(1, 9))]
        elif what == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 9))]
        elif what == "add":
            data[at:at] = draw(st.binary(min_size=1, max_size=9))
        else:
            del data[at:]
    return bytes(data)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """*data* in pieces."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]
