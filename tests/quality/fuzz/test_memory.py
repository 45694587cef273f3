"""No announced length, and nothing that is small on its way, is taken for memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import pack
from typing import Any

import pytest

from greenconn.broker.envelope import unusual_contents, usual_contents
from greenconn.compression import compress, decompress, encoders
from greenconn.exceptions import DecodeError
from greenconn.jsoncodec import dumps
from greenconn.serialization import loads, yaml_loads
from greenconn.wire.amqp import FrameParser
from greenconn.wire.resp import ProtocolError, RespParser
from tests.quality.fuzz import corpus

pytestmark = [pytest.mark.pure, pytest.mark.halved]

MIB = 1024 * 1024


@contextmanager
def at_most(mib: float) -> Iterator[None]:
    """What happens here takes no more memory, at any time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()
    assert peak < mib, f"it took {peak:.1f} MiB"


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def begun(channel: int, size: int) -> bytes:
    """The beginning of a delivery with a large body."""
    return (
        frame(1, channel, b"\0\x3c\0\x3c\3tag" + bytes(9) + b"\0\0")
        + frame(2, channel, pack(">HHQH", 60, 0, size, 0))
        + frame(3, channel, bytes(100_000))
    )


def test_bodies_on_channels_that_are_not_open() -> None:
    """A peer begins a large body on each of 2,000 channels; one is open."""
    parser = FrameParser(131072, channels={7})
    with at_most(2):
        for channel in range(1, 2000):
            assert not parser.feed(begun(channel, 200_000))
    whole = parser.feed(frame(3, 8, bytes(100_000)) + frame(3, 7, bytes(100_000)))
    assert [(method[0], len(method[4] or b"")) for method in whole] == [(8, 0), (7, 200_000)]


@pytest.mark.parametrize("size", [2**31, 2**40, 2**64 - 1])
def test_announced_bodies(size: int) -> None:
    """They are skipped, frame by frame."""
    parser = FrameParser(131072)
    with at_most(1):
        assert not parser.feed(begun(1, size))
        for _ in range(20):
            assert not parser.feed(frame(3, 1, bytes(100_000)))


@pytest.mark.parametrize("mark", [b"*", b"~", b"%", b">", b"|"])
@pytest.mark.parametrize("count", [10**6, 2**31 - 1, 2**32 - 1, 10**30])
def test_announced_lists(mark: bytes, count: int) -> None:
    head = b"%b%d\r\n" % (mark, count)
    for pieces in ([head], [b"+OK\r\n" + head], [head[:3], head[3:]], [bytes((b,)) for b in head]):
        parser = RespParser()
        with at_most(1), pytest.raises(ProtocolError):
            for piece in pieces:
                list(parser.feed(piece))
            raise AssertionError("it was believed")


def test_what_looks_like_a_list_in_a_string() -> None:
    body = b"*99999999\r\n>10000000\r\n" * 1000
    whole = b"$%d\r\n%b\r\n+OK\r\n" % (len(body), body)
    for size in (len(whole), 5000, 7, 1):
        parser = RespParser()
        replies: list[Any] = []
        for at in range(0, len(whole), size):
            replies += parser.feed(whole[at : at + size])
        assert replies == [body, b"OK"]


def test_a_reply_without_end() -> None:
    for head, more in ((b"$900000000\r\n", b"x" * 65536), (b"*999999\r\n", b"*0\r\n" * 16384)):
        parser = RespParser(reply_limit=MIB)
        with (
            at_most(40),
            pytest.raises(ProtocolError, match=r"more than 1048576 bytes|bytes announced"),
        ):
            list(parser.feed(head))
            for _ in range(100):
                assert not list(parser.feed(more))


@pytest.mark.parametrize("kind", encoders())
def test_bombs(kind: str, long: bool) -> None:
    bomb, _ = compress(bytes((256 if long else 24) * MIB), kind)
    assert len(bomb) < MIB
    with at_most(16), pytest.raises(DecodeError, match="limit of 1048576 bytes"):
        decompress(bomb, kind, MIB)


READERS: dict[str, Callable[[bytes], Any]] = {
    "json": lambda body: loads(body, "application/json", "utf-8"),
    "msgpack": lambda body: loads(
        body, "application/x-msgpack", "binary", accept={"application/x-msgpack"}
    ),
    "envelope": lambda raw: usual_contents(raw) or unusual_contents(raw),
}


@pytest.mark.parametrize("reader", READERS)
def test_bodies_that_are_deep_or_announce_much(reader: str) -> None:
    for body in (*corpus.BODIES, *corpus.ENVELOPES):
        with at_most(60):
            try:
                READERS[reader](body)
            except DecodeError:
                pass


def test_yaml_that_merges_without_end() -> None:
    with at_most(60), pytest.raises(ValueError, match="must merge at most 100000 keys"):
        yaml_loads(corpus.WIDE_MERGE)
    assert yaml_loads(b"a: &a {x: 1}\nb: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}
    assert yaml_loads(dumps({"a": [1] * 1000})) == {"a": [1] * 1000}
