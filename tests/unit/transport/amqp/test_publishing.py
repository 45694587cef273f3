"""Framing messages, and reading them from the bytes that have not left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from amqp import spec
from amqp.serialization import dumps

from greenconn.transport.amqp.message import prepared
from greenconn.transport.amqp.publishing import (
    AWAITED,
    RESEND,
    Publisher,
    Unsent,
    find_unsent,
    unsent_text,
)
from greenconn.wire.amqp import content_frames, heartbeat_frame, method_frame

Buffer = bytes | memoryview


def publish(channel: int, routing_key: str, body: bytes, frame_max: int = 4096) -> list[Buffer]:
    head = method_frame(
        channel, spec.Basic.Publish, dumps("Bssbb", (0, "x", routing_key, True, False))
    )
    packed = prepared(body, content_type="a/b").packed
    return content_frames(head, channel, packed, body, frame_max)


ACK = method_frame(1, spec.Basic.Ack, dumps("Lb", (7, True)))
SMALL, LARGE, EMPTY, OTHER = (
    publish(1, "small", b"s" * 100),
    publish(1, "large", bytes(range(256)) * 400),
    publish(1, "empty", b""),
    publish(2, "other", b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\x28\xce"),  # like a frame
)
BUFFERS: list[Buffer] = [ACK, *SMALL, RESEND, *LARGE, RESEND, heartbeat_frame(), *EMPTY]
BUFFERS += [*OTHER, AWAITED, ACK, *SMALL]


def test_what_has_not_wholly_left_is_found_wherever_the_rest_began() -> None:
    ends = []
    position = 0
    for message, following in (
        (SMALL, [ACK]),
        (LARGE, []),
        (EMPTY, [heartbeat_frame()]),
        (OTHER, []),
        (SMALL, [ACK]),
    ):
        position += sum(map(len, [*following, *message]))
        ends.append(position)
    assert position == sum(map(len, BUFFERS))
    steps = {0, *ends, *(end - 1 for end in ends), *(end + 1 for end in ends)}
    for begun in sorted(steps | set(range(0, position, 997))):
        found = find_unsent(BUFFERS, begun)
        marks = [mark for each in (1, 2) for _, _, _, mark in found.get(each, ())]
        expected = [
            mark
            for end, mark in zip(
                [ends[0], ends[1], ends[2], ends[4], ends[3]],
                [RESEND, RESEND, None, None, AWAITED],
                strict=True,
            )
            if end > begun
        ]
        assert len(marks) == len(expected)
        assert all(a is b for a, b in zip(marks, expected, strict=True))


def test_messages_are_as_they_were() -> None:
    unsent = Unsent()
    unsent.take(find_unsent(BUFFERS, 0)[1])
    assert unsent.count == 2
    (small, *how), (large, *_) = unsent.to_resend
    assert how == ["x", "small", True, False]
    assert small.body == b"s" * 100
    assert small.packed == prepared(b"", content_type="a/b").packed
    assert large.body == bytes(range(256)) * 400
    assert unsent.hint == f"; {unsent_text(4)}"
    unsent.discard_last()
    assert unsent.count == 1
    other = Unsent()
    other.take(find_unsent(BUFFERS, 0)[2])
    assert other.hint == ""
    other.discard_last()
    assert other.count == 0


def test_a_mark_of_a_message_that_has_left_is_nobodys() -> None:
    assert find_unsent([RESEND, *SMALL], 0)[1][0][3] is None
    assert find_unsent([RESEND, ACK, AWAITED], 0) == {}
    assert find_unsent([*SMALL, RESEND, *OTHER], sum(map(len, SMALL)))[2][0][3] is None


class Sent(list[bytes]):
    """A writer that keeps what is written."""

    def write(self, data: bytes) -> None:
        self.append(data)

    def write_many(self, buffers: list[Buffer]) -> None:
        self.append(b"".join(buffers))


def test_a_message_is_framed_alike_whatever_was_published_before() -> None:
    room, sent = 70_000, Sent()
    options = SimpleNamespace(max_message_size=1 << 30)
    link: Any = SimpleNamespace(options=options, frame_max=room, check_size=lambda size: None)
    channel: Any = SimpleNamespace(channel_id=513)
    calls: Any = SimpleNamespace(payload_limit=room - 8)
    publisher, writer = Publisher(channel, link, calls), cast(Any, sent)
    sizes = (0, 1, 255, 256, 65_400, 65_535, 65_536, 70_000, 200_000)
    for _ in range(2):
        for size in sizes:
            for headers in ({}, {"a": 1}, {"a": 2}, {"long": "x" * 300}):
                for exchange, routing_key, mandatory in (("", "k", False), ("e", "k", True)):
                    message = prepared(b"\xce" * size, 0, "a/b", "utf-8", headers)
                    publisher.write(writer, message, exchange, routing_key, mandatory, False, None)
                    arguments = dumps("Bssbb", (0, exchange, routing_key, mandatory, False))
                    head = method_frame(513, spec.Basic.Publish, arguments)
                    frames = content_frames(head, 513, message.packed, message.body, room)
                    assert sent.pop() == b"".join(frames)
    assert publisher.has_published


def test_as_many_routing_keys_as_there_are_may_be_published_to() -> None:
    link: Any = SimpleNamespace(options=SimpleNamespace(max_message_size=1000), frame_max=4096)
    channel: Any = SimpleNamespace(channel_id=1)
    calls: Any = SimpleNamespace(payload_limit=4088)
    publisher, sent = Publisher(channel, link, calls), Sent()
    message = prepared(b"body")
    for number in range(3000):
        publisher.write(cast(Any, sent), message, "", f"key-{number}", False, False, None)
        assert f"key-{number}".encode() in sent.pop()
    assert len(publisher._heads) <= 1024
    assert len(publisher._prefixes) <= 1024
