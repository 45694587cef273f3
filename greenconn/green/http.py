"""Requests over HTTP/1.1 to one server, over connections that are kept.

For brokers that speak HTTP, and for RabbitMQ's management API.  The bytes come and go over
:class:`~.stream.Stream`, as for every other broker: one deadline for all of a request, the ``ssl``
option as everywhere, no socket that two greenlets read.  What they mean is read by
:mod:`greenconn.wire.http`.

Rules
-----
- A connection serves one request at a time and is given back only when the response was read to its
  end and the server keeps it.  A caller that is killed or whose time is up closes it: the response
  that may still come is nobody's.
- The reader watches idle connections too, so one that the server closed is not used again.  Where
  the closing is still on its way and no byte of a response has come, a request that may be repeated
  goes out once more over another connection; a fresh one is never repeated.
- There is no limit but the deadline on what a server may take; there is one on what it may send.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakSet

from greenconn.exceptions import LimitExceeded
from greenconn.green import fork
from greenconn.green.connect import connect_tcp
from greenconn.green.deadline import Deadline
from greenconn.green.inbox import Inbox
from greenconn.green.pool import FairPool, PoolStats
from greenconn.green.slot import Slot
from greenconn.green.stream import EndOfFile, Stream
from greenconn.wire.http import ResponseParser, request_head
from greenconn.wire.tls import tls_sessions
from greenconn.wire.tlscontext import TlsOption

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["HttpClient", "HttpResponse", "ResponseLines"]

#: Bytes of a response, or of one line of it, that are taken.
LIMIT: Final = 64 * 1024 * 1024
#: Connections to one server.
CONNECTIONS: Final = 10
#: Seconds that a connection may be idle, unless the server names a shorter time.
IDLE: Final = 30.0
#: Bytes of lines that nobody has taken yet, above which no more are received.
AHEAD: Final = 1024 * 1024

#: Methods that may be repeated (RFC 9110, 9.2.2).
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})

_KEEP_ALIVE: Final = re.compile(r"timeout=(\d{1,6})")


class HttpResponse(NamedTuple):
    """The reply of a server.

    Attributes:
        headers: by their names in lower case.
        reason: the text behind the status; may be empty.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    reason: str = ""


