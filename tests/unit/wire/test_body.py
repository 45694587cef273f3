"""Large bodies: received where they are put together, and the same whatever way they come."""

from __future__ import annotations

import random
import tracemalloc
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenconn.exceptions import FrameError, UnexpectedFrame
from greenconn.wire.amqp import (
    BLOCK,
    KEPT,
    LARGE,
    TAIL,
    BlockPool,
    FrameParser,
    Method,
    content_frames,
    heartbeat_frame,
    method_frame,
)

DELIVER, ACK = (60, 60), (60, 80)
NOISE = random.Random(3).randbytes(3 << 19)


def message(channel: int, size: int, frame_max: int = 131072) -> bytes:
    """A delivery with a body of *size* bytes, as a broker sends it."""
    body = NOISE[:size]
    return b"".join(
        content_frames(method_frame(channel, DELIVER, b"x"), channel, b"\0\0", body, frame_max)
    )


class Peer:
    """Sends bytes as a socket does: as many as there is room for, or fewer."""

    def __init__(self, parser: FrameParser, data: bytes) -> None:
        self.parser = parser
        self.data = data
        self.at = 0
        self.uses_room = True
        self.in_room = 0  # bytes received into the parser's room
        self.sends = 0

    def send(self, most: int) -> list[Method]:
        """Send up to *most* bytes."""
        self.sends += 1
        room = self.parser.room() if self.uses_room else None
        left = self.data[self.at : self.at + most]
        if room is None:
            self.at += len(left)
            return self.parser.feed(left)
        count = 0
        for buffer in room:
            piece = left[count : count + len(buffer)]
            buffer[: len(piece)] = piece
            count += len(piece)
        self.at += count
        self.in_room += count
        return self.parser.filled(count) if count else []

    def send_all(self, most: int) -> list[Method]:
        """Send the rest in pieces of up to *most* bytes."""
        methods: list[Method] = []
        while self.at < len(self.data):
            methods += self.send(most)
        return methods


def bodies(methods: list[Method]) -> list[int | None]:
    """The sizes of the bodies, each of which is right."""
    for method in methods:
        if method[4] is not None:
            assert method[4] == NOISE[: len(method[4])]
            assert type(method[4]) is bytes
    return [None if method[4] is None else len(method[4]) for method in methods]


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from([0, 10, LARGE - 1, LARGE, BLOCK, BLOCK + 1, 300_000, "ack", "beat"]),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([4096, 100_000, 131072, 200_000, 0]),
    st.lists(st.tuples(st.integers(1, 200_000), st.booleans()), max_size=30),
    st.sampled_from([977, 65536, 131072]),
)
def test_the_same_comes_out_whatever_way_it_comes_in(
    sent: list[int | str], frame_max: int, steps: list[tuple[int, bool]], rest: int
) -> None:
    data = b""
    expected: list[int | None] = []
    for each in sent:
        if isinstance(each, int):
            data += message(1, each, frame_max)
            expected.append(each)
        elif each == "ack":
            data += method_frame(2, ACK)
            expected.append(None)
        else:
            data += heartbeat_frame()
    peer = Peer(FrameParser(frame_max), data)
    methods: list[Method] = []
    for most, uses_room in steps:
        peer.uses_room = uses_room
        methods += peer.send(most)
    peer.uses_room = True
    methods += peer.send_all(rest)
    assert bodies(methods) == expected
    assert peer.parser.heartbeats == sent.count("beat")


def test_nearly_all_of_a_large_body_is_received_where_it_stays() -> None:
    peer = Peer(FrameParser(), message(1, 1 << 20) * 3)
    assert bodies(peer.send_all(131072)) == [1 << 20] * 3
    assert peer.in_room > 0.95 * len(peer.data)
    assert peer.sends < 30


def test_a_body_of_a_mib_comes_at_once() -> None:
    peer = Peer(FrameParser(), message(1, 1 << 20) * 10)
    assert bodies(peer.send_all(2 << 20)) == [1 << 20] * 10
    assert peer.sends < 25


