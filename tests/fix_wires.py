"""Both ends of a connection, without any machinery: raw sockets that never wait."""

from __future__ import annotations

import _socket
import errno
from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from collections.abc import Callable, Iterator
from time import monotonic

import gevent
import pytest
from gevent.threadpool import ThreadPool


def until(is_so: Callable[[], object], timeout: float = 60.0, what: str = "that") -> None:
    """Let others run until *is_so()*; fail after *timeout* seconds and say *what* did not come.

    It looks often at first, then each 10 ms.  May switch.
    """
    end, pause = monotonic() + timeout, 0.001
    while not is_so():
        assert monotonic() < end, f"in {timeout} s there never was {what}"
        gevent.sleep(pause)
        pause = min(pause * 1.1, 0.01)


class Wire:
    """A connected pair of sockets: *ours* for what is tested, and the peer's, driven by the test."""

    def __init__(self) -> None:
        self.ours, self.theirs = _tcp_pair()
        self._is_mine = True

    def take(self) -> RawSocket:
        """Our socket, for an owner that closes it."""
        self._is_mine = False
        return self.ours

    def receive(self, most: int = 1 << 20) -> bytes:
        """What lies there for the peer now; empty when there is nothing."""
        try:
            return self.theirs.recv(most)
        except BlockingIOError:
            return b""

    def receive_until(self, count: int, timeout: float = 60.0) -> bytes:
        """Exactly *count* bytes, or what came until the end of the stream.  May switch."""
        parts, end = [], monotonic() + timeout
        while count:
            assert monotonic() < end, f"{count} bytes did not come"
            try:
                part = self.theirs.recv(min(count, 1 << 16))
            except BlockingIOError:
                gevent.sleep(0.001)
                continue
            if not part:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def send(self, data: bytes, timeout: float = 60.0) -> None:
        """Send all of *data* as the peer.  May switch."""
        end = monotonic() + timeout
        while data:
            assert monotonic() < end, "nobody reads"
            try:
                data = data[self.theirs.send(data) :]
            except BlockingIOError:
                gevent.sleep(0.001)

    def is_ended(self) -> bool:
        """Whether our side has closed; drops what was not received."""
        try:
            while self.theirs.recv(1 << 16):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True

    def hang_up(self) -> None:
        """Close the peer's end in order."""
        self.theirs.close()

    def reset(self) -> None:
        """Close the peer's end with a reset."""
        self.theirs.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.theirs.close()

    def close(self) -> None:
        """Close both ends."""
        self.theirs.close()
        if self._is_mine:
            self.ours.close()


def _tcp_pair() -> tuple[RawSocket, RawSocket]:
    listener = RawSocket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    ours = RawSocket(_socket.AF_INET, _socket.SOCK_STREAM)
    ours.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 1 << 16)
    ours.setblocking(False)
    code = ours.connect_ex(listener.getsockname())
    assert code in (0, errno.EINPROGRESS)
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    listener.close()
    theirs = RawSocket(fileno=fd)
    theirs.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, 1 << 16)
    for each in (ours, theirs):
        each.setblocking(False)
        each.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return ours, theirs


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A connected pair of sockets."""
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture
def thread() -> Iterator[ThreadPool]:
    """A real thread, in a patched process too."""
    pool = ThreadPool(1)
    yield pool
    pool.kill()