class HttpClient:
    """One server, and the connections to it.

    Arguments:
        host: a name, an IPv4 or an IPv6 address.
        ssl: kombu's ``ssl`` argument; False or None is plain HTTP.
        limit: connections at most, those of :meth:`lines` not counted.

    Raises:
        ValueError: *ssl* cannot be used.
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
        #: What messages call it.
        self.where = f"{shown}:{port}"
        self._host = "127.0.0.1" if host == "localhost" else host
        self._port = port
        self._tls = tls_sessions(ssl, host) if ssl else None
        self._named = shown if port == (443 if ssl else 80) else self.where
        self._pool: FairPool[HttpConnection] = FairPool(
            self._connect,
            HttpConnection.close,
            HttpConnection.is_usable,
            limit,
            lambda: f"http{'s' if ssl else ''}://{self.where}",
        )
        #: Those of responses that are read line by line, which are in no pool.
        self._reading: WeakSet[HttpConnection] = WeakSet()
        fork.register(self)

    def __repr__(self) -> str:
        return f"<HttpClient {self.where}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def stats(self) -> PoolStats:
        """Return the numbers of connections by their state."""
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
            target: path and query, quoted.
            deadline: for the whole of it: a free connection, connecting, sending and the response.
            headers: go before those that are sent always.
            may_repeat: the request may be sent again where a kept connection was found closed; None:
                if its method is idempotent.
            limit: bytes that the body of the response may have.

        Raises:
            TimeoutError: the deadline ended.
            OSError: the connection failed, or the response cannot be used; names host and port.
            ValueError: a target or header that cannot be sent.
            RuntimeError: it was closed.
        """
        head = self._head(method, target, headers or {}, body)
        repeats = method in IDEMPOTENT if may_repeat is None else may_repeat
        while True:
            connection = self._acquire(deadline)
            is_kept, response = connection.was_used, ResponseParser(method, limit)
            exchange = HttpExchange(response)
            try:
                connection.ask(head, body, exchange, deadline)
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
        """Send a request whose response is read line by line, over a connection of its own.  May switch.

        Arguments:
            deadline: until the head of the response is here.
            limit: bytes that one line may have.

        Raises:
            As :meth:`request`.
        """
        head = self._head(method, target, headers or {}, body)
        connection = self._connect(deadline)
        self._reading.add(connection)
        lines = ResponseLines(connection, ResponseParser(method, limit + AHEAD), limit)
        try:
            connection.ask(head, body, lines, deadline)
        except BaseException:
            connection.close()
            raise
        return lines

    def close(self) -> None:
        """Close all connections, also under requests, and make no more.  Never switches."""
        for connection in (*self._pool.close(), *self._reading):
            connection.close()

    def forget(self) -> None:
        """Make the state anew in the child of a fork.  The streams forget themselves."""
        self._pool.forget()

    def _acquire(self, deadline: Deadline) -> HttpConnection:
        try:
            return self._pool.acquire(True, deadline)
        except LimitExceeded as exc:
            raise TimeoutError(str(exc)) from None

    def _connect(self, deadline: Deadline) -> HttpConnection:
        sock = connect_tcp(self._host, self._port, deadline)
        return HttpConnection(sock, self.where, self._tls() if self._tls else None, deadline)

    def _head(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        try:
            return request_head(method, target, self._named, headers, len(body))
        except ValueError as exc:
            raise ValueError(f"{self.where}: {exc}") from None


class HttpExchange:
    """A request on its way and its response.  Called by the reader of the stream."""

    def __init__(self, response: ResponseParser) -> None:
        self.response = response
        self.slot: Slot[None] = Slot()

    def go_on(self) -> bool:
        """Something came; return whether that was the end."""
        if self.response.is_complete:
            self.slot.offer(None)
        return self.response.is_complete

    def fail(self, exc: BaseException) -> None:
        """Nothing more will come."""
        self.slot.fail(exc)


class HttpConnection:
    """One connection.  Its user is one greenlet; the stream's reader calls ``_take`` and ``_lost``."""

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
        """Return whether another request may be sent.  Never switches."""
        return self.stream.is_open and self._exchange is None and monotonic() < self._expires_at

    def ask(self, head: bytes, body: bytes, exchange: HttpExchange, deadline: Deadline) -> None:
        """Send a request and wait until *exchange* is filled.  May switch."""
        if not self.stream.is_open:
            raise ConnectionResetError(errno.ECONNRESET, f"{self.where}: closed before a request")
        self._exchange = exchange
        if body:
            self.stream.writer.write_many([head, body])
        else:
            self.stream.writer.write(head)
        try:
            exchange.slot.wait(deadline)
        except TimeoutError as exc:
            if exc.errno is not None:
                raise
            raise TimeoutError(f"{self.where}: no response within {deadline.timeout:g} s") from None

    def close(self) -> None:
        """Close the connection; a request under way fails.  Never switches."""
        self.stream.close()
        self._lost(
            ConnectionAbortedError(errno.ECONNABORTED, "the connection was closed by this program")
        )

    def _take(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            raise OSError(errno.EPROTO, "sent data without a request")
        exchange.response.feed(data)
        if exchange.go_on():
            self._exchange = None
            self.was_used = True
            response = exchange.response
            if response.is_reusable:
                named = _KEEP_ALIVE.search(response.headers.get("keep-alive", ""))
                # A second less than it says: the closing takes its time to get here.
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
            when = "before the end of a response" if exchange.response.has_begun else "to a request"
            exc = type(exc)(exc.errno, f"{self.where}: {when}: {exc.strerror}")
        exchange.fail(exc)


class ResponseLines(HttpExchange):
    """A response that is read line by line, as it comes.  A context manager: its end closes it."""

    def __init__(self, connection: HttpConnection, response: ResponseParser, limit: int) -> None:
        super().__init__(response)
        self._connection = connection
        self._limit = limit
        self._rest = bytearray()
        self._ready: Inbox[bytes | BaseException | None] = Inbox()
        self._ahead = 0

    def __enter__(self) -> ResponseLines:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def status(self) -> int:
        """As of a reply."""
        return self.response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """As of a reply."""
        return self.response.headers

    def line(self, deadline: Deadline) -> bytes | None:
        """Return the next line without its end; None after the last one.  May switch.

        Raises:
            TimeoutError: none came in time.  It may be asked again.
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
        """End it; the connection goes with it.  Never switches."""
        self._connection.close()

    def go_on(self) -> bool:
        response = self.response
        first, *others = response.take().split(b"\n")
        self._rest += first  # as often as a line is received in pieces: it is not searched again
        if others:
            self._put(bytes(self._rest))
            for line in others[:-1]:
                self._put(line)
            self._rest = bytearray(others[-1])
        if len(self._rest) > self._limit:
            raise OSError(errno.EMSGSIZE, f"a line above {self._limit} bytes")
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