@pytest.mark.parametrize("size", [131_064, 131_065, 10 * 131_064, 3 << 19])
@pytest.mark.parametrize("most", [2 << 20, 131_072, 1000])
def test_there_is_room_for_what_the_body_has_and_not_more(size: int, most: int) -> None:
    parser = FrameParser()
    peer = Peer(parser, message(1, size) * 3 + method_frame(2, ACK))
    frames = -(-size // 131_064)
    methods: list[Method] = []
    while peer.at < len(peer.data):
        methods += peer.send(most)
        assert sum(map(len, parser.room() or ())) <= min(size, KEPT * BLOCK) + frames * TAIL
    assert bodies(methods) == [size] * 3 + [None]


def of_frames(sizes: list[int], *, between: bytes = b"") -> bytes:
    """A delivery whose body comes in frames of these *sizes*, with other frames *between* them."""
    total = sum(sizes)
    head = method_frame(1, DELIVER) + pack(">BHIHHQ", 2, 1, 14, 60, 0, total) + b"\0\0\xce"
    frames, at = [], 0
    for size in sizes:
        frames.append(pack(">BHI", 3, 1, size) + NOISE[at : at + size] + b"\xce")
        at += size
    return head + between.join(frames)


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([1, 500, LARGE, 90_000, 131_064]), min_size=1, max_size=11),
    st.sampled_from([b"", heartbeat_frame(), method_frame(2, ACK), message(2, 70_000)]),
    st.lists(st.integers(1, 400_000), max_size=30),
)
def test_frames_that_are_not_as_expected_are_the_same_body(
    sizes: list[int], between: bytes, steps: list[int]
) -> None:
    data = of_frames(sizes, between=between) * 2 + method_frame(2, ACK, b"last")
    peer = Peer(FrameParser(), data)
    methods: list[Method] = []
    for most in steps:
        methods += peer.send(most)
    methods += peer.send_all(2 << 20)
    assert [each[4] for each in methods if each[0] == 1] == [NOISE[: sum(sizes)]] * 2
    other = FrameParser().feed(between * 2 * (len(sizes) - 1) + method_frame(2, ACK, b"last"))
    assert [each for each in methods if each[0] == 2] == other


def test_frames_of_other_channels_come_between_those_of_a_body() -> None:
    body = message(1, 300_000)
    cut = 131072 + len(method_frame(1, DELIVER, b"x")) + 22
    data = body[:cut] + message(2, 5) + heartbeat_frame() + message(2, 0) + body[cut:]
    peer = Peer(FrameParser(), data)
    assert bodies(peer.send_all(100_000)) == [5, 0, 300_000]


def test_blocks_are_kept_while_large_bodies_come_and_no_longer() -> None:
    parser = FrameParser()
    peer = Peer(parser, message(1, 3 << 19) * 2)
    peer.send_all(131072)
    assert len(parser._blocks.free) == KEPT
    parser.feed(heartbeat_frame())
    assert len(parser._blocks.free) == 0


@pytest.mark.parametrize("frame_max", [131072, 0])
def test_what_is_announced_is_not_believed(frame_max: int) -> None:
    size = 100 << 20 if frame_max == 0 else 131072 - 8
    parser = FrameParser(frame_max)
    head = method_frame(1, DELIVER) + pack(">BHIHHQ", 2, 1, 14, 60, 0, 100 << 20) + b"\0\0\xce"
    tracemalloc.start()
    try:
        parser.feed(head + pack(">BHI", 3, 1, size) + b"some bytes")
        held = tracemalloc.get_traced_memory()[0]
        assert parser.room()
        held_for_more = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 2 * BLOCK
    assert held_for_more < (KEPT + 1) * BLOCK


@pytest.mark.parametrize(
    ("announced", "size", "error"),
    [
        (200_000, 131072, FrameError),  # above the limit
        (70_000, 70_001, UnexpectedFrame),  # more than the body has
    ],
)
@pytest.mark.parametrize("most", [1, 100, 1 << 20])
def test_a_large_frame_that_cannot_be_is_refused(
    announced: int, size: int, error: type[Exception], most: int
) -> None:
    head = method_frame(1, DELIVER) + pack(">BHIHHQ", 2, 1, 14, 60, 0, announced) + b"\0\0\xce"
    data = head + pack(">BHI", 3, 1, size) + bytes(size) + b"\xce"
    with pytest.raises(error):
        Peer(FrameParser(), data).send_all(most)


@pytest.mark.parametrize("most", [977, 1 << 20])
@pytest.mark.parametrize("uses_room", [True, False])
def test_a_large_frame_without_its_end_is_refused(most: int, uses_room: bool) -> None:
    data = message(1, 100_000)[:-1] + b"\0"
    peer = Peer(FrameParser(), data)
    peer.uses_room = uses_room
    with pytest.raises(FrameError, match="0xCE"):
        peer.send_all(most)


def test_a_large_body_frame_that_nobody_announced_is_refused() -> None:
    data = pack(">BHI", 3, 1, 100_000) + bytes(100_000) + b"\xce"
    with pytest.raises(UnexpectedFrame, match="type 3 on channel 1"):
        Peer(FrameParser(), data).send_all(50_000)


def test_a_few_blocks_are_kept() -> None:
    blocks = BlockPool()
    for _ in range(3):
        blocks.release([bytearray(BLOCK) for _ in range(KEPT - 1)])
    assert len(blocks.free) == KEPT
    assert blocks.take() is not blocks.take()
    assert len(blocks.free) == KEPT - 2
    blocks.clear()
    assert blocks.free == []
    assert len(blocks.take()) == BLOCK
