"""A connection over HTTP/1.1, and the one request that it serves at a time."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from greenconn.green.deadline import Deadline
from greenconn.green.inbox import Inbox
from greenconn.green.slot import Slot
from greenconn.green.stream import EndOfFile, Stream

if TYPE_CHECKING:
    # It stands on an optional package.
    from greenconn.green.answer import Answer

__all__ = ["AHEAD", "Exchange", "Lines", "WebConnection"]

#: Seconds that a connection may be idle, unless the server names a shorter time.
IDLE: Final = 30.0
#: Bytes of lines that nobody has taken yet, above which no more are received.
AHEAD: Final = 1024 * 1024

_KEEP_ALIVE: Final = re.compile(r"timeout=(\d{1,6})")


class Exchange:
    """A request on its way and its answer.  Called by the reader of the stream."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.slot: Slot[None] = Slot()

    def go_on(self) -> bool:
        """Something came; return whether that was the end."""
        if self.answer.is_complete:
            self.slot.offer(None)
        return self.answer.is_complete

    def fail(self, exc: BaseException) -> None:
        """Nothing more will come."""
        self.slot.fail(exc)


class WebConnection:
    """One connection.  Its user is one greenlet; the stream's reader calls ``_take`` and ``_lost``."""

    def __init__(self, sock: Any, where: str, tls: Any, deadline: Deadline) -> None:
        self.where = where
        self.was_used = False
        self._exchange: Exchange | None = None
        self._expires_at = 0.0
        self.stream = Stream(sock, self._take, self._lost, where, tls)
        try:
            self.stream.handshake(deadline)
        except TimeoutError:
            self.close()
            raise TimeoutError(f"{where}: no TLS within {deadline.timeout:g} s") from None
        except BaseException:
            self.close()
            raise

    def is_usable(self) -> bool:
        """Whether another request may be sent.  Never switches."""
        return self.stream.is_open and self._exchange is None and monotonic() < self._expires_at

    def ask(self, head: bytes, body: bytes, exchange: Exchange, deadline: Deadline) -> None:
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
            raise TimeoutError(f"{self.where}: no answer within {deadline.timeout:g} s") from None

    def close(self) -> None:
        """A request that is on its way ends with an error.  Never switches."""
        self.stream.close()
        self._lost(ConnectionAbortedError(errno.ECONNABORTED, "the connection was closed here"))

    def _take(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            raise OSError(errno.EPROTO, "sent what nobody asked for")
        exchange.answer.feed(data)
        if exchange.go_on():
            self._exchange = None
            self.was_used = True
            answer = exchange.answer
            if answer.may_go_on:
                named = _KEEP_ALIVE.search(answer.headers.get("keep-alive", ""))
                # A second less than it says: the closing takes its time to get here.
                idle = IDLE if named is None else min(IDLE, int(named[1]) - 1.0)
                self._expires_at = monotonic() + idle
            else:
                self.stream.close()

    def _lost(self, exc: BaseException) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if isinstance(exc, EndOfFile) and exchange.answer.end():
            exchange.go_on()
            return
        if isinstance(exc, OSError) and exc.errno is not None:
            when = "before the end of an answer" if exchange.answer.has_begun else "to a request"
            exc = type(exc)(exc.errno, f"{self.where}: {when}: {exc.strerror}")
        exchange.fail(exc)


class Lines(Exchange):
    """An answer that is read line by line, as it comes.  A context manager: its end closes it."""

    def __init__(self, connection: WebConnection, answer: Answer, limit: int) -> None:
        super().__init__(answer)
        self._connection = connection
        self._limit = limit
        self._rest = bytearray()
        self._ready: Inbox[bytes | BaseException | None] = Inbox()
        self._ahead = 0

    def __enter__(self) -> Lines:
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
        return self.answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        """As of a reply."""
        return self.answer.headers

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
        self._ready.put(ready)  # whoever asks again is told the same
        if ready is not None:
            raise ready
        return None

    def close(self) -> None:
        """End it; the connection goes with it.  Never switches."""
        self._connection.close()

    def go_on(self) -> bool:
        answer = self.answer
        first, *others = answer.take().split(b"\n")
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
        if answer.has_head:
            self.slot.offer(None)
        if answer.is_complete:
            if self._rest:
                self._put(bytes(self._rest))
            self._ready.put(None)
            self._connection.stream.close()
        return answer.is_complete

    def fail(self, exc: BaseException) -> None:
        if not self.slot.fail(exc):
            self._ready.put(exc)

    def _put(self, line: bytes) -> None:
        line = line.removesuffix(b"\r")
        self._ahead += len(line)
        self._ready.put(line)
