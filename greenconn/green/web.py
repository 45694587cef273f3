"""Requests over HTTP/1.1 to one server, over connections that are kept.

For transports whose broker speaks HTTP.  The bytes come and go over :class:`~.stream.Stream`, as for
every other broker: one deadline for all of a request, the ``ssl`` option as everywhere, no socket
that two greenlets read.  What they mean is read by geventhttpclient's parser, hence the extra; for
one request without it there is :mod:`greenconn.green.http`.

Rules
-----
- A connection serves one request at a time and is given back only when the answer was read to its
  end and the server keeps it.  A caller that is killed or whose time is up closes it: the answer
  that may still come is nobody's.
- The reader watches idle connections too, so one that the server closed is not used again.  Where
  the closing is still on its way and no byte of an answer has come, a request that may be repeated
  goes out once more over another connection; a fresh one is never repeated.
- There is no limit but the deadline on what a server may take; there is one on what it may send.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from greenconn.exceptions import LimitExceeded
from greenconn.green import fork
from greenconn.green.deadline import Deadline
from greenconn.green.dial import dial
from greenconn.green.exchange import AHEAD, Exchange, Lines, WebConnection
from greenconn.green.pool import FairPool, PoolStats
from greenconn.importing import needed
from greenconn.wire.tls import tls_sessions
from greenconn.wire.tlscontext import TlsOption

__all__ = ["Lines", "Reply", "Web"]

#: Bytes of an answer, or of one line of it, that are taken.
LIMIT: Final = 64 * 1024 * 1024
#: Connections to one server.
CONNECTIONS: Final = 10

#: Methods that may be repeated (RFC 9110, 9.2.2).
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})

_TARGET: Final = re.compile(r"/[!-~]*")
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")


class Reply(NamedTuple):
    """What a server answered.

    Attributes:
        headers: by their names in lower case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Web:
    """One server, and the connections to it.

    Arguments:
        host: a name, an IPv4 or an IPv6 address.
        ssl: kombu's ``ssl`` argument; False or None is plain HTTP.
        extra: of greenconn, that brings geventhttpclient, for the message when it is missing.
        limit: connections at most, those of :meth:`lines` not counted.

    Raises:
        MissingExtra: geventhttpclient is not installed.
        ValueError: *ssl* cannot be used.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        ssl: TlsOption | None = None,
        extra: str,
        limit: int = CONNECTIONS,
    ) -> None:
        # Here, not above: it is optional, and takes 50 ms to import.
        self._answers: Any = needed("greenconn.green.answer", "geventhttpclient", extra)
        shown = f"[{host}]" if ":" in host else host
        #: What messages call it.
        self.where = f"{shown}:{port}"
        self._host = "127.0.0.1" if host == "localhost" else host
        self._port = port
        self._tls = tls_sessions(ssl, host) if ssl else None
        self._named = shown if port == (443 if ssl else 80) else self.where
        self._pool: FairPool[WebConnection] = FairPool(
            self._connect,
            WebConnection.close,
            WebConnection.is_usable,
            limit,
            lambda: f"http{'s' if ssl else ''}://{self.where}",
        )
        fork.register(self)

    def __repr__(self) -> str:
        return f"<Web {self.where}>"

    def stats(self) -> PoolStats:
        """What the connections are doing."""
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
    ) -> Reply:
        """Send a request and return the answer, whatever its status.  May switch.

        Arguments:
            target: path and query, quoted.
            deadline: for the whole of it: a free connection, connecting, sending and the answer.
            headers: go before those that are sent always.
            may_repeat: the request may be sent again where a kept connection was found closed; None:
                if its method is idempotent.
            limit: bytes that the body of the answer may have.

        Raises:
            TimeoutError: the deadline ended.
            OSError: the connection failed, or the answer cannot be used; names host and port.
            ValueError: a target or header that cannot be sent.
            RuntimeError: it was closed.
        """
        head = self._head(method, target, headers or {}, body)
        repeats = method in IDEMPOTENT if may_repeat is None else may_repeat
        while True:
            connection = self._acquire(deadline)
            is_kept, answer = connection.was_used, self._answers.Answer(method, limit)
            exchange = Exchange(answer)
            try:
                connection.ask(head, body, exchange, deadline)
            except ConnectionError:
                if not (is_kept and repeats) or answer.has_begun or deadline.has_ended:
                    raise
                continue
            finally:
                if answer.is_complete and connection.is_usable():
                    self._pool.release(connection)
                else:
                    connection.close()
                    self._pool.remove(connection)
            return Reply(answer.status, answer.headers, answer.take())

    def lines(
        self,
        method: str,
        target: str,
        *,
        deadline: Deadline,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        limit: int = LIMIT,
    ) -> Lines:
        """Send a request whose answer is read line by line, over a connection of its own.  May switch.

        Arguments:
            deadline: until the head of the answer is here.
            limit: bytes that one line may have.

        Raises:
            As :meth:`request`.
        """
        head = self._head(method, target, headers or {}, body)
        connection = self._connect(deadline)
        lines = Lines(connection, self._answers.Answer(method, limit + AHEAD), limit)
        try:
            connection.ask(head, body, lines, deadline)
        except BaseException:
            connection.close()
            raise
        return lines

    def close(self) -> None:
        """Close all connections, also under requests, and make no more.  Never switches."""
        for connection in self._pool.close():
            connection.close()

    def forget(self) -> None:
        """In the child of a fork: begin anew.  The streams forget themselves."""
        self._pool.forget()

    def _acquire(self, deadline: Deadline) -> WebConnection:
        try:
            return self._pool.acquire(True, deadline)
        except LimitExceeded as exc:
            raise TimeoutError(str(exc)) from None

    def _connect(self, deadline: Deadline) -> WebConnection:
        sock = dial(self._host, self._port, deadline)
        return WebConnection(sock, self.where, self._tls() if self._tls else None, deadline)

    def _head(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        if not (_NAME.fullmatch(method) and _TARGET.fullmatch(target)):
            raise ValueError(f"{self.where}: not a request: {method!r} {target!r}")
        fields = {"Host": self._named, "Accept-Encoding": "identity"}
        if body or method in ("POST", "PUT", "PATCH"):
            fields["Content-Length"] = str(len(body))
        given = {name.lower() for name in headers}
        lines = [f"{method} {target} HTTP/1.1"]
        for name, value in headers.items():
            if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
                raise ValueError(f"{self.where}: header {name!r} has a value that cannot be sent")
            lines.append(f"{name}: {value}")
        lines += [f"{name}: {value}" for name, value in fields.items() if name.lower() not in given]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")
