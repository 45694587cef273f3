"""An HTTP/1.1 client for one server, with a pool of connections.

It serves brokers that are accessed over HTTP, and RabbitMQ's management API.  As for every other
broker, a :class:`~.stream.Stream` transports the bytes; :mod:`greenconn.wire.http` parses them.

Rules
-----
- A connection serves one request at a time.  It is released to the pool only if the response was read
  to its end and the server keeps the connection open.  If the caller is killed or the deadline passes,
  the connection is closed, since its next bytes would be the rest of that response.
- The reader also watches idle connections, so that one that the server closed is not used again.  If
  the server closes it while a request is being sent, and no byte of a response was received, an
  idempotent request is sent again over another connection.  A request over a new connection is not.
- One deadline covers all of a request.  The size of a response is limited, that of a request is not.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakSet

from greenconn.exceptions import LimitExceeded
from greenconn.green.deadline import Deadline
from greenconn.green.hub import forget_at_fork
from greenconn.green.inbox import Inbox
from greenconn.green.pool import FairPool, PoolStats
from greenconn.green.slot import Slot
from greenconn.green.stream import EndOfFile, Stream, connect_tcp
from greenconn.wire.http import ResponseParser, request_head
from greenconn.wire.tls import TlsOption, tls_context, tls_session

if TYPE_CHECKING:
    from typing_extensions import Self

#: Maximum bytes of the body of a response, or of a line of it.
LIMIT: Final = 64 * 1024 * 1024
#: Maximum number of connections to one server.
CONNECTIONS: Final = 10
#: Seconds after which an idle connection expires, unless the server announces a shorter time.
IDLE: Final = 30.0
#: Bytes of unread lines above which receiving is paused.
AHEAD: Final = 1024 * 1024

#: Idempotent methods (RFC 9110, 9.2.2).
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})

_KEEP_ALIVE: Final = re.compile(r"timeout=(\d{1,6})")


class HttpResponse(NamedTuple):
    """The response of a server.

    Attributes:
        status: the status code.
        headers: names in lower case -> values.
        body: the whole body.
        reason: the text after the status code; may be empty.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    reason: str = ""


