"""AMQP 0-9-1 without I/O: frames parsed into methods, methods read, messages packed, heartbeats.

A frame is ``type (1) channel (2) size (4) payload (size) 0xCE`` (spec 2.3.5).  A method with content
is a method frame, a header frame and as many body frames as needed, uninterrupted on its channel.
The parser gives each method once it is whole, as a tuple and with everything raw: who needs the
properties or the body of a message decodes them then.

The bytes of large body frames are copied once on their way to the body.  What is received into fresh
memory costs more in page faults than in copying: a body of a MiB would take 500 of them.  So such a
frame is received into blocks that are used again, and together with those that follow it: brokers send
a body in frames of one size, so where each begins is known before it comes.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Container, Mapping
from math import isfinite
from struct import Struct
from typing import Any, Final, TypeAlias

from amqp import spec
from amqp.exceptions import FrameSyntaxError
from amqp.serialization import dumps, loads

from greenconn.exceptions import FrameError, UnexpectedFrame, error_reason

PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"
FRAME_MIN: Final = 4096

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END: Final = b"\xce"

#: ``(channel, class_id << 16 | method_id, arguments with their 4 bytes of ids, header, body)``;
#: header (class, weight, size, properties) and body are None for a method without content.  If the body
#: was too large, it is empty, and the number also has :data:`BODY_SKIPPED`.
Method = tuple[int, int, bytes, bytes | None, bytes | None]

BASIC_PUBLISH: Final = 60 << 16 | 40
BASIC_RETURN: Final = 60 << 16 | 50
BASIC_DELIVER: Final = 60 << 16 | 60
BASIC_GET_OK: Final = 60 << 16 | 71
BASIC_ACK: Final = 60 << 16 | 80
#: A bit that no method has, so that who compares numbers takes no message without its body.
BODY_SKIPPED: Final = 1 << 31
_WITH_CONTENT: Final = frozenset({BASIC_PUBLISH, BASIC_RETURN, BASIC_DELIVER, BASIC_GET_OK})

_frame_head = Struct(">BHI")
_ids = Struct(">I")
_ack = Struct(">BHIIQBB")
_body_size = Struct(">Q")
# The rest of a method frame and the start of a header frame, the rest of that and the start of a body.
_header_start = Struct(">BHIHHQ")
_body_start = Struct(">BBHI")
# For messages that lie whole in what was received.  The end of one frame with the kind of the next is
# one number, so there is one comparison to make instead of two; a small one, which costs less.
_whole_method = Struct(">BHII")
_whole_header = Struct(">HHI4xQ")
_whole_body = Struct(">HHI")
_HEADER_FOLLOWS: Final = 0xCE << 8 | HEADER
_BODY_FOLLOWS: Final = 0xCE << 8 | BODY
#: Bytes behind the arguments of a method, at least, if a content of one byte or more follows.
_SMALLEST_CONTENT: Final = 1 + 22 + 9
#: Bytes of the smallest message, whose method has no arguments; most answers to calls are smaller.
_SMALLEST_MESSAGE: Final = 11 + _SMALLEST_CONTENT + 1

#: Bytes of a body frame's payload below which it is gathered with its neighbours: an object of its own
#: costs more than 30 bytes.
_SMALL: Final = 1024

#: Largest body that is put together from the peer's frames, in bytes (RabbitMQ's own limit).
BODY_LIMIT: Final = 512 * 1024 * 1024


#: Bytes of a frame's payload from which on it is worth while.
LARGE: Final = 64 * 1024
#: Bytes of a block: the payload of the largest frame at AMQP's usual limit, and of no frame more than
#: twice what its peer has announced.
BLOCK: Final = 128 * 1024
#: Blocks that are kept for the next body, and frames for which there is room at once: those of a MiB.
KEPT: Final = 9
#: The end of a frame, and the head of the next one.
TAIL: Final = 8
#: Bytes received at once between large bodies: enough for a method and the properties of a message.
LEAD: Final = 4096


class BlockPool:
    """Free blocks, kept for the next large bodies.

    Attributes:
        free: the blocks.
    """

    def __init__(self) -> None:
        self.free: list[bytearray] = []

    def take(self) -> bytearray:
        """Return a block, with anything in it."""
        return self.free.pop() if self.free else bytearray(BLOCK)

    def release(self, blocks: list[bytearray]) -> None:
        """Take back *blocks* that are not in use any more."""
        self.free += blocks[: KEPT - len(self.free)]

    def clear(self) -> None:
        """Keep none."""
        self.free.clear()


class LargeFrame:
    """A body frame that is coming, or that will follow it.

    Arguments:
        channel: its number.
        size: bytes of its payload.
        source: of blocks.

    Attributes:
        missing: bytes that have not come.
        blocks: what they are in, each full but the last.
        tail: what came behind the payload.
    """

    def __init__(self, channel: int, size: int, source: BlockPool) -> None:
        self.channel = channel
        self.size = size
        self.missing = size
        self.blocks: list[bytearray] = []
        self.tail = bytearray(TAIL)
        self._source = source
        self._begin_block()

    def _begin_block(self) -> None:
        block = self._source.take()
        self.blocks.append(block)
        self._view = memoryview(block)
        self._at = 0

    def room(self) -> list[memoryview | bytearray]:
        """Buffers for the next bytes: a block, and if the frame ends there the tail behind it."""
        view = self._view[self._at : self._at + self.missing]
        return [view, self.tail] if len(view) == self.missing else [view]

    def fill(self, count: int) -> int:
        """Note that *count* bytes were put where there was room; return how many are no payload."""
        taken = min(count, self.missing)
        self._advance(taken)
        return count - taken

    def leads_to(self, following: LargeFrame) -> bool:
        """Return whether the tail, which is full, is the end of this and the head of *following*."""
        return self.tail == _body_start.pack(0xCE, BODY, following.channel, following.size)

    def put(self, data: memoryview) -> int:
        """Take bytes from the beginning of *data*; return how many."""
        taken = 0
        while self.missing and taken < len(data):
            piece = data[taken : taken + min(self.missing, BLOCK - self._at)]
            self._view[self._at : self._at + len(piece)] = piece
            self._advance(len(piece))
            taken += len(piece)
        return taken

    def _advance(self, count: int) -> None:
        self._at += count
        self.missing -= count
        if self.missing and self._at == BLOCK:
            self._begin_block()

    def pieces(self) -> list[memoryview]:
        """Return the payload, once none of it is missing."""
        views = [memoryview(block) for block in self.blocks]
        views[-1] = views[-1][: self._at]
        return views


class _Content:
    """A method whose content is still coming."""

    def __init__(self, ids: int, payload: bytes, is_kept: bool) -> None:
        self.ids = ids
        self.is_kept = is_kept  # whether the body is wanted
        self.payload = payload
        self.header: bytes | None = None
        self.missing: int  # bytes of the body; known with the header
        self.chunks: list[bytes | bytearray | memoryview] = []
        #: Where those chunks are that came in large frames.
        self.blocks: list[bytearray] = []


class FrameParser:
    """Incremental parser of the frames that a broker sends, or that were to be sent to one.

    Any split of the same bytes gives the same methods.  Memory is bounded by the limits of a frame and
    a body, and by what was received: a length announced by the peer is checked, never believed.

    Arguments:
        frame_max: largest frame allowed in bytes; 0 is no limit but *body_limit*.
        body_limit: largest body kept in bytes; a larger one is skipped, frame by frame.
        channels: those that are open; None: all.  A body that comes in pieces on another is dropped.
    """

    def __init__(
        self,
        frame_max: int = 131072,
        body_limit: int = BODY_LIMIT,
        channels: Container[int] | None = None,
    ) -> None:
        self.frame_max = frame_max
        self.body_limit = body_limit
        self.channels = channels
        #: Heartbeat frames seen.
        self.heartbeats = 0
        self._chunks: list[bytes] = []  # received, too little for the next frame
        self._have = 0
        self._need = 8
        self._partial: dict[int, _Content] = {}
        #: The large body frame that is coming, and those that are expected behind it.
        self._frame: LargeFrame | None = None
        self._following: deque[LargeFrame] = deque()
        self._blocks = BlockPool()
        self._lead = bytearray()
        self._began = False

    def feed(self, data: bytes) -> list[Method]:
        """Take *data* and return the methods that are now whole.

        Raises:
            FrameError: what came is not AMQP 0-9-1, or a frame is above the limit.
            UnexpectedFrame: a content frame without its method, or the other way round.
        """
        if self._frame is not None:
            taken = self._frame.put(memoryview(data))
            return self._end_frame(data[taken:])
        is_calm = not self._partial
        methods = self._take(data)
        if is_calm and self._blocks.free and not self._partial:
            self._blocks.clear()  # no large bodies any more
        return methods

    def room(self) -> list[memoryview | bytearray] | None:
        """Buffers to receive into, one after the other; None while ``feed`` is to get what comes.

        For a large body: what is received there is not copied until the body is whole.  A peer gets
        memory for what it has sent and :data:`KEPT` blocks more, whatever it announces.  Between large
        bodies there is little room, as what is received behind the head of a frame is copied.
        """
        frame = self._frame
        if frame is None:
            if not self._blocks.free:
                return None
            self._lead = self._lead or bytearray(LEAD)
            return [self._lead]
        if frame.size <= BLOCK and not self._following:
            self._expect_following(frame)
        buffers = frame.room()
        for each in self._following:
            buffers += each.room()
        return buffers

    def _expect_following(self, frame: LargeFrame) -> None:
        """Make room for the frames behind *frame*, all of its size but the last one."""
        content = self._partial[frame.channel]
        left = content.missing - frame.size
        while content.is_kept and left and len(self._following) + 1 < KEPT:
            size = min(left, frame.size)
            self._following.append(LargeFrame(frame.channel, size, self._blocks))
            left -= size

    def filled(self, count: int) -> list[Method]:
        """Take *count* bytes that were received into ``room``; otherwise the same as ``feed``."""
        frame = self._frame
        if frame is None:
            return self.feed(bytes(self._lead[:count]))
        following = self._following
        count = frame.fill(count)
        while count >= TAIL and following and frame.leads_to(following[0]):
            self._add(frame)
            self._frame = frame = following.popleft()
            count = frame.fill(count - TAIL)
        return self._end_frame(self._behind(frame, count)) if count else []

    def _behind(self, frame: LargeFrame, count: int) -> bytes:
        """Return *count* bytes that came behind the payload of *frame* and are not what was expected."""
        behind = bytes(frame.tail[:count])
        for each in self._following:
            for buffer in each.room():
                behind += buffer[: count - len(behind)]
        return behind

    def _add(self, frame: LargeFrame) -> _Content:
        """Take the payload of *frame*, which is whole; return what it is a part of."""
        content = self._partial[frame.channel]
        if content.is_kept:
            content.chunks += frame.pieces()
            content.blocks += frame.blocks
        else:
            self._blocks.release(frame.blocks)
        content.missing -= frame.size
        return content

    def _end_frame(self, data: bytes) -> list[Method]:
        """Go on with what came behind the payload of the large frame; there may be none."""
        frame = self._frame
        if not data or frame is None:
            return []
        if data[0] != 0xCE:
            raise _no_end()
        self._frame = None
        content = self._add(frame)
        while self._following:
            self._blocks.release(self._following.popleft().blocks)
        methods = [] if content.missing else [self._whole(frame.channel, content)]
        if len(data) > 1:
            self._need = 7  # enough to see whether one more such frame comes
            methods += self._take(data[1:])
        return methods

    def _begin_frame(self, data: bytes, position: int, limit: int) -> bool:
        """Return whether a large frame of a body begins at *position*, that has not come whole."""
        kind, channel, size = _frame_head.unpack_from(data, position)
        content = self._partial.get(channel)
        if (
            kind != BODY
            or size < LARGE
            or content is None
            or content.header is None
            or size > content.missing
            or size + 8 > limit
        ):
            return False  # or wrong: that is found when it is whole
        self._frame = LargeFrame(channel, size, self._blocks)
        self._frame.put(memoryview(data)[position + 7 :])
        return True

    def _take(self, data: bytes) -> list[Method]:
        self._have += len(data)
        if self._have < self._need and (self._began or self._have < 4):
            self._chunks.append(data)
            return []
        if self._chunks:
            self._chunks.append(data)
            data = b"".join(self._chunks)
            self._chunks.clear()
        if not self._began and not self._check_beginning(data):
            self._chunks.append(data)
            return []
        return self._parse(data)

    def _parse(self, data: bytes) -> list[Method]:
        """Return the methods in *data* that are whole, with their content; what is left over is kept."""
        methods: list[Method] = []
        append = methods.append
        unpack, partial = _frame_head.unpack_from, self._partial
        limit = self.frame_max or self.body_limit + 8
        room = min(limit, self.body_limit)
        position, end = 0, len(data)
        need = 8
        if not partial and end >= _SMALLEST_MESSAGE:
            position = _take_whole(data, 0, room, append)
        while end - position >= 8:
            kind, channel, size = unpack(data, position)
            start = position + 7
            stop = start + size
            if size + 8 > limit or not 1 <= kind <= 8:
                raise self._refusal(kind, size, limit)
            if stop >= end:
                need = size + 8
                break
            if data[stop] != 0xCE:
                raise _no_end()
            position = stop + 1
            if kind == METHOD:
                payload = data[start:stop]
                if size < 4:
                    raise FrameError(f"method frame of {size} bytes has no method")
                ids = _ids.unpack_from(payload)[0]
                if channel in partial:
                    raise UnexpectedFrame(f"method frame within the content of channel {channel}")
                if ids in _WITH_CONTENT:
                    is_kept = self.channels is None or channel in self.channels
                    partial[channel] = _Content(ids, payload if is_kept else b"", is_kept)
                else:
                    append((channel, ids, payload, None, None))
                    if not partial and end - position >= _SMALLEST_MESSAGE:
                        position = _take_whole(data, position, room, append)
            elif kind == HEARTBEAT:
                self.heartbeats += 1
            else:
                done = self._content(kind, channel, data[start:stop])
                if done is not None:
                    append(done)
                    if not partial:
                        position = _take_whole(data, position, room, append)
        if partial and end - position >= 7 and self._begin_frame(data, position, limit):
            position = end
            need = 8
        self._need = need
        self._have = end - position
        if position < end:
            self._chunks.append(data[position:] if position else data)
        return methods

    def _content(self, kind: int, channel: int, payload: bytes) -> Method | None:
        content = self._partial.get(channel)
        if content is None or (kind == HEADER) != (content.header is None) or kind > BODY:
            raise UnexpectedFrame(f"frame of type {kind} on channel {channel} was not expected")
        if kind == HEADER:
            if len(payload) < 14:
                raise FrameError(f"header frame of {len(payload)} bytes is too short")
            content.header = payload if content.is_kept else b""
            content.missing = body_size(payload)
            if content.missing > self.body_limit and content.is_kept:
                content.ids |= BODY_SKIPPED
                content.is_kept = False
        else:
            if payload and content.is_kept:
                _add_chunk(content.chunks, payload, is_only=len(payload) == content.missing)
            content.missing -= len(payload)
            if content.missing < 0:
                raise UnexpectedFrame(f"body on channel {channel} is longer than announced")
        return None if content.missing else self._whole(channel, content)

    def _whole(self, channel: int, content: _Content) -> Method:
        del self._partial[channel]
        chunks = content.chunks
        first = chunks[0] if chunks else b""
        body = first if len(chunks) < 2 and isinstance(first, bytes) else b"".join(chunks)
        self._blocks.release(content.blocks)
        return (channel, content.ids, content.payload, content.header, body)

    def _check_beginning(self, data: bytes) -> bool:
        """Recognise those who answer in another protocol.  False while too little has come."""
        if data[:4] == b"AMQP":
            if len(data) < 8:
                return False
            version = ".".join(str(part) for part in data[5:8])
            raise FrameError(f"the server speaks AMQP {version}, not 0-9-1")
        if data[:4] == b"HTTP":
            raise FrameError("the server speaks HTTP: this is not an AMQP port")
        if data[:1] == b"\x15" or data[:2] == b"\x16\x03":
            raise FrameError("the server speaks TLS: use amqps:// or ssl=True")
        self._began = True
        return True

    def _refusal(self, kind: int, size: int, limit: int) -> FrameError:
        if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
            return FrameError(f"frame of unknown type {kind}: the peer does not speak AMQP 0-9-1")
        return FrameError(f"frame of {size} bytes announced; the limit is {limit}")


def _add_chunk(
    chunks: list[bytes | bytearray | memoryview], payload: bytes, *, is_only: bool
) -> None:
    """Append *payload* to what has come of a body.

    Arguments:
        is_only: if nothing came before, it is the whole body.
    """
    last = chunks[-1] if chunks else None
    if len(payload) >= _SMALL or (last is None and is_only):
        chunks.append(payload)
    elif isinstance(last, bytearray):
        last += payload
    else:
        chunks.append(bytearray(payload))


def _no_end() -> FrameError:
    return FrameError("frame does not end with 0xCE: the stream is not AMQP or is broken")


def _take_whole(data: bytes, position: int, room: int, append: Callable[[Method], None]) -> int:
    """Take messages whose method, header and only body frame are whole in *data*: the fast path.

    Nearly all deliveries of a busy consumer do.  Here two numbers are compared for a frame and nothing
    is kept between frames, which halves the cost of a small message.  Whatever is not as expected is
    left to the caller, who finds out whether it is rare, incomplete or wrong: so nothing here raises.

    Arguments:
        room: bytes that all three frames together may have before the last one's end: no more than
            one of them may have, and no more than a body.

    Returns:
        The position of the first frame that was not taken.
    """
    method_at, header_at, body_at = (
        _whole_method.unpack_from,
        _whole_header.unpack_from,
        _whole_body.unpack_from,
    )
    end = len(data)
    last = end - _SMALLEST_CONTENT
    while position + 11 < last:
        kind, channel, size, ids = method_at(data, position)
        method_begin = position + 7
        middle = method_begin + size
        if kind != METHOD or middle > last or (ids != BASIC_DELIVER and ids not in _WITH_CONTENT):
            break
        mark, channel_here, header_size, body_size = header_at(data, middle)
        header_begin = middle + 8
        stop = header_begin + header_size
        if mark != _HEADER_FOLLOWS or channel_here != channel or header_size < 14 or stop + 9 > end:
            break
        mark, channel_here, size_here = body_at(data, stop)
        body_begin = stop + 8
        after = body_begin + body_size
        if (
            mark != _BODY_FOLLOWS
            or channel_here != channel
            or size_here != body_size
            or after >= end
            or not body_size
            or after - position > room
            or data[after] != 0xCE
        ):
            break
        append(
            (
                channel,
                ids,
                data[method_begin:middle],
                data[header_begin:stop],
                data[body_begin:after],
            )
        )
        position = after + 1
    return position


def body_size(header: bytes) -> int:
    """Return the size of the body in bytes that the payload of a header frame announces."""
    size: int = _body_size.unpack_from(header, 4)[0]
    return size


def method_frame(channel: int, method: tuple[int, int], arguments: bytes = b"") -> bytes:
    """Return one method; *method* is its class and method id."""
    return b"".join(
        (
            _frame_head.pack(METHOD, channel, len(arguments) + 4),
            _ids.pack(method[0] << 16 | method[1]),
            arguments,
            END,
        )
    )


def ack_frame(channel: int, tag: int, multiple: bool) -> bytes:
    """Return a ``basic.ack``, packed in one step: each ack that a handler sends at once needs one."""
    return _ack.pack(METHOD, channel, 13, BASIC_ACK, tag, multiple, 0xCE)


def heartbeat_frame() -> bytes:
    """Return a heartbeat (spec 4.2.7)."""
    return b"\x08\x00\x00\x00\x00\x00\x00\xce"


def content_frames(
    head: bytes, channel: int, properties: bytes, body: bytes | memoryview, frame_max: int
) -> list[bytes | memoryview]:
    """Return a method with its content, as buffers to be written in one step.

    Arguments:
        head: the whole method frame.
        properties: property flags and list, packed.
        frame_max: largest frame in bytes; 0 is no limit.

    Returns:
        One buffer for a small message.  A large body is not copied: its frames are views of it.
    """
    size = len(body)
    start = _header_start.pack(HEADER, channel, 12 + len(properties), 60, 0, size)
    room = frame_max - 8 if frame_max else size
    if size <= room and size < 65536:
        if not size:
            return [b"".join((head, start, properties, END))]
        return [
            b"".join(
                (head, start, properties, _body_start.pack(0xCE, BODY, channel, size), body, END)
            )
        ]
    view = memoryview(body)
    buffers: list[bytes | memoryview] = [b"".join((head, start, properties))]
    for offset in range(0, size, room):
        piece = view[offset : offset + room]
        buffers.append(_body_start.pack(0xCE, BODY, channel, len(piece)))
        buffers.append(piece)
    buffers.append(END)
    return buffers


class HeartbeatAction:
    """The bits of the action after a tick.  SEND may come together with READ_FIRST."""

    NOTHING: Final = 0
    #: Send a heartbeat.
    SEND: Final = 1
    #: This process was blocked: read what is pending; the next tick judges.
    READ_FIRST: Final = 2
    #: The peer is gone.
    DEAD: Final = 4


class Heartbeat:
    """The heartbeat of one life of a connection.  It reads no clock: each call gets the time.

    Rules (AMQP 0-9-1, 4.2.7): a peer that hears nothing for two intervals may close.  So a heartbeat is
    due when nothing was sent for half an interval, and the peer is dead when nothing was received for
    two.  Any byte counts as received.  When this process was blocked, what the peer sent meanwhile may
    still lie unread: the judgement waits for one more tick, in which the reader reads it.  While reading
    is paused on purpose, silence says nothing about the peer.

    Arguments:
        interval: seconds as negotiated; 0 is off: every action is NOTHING.
        now: seconds on the monotonic clock; the peer counts as heard at this time.
    """

    def __init__(self, interval: float, now: float) -> None:
        if interval < 0.0:
            raise ValueError(f"heartbeat interval must be at least 0 s, got {interval!r}")
        self.interval = interval
        self.received_at = now
        self.sent_at = now
        self._is_paused = False
        self._has_grace = False

    @property
    def tick_interval(self) -> float:
        """Seconds between the ticks that this clockwork needs: a quarter of the interval."""
        return self.interval / 4.0

    def note_received(self, now: float) -> None:
        """Something came from the peer."""
        self.received_at = now
        self._has_grace = False

    def note_sent(self, now: float) -> None:
        """Something was handed to the network."""
        self.sent_at = now

    def pause(self) -> None:
        """Reading is paused on purpose."""
        self._is_paused = True

    def resume(self, now: float) -> None:
        """Reading goes on: silence counts from now."""
        if self._is_paused:
            self._is_paused = False
            self.note_received(now)

    def silence(self, now: float) -> float:
        """Return the seconds since anything was received."""
        return now - self.received_at

    def is_dead(self, now: float) -> bool:
        """Return whether nothing was received for two intervals although reading is not paused."""
        return (
            self.interval > 0.0
            and not self._is_paused
            and now - self.received_at >= 2.0 * self.interval
        )

    def tick(self, now: float, lag: float = 0.0) -> int:
        """Judge, and return the bits of a :class:`HeartbeatAction`.

        Arguments:
            now: seconds on the monotonic clock.
            lag: seconds by which this tick came late because the process was blocked, else 0.
        """
        if self.interval <= 0.0:
            return HeartbeatAction.NOTHING
        is_due = now - self.sent_at >= self.interval / 2.0
        action = HeartbeatAction.SEND if is_due else HeartbeatAction.NOTHING
        if not self.is_dead(now):
            return action
        if lag > 0.0 and not self._has_grace:
            self._has_grace = True
            return action | HeartbeatAction.READ_FIRST
        return HeartbeatAction.DEAD


#: Class and method id, as the amqp package has them.
Signature: TypeAlias = "tuple[int, int]"
#: The same as one number: ``class_id << 16 | method_id``
Ids: TypeAlias = int
#: ``(ids, arguments with their 4 bytes of ids, header, body)``
Reply: TypeAlias = "tuple[Ids, bytes, bytes | None, bytes | None]"

#: The reply to ``connection.update-secret``, RabbitMQ's extension, which the amqp package does not know.
UPDATE_SECRET_OK: Final = 10 << 16 | 71

#: Exceptions of parsing a method that is cut off, or has no text, time or table where one must be.
UNREADABLE: Final = (struct.error, LookupError, ValueError, OverflowError, RecursionError)
#: Of amqp's own reader: no byte for the bits; a time stamp that the platform does not know.
_ALSO: Final = (TypeError, OSError)


def read_arguments(ids: int, form: str, payload: bytes) -> list[Any]:
    """Return the arguments of a method.

    Arguments:
        ids: ``class_id << 16 | method_id``.
        form: their types, as amqp has them.
        payload: of the method frame.

    Raises:
        FrameError: they are not of that form.
    """
    try:
        values: list[Any] = loads(form, payload, 4)[0]
    except (*UNREADABLE, *_ALSO) as exc:
        raise unreadable(ids, exc) from exc
    return values


def reply_arguments(ids: Ids, payload: bytes) -> list[Any]:
    """Return the arguments of a reply, or of another method on a channel that has no content.

    Raises:
        FrameError: they are not of the form of that method.
    """
    form = _FORMS.get(ids)
    return read_arguments(ids, form, payload) if form else []


def unreadable(ids: int, exc: BaseException) -> FrameError:
    """Return the error for a method that cannot be read."""
    return FrameError(f"method {method_name(ids)} cannot be read: {error_reason(exc)}")


def method_name(ids: int) -> str:
    """Return a method as the specification numbers it."""
    return f"{ids >> 16},{ids & 0xFFFF}"


def ids_of(method: Signature) -> Ids:
    """Return class and method id as one number."""
    return method[0] << 16 | method[1]


def expected_of(methods: Signature | list[Signature]) -> frozenset[Ids]:
    """Return the ids of one method or of a list of them."""
    if isinstance(methods, list):
        return frozenset(ids_of(each) for each in methods)
    return frozenset((ids_of(methods),))


#: Types of the arguments of what the broker sends on a channel; others have none, or none of use.
_FORMS: Final[dict[Ids, str]] = {
    ids_of(spec.Channel.Close): "BsBB",
    ids_of(spec.Channel.Flow): "b",
    ids_of(spec.Channel.FlowOk): "b",
    ids_of(spec.Queue.DeclareOk): "sll",
    ids_of(spec.Queue.DeleteOk): "l",
    ids_of(spec.Queue.PurgeOk): "l",
    ids_of(spec.Basic.CancelOk): "s",
    ids_of(spec.Basic.ConsumeOk): "s",
    ids_of(spec.Basic.GetEmpty): "s",
    ids_of(spec.Basic.GetOk): "Lbssl",
}


def is_finite(value: Any) -> bool:
    """Return whether no float in *value*, which is no part of itself, is infinite or NaN.

    RabbitMQ cannot read such a float in a table, and closes the whole connection.
    """
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return True
    return all(map(is_finite, value))


def header_error(headers: Any) -> str | None:
    """Return why headers cannot be sent; None: they can.  It names the key, and never a value."""
    if not isinstance(headers, Mapping):
        return f"headers must be a mapping, got {type(headers).__name__}"
    for key, value in headers.items():
        try:
            dumps("F", ({key: value},))
        except (ValueError, OverflowError, TypeError, FrameSyntaxError, struct.error):
            kind = type(value).__name__
            inside = "" if not isinstance(value, (Mapping, list, tuple)) else ", or in it,"
            return (
                f"header {key!r}: a value of type {kind}{inside} cannot be sent in an AMQP header"
            )
        if not is_finite(value):
            return f"header {key!r}: a float must be finite to be sent in an AMQP header"
    return None
