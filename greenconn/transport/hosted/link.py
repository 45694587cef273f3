"""One life of a connection over a transport of kombu's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gevent.lock import RLock

from greenconn.exceptions import RecoverableConnectionError
from greenconn.green import fork
from greenconn.green.hub import Home
from greenconn.transport.base import Link
from greenconn.transport.virtual.poller import Poller

if TYPE_CHECKING:
    from greenconn.transport.hosted.channel import HostedChannel

__all__ = ["HostedLink"]

#: Seconds between two looks where the transport does not say.
POLLING_INTERVAL: Final = 1.0


class HostedLink(Link):
    """A link with a poller, and with kombu's transport, which one greenlet at a time may use.

    Arguments:
        raw: the transport; it is opened here.
    """

    def __init__(self, client: Any, raw: Any) -> None:
        super().__init__(client)
        self.home = Home()
        self.raw = raw
        #: Held around each call of the transport: what it waits for may let other greenlets run.
        self.lock = RLock()
        self.channels: dict[HostedChannel, None] = {}
        interval = raw.polling_interval
        self.poller = Poller(POLLING_INTERVAL if interval is None else interval, self._poll_failed)
        self.connected = raw.establish_connection()
        fork.register(self)

    def open_channel(self) -> Any:
        """Open one of kombu's channels.  May switch."""
        self.home.check(self)
        self.check_open()
        with self.lock:
            return self.raw.create_channel(self.connected)

    def _poll_failed(self, exc: Exception) -> None:
        lost = exc
        if not isinstance(exc, self.raw.connection_errors):
            lost = RecoverableConnectionError(f"polling failed: {exc!r}")
            lost.__cause__ = exc
        self.end(lost)

    def close(self) -> None:
        """Close it; what was not answered is given back first.  May switch."""
        if self.is_open:
            for channel in list(self.channels):
                channel.close()
            with self.lock:
                self.raw.close_connection(self.connected)
        super().close()

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life.  Never switches."""
        if self.lost is not None:
            return
        super().end(exc, closed=closed)
        self.poller.stop()
        for channel in list(self.channels):
            channel.end(exc)

    def forget(self) -> None:
        """In the child of a fork: it is the parent's."""
        self.lost = RecoverableConnectionError("the connection was the parent process's")
        self.events.clear()
        self.poller.stop()
        for channel in self.channels:
            channel.cause = self.lost
        self.channels.clear()
