"""The answer of a web server, as it comes; framed by llhttp, Node's parser, out of geventhttpclient.

Only :mod:`greenconn.green.web` imports this, when it is used: geventhttpclient comes with an extra.

Theory.  The head is collected here until its end is found, so that it has a limit, and is given to
the parser in one piece: llhttp judges it and knows from then on where the body ends.  The hooks that
it calls never raise, since its versions differ in what they do then; they note, and ``feed`` raises.
"""

from __future__ import annotations

import errno
from typing import Final

# Its public classes read a socket of their own; this is what they stand on.
from geventhttpclient._parser import HTTPParseError, HTTPResponseParser

__all__ = ["Answer"]

#: Bytes of a head, those of interim answers before it included.
HEAD_LIMIT: Final = 64 * 1024

_BEGIN: Final = b"HTTP/1."
_END: Final = b"\r\n\r\n"
#: geventhttpclient 2.4, the last for Python 3.10, does not survive other bytes in a header.
_PLAIN: Final = bytes(range(128)) + b"?" * 128


class _Parser(HTTPResponseParser):
    """llhttp's hooks.  All must be there; those that say what is known already do nothing."""

    def __init__(self, has_no_body: bool) -> None:
        super().__init__()
        self.has_head = self.is_complete = self.has_excess = False
        self.body: list[bytes] = []
        self._has_no_body = has_no_body

    def _on_message_begin(self) -> None:
        # After the end: nobody asked for another one.  After an interim answer: the final one.
        self.has_excess = self.is_complete and self.get_code() >= 200
        if not self.has_excess:
            self.has_head = self.is_complete = False

    def _on_status(self, text: str) -> None: ...

    def _on_header_field(self, text: str) -> None: ...

    def _on_header_value(self, text: str) -> None: ...

    def _on_headers_complete(self) -> bool:
        self.has_head = True
        return self._has_no_body

    def _on_body(self, piece: bytearray) -> None:
        if not self.has_excess:
            self.body.append(bytes(piece))

    def _on_message_complete(self) -> None:
        self.is_complete = True


class Answer:
    """One answer.  Nothing here switches.

    Arguments:
        method: of the request: there is no body after HEAD.
        limit: bytes of the body that are kept here at a time.

    Attributes:
        has_begun: a byte has come.
        has_head: ``status`` and ``headers`` (names in lower case; equal ones are joined by commas)
            are known.
        is_complete: it is all here.
        may_go_on: the connection may be used for another request, if ``is_complete``.
    """

    def __init__(self, method: str, limit: int) -> None:
        self.has_begun = self.has_head = self.is_complete = self.may_go_on = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self._limit = limit
        self._size = 0
        self._head = bytearray()
        self._head_size = 0
        self._parser = _Parser(method == "HEAD")

    def feed(self, data: bytes) -> None:
        """Take what was received.

        Raises:
            OSError: it is not HTTP, or above a limit.
        """
        self.has_begun = True
        while data and not self.has_head:
            data = self._feed_head(data)
        if data:
            self._parse(data)
        if self._parser.is_complete and self.has_head:
            self.is_complete = True
            self.may_go_on = not self._parser.has_excess and self._parser.should_keep_alive()

    def end(self) -> bool:
        """The server has closed; return whether the answer is complete by that."""
        if self.has_head and not self.is_complete:
            try:
                self._parser.feed(b"")
            except HTTPParseError:
                return False
            self.is_complete = bool(self._parser.is_complete)
        return self.is_complete

    def take(self) -> bytes:
        """Return what has come of the body, and keep it no longer."""
        pieces, self._parser.body = self._parser.body, []
        self._size = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _feed_head(self, data: bytes) -> bytes:
        """Take a part of the head; return what comes behind it."""
        head = self._head
        searched = max(0, len(head) - len(_END) + 1)
        head += data
        if not head.startswith(_BEGIN[: len(head)]):
            raise OSError(errno.EPROTO, "what answers does not speak HTTP/1.1")
        end = head.find(_END, searched)
        if self._head_size + (len(head) if end < 0 else end) > HEAD_LIMIT:
            raise OSError(errno.EMSGSIZE, f"an answer with a head above {HEAD_LIMIT >> 10} KiB")
        if end < 0:
            return b""
        end += len(_END)
        raw, rest = bytes(head[:end]), bytes(head[end:])
        head.clear()
        self._head_size += end
        self._parse(raw.translate(_PLAIN))
        self.status = self._parser.get_code()
        if self.status == 101:
            raise OSError(errno.EPROTO, "an answer that changes the protocol")
        if self.status >= 200:
            self.has_head = True
            self.headers = _headers(raw)
            self._check_length()
        return rest

    def _check_length(self) -> None:
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limit and not self._parser.is_complete:
            raise self._too_large()

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        known = len(parser.body)
        try:
            parser.feed(data)
        except HTTPParseError as exc:
            if not (parser.is_complete and self.has_head):
                raise OSError(errno.EPROTO, f"an answer that is not HTTP/1.1: {exc}") from exc
            parser.has_excess = True  # the answer is whole; what follows it is of no use
        self._size += sum(map(len, parser.body[known:]))
        if self._size > self._limit:
            parser.body = []
            raise self._too_large()

    def _too_large(self) -> OSError:
        return OSError(errno.EMSGSIZE, f"an answer above {self._limit} bytes")


def _headers(head: bytes) -> dict[str, str]:
    """The headers of a head that llhttp accepted."""
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
