"""HTTP/1.1 without I/O: the head of a request, and a parser of responses (RFC 9112).

Theory.  The head of a response is buffered until it is complete, and then parsed as a whole: it is small
and has a limit.  It tells how the body is framed: by its length, in chunks, or up to the end of the
connection.  The parts of the body are kept until they are taken.

The parser is strict, since a server that means another end of the response than we do could make us
take one response for another (RFC 9112, 11).  Lines end with CR LF, no line is folded, all given lengths
are equal, and ``chunked`` is the only transfer coding.  Brokers and proxies send nothing else.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Final, NoReturn

#: Maximum bytes of the heads of a response, including interim responses, and of its trailers together.
HEAD_LIMIT: Final = 64 * 1024
#: Maximum bytes of a line that begins a chunk.
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

# States of the parser, named after the part of the response that comes next.
_HEAD: Final = 0
#: A body with a length; ``_left`` is the number of bytes left.
_SIZED: Final = 1
#: A body that ends with the connection.
_UNTIL_END: Final = 2
#: The line with the size of a chunk.
_CHUNK_LINE: Final = 3
#: A chunk; ``_left`` is the number of bytes left.
_CHUNK_BODY: Final = 4
#: The CR LF behind a chunk.
_CHUNK_END: Final = 5
#: The trailers after the last chunk.
_TRAILERS: Final = 6
#: Nothing: the response is complete.
_COMPLETE: Final = 7
_COUNTED: Final = (_SIZED, _CHUNK_BODY)


def request_head(
    method: str, target: str, host: str, headers: Mapping[str, str], size: int
) -> bytes:
    """Return the head of a request.

    Arguments:
        method: the method, as ``GET``.
        target: path and query, quoted.
        host: the value of the header ``Host``.
        headers: further headers; they replace the default ones of the same name.
        size: bytes of the body.

    Raises:
        ValueError: the method, the target or a header has a character that HTTP does not allow.
    """
    if not (_NAME.fullmatch(method) and _TARGET.fullmatch(target)):
        raise ValueError(
            f"method and target of a request must be a token and a quoted path, got {method!r} "
            f"and {target!r}"
        )
    fields = {"Host": host, "Accept-Encoding": "identity"}
    if size or method in ("POST", "PUT", "PATCH"):
        fields["Content-Length"] = str(size)
    given = {name.lower() for name in headers}
    lines = [f"{method} {target} HTTP/1.1"]
    for name, value in headers.items():
        if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            # Without the value, which may be a secret.
            raise ValueError(
                f"header {name!r} must have a name and a value of Latin-1 text in one line"
            )
        lines.append(f"{name}: {value}")
    lines += [f"{name}: {value}" for name, value in fields.items() if name.lower() not in given]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class ResponseParser:
    """The parser of one response.

    Arguments:
        method: the method of the request: a response to HEAD has no body.
        limit: maximum bytes of the body that are kept here until they are taken.

    Attributes:
        has_begun: whether a byte was received.
        has_head: whether the head was received: ``status``, ``reason`` and ``headers`` are set.
        headers: names in lower case -> values; the values of equal names are joined by commas.
    """

    def __init__(self, method: str, limit: int) -> None:
        self.has_begun = self.has_head = self._is_kept = False
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}
        self._has_no_body = method == "HEAD"
        self._limit = limit
        #: The parts of the body that were not taken yet, and their size in bytes.
        self._body: list[bytes] = []
        self._size = 0
        #: An incomplete head or line.
        self._buffer = bytearray()
        self._head_size = 0
        self._place = _HEAD
        self._left = 0

    @property
    def is_complete(self) -> bool:
        """Whether the whole response was received."""
        return self._place == _COMPLETE

    @property
    def is_reusable(self) -> bool:
        """Whether the response is complete and the connection can be used for another request."""
        return self._is_kept and self._place == _COMPLETE

    def feed(self, data: bytes) -> None:
        """Parse received bytes.

        Raises:
            OSError: they are not valid HTTP, or exceed a limit.
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
                self._is_kept = False  # more than the response: the connection cannot be trusted
                return
            else:
                position = self._feed_line(data, position)

    def end(self) -> bool:
        """Note that the server closed the connection; return whether the response is complete."""
        if self._place == _UNTIL_END:
            self._place = _COMPLETE
        return self._place == _COMPLETE

    def take(self) -> bytes:
        """Return the bytes of the body that were received since the last call."""
        pieces, self._body = self._body, []
        self._size = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- the head

    # Each _feed method parses data from a position, and returns the position of the rest.

    def _feed_head(self, data: bytes, position: int) -> int:
        head = self._buffer
        known = len(head)
        head += data[position:] if position else data
        if not head.startswith(_BEGIN[: len(head)]):
            _refuse("the server does not respond in HTTP/1.1")
        end = head.find(_END, max(0, known - len(_END) + 1))
        if self._head_size + (len(head) if end < 0 else end) > HEAD_LIMIT:
            _refuse(f"the head of the response exceeds {HEAD_LIMIT >> 10} KiB", errno.EMSGSIZE)
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
            _refuse(f"the status line of the response is not HTTP/1.1: {lines[0][:100]!r}")
        minor, code, reason = status.groups()
        self.status, self.reason = int(code), (reason or "").strip()
        if self.status == 101:
            _refuse("the server changes the protocol (status 101), which was not requested")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            field = _FIELD.fullmatch(line)
            if field is None:
                _refuse(f"a header of the response is not HTTP/1.1: {line[:100]!r}")
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
        """Choose the state for the framing of the body (RFC 9112, 6.3)."""
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None and length is not None:
            _refuse("the response has both Content-Length and Transfer-Encoding")
        if self._has_no_body or self.status in (204, 304):
            self._place = _COMPLETE
        elif coding is not None:
            if coding.lower() != "chunked":
                _refuse(f"the response has the unknown Transfer-Encoding {coding[:100]!r}")
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
        # Repeated lengths are valid if they are equal.
        first, *others = {each.strip() for each in text.split(",")}
        if others or not _LENGTH.fullmatch(first):
            _refuse(f"the response has the invalid Content-Length {text[:100]!r}")
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
        """Parse a line of the chunked coding, or a part of it."""
        line = self._buffer
        known = len(line)
        most = position + LINE_LIMIT + 2 - known
        if known:
            line += data[position:most]
            end = line.find(b"\r\n", known - 1)
            behind = position + end + 2 - known
        else:
            end = data.find(b"\r\n", position, most)
            behind = end + 2
        if end < 0:
            if not known:
                line += data[position:most]
            if len(line) == LINE_LIMIT + 2:
                _refuse(f"a line between chunks exceeds {LINE_LIMIT} bytes", errno.EMSGSIZE)
            return len(data)
        text = bytes(line[:end]) if known else data[position:end]
        line.clear()
        self._read_line(text)
        return behind

    def _read_line(self, line: bytes) -> None:
        if self._place == _CHUNK_LINE:
            size = _CHUNK.fullmatch(line)
            if size is None:
                _refuse(f"a chunk has the invalid size {line[:100]!r}")
            self._left = int(size[1], 16)
            self._place = _CHUNK_BODY if self._left else _TRAILERS
        elif self._place == _CHUNK_END:
            if line:
                _refuse("a chunk is longer than its size")
            self._place = _CHUNK_LINE
        elif not line:
            self._place = _COMPLETE
        elif _FIELD.fullmatch(line.decode("latin-1")) is None:
            _refuse(f"a trailer of the response is not HTTP/1.1: {line[:100]!r}")
        else:
            # Trailers are ignored, but limited.
            self._head_size += len(line)
            if self._head_size > HEAD_LIMIT:
                _refuse(
                    f"the trailers of the response exceed {HEAD_LIMIT >> 10} KiB", errno.EMSGSIZE
                )

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            self._body = []
            self._too_large()
        self._body.append(piece)

    def _too_large(self) -> NoReturn:
        _refuse(f"the body of the response exceeds {self._limit} bytes", errno.EMSGSIZE)


def _refuse(text: str, code: int = errno.EPROTO) -> NoReturn:
    raise OSError(code, text)
