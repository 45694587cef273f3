"""AMQP frames: any split gives the same methods, nothing that a peer sends takes more than it sent."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from struct import pack, unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenconn.exceptions import FrameError, UnexpectedFrame
from greenconn.wire.amqp import (
    BASIC_DELIVER,
    BASIC_GET_OK,
    BASIC_PUBLISH,
    BASIC_RETURN,
    BODY_LIMIT,
    BODY_SKIPPED,
    LEAD,
    TAIL,
    FrameParser,
    Method,
    _take_whole,
    ack_frame,
    body_size,
    content_frames,
    heartbeat_frame,
    method_frame,
)
from tests.unit.wire.test_body import bodies, message

DELIVER, GET_OK, RETURN, ACK, QOS_OK = (60, 60), (60, 71), (60, 50), (60, 80), (60, 11)
PUBLISH = (60, 40)
FRAME_MAX = 4096


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """A frame, right or wrong."""
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def header(channel: int, size: int, properties: bytes = b"\0\0") -> bytes:
    """A header frame."""
    return frame(2, channel, pack(">HHQ", 60, 0, size) + properties)


def ids(method: tuple[int, int]) -> int:
    return method[0] << 16 | method[1]


def parsed(parser: FrameParser, pieces: Iterator[bytes]) -> list[Method]:
    """All that comes out for *pieces*."""
    return [method for piece in pieces for method in parser.feed(piece)]


def splits(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """*data* cut at some places."""
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    for start, stop in pairwise(edges):
        yield data[start:stop]


# Streams as a broker sends them: on each channel methods, some with content of several frames,
# the frames of different channels mixed.

plain = st.tuples(st.sampled_from([ACK, QOS_OK]), st.binary(max_size=40))
with_content = st.tuples(
    st.sampled_from([DELIVER, GET_OK, RETURN]),
    st.binary(max_size=40),
    st.binary(min_size=2, max_size=20),
    st.lists(st.binary(max_size=60), max_size=5),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[Method]]:
    """The bytes, and the methods in the order in which they become whole."""
    queues: list[list[tuple[bytes, Method | None]]] = []
    for channel in draw(st.sets(st.integers(0, 65535), min_size=1, max_size=4)):
        queue: list[tuple[bytes, Method | None]] = []
        for item in draw(st.lists(st.one_of(plain, with_content), max_size=4)):
            queue += frames_of(channel, item)
        queues.append(queue)
    data, methods = b"", []
    while any(queues):
        queue = draw(st.sampled_from([queue for queue in queues if queue]))
        piece, method = queue.pop(0)
        if draw(st.booleans()):
            data += heartbeat_frame()
        data += piece
        if method is not None:
            methods.append(method)
    return data, methods


@pytest.mark.parametrize("multiple", [False, True])
def test_an_ack(multiple: bool) -> None:
    for channel, tag in ((1, 1), (65535, 2**64 - 1)):
        arguments = pack(">QB", tag, multiple)
        assert ack_frame(channel, tag, multiple) == method_frame(channel, ACK, arguments)


def frames_of(channel: int, item: tuple[object, ...]) -> list[tuple[bytes, Method | None]]:
    """Frames of one method; beside the last of them the method itself."""
    method, arguments, *content = item
    assert isinstance(method, tuple)
    assert isinstance(arguments, bytes)
    head = method_frame(channel, method, arguments)
    payload = pack(">I", ids(method)) + arguments
    if not content:
        return [(head, (channel, ids(method), payload, None, None))]
    properties, chunks = content
    assert isinstance(properties, bytes)
    assert isinstance(chunks, list)
    body = b"".join(chunks)
    block = pack(">HHQ", 60, 0, len(body)) + properties
    frames = [head, frame(2, channel, block)]
    if body:
        # An empty body frame after the last byte would belong to nothing.
        while not chunks[-1]:
            chunks.pop()
        frames += [frame(3, channel, chunk) for chunk in chunks]
    whole = (channel, ids(method), payload, block, body)
    return [(each, None) for each in frames[:-1]] + [(frames[-1], whole)]


@given(streams(), st.lists(st.integers(0, 100_000), max_size=30))
def test_any_split_gives_the_same_methods(
    stream: tuple[bytes, list[Method]], cuts: list[int]
) -> None:
    data, methods = stream
    assert parsed(FrameParser(FRAME_MAX), splits(data, cuts)) == methods


@given(streams())
def test_byte_by_byte_gives_the_same_methods(stream: tuple[bytes, list[Method]]) -> None:
    data, methods = stream
    parser = FrameParser(FRAME_MAX)
    assert parsed(parser, (data[at : at + 1] for at in range(len(data)))) == methods
    assert parser.feed(b"") == []


def test_heartbeats_are_counted_and_give_nothing() -> None:
    parser = FrameParser()
    assert parser.feed(heartbeat_frame() * 3) == []
    assert parser.heartbeats == 3


@given(
    st.binary(max_size=300),
    st.binary(min_size=2, max_size=30),
    st.integers(4096, 9000) | st.just(0),
    st.integers(1, 65535),
    st.integers(0, 70_000),
)
def test_what_we_pack_is_what_a_parser_reads(
    seed: bytes, properties: bytes, frame_max: int, channel: int, size: int
) -> None:
    body = (seed * (size // len(seed) + 1))[:size] if seed else bytes(size)
    head = method_frame(channel, DELIVER, b"arguments")
    buffers = content_frames(head, channel, properties, body, frame_max)
    data = b"".join(buffers)
    methods = FrameParser(frame_max).feed(data)
    assert [method[0] for method in methods] == [channel]
    assert methods[0][2] == pack(">I", ids(DELIVER)) + b"arguments"
    assert methods[0][3] == pack(">HHQ", 60, 0, size) + properties
    assert methods[0][4] == body


def test_a_large_body_is_not_copied_into_its_frames() -> None:
    body = bytes(10 << 20)
    tracemalloc.start()
    try:
        buffers = content_frames(method_frame(1, DELIVER), 1, b"\0\0", body, 131072)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 200_000
    assert sum(map(len, buffers)) > 10 << 20


def test_a_body_of_many_frames_comes_out_whole() -> None:
    body = random.Random(7).randbytes(5 << 20)
    data = b"".join(content_frames(method_frame(9, DELIVER), 9, b"\0\0", body, 131072))
    parser = FrameParser(131072)
    methods = parsed(parser, (data[at : at + 100_000] for at in range(0, len(data), 100_000)))
    assert len(methods) == 1
    assert methods[0][4] == body


def test_a_large_body_is_received_where_it_stays() -> None:
    body = random.Random(7).randbytes(300_000)
    data = b"".join(content_frames(method_frame(9, DELIVER), 9, b"\0\0", body, 131072))
    data += method_frame(9, ACK, b"next")
    parser = FrameParser(131072)
    methods: list[Method] = []
    received = 0
    while data:
        room = parser.room()
        if room is None:
            piece, data = data[:5000], data[5000:]
            methods += parser.feed(piece)
            continue
        count = 0
        for buffer in room:  # as ``recvmsg_into`` fills them
            part, data = data[: len(buffer)], data[len(buffer) :]
            buffer[: len(part)] = part
            count += len(part)
        received += count
        methods += parser.filled(count)
    assert received > 200_000
    assert [(each[0], each[1], each[4]) for each in methods] == [
        (9, ids(DELIVER), body),
        (9, ids(ACK), None),
    ]


@pytest.mark.parametrize("method", [PUBLISH, DELIVER, GET_OK, RETURN])
def test_messages_that_are_whole_are_taken_at_once(method: tuple[int, int]) -> None:
    one = b"".join(content_frames(method_frame(3, method, b"x"), 3, b"\0\0", b"body", 131072))
    found: list[Method] = []
    assert _take_whole(one * 3, 0, 1000, found.append) == 3 * len(one)
    assert [(each[0], each[1], each[4]) for each in found] == [(3, ids(method), b"body")] * 3
    # One that is above the limit, or not whole, is left to who looks closer.
    room = len(one) - 1  # the last byte ends it
    assert _take_whole(one, 0, room, found.append) == len(one)
    assert _take_whole(one, 0, room - 1, found.append) == 0
    for end in range(len(one)):
        assert _take_whole(one[:end], 0, 1000, found.append) == 0
    assert len(found) == 4


def test_numbers_are_those_of_the_specification() -> None:
    numbers = (BASIC_PUBLISH, BASIC_RETURN, BASIC_DELIVER, BASIC_GET_OK)
    assert numbers == tuple(map(ids, (PUBLISH, RETURN, DELIVER, GET_OK)))
    assert FrameParser().body_limit == BODY_LIMIT == 512 << 20


def test_without_a_frame_limit_a_frame_may_be_as_large_as_a_body() -> None:
    body = bytes(3 << 20)
    data = b"".join(content_frames(method_frame(9, DELIVER), 9, b"\0\0", body, 0))
    assert FrameParser(0).feed(data)[0][4] == body


def test_without_a_frame_limit_a_frame_may_not_be_larger_than_a_body() -> None:
    parser = FrameParser(0, body_limit=1000)
    parser.feed(method_frame(9, DELIVER) + header(9, 1001))
    assert parser.feed(frame(3, 9, bytes(1000))) == []
    parser.feed(frame(3, 9, b"x") + method_frame(9, DELIVER) + header(9, 1001))
    with pytest.raises(FrameError, match="frame of 1001 bytes announced; the limit is 1008"):
        parser.feed(frame(3, 9, bytes(1001)))


def test_without_a_frame_limit_a_frame_of_two_gibibytes_is_still_refused() -> None:
    parser = FrameParser(0, body_limit=1 << 20)
    with pytest.raises(FrameError, match="announced"):
        parser.feed(pack(">BHI", 3, 1, 2 << 30) + b"x")


# What a broker never sends.


@pytest.mark.parametrize("kind", [1, 2, 3, 8])
def test_an_announced_frame_above_the_limit_is_refused_before_memory_is_taken(kind: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match="2147483648 bytes announced"):
            FrameParser().feed(pack(">BHI", kind, 1, 2 << 30) + bytes(100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_the_limit_of_a_frame_counts_its_eight_bytes_around() -> None:
    whole = frame(1, 1, pack(">I", ids(ACK)) + bytes(4096 - 12))
    assert len(whole) == 4096
    assert len(FrameParser(4096).feed(whole)) == 1
    above = frame(1, 1, pack(">I", ids(ACK)) + bytes(4096 - 11))
    with pytest.raises(FrameError, match="the limit is 4096"):
        FrameParser(4096).feed(above)


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_body_frame_above_the_limit_is_refused_wherever_its_head_is_cut(cut: int) -> None:
    parser = FrameParser(131072)
    parser.feed(method_frame(1, DELIVER) + header(1, 1 << 20))
    data = frame(3, 1, bytes(100_000)) + frame(3, 1, bytes(131072 - 7))
    cuts = (0, 1000, 100_008 + cut, len(data))
    with pytest.raises(FrameError, match="frame of 131065 bytes announced"):
        parsed(parser, (data[start:stop] for start, stop in pairwise(cuts)))


@pytest.mark.parametrize("size", [1, 100, 1500, 9000, 1 << 20])
def test_a_body_above_the_limit_is_skipped(size: int) -> None:
    # In frames that are small, that come in one piece, and that are received where they would stay.
    body = bytes(100_000)
    data = method_frame(1, DELIVER, b"x") + header(1, len(body), b"\0\1props")
    data += frame(3, 1, body[:60_000])
    data += delivery(2, b"beside") + frame(3, 1, body[60_000:]) + delivery(1, b"behind")
    parser = FrameParser(body_limit=1000)
    methods = parsed(parser, (data[at : at + size] for at in range(0, len(data), size)))
    assert [(each[0], each[1], each[4]) for each in methods] == [
        (2, ids(DELIVER), b"beside"),
        (1, ids(DELIVER) | BODY_SKIPPED, b""),
        (1, ids(DELIVER), b"behind"),
    ]
    _, _, payload, head, _ = methods[1]
    assert payload[4:] == b"x"
    assert head is not None
    assert (body_size(head), head[12:]) == (100_000, b"\0\1props")


def delivery(channel: int, body: bytes) -> bytes:
    """A delivery with a body of one frame."""
    return method_frame(channel, DELIVER) + header(channel, len(body)) + frame(3, channel, body)


def test_the_largest_body_is_as_large_as_the_limit() -> None:
    # In one piece, which the fast path would take.
    allowed, above = delivery(1, bytes(1000)), delivery(1, bytes(1001))
    methods = FrameParser(body_limit=1000).feed(allowed * 2 + above + allowed)
    assert [(each[1], each[4]) for each in methods] == [
        (ids(DELIVER), bytes(1000)),
        (ids(DELIVER), bytes(1000)),
        (ids(DELIVER) | BODY_SKIPPED, b""),
        (ids(DELIVER), bytes(1000)),
    ]


def test_a_body_above_the_limit_on_a_channel_that_is_not_open_is_dropped() -> None:
    methods = FrameParser(body_limit=1000, channels={1}).feed(delivery(2, bytes(1001)))
    assert methods == [(2, ids(DELIVER), b"", b"", b"")]


def receive(parser: FrameParser, data: bytes) -> list[Method]:
    """Give *data* to a parser that has buffers for it, as the stream does."""
    methods: list[Method] = []
    while data:
        buffers = parser.room()
        if buffers is None:
            return methods + parser.feed(data)
        count = 0
        for buffer in buffers:
            part, data = data[: len(buffer)], data[len(buffer) :]
            buffer[: len(part)] = part
            count += len(part)
        methods += parser.filled(count)
    return methods


def test_the_memory_of_large_bodies_is_given_back_when_they_end() -> None:
    large = delivery(1, bytes(1 << 20))
    parser = FrameParser(0)
    tracemalloc.start()
    try:
        for _ in range(3):
            methods = parser.feed(large[:5000]) + receive(parser, large[5000:])
            assert len(methods) == 1
        methods.clear()
        parser.feed(heartbeat_frame())
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert left < 100_000


def test_a_body_above_the_limit_takes_no_memory() -> None:
    parser = FrameParser(body_limit=1000)
    parser.feed(method_frame(1, DELIVER) + header(1, 1 << 50))
    piece = frame(3, 1, bytes(100_000))
    tracemalloc.start()
    try:
        for _ in range(50):
            assert parser.feed(piece[:60_000]) == []
            assert receive(parser, piece[60_000:]) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", FrameError, "HTTP"),
        (b"AMQP\x01\x01\x00\x0a", FrameError, "AMQP 1.0.10, not 0-9-1"),
        (b"AMQP\x00\x01\x00\x00", FrameError, "AMQP 1.0.0, not 0-9-1"),
        (b"\x15\x03\x01\x00\x02\x02\x28", FrameError, "amqps"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", FrameError, "amqps"),
        (b"220 mail.example.org ESMTP\r\n", FrameError, "unknown type 50"),
        (b"-ERR unknown command\r\n", FrameError, "unknown type 45"),
        (b"\x00" * 8, FrameError, "unknown type 0"),
        (frame(4, 1, b"abcd"), UnexpectedFrame, "type 4"),
        (frame(7, 1, b""), UnexpectedFrame, "type 7"),
        (frame(2, 1, bytes(14)), UnexpectedFrame, "type 2 on channel 1"),
        (frame(3, 1, b"body"), UnexpectedFrame, "type 3 on channel 1"),
        (frame(1, 1, b"abc"), FrameError, "3 bytes has no method"),
        (frame(1, 1, b""), FrameError, "0 bytes has no method"),
        (method_frame(1, DELIVER) + frame(3, 1, b"x"), UnexpectedFrame, "type 3 on channel 1"),
        (method_frame(1, DELIVER) * 2, UnexpectedFrame, "within the content of channel 1"),
        (method_frame(1, DELIVER) + method_frame(1, ACK), UnexpectedFrame, "channel 1"),
        (method_frame(1, DELIVER) + header(1, 5) * 2, UnexpectedFrame, "type 2 on channel 1"),
        (method_frame(1, DELIVER) + frame(2, 1, bytes(11)), FrameError, "11 bytes is too short"),
        (
            method_frame(1, DELIVER) + header(1, 3) + frame(3, 1, b"four"),
            UnexpectedFrame,
            "longer than announced",
        ),
        (
            method_frame(1, DELIVER) + header(1, 0) + frame(3, 1, b""),
            UnexpectedFrame,
            "type 3 on channel 1",
        ),
        (method_frame(1, ACK)[:-1] + b"\x00", FrameError, "0xCE"),
    ],
)
def test_what_is_no_stream_of_a_broker_gives_one_clear_error(
    data: bytes, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        FrameParser().feed(data)
    parser = FrameParser()
    with pytest.raises(error, match=text):
        parsed(parser, (data[at : at + 1] for at in range(len(data))))


def test_channels_do_not_disturb_each_other() -> None:
    first, second = method_frame(1, DELIVER) + header(1, 4), method_frame(2, GET_OK) + header(2, 2)
    data = first + second + method_frame(3, ACK) + frame(3, 2, b"ab")
    data += heartbeat_frame() + frame(3, 1, b"cd") + frame(3, 1, b"ef")
    methods = FrameParser().feed(data)
    assert [(method[0], method[4]) for method in methods] == [(3, None), (2, b"ab"), (1, b"cdef")]


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=10))
def test_garbage_gives_methods_or_one_clean_error(data: bytes, cuts: list[int]) -> None:
    parser = FrameParser(FRAME_MAX)
    try:
        for _ in parsed(parser, splits(data, cuts)):
            pass
    except (FrameError, UnexpectedFrame) as exc:
        assert str(exc)  # noqa: PT017 - any other class would fail the test


def outcome(parser: FrameParser, pieces: Iterator[bytes]) -> list[Method] | str:
    """The methods, or the one error that comes instead of the last of them."""
    try:
        return parsed(parser, pieces)
    except (FrameError, UnexpectedFrame) as exc:
        return f"{type(exc).__name__}: {exc}"


@given(
    st.lists(st.tuples(st.integers(1, 3), with_content), min_size=1, max_size=4),
    st.integers(0, 100_000),
    st.binary(max_size=8),
    st.sampled_from([(4096, 1 << 20), (4096, 100), (0, 200)]),
)
def test_whatever_is_wrong_is_found_in_one_piece_as_it_is_byte_by_byte(
    messages: list[tuple[int, tuple[object, ...]]], at: int, change: bytes, limits: tuple[int, int]
) -> None:
    data = bytearray(b"".join(each for message in messages for each, _ in frames_of(*message)))
    at %= len(data)
    data[at : at + len(change)] = change
    whole = outcome(FrameParser(*limits), iter([bytes(data)]))
    one_by_one = (bytes((byte,)) for byte in data)
    assert outcome(FrameParser(*limits), one_by_one) == whole


def held_to(limits: tuple[int, int], size: int) -> list[Method]:
    """Return what comes of a message of *size* bytes, and of one that has one more, under limits."""
    head = method_frame(1, DELIVER)
    allowed = head + header(1, size) + frame(3, 1, bytes(size))
    assert FrameParser(*limits).feed(allowed * 3)[2][4] == bytes(size)
    return FrameParser(*limits).feed(
        allowed + head + header(1, size + 1) + frame(3, 1, bytes(size + 1))
    )


def test_a_message_that_is_whole_in_one_piece_is_held_to_the_limit_of_a_frame() -> None:
    with pytest.raises(FrameError, match=r"announced.*\b4096\b"):
        held_to((4096, 1 << 20), 4096 - 8)


def test_a_message_that_is_whole_in_one_piece_is_held_to_the_limit_of_a_body() -> None:
    methods = held_to((131072, 100), 100)
    assert [each[1] & BODY_SKIPPED for each in methods] == [0, BODY_SKIPPED]


@given(streams(), st.integers(0, 100_000), st.integers(1, 255))
def test_one_broken_byte_gives_methods_or_one_clean_error(
    stream: tuple[bytes, list[Method]], at: int, change: int
) -> None:
    data = bytearray(stream[0])
    if data:
        data[at % len(data)] ^= change
    try:
        FrameParser(FRAME_MAX).feed(bytes(data))
    except (FrameError, UnexpectedFrame) as exc:
        assert str(exc)  # noqa: PT017


def test_empty_body_frames_without_end_take_no_memory() -> None:
    parser = FrameParser()
    parser.feed(method_frame(1, DELIVER) + header(1, 10))
    empty = frame(3, 1, b"") * 10_000
    parser.feed(empty)
    tracemalloc.start()
    try:
        for _ in range(10):
            parser.feed(empty)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 10_000
    assert parser.feed(frame(3, 1, bytes(10)))[0][4] == bytes(10)


def test_a_frame_that_comes_byte_by_byte_is_held_once() -> None:
    parser = FrameParser()
    data = frame(1, 1, pack(">I", ids(ACK)) + bytes(100_000))
    tracemalloc.start()
    try:
        for at in range(len(data) - 1):
            assert not parser.feed(data[at : at + 1])
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 10 * len(data)
    assert len(parser.feed(data[-1:])) == 1


def test_a_body_in_tiny_frames_takes_little_more_than_its_size() -> None:
    body, frame = b"ab" * 100_000, pack(">BHI", 3, 1, 2) + b"ab\xce"
    parser = FrameParser()
    method = pack(">BHI", 1, 1, 4) + pack(">HH", 60, 60) + b"\xce"
    header = pack(">HHQH", 60, 0, len(body), 0)
    parser.feed(method + pack(">BHI", 2, 1, len(header)) + header + b"\xce")
    chunk = frame * 1000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(99):
            assert parser.feed(chunk) == []
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken < 2 * len(body)
    ((*_, received),) = parser.feed(chunk)
    assert received == body
    assert type(received) is bytes


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=20))
def test_a_body_in_frames_of_any_size_comes_whole(sizes: list[int]) -> None:
    body = bytes(range(256)) * 250
    pieces, at = [], 0
    for size in sizes:
        pieces.append(body[at : at + size])
        at += len(pieces[-1])
    body = body[:at]
    header = pack(">HHQH", 60, 0, len(body), 0)
    data = pack(">BHI", 1, 1, 4) + pack(">HH", 60, 60) + b"\xce"
    data += pack(">BHI", 2, 1, len(header)) + header + b"\xce"
    for piece in pieces:
        data += pack(">BHI", 3, 1, len(piece)) + piece + b"\xce"
    ((*_, received),) = FrameParser().feed(data)
    assert received == body
    assert type(received) is bytes


def test_what_comes_behind_a_large_frame_is_seen_at_once() -> None:
    parser = FrameParser()
    data = message(1, 100_000)
    methods = parser.feed(data[:1000])
    methods += parser.feed(data[1000:])
    assert bodies(methods) == [100_000]
    parser.feed(heartbeat_frame())
    assert parser.heartbeats == 1


@pytest.mark.parametrize(("size", "frames"), [(4088, 1), (4089, 2), (8176, 2), (8177, 3)])
def test_frames_are_as_large_as_they_may_be(size: int, frames: int) -> None:
    head = method_frame(7, PUBLISH)
    data = b"".join(content_frames(head, 7, b"\0\0", bytes(size), 4096))
    rest = data[len(head) + len(header(7, size)) :]
    sizes = []
    while rest:
        kind, channel, length = unpack(">BHI", rest[:7])
        assert (kind, channel, rest[length + 7]) == (3, 7, 0xCE)
        sizes.append(length + 8)
        rest = rest[length + 8 :]
    assert (len(sizes), sum(sizes)) == (frames, size + 8 * frames)
    assert max(sizes) == 4096


@pytest.mark.parametrize("size", [65535, 65536])
def test_without_a_frame_limit_a_body_is_one_frame(size: int) -> None:
    head = method_frame(7, PUBLISH)
    buffers = content_frames(head, 7, b"\0\0", bytes(size), 0)
    expected = head + header(7, size) + frame(3, 7, bytes(size))
    assert b"".join(buffers) == expected
    assert (len(buffers) == 1) == (size < 65536)  # a large body is not copied


def test_who_answers_in_another_protocol_is_known_by_its_first_bytes() -> None:
    for text, error in ((b"HTTP", "HTTP"), (b"\x16\x03\x01\x00", "amqps")):
        parser = FrameParser()
        assert parser.feed(text[:3]) == []
        with pytest.raises(FrameError, match=error):
            parser.feed(text[3:])


def test_a_parser_starts_with_what_the_broker_allows() -> None:
    parser = FrameParser()
    assert (parser.frame_max, parser.channels, parser.heartbeats) == (131072, None, 0)
    assert parser.room() is None


def test_bodies_of_channels_that_are_not_open_are_dropped() -> None:
    parser = FrameParser(channels={1})
    piece = bytes(60_000)
    methods = []
    for channel in (1, 2):
        data = method_frame(channel, DELIVER, b"x") + header(channel, 120_000)
        data += frame(3, channel, piece) * 2
        methods += parsed(parser, splits(data, [100, 50_000, 70_000]))
    (_, _, payload, head, body), (_, other_ids, other_payload, other_head, other) = methods
    assert (payload[4:], body) == (b"x", piece * 2)
    assert head is not None
    assert (other_ids, other_payload, other_head, other) == (ids(DELIVER), b"", b"", b"")


def rooms(parser: FrameParser) -> list[int]:
    """Return the bytes for which there is room, buffer by buffer."""
    return [len(each) for each in parser.room() or ()]


def test_a_large_frame_is_known_by_its_head() -> None:
    size = 100_000
    parser = FrameParser()
    begin = method_frame(1, DELIVER) + header(1, 3 * size)
    part = pack(">BHI", 3, 1, size)
    assert parser.feed(begin + part[:6]) == []
    assert rooms(parser) == []
    assert parser.feed(part[6:] + bytes(1)) == []
    assert rooms(parser) == [size - 1, TAIL, size, TAIL, size, TAIL]
    # And the next one behind it, as soon as its head is whole.
    assert parser.feed(bytes(size - 1) + b"\xce" + part) == []
    assert rooms(parser) == [size, TAIL, size, TAIL]
    assert parser.feed(bytes(size) + b"\xce" + part[:4]) == []
    assert rooms(parser) == [LEAD]
    assert parser.feed(part[4:]) == []
    assert rooms(parser) == [size, TAIL]
    ((*_, body),) = parser.feed(bytes(size) + b"\xce")
    assert body == bytes(3 * size)
    assert rooms(parser) == [LEAD]


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_large_frame_has_the_limits_of_all_frames(extra: int) -> None:
    size = 131_072 - 8 + extra
    parser = FrameParser()
    parser.feed(method_frame(1, DELIVER) + header(1, 200_000))
    part = pack(">BHI", 3, 1, size)
    if extra > 0:
        with pytest.raises(FrameError, match="the limit is 131072"):
            parser.feed(part + b"x")
        return
    parser.feed(part + b"x")
    assert rooms(parser)[:2] == [size - 1, TAIL]


def test_a_large_frame_may_not_be_longer_than_its_body() -> None:
    parser = FrameParser()
    parser.feed(method_frame(1, DELIVER) + header(1, 100_000))
    part = frame(3, 1, bytes(100_001))
    with pytest.raises(UnexpectedFrame, match="longer than announced"):
        parsed(parser, splits(part, [7, 50_000]))


def test_a_large_frame_ends_with_its_mark() -> None:
    parser = FrameParser()
    parser.feed(method_frame(1, DELIVER) + header(1, 100_000))
    part = frame(3, 1, bytes(100_000))
    parser.feed(part[:50_000])
    assert parser.feed(part[50_000:-1]) == []
    with pytest.raises(FrameError, match="0xCE"):
        parser.feed(b"\x00")


def test_a_frame_that_comes_in_small_pieces_is_parsed_when_it_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    parse = FrameParser._parse

    def counting(parser: FrameParser, data: bytes) -> list[Method]:
        sizes.append(len(data))
        return parse(parser, data)

    monkeypatch.setattr(FrameParser, "_parse", counting)
    parser = FrameParser()
    assert len(parser.feed(method_frame(1, (60, 80), bytes(500)))) == 1
    frame = method_frame(1, (60, 80), bytes(1000))
    found = [parser.feed(frame[at : at + 1]) for at in range(len(frame))]
    assert [len(each) for each in found] == [0] * (len(frame) - 1) + [1]
    assert sizes[1:] == [8, len(frame)]
