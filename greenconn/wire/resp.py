"""Redis' protocol (RESP 2 and 3) without I/O: bytes in, replies and pushes out.

Commands are arrays of bulk strings, packed here.  Replies are parsed by hiredis; strings stay bytes.
An error reply comes out as an :class:`ErrorReply`, since it belongs to one waiter among many.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import hiredis

from greenconn.exceptions import error_reason

#: A message that the server sends without being asked (RESP3).
Push: Final = hiredis.PushNotification

#: What is not RESP.
ProtocolError: Final = hiredis.ProtocolError

Argument = bytes | str | int | float

#: Bytes of one reply, and of one string: Redis's own limit.
REPLY_LIMIT: Final = 1024 * 1024 * 1024
STRING_LIMIT: Final = 512 * 1024 * 1024

#: What begins a list of any kind (array, set, map, push, attributes).
_MARKS: Final = (b"*", b"~", b"%", b">", b"|")
#: The head of one of 7 digits or more, and what may become one.
_LONG_HEAD: Final = re.compile(rb"[*~%>|](?=[0-9]{7})")
_CUT_HEAD: Final = re.compile(rb"[*~%>|][0-9]{0,20}\Z")
#: What begins a string of any kind, and the head of one of 8 digits or more.
_STRING_MARKS: Final = (b"$", b"=")
_LONG_STRING: Final = re.compile(rb"[$=]([0-9]{8,})")
LINE_FEED: Final = 10
#: Bytes of the head of a string, at most.
_HEAD: Final = 32
#: Bytes of its input that hiredis keeps when it has read them, at most.
_KEPT: Final = 1024
#: Bytes from which on a scan by marks is quicker than the pattern.
_SHORT: Final = 256
#: Such characters that are looked at one by one, and bytes for each further one: a look takes as long as
#: the pattern takes for so many.  (Replies about many queues are many short lists.)
_LOOKS: Final = 16
_BYTES_A_LOOK: Final = 64


class ErrorReply(Exception):
    """A reply that is an error.

    Attributes:
        code: its first word, as ``WRONGTYPE``.
    """

    @property
    def code(self) -> str:
        text = str(self)
        return text.partition(" ")[0]


class RespParser:
    """Parses what a server sends, however it is cut.

    hiredis makes a list of as many places as the server announces, before it has seen one of them.
    So the beginning of a list that is too long must not reach it: it is looked for in what comes, and
    what looks like one is none while hiredis still waits for the end of a string.

    The head of a string that is too long is looked for when hiredis waits for the end of one, at the
    place where that begins; so nothing is gathered for it.

    Arguments:
        reply_limit: largest reply allowed in bytes.
        string_limit: largest string allowed in bytes.

    Attributes:
        before_error: the replies that came before what was wrong.
    """

    def __init__(self, reply_limit: int = REPLY_LIMIT, string_limit: int = STRING_LIMIT) -> None:
        # No reply is an Ellipsis, so it says "not enough".
        self._reader = hiredis.Reader(replyError=ErrorReply, notEnoughData=...)
        self._feed = self._reader.feed
        self._gets = self._reader.gets
        self.before_error: list[Any] = []
        self.reply_limit = reply_limit
        self.string_limit = string_limit
        #: Bytes since the last reply.
        self._unfinished = 0
        #: What may be the beginning of the head of a list.
        self._held = b""
        #: The last bytes that came before, from the end of a value on, while something is not complete.
        self._before = b""

    def feed(self, data: bytes) -> list[Any]:
        """Take *data* in and return the replies and pushes that are complete.

        Raises:
            ProtocolError: it is not RESP, or a reply is above the limit.
        """
        replies: list[Any] = []
        gets = self._gets
        try:
            if self._held or not data.endswith(b"\n"):
                data = self._with_whole_heads(data)
            if len(data) < _SHORT:
                is_long = _LONG_HEAD.search(data) is not None
            else:
                is_long = _may_announce_much(data)
            for piece in self._checked(data) if is_long else (data,):
                self._feed(piece)
                self._unfinished += len(piece)
                try:
                    while (reply := gets()) is not ...:
                        self._unfinished = 0
                        replies.append(reply)
                except (TypeError, MemoryError) as exc:
                    raise ProtocolError(f"a reply cannot be decoded: {error_reason(exc)}") from exc
                if self._reader.has_data() or not piece.endswith(b"\n"):
                    self._look_at_string(piece)
                elif self._before:
                    self._before = b""
            if self._unfinished > self.reply_limit:
                raise ProtocolError(f"a reply has more than {self.reply_limit} bytes")
        except ProtocolError:
            self.before_error = replies
            raise
        return replies

    def _look_at_string(self, piece: bytes) -> None:
        """See how long the string is whose end hiredis waits for, if *piece* brought its head."""
        left = self._reader.len()
        if left > len(piece) + _KEPT + _HEAD:
            # Its head came earlier, and was looked at then.  What follows it begins in a later piece.
            return
        came = self._before + piece
        # What hiredis has left begins with a value, or behind the mark of one, which it has read; and
        # the string begins within the first part of it.
        start = len(came) - left
        if start > 0:
            self._check_string(came[start if came[start - 1] == LINE_FEED else start - 1 :])
        else:
            self._check_string(came)  # which begins with a value: what is missing was read before
        self._before = came[-2 * _KEPT :]

    def _check_string(self, left: bytes) -> None:
        """See how long the string is that begins in the first part of *left*."""
        if not _may_be_long(left):
            return
        for head in _LONG_STRING.finditer(left, 0, _KEPT + _HEAD):
            reader = hiredis.Reader(replyError=ErrorReply, notEnoughData=...)
            reader.feed(left[: head.start()])
            while reader.gets() is not ...:
                pass
            if reader.has_data():
                continue  # it is text in a string that begins before
            announced = int(head[1][:20])
            if announced > self.string_limit or self._unfinished + announced > self.reply_limit:
                raise ProtocolError(
                    f"string of {announced} bytes announced; the limit is {self.string_limit}, and "
                    f"{self.reply_limit} for a whole reply"
                )

    def _with_whole_heads(self, data: bytes) -> bytes:
        """Return the bytes received so far without an incomplete head of a list."""
        data = self._held + data
        cut = _CUT_HEAD.search(data, max(0, len(data) - 24))
        self._held = b"" if cut is None else data[cut.start() :]
        return data if cut is None else data[: cut.start()]

    def _checked(self, data: bytes) -> Iterator[bytes]:
        """Pieces of *data*, as long as no head of a long list is among them."""
        start = 0
        for head in _LONG_HEAD.finditer(data):
            yield data[start : head.start()]
            start = head.start()
            if not self._reader.has_data():
                raise ProtocolError("list of 1,000,000 members or more announced")
        yield data[start:]


def _may_announce_much(data: bytes) -> bool:
    """Return whether the head of a long list may be in *data*, by a quick scan."""
    looks = _LOOKS + len(data) // _BYTES_A_LOOK
    for mark in _MARKS:
        at = data.find(mark)
        while at >= 0:
            if data[at + 1 : at + 8].isdigit() and len(data) > at + 7:
                return True
            looks -= 1
            if not looks:
                return _LONG_HEAD.search(data) is not None
            at = data.find(mark, at + 1)
    return False


def _may_be_long(kept: bytes) -> bool:
    """Return whether the head of a long string may be at the beginning of *kept*; quick."""
    for mark in _STRING_MARKS:
        at = kept.find(mark, 0, _KEPT + 8)
        while at >= 0:
            if kept[at + 1 : at + 9].isdigit() and len(kept) > at + 8:
                return True
            at = kept.find(mark, at + 1, _KEPT + 8)
    return False


def bulk(value: Argument) -> bytes:
    """Return one argument of a command, framed."""
    if value.__class__ is not bytes:
        value = value.encode() if isinstance(value, str) else b"%a" % value
    return b"$%d\r\n%b\r\n" % (len(value), value)


def head(count: int, *args: Argument) -> bytes:
    """Return the beginning of a command of *count* arguments, of which *args* are the first."""
    return b"*%d\r\n%b" % (count, b"".join(map(bulk, args)))


def pack(*args: Argument) -> bytes:
    """Return a whole command.

    >>> pack("LLEN", "mail")
    b'*2\\r\\n$4\\r\\nLLEN\\r\\n$4\\r\\nmail\\r\\n'
    """
    return pack_all(args)


#: The same with the arguments in a tuple.
pack_all: Final = cast("Callable[[tuple[Argument, ...]], bytes]", hiredis.pack_command)
