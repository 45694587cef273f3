"""The life of one socket on which replies come in the order of the commands."""

from __future__ import annotations

from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from greenconn.exceptions import RecoverableConnectionError, error_text
from greenconn.green.hub import weakly
from greenconn.green.stream import Stream
from greenconn.green.ticker import Ticker

if TYPE_CHECKING:
    from greenconn.wire.tls import TlsSession


class PipelineLife(ABC):
    """Open until it is closed or lost; who waits for a reply then gets the error, once.

    It does not keep the object alive whose method *on_lost* is.

    Arguments:
        sock: connected and non-blocking; owned from now on.
        where: the server's URL, password masked, for messages.
        on_lost: called once, without switching, with the error when the socket is lost.
        tls: a TLS session that has not begun, or None.

    Attributes:
        lost: why nothing more can be sent; None while it can.
        writer: the sending side.
    """

    #: Makes the error of a connection that is gone from a text.
    lost_error: ClassVar[type[RecoverableConnectionError]]

    def __init__(
        self, sock: RawSocket, where: str, on_lost: Callable[[Any], None], tls: TlsSession | None
    ) -> None:
        self.where = where
        self.lost: BaseException | None = None
        self._on_lost = weakly(on_lost)
        #: Functions that are called with a reply, or with an exception in its place; None ignores it.
        self._callbacks: deque[Any] = deque()
        self._waits_since = 0.0
        self._ticker: Ticker | None = None
        self.stream = Stream(sock, self._on_data, self._on_stream_lost, where, tls)
        self.writer = self.stream.writer

    def __repr__(self) -> str:
        state = "open" if self.lost is None else "lost"
        return f"<Pipeline {self.where}: {state}, {len(self._callbacks)} replies due>"

    @abstractmethod
    def _on_data(self, data: bytes) -> None:
        """Parse bytes and assign the replies to their commands.  In the reader; never switches."""

    def check(self) -> None:
        """Raise unless commands can be sent.

        Raises:
            LinkLost: it is lost; says why.
        """
        if self.lost is not None:
            raise self._own(self.lost)

    def _own(self, exc: BaseException) -> BaseException:
        """Return one for each waiter: a traceback belongs to one greenlet."""
        if not isinstance(exc, self.lost_error):
            return exc
        own: BaseException = type(exc)(*exc.args)
        own.__cause__ = exc.__cause__
        return own

    def close(self) -> None:
        """Close the socket; who still waits gets an error.  Never switches."""
        self._finish(self.lost_error(f"{self.where}: the connection was closed"))

    def end(self, exc: BaseException) -> None:
        """End it because it is of no use any more, and tell its owner.  Never switches."""
        if self._finish(exc):
            self._on_lost(exc)

    def interrupted(self, exc: BaseException) -> None:
        """Fail, as an exception came between two steps that belong together.  Never switches.

        (``KeyboardInterrupt``, or what the handler of a signal raises.)  Each reply would be taken for
        that of another command from now on.
        """
        error = self.lost_error(
            f"{self.where}: a command was interrupted by {error_text(exc, repr)}"
        )
        self.end(error)

    def forget(self) -> None:
        """Forget it in the child of a fork: the parent owns it.  The stream forgets itself."""
        self.lost = self.lost_error(f"{self.where}: the connection was opened before a fork")
        self._callbacks.clear()
        if self._ticker is not None:
            self._ticker.stop()

    def _finish(self, exc: BaseException) -> bool:
        if self.lost is not None:
            return False
        self.lost = exc
        if self._ticker is not None:
            self._ticker.stop()
        self.stream.close()
        callbacks, self._callbacks = self._callbacks, deque()
        for callback in callbacks:
            if callback is not None:
                callback(exc)
        return True

    def _on_stream_lost(self, exc: BaseException) -> None:
        error: BaseException = self.lost_error(f"{self.where}: connection lost: {exc}")
        error.__cause__ = exc
        self.end(error)
