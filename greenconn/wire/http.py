"""HTTP/1.1 without I/O: packing the head of a request, and parsing responses (RFC 9112).

Theory.  A head is gathered until its end is found and is judged whole: it is small, and has a limit.
From then on the framing says where the body ends, and the pieces of it are kept until they are taken.
Only what brokers and the proxies before them send is accepted: lines end with CR LF, no line is
folded, a length is given once or equal each time, and ``chunked`` is the only coding.  Whoever sends
anything else might mean another end of the response than we do.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Final, NoReturn

__all__ = ["HEAD_LIMIT", "ResponseParser", "request_head"]

#: Bytes of a head, those of interim responses before it included, and of the trailers.
HEAD_LIMIT: Final = 64 * 1024
#: Bytes of the line that begins a chunk.
LINE_LIMIT: Final = 4096

_BEGIN: Final = b"HTTP/1."
_END: Final = b"\r\n\r\n"

_TARGET: Final = re.compile(r"/[!-~]*")
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")
_STATUS: Final = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*))?")
_FIELD: Final = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t ]*([\t -~\x80-\xff]*)")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[\t ]*(?:;[\t -~\x80-\xff]*)?")

#: Where in a response we are.
_HEAD: Final = 0
_SIZED: Final = 1  # so many bytes are left
_UNTIL_END: Final = 2
_CHUNK_LINE: Final = 3
_CHUNK_BODY: Final = 4  # so many bytes are left of this chunk
_CHUNK_END: Final = 5
_TRAILERS: Final = 6
_COMPLETE: Final = 7
_COUNTED: Final = (_SIZED, _CHUNK_BODY)


def request_head(
    method: str, target: str, host: str, headers: Mapping[str, str], size: int
) -> bytes:
    """Return the head of a request.

    Arguments:
        target: path and query, quoted.
        headers: go before those that are sent always.
        size: bytes of the body.

    Raises:
        ValueError: a method, target or header that cannot be sent.
    """
    if not (_NAME.fullmatch(method) and _TARGET.fullmatch(target)):
        raise ValueError(f"not a request: {method!r} {target!r}")
    fields = {"Host": host, "Accept-Encoding": "identity"}
    if size or method in ("POST", "PUT", "PATCH"):
        fields["Content-Length"] = str(size)
    given = {name.lower() for name in headers}
    lines = [f"{method} {target} HTTP/1.1"]
    for name, value in headers.items():
        if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise ValueError(f"header {name!r} has a value that cannot be sent")
        lines.append(f"{name}: {value}")
    lines += [f"{name}: {value}" for name, value in fields.items() if name.lower() not in given]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class ResponseParser:
    """One response.

    Arguments:
        method: of the request: there is no body after HEAD.
        limit: bytes of the body that are kept here at a time.

    Attributes:
        has_begun: a byte has come.
        has_head: ``status``, ``reason`` and ``headers`` (names in lower case; equal ones are joined
            by commas) are known.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_has_no_body",
        "_head_size",
        "_is_kept",
        "_left",
        "_limit",
        "_place",
        "_size",
        "has_begun",
        "has_head",
        "headers",
        "reason",
        "status",
    )

    def __init__(self, method: str, limit: int) -> None:
        self.has_begun = self.has_head = self._is_kept = False
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}
        self._has_no_body = method == "HEAD"
        self._limit = limit
        #: Of the body, not taken yet, and how many bytes that is.
        self._body: list[bytes] = []
        self._size = 0
        #: A head, or a line, that has not come to its end.
        self._buffer = bytearray()
        self._head_size = 0
        self._place = _HEAD
        self._left = 0

    @property
    def is_complete(self) -> bool:
        """Whether it is all here."""
        return self._place == _COMPLETE

    @property
    def is_reusable(self) -> bool:
        """Whether it is all here and the connection may be used for another request."""
        return self._is_kept and self._place == _COMPLETE

    def feed(self, data: bytes) -> None:
        """Take what was received.

        Raises:
            OSError: it is not HTTP, or above a limit.
        """
        self.has_begun = True
        position, size = 0, len(data)
        while position < size:
            place = self._place
            if place in _COUNTED:
                position = self._feed_sized(data, position)
            elif place == _HEAD:
                position = self._feed_head(data, position)
            elif place == _UNTIL_END:
                self._keep(data[position:])
                return
            elif place == _COMPLETE:
                self._is_kept = False  # nobody asked for more
                return
            else:
                position = self._feed_line(data, position)

    def end(self) -> bool:
        """End the input, as the server has closed; return whether that completes the response."""
        if self._place == _UNTIL_END:
            self._place = _COMPLETE
        return self._place == _COMPLETE

    def take(self) -> bytes:
        """Return what has come of the body, and keep it no longer."""
        pieces, self._body = self._body, []
        self._size = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- the head

    # Each takes what begins at a position, and returns where the rest begins.

    def _feed_head(self, data: bytes, position: int) -> int:
        head = self._buffer
        known = len(head)
        head += data[position:] if position else data
        if not head.startswith(_BEGIN[: len(head)]):
            _refuse("the server does not answer in HTTP/1.1")
        end = head.find(_END, max(0, known - len(_END) + 1))
        if self._head_size + (len(head) if end < 0 else end) > HEAD_LIMIT:
            _refuse(f"a response with a head above {HEAD_LIMIT >> 10} KiB", errno.EMSGSIZE)
        if end < 0:
            return len(data)
        lines = head[:end].decode("latin-1").split("\r\n")
        end += len(_END)
        head.clear()
        self._head_size += end
        self._read_head(lines)
        return position + end - known

    def _read_head(self, lines: list[str]) -> None:
        status = _STATUS.fullmatch(lines[0])
        if status is None:
            _refuse(f"a response that is not HTTP/1.1: {lines[0][:100]!r}")
        minor, code, reason = status.groups()
        self.status, self.reason = int(code), (reason or "").strip()
        if self.status == 101:
            _refuse("a response that changes the protocol")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            field = _FIELD.fullmatch(line)
            if field is None:
                _refuse(f"a response that is not HTTP/1.1: header {line[:100]!r}")
            name, value = field[1].lower(), field[2].rstrip("\t ")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if self.status < 200:
            return  # an interim response
        self.headers = headers
        self.has_head = True
        options = {each.strip().lower() for each in headers.get("connection", "").split(",")}
        self._is_kept = "keep-alive" in options if minor == "0" else "close" not in options
        self._begin_body(headers)

    def _begin_body(self, headers: dict[str, str]) -> None:
        """Find out where the body ends (RFC 9112, 6.3)."""
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None and length is not None:
            _refuse("a response with a length and a coding")
        if self._has_no_body or self.status in (204, 304):
            self._place = _COMPLETE
        elif coding is not None:
            if coding.lower() != "chunked":
                _refuse(f"a response in the coding {coding[:100]!r}")
            self._place = _CHUNK_LINE
        elif length is not None:
            self._left = self._length(length)
            if self._left > self._limit:
                self._too_large()
            self._place = _SIZED if self._left else _COMPLETE
        else:
            self._is_kept = False
            self._place = _UNTIL_END

    def _length(self, text: str) -> int:
        # It may be given more than once, if it is the same.
        first, *others = {each.strip() for each in text.split(",")}
        if others or not _LENGTH.fullmatch(first):
            _refuse(f"a response of the length {text[:100]!r}")
        return int(first)

    # -- the body

    def _feed_sized(self, data: bytes, position: int) -> int:
        end = position + self._left
        piece = data if not position and len(data) <= end else data[position:end]
        self._keep(piece)
        self._left -= len(piece)
        if not self._left:
            self._place = _COMPLETE if self._place == _SIZED else _CHUNK_END
        return position + len(piece)

    def _feed_line(self, data: bytes, position: int) -> int:
        """Take a part of a line between the chunks."""
        line = self._buffer
        known = len(line)
        most = position + LINE_LIMIT + 2
        if known:
            line += data[position:most]
            end = line.find(b"\r\n", known - 1)
            behind = position + end + 2 - known
        else:
            end = data.find(b"\r\n", position, most)
            behind = end + 2
            if end < 0:
                line += data[position:most]
        if end < 0:
            if len(line) > LINE_LIMIT:
                _refuse(f"a chunk with a line above {LINE_LIMIT} bytes", errno.EMSGSIZE)
            return len(data)
        text = bytes(line[:end]) if known else data[position:end]
        line.clear()
        self._read_line(text)
        return behind

    def _read_line(self, line: bytes) -> None:
        if self._place == _CHUNK_LINE:
            size = _CHUNK.fullmatch(line)
            if size is None:
                _refuse(f"a chunk of the length {line[:100]!r}")
            self._left = int(size[1], 16)
            self._place = _CHUNK_BODY if self._left else _TRAILERS
        elif self._place == _CHUNK_END:
            if line:
                _refuse("a chunk that is longer than its length")
            self._place = _CHUNK_LINE
        elif not line:
            self._place = _COMPLETE
        elif _FIELD.fullmatch(line.decode("latin-1")) is None:
            _refuse(f"a response that is not HTTP/1.1: trailer {line[:100]!r}")
        else:
            # It is read over.
            self._head_size += len(line)
            if self._head_size > HEAD_LIMIT:
                _refuse(f"a response with trailers above {HEAD_LIMIT >> 10} KiB", errno.EMSGSIZE)

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            self._body = []
            self._too_large()
        self._body.append(piece)

    def _too_large(self) -> NoReturn:
        _refuse(f"a response above {self._limit} bytes", errno.EMSGSIZE)


def _refuse(text: str, code: int = errno.EPROTO) -> NoReturn:
    raise OSError(code, text)
