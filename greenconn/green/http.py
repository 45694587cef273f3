"""One request over HTTP/1.1, for the little that a message broker asks of it.

Each request has a connection of its own: nothing is shared, so any greenlet may ask at any time and a
killed one leaves nothing behind.  The answer is what comes until the server closes; ``http.client``
reads it, which needs no socket for that.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from http.client import HTTPException, HTTPResponse, IncompleteRead
from io import BytesIO
from typing import Any, Final, NamedTuple

from greenconn.green.deadline import Deadline
from greenconn.green.dial import dial
from greenconn.green.slot import Slot
from greenconn.green.stream import Stream, Tls

__all__ = ["Answer", "ask"]

#: Bytes of an answer that are taken.
LIMIT: Final = 256 * 1024 * 1024


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    reason: str
    body: bytes


def ask(
    method: str,
    host: str,
    port: int,
    path: str,
    *,
    deadline: Deadline,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    tls: Tls | None = None,
) -> Answer:
    """Send a request and return the answer, whatever its status.  May switch.

    Arguments:
        path: quoted, with the query.
        deadline: for the whole of it.
        tls: a TLS session that has not begun, or None.

    Raises:
        TimeoutError: the deadline ended.
        OSError: nobody listens there, or what answers does not speak HTTP.
    """
    where = f"{host}:{port}"
    exchange = _Exchange(where)
    stream = Stream(dial(host, port, deadline), exchange.take, exchange.end, where, tls)
    try:
        stream.handshake(deadline)
        stream.writer.write(_head(method, where, path, headers or {}, body) + body)
        try:
            ended_by = exchange.ended.wait(deadline)
        except TimeoutError:
            raise TimeoutError(f"{where}: no answer within {deadline.timeout:g} s") from None
    finally:
        stream.close()
    return _read(b"".join(exchange.parts), method, where, ended_by)


class _Exchange:
    """What comes back.  Called by the reader of the stream."""

    def __init__(self, where: str) -> None:
        self.parts: list[bytes] = []
        self.ended: Slot[BaseException] = Slot()
        self._where = where
        self._size = 0

    def take(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > LIMIT:
            self.parts = []
            raise OSError(errno.EMSGSIZE, f"{self._where}: an answer above {LIMIT >> 20} MiB")
        self.parts.append(data)

    def end(self, exc: BaseException) -> None:
        self.ended.offer(exc)


def _head(method: str, where: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    fields = {
        "Host": where,
        "Connection": "close",
        "Accept-Encoding": "identity",
        "Content-Length": str(len(body)),
        **headers,
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class _Received:
    """Bytes in the place of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> BytesIO:
        return BytesIO(self._data)


def _read(data: bytes, method: str, where: str, ended_by: BaseException) -> Answer:
    received: Any = _Received(data)
    response = HTTPResponse(received, method=method)
    try:
        if data[:5] == b"HTTP/" and b"\r\n\r\n" not in data:
            raise IncompleteRead(data)  # http.client would do with half of the headers
        response.begin()
        return Answer(response.status, response.reason, response.read())
    except (HTTPException, OSError, ValueError) as exc:
        if data[:5] == b"HTTP/" or not data:
            # Cut short: what ended the connection tells why.
            raise ended_by from None
        raise OSError(errno.EPROTO, f"{where}: what answers does not speak HTTP: {exc}") from exc
    finally:
        response.close()