class HttpClient:
    """A client of one server, with a pool of connections.

    Arguments:
        host: a name, or an IPv4 or IPv6 address.
        port: the TCP port.
        ssl: kombu's ``ssl`` argument; False and None are plain HTTP.
        limit: maximum number of connections, without those of :meth:`lines`.

    Raises:
        ValueError: *ssl* is invalid.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        ssl: TlsOption | None = None,
        limit: int = CONNECTIONS,
    ) -> None:
        shown = f"[{host}]" if ":" in host else host
        #: Host and port, for errors.
        self.where = f"{shown}:{port}"
        self._host = "127.0.0.1" if host == "localhost" else host
        self._port = port
        if ssl:
            tls_context(ssl, host)  # what is wrong with it is said now
        self._ssl = ssl
        self._tls_host = host
        self._named = shown if port == (443 if ssl else 80) else self.where
        self._pool: FairPool[HttpConnection] = FairPool(
            self._connect,
            HttpConnection.close,
            HttpConnection.is_usable,
            limit,
            lambda: f"http{'s' if ssl else ''}://{self.where}",
        )
        #: The connections of :meth:`lines`, which are not in the pool.
        self._reading: WeakSet[HttpConnection] = WeakSet()
        forget_at_fork(self)

    def __repr__(self) -> str:
        return f"<HttpClient {self.where}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def stats(self) -> PoolStats:
        """Return the numbers of the pool of connections."""
        return self._pool.stats()

    def request(
        self,
        method: str,
        target: str,
        *,
        deadline: Deadline,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        may_repeat: bool | None = None,
        limit: int = LIMIT,
    ) -> HttpResponse:
        """Send a request and return the response, whatever its status.  May switch.

        Arguments:
            method: the method, as ``GET``.
            target: path and query, quoted.
            deadline: for all steps together: to acquire a connection, to connect, to send the request
                and to receive the response.
            headers: further headers; they replace the default ones of the same name.
            body: the body of the request.
            may_repeat: whether to send the request again if a reused connection was closed by the
                server; None does if the method is idempotent.
            limit: maximum bytes of the body of the response.

        Raises:
            TimeoutError: the deadline passed.
            OSError: the connection failed, or the response is invalid or too large; names host and
                port.
            ValueError: the method, the target or a header cannot be sent.
            RuntimeError: the client was closed.
        """
        head = self._head(method, target, headers or {}, body)
        repeats = method in IDEMPOTENT if may_repeat is None else may_repeat
        while True:
            connection = self._acquire(deadline)
            is_kept, response = connection.was_used, ResponseParser(method, limit)
            exchange = HttpExchange(response)
            try:
                # Opening one was a step; one of the pool took none.
                connection.ask(head, body, exchange, deadline if is_kept else deadline.renewed())
            except ConnectionError:
                if not (is_kept and repeats) or response.has_begun or deadline.has_ended:
                    raise
                continue
            finally:
                if response.is_complete and connection.is_usable():
                    self._pool.release(connection)
                else:
                    connection.close()
                    self._pool.remove(connection)
            return HttpResponse(response.status, response.headers, response.take(), response.reason)

    def lines(
        self,
        method: str,
        target: str,
        *,
        deadline: Deadline,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        limit: int = LIMIT,
    ) -> ResponseLines:
        """Send a request and return its response to read line by line.  May switch.

        It has a connection of its own, which is not in the pool.

        Arguments:
            method, target, headers, body: see :meth:`request`.
            deadline: until the head of the response was received.
            limit: maximum bytes of a line.

        Raises:
            As :meth:`request`.
        """
        head = self._head(method, target, headers or {}, body)
        connection = self._connect(deadline)
        self._reading.add(connection)
        lines = ResponseLines(connection, ResponseParser(method, limit + AHEAD), limit)
        try:
            connection.ask(head, body, lines, deadline.renewed())
        except BaseException:
            connection.close()
            raise
        return lines

    def close(self) -> None:
        """Close the client and all connections; requests in progress fail.  Never switches."""
        for connection in (*self._pool.close(), *self._reading):
            connection.close()

    def forget(self) -> None:
        """Reset the pool in the child of a fork.  The streams reset themselves."""
        self._pool.forget()

    def _acquire(self, deadline: Deadline) -> HttpConnection:
        try:
            return self._pool.acquire(True, deadline)
        except LimitExceeded as exc:
            raise TimeoutError(str(exc)) from None

    def _connect(self, deadline: Deadline) -> HttpConnection:
        tls = tls_session(self._ssl, self._tls_host) if self._ssl else None
        sock = connect_tcp(self._host, self._port, deadline)
        return HttpConnection(sock, self.where, tls, deadline)

    def _head(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        try:
            return request_head(method, target, self._named, headers, len(body))
        except ValueError as exc:
            raise ValueError(f"{self.where}: {exc}") from None


class HttpExchange:
    """A request in progress and its response.  The reader of the stream calls its methods."""

    def __init__(self, response: ResponseParser) -> None:
        self.response = response
        self.slot: Slot[None] = Slot()

    def go_on(self) -> bool:
        """Process received bytes; return whether the response is complete."""
        if self.response.is_complete:
            self.slot.offer(None)
        return self.response.is_complete

    def fail(self, exc: BaseException) -> None:
        """Raise *exc* in the caller, as the connection was lost."""
        self.slot.fail(exc)


class HttpConnection:
    """A connection, used by one greenlet at a time.

    The reader of its stream calls ``_take`` and ``_lost``.
    """

    def __init__(self, sock: Any, where: str, tls: Any, deadline: Deadline) -> None:
        self.where = where
        self.was_used = False
        self._exchange: HttpExchange | None = None
        self._expires_at = 0.0
        self.stream = Stream(sock, self._take, self._lost, where, tls)
        try:
            self.stream.handshake(deadline)
        except TimeoutError:
            self.close()
            raise TimeoutError(f"{where}: no TLS session within {deadline.timeout:g} s") from None
        except BaseException:
            self.close()
            raise

    def is_usable(self) -> bool:
        """Return whether a request can be sent.  Never switches."""
        return self.stream.is_open and self._exchange is None and monotonic() < self._expires_at

    def ask(self, head: bytes, body: bytes, exchange: HttpExchange, deadline: Deadline) -> None:
        """Send a request and wait until *exchange* has its response.  May switch."""
        if not self.stream.is_open:
            raise ConnectionResetError(
                errno.ECONNRESET, f"{self.where}: the server closed the connection before a request"
            )
        self._exchange = exchange
        if body:
            self.stream.writer.write_many([head, body])
        else:
            self.stream.writer.write(head)
        try:
            exchange.slot.wait(deadline)
        except TimeoutError:
            if not exchange.slot.has_expired:
                raise
            raise TimeoutError(f"{self.where}: no response within {deadline.timeout:g} s") from None

    def close(self) -> None:
        """Close the connection; a request in progress fails.  Never switches."""
        self.stream.close()
        self._lost(
            ConnectionAbortedError(errno.ECONNABORTED, "the connection was closed by this program")
        )

    def _take(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            raise OSError(errno.EPROTO, "the server sent data without a request")
        exchange.response.feed(data)
        if exchange.go_on():
            self._exchange = None
            self.was_used = True
            response = exchange.response
            if response.is_reusable:
                named = _KEEP_ALIVE.search(response.headers.get("keep-alive", ""))
                # A second less than announced, as it takes time until we notice that it was closed.
                idle = IDLE if named is None else min(IDLE, int(named[1]) - 1.0)
                self._expires_at = monotonic() + idle
            else:
                self.stream.close()

    def _lost(self, exc: BaseException) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if isinstance(exc, EndOfFile) and exchange.response.end():
            exchange.go_on()
            return
        if isinstance(exc, OSError) and exc.errno is not None:
            begun = exchange.response.has_begun
            when = "while receiving a response" if begun else "before a response"
            exc = type(exc)(exc.errno, f"{self.where}: {when}: {exc.strerror}")
        exchange.fail(exc)


class ResponseLines(HttpExchange):
    """A response that is read line by line while it is received.

    A context manager, which closes it.
    """

    def __init__(self, connection: HttpConnection, response: ResponseParser, limit: int) -> None:
        super().__init__(response)
        self._connection = connection
        self._limit = limit
        self._rest = bytearray()
        self._ready: Inbox[bytes | BaseException | None] = Inbox()
        self._ahead = 0

    def __enter__(self) -> ResponseLines:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def status(self) -> int:
        """The status code."""
        return self.response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers: names in lower case -> values."""
        return self.response.headers

    def line(self, deadline: Deadline) -> bytes | None:
        """Return the next line without its end; None after the last one.  May switch.

        Raises:
            TimeoutError: there was no line in time.  The call can be repeated.
            OSError: the connection failed, or a line is too long.
        """
        try:
            ready = self._ready.get(deadline)
        except TimeoutError:
            where = self._connection.where
            raise TimeoutError(f"{where}: no line within {deadline.timeout:g} s") from None
        if isinstance(ready, bytes):
            self._ahead -= len(ready)
            if self._ahead < AHEAD // 2 and self._connection.stream.is_paused:
                self._connection.stream.resume()
            return ready
        self._ready.put(ready)  # the next call gets it, too
        if ready is not None:
            raise ready
        return None

    def close(self) -> None:
        """Close the response and its connection.  Never switches."""
        self._connection.close()

    def go_on(self) -> bool:
        response = self.response
        first, *others = response.take().split(b"\n")
        self._rest += first  # appended only: a line that comes in parts is not searched again
        if others:
            self._put(bytes(self._rest))
            for line in others[:-1]:
                self._put(line)
            self._rest = bytearray(others[-1])
        if len(self._rest) > self._limit:
            raise OSError(errno.EMSGSIZE, f"a line of the response exceeds {self._limit} bytes")
        if self._ahead > AHEAD:
            self._connection.stream.pause()
        if response.has_head:
            self.slot.offer(None)
        if response.is_complete:
            if self._rest:
                self._put(bytes(self._rest))
            self._ready.put(None)
            self._connection.stream.close()
        return response.is_complete

    def fail(self, exc: BaseException) -> None:
        if not self.slot.fail(exc):
            self._ready.put(exc)

    def _put(self, line: bytes) -> None:
        line = line.removesuffix(b"\r")
        self._ahead += len(line)
        self._ready.put(line)
