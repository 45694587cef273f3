"""Redis' protocol (RESP 2 and 3) without I/O: bytes in, replies and pushes out.

Commands are arrays of bulk strings, packed here.  Replies are parsed by hiredis; strings stay bytes.
An error reply comes out as an :class:`ErrorReply`, since it belongs to one waiter among many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import hiredis

__all__ = ["ErrorReply", "ProtocolError", "Push", "RespParser", "bulk", "head", "pack"]

#: A message that the server sends without being asked (RESP3).
Push: Final = hiredis.PushNotification

#: What is not RESP.
ProtocolError: Final = hiredis.ProtocolError

Argument = bytes | str | int | float


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
    """Parses what a server sends, however it is cut."""

    __slots__ = ("_gets", "_reader", "feed_raw")

    def __init__(self) -> None:
        # No reply is an Ellipsis, so it says "not enough".
        self._reader = hiredis.Reader(replyError=ErrorReply, notEnoughData=...)
        self.feed_raw = self._reader.feed
        self._gets = self._reader.gets

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take *data* in and yield the replies and pushes that are complete.

        Raises:
            ProtocolError: it is not RESP.
        """
        self.feed_raw(data)
        gets = self._gets
        while (reply := gets()) is not ...:
            yield reply


def bulk(value: Argument) -> bytes:
    """One argument of a command, framed."""
    if value.__class__ is not bytes:
        value = value.encode() if isinstance(value, str) else b"%a" % value
    return b"$%d\r\n%b\r\n" % (len(value), value)


def head(count: int, *args: Argument) -> bytes:
    """The beginning of a command of *count* arguments, of which *args* are the first."""
    return b"*%d\r\n%b" % (count, b"".join(map(bulk, args)))


def pack(*args: Argument) -> bytes:
    """A whole command.

    >>> pack("LLEN", "mail")
    b'*2\\r\\n$4\\r\\nLLEN\\r\\n$4\\r\\nmail\\r\\n'
    """
    packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]  # of any length
    return packed
