"""A blocking connection to Redis, by hand: the limit."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

TIMEOUT = 60.0
RECEIVE = 1 << 20


def command(*parts: str | bytes | int) -> bytes:
    """A command as it is sent."""
    texts = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"*%d\r\n" % len(texts) + b"".join(b"$%d\r\n%b\r\n" % (len(t), t) for t in texts)


class Line:
    """One connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        address = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self.socket = socket.create_connection(address, TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._left = b""
        self.send(command("SELECT", parts.path[1:] or 0))
        self.lines(1)

    def send(self, data: bytes) -> None:
        """Send all of *data*."""
        self.socket.sendall(data)

    def lines(self, count: int) -> bytes:
        """What came up to the end of *count* lines, which are not looked at."""
        parts = [self._left]
        seen = self._left.count(b"\r\n")
        while seen < count:
            part = self.socket.recv(RECEIVE)
            if not part:
                raise ConnectionError("the server closed the connection")
            if parts[-1].endswith(b"\r") and part.startswith(b"\n"):
                seen += 1
            seen += part.count(b"\r\n")
            parts.append(part)
        found = b"".join(parts)
        if seen == count and found.endswith(b"\r\n"):
            self._left = b""
            return found
        at = 0
        for _ in range(count):
            at = found.index(b"\r\n", at) + 2
        self._left = found[at:]
        return found[:at]

    def close(self) -> None:
        """End it."""
        self.socket.close()
