"""Connecting: a name and a port, or a path, become a connected socket within one deadline.

A name with several addresses may stand for the nodes of a cluster, or for a load balancer's.  The
addresses of a family are tried in random order, so that the clients are spread over the nodes, and one
that failed a moment ago is tried last, also if it took the connection and was silent then.
"""

from __future__ import annotations

import _socket
import errno
import os
from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from math import inf
from time import monotonic
from typing import Any, Final

import gevent
from gevent import get_hub

from greenconn.green.deadline import Deadline
from greenconn.green.hub import forget_at_fork
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.url import mask_secrets

Address = tuple[int, int, int, Any]

#: Seconds for which an address that could not be connected to is tried after the others.
AVOIDED_FOR: Final = 30.0
#: When each address last failed, as a socket names it.
_failed_at: dict[Any, float] = {}

#: For a UNIX socket with a full line of callers.
CALLING: Final = RetryPolicy(first=0.01, factor=1.0, jitter=0.0)

#: TCP options by name or number, beside ``TCP_NODELAY`` and ``SO_KEEPALIVE``, which are always on.
KEEPALIVE: Final[dict[str | int, int | bytes]] = {
    "TCP_KEEPIDLE": 60,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 9,
    # Milliseconds that sent data may go unanswered; as long as it takes keep-alive to give up.
    "TCP_USER_TIMEOUT": 150_000,
}


def numeric(host: str) -> str:
    """Return the address to connect to for *host*: an address for ``localhost``, else what it is.

    As kombu: no lookup, and never a broker that only has IPv6.  A certificate is still checked
    against the name.
    """
    return "127.0.0.1" if host == "localhost" else host


def connect_tcp(
    host: str,
    port: int,
    deadline: Deadline,
    settings: Mapping[str | int, int | bytes] | None = None,
) -> RawSocket:
    """Connect to *host*, trying its addresses in random order, one family after the other.  May switch.

    An address that failed within the last :data:`AVOIDED_FOR` seconds comes last.

    Arguments:
        host: a name, an IPv4 or an IPv6 address.
        deadline: for the name and all addresses together, of which each gets its share.
        settings: further ``IPPROTO_TCP`` options, by name or number.

    Returns:
        A connected non-blocking socket.

    Raises:
        TimeoutError: names the step that took too long.
        OSError: the name is unknown, or every address refused; names host and port.
    """
    addresses = _in_order(resolve(host, port, deadline))
    error: OSError | None = None
    for tried, address in enumerate(addresses):
        try:
            sock = _connect(address, deadline.share(len(addresses) - tried), settings or {})
        except OSError as exc:
            error = exc
            if len(addresses) > 1:
                _note_failure(address[3])
            if deadline.has_ended:
                break
        else:
            _failed_at.pop(address[3], None)
            return sock
    assert error is not None
    where = f"{host}:{port}"
    if isinstance(error, TimeoutError) and error.errno is None:
        raise TimeoutError(
            f"connecting to {where} took longer than {_seconds(deadline)}"
        ) from error
    raise type(error)(error.errno, f"cannot connect to {where}: {error.strerror}") from error


def avoid(sock: RawSocket) -> None:
    """Try the address that *sock* leads to after the others of its name.  Never switches.

    That is for one that took the connection and was silent then, for :data:`AVOIDED_FOR` seconds.
    """
    if sock.family in (_socket.AF_INET, _socket.AF_INET6):
        with suppress(OSError):  # it is not connected any more
            _note_failure(sock.getpeername())


def connect_unix(path: str, deadline: Deadline) -> RawSocket:
    """Connect to a UNIX socket.  May switch, where its line of callers is full.

    Returns:
        A connected non-blocking socket.

    Raises:
        TimeoutError: the connection was not accepted before the deadline.
        OSError: there is no such socket, or no process listens on it; names the path.
    """
    try:
        for attempt in attempts(CALLING, deadline, lambda exc: isinstance(exc, BlockingIOError)):
            with attempt:
                return _connect_unix(path)
    except BlockingIOError as exc:
        raise TimeoutError(f"connecting to {path} took longer than {_seconds(deadline)}") from exc
    except OSError as exc:
        raise type(exc)(exc.errno, f"cannot connect to {path}: {exc.strerror}") from exc
    raise AssertionError("unreachable")


def _connect_unix(path: str) -> RawSocket:
    sock = RawSocket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # The line may be full (EAGAIN): Linux does not let us wait for it on the descriptor.
        code = sock.connect_ex(path)
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def _seconds(deadline: Deadline) -> str:
    return f"{deadline.timeout:g} s"


def resolve(host: str, port: int, deadline: Deadline) -> Sequence[Address]:
    literal = _literal(host, port)
    if literal is not None:
        return [literal]  # getaddrinfo of a number costs 100 us and a thread
    if "://" in host:  # a name of no host, and it may have a password
        raise ValueError(f"host must be a name or an address, got the URL {mask_secrets(host)!r}")
    timeout = gevent.Timeout(deadline.left())
    try:
        with timeout:
            found = _look_up(host, port)
    except gevent.Timeout as exc:
        if exc is not timeout:
            raise
        raise TimeoutError(f"looking up {host!r} took longer than {_seconds(deadline)}") from None
    except OSError as exc:
        raise type(exc)(exc.errno, f"cannot find host {host!r}: {exc.strerror}") from exc
    except UnicodeError as exc:  # a label that is empty or too long
        raise _socket.gaierror(_socket.EAI_NONAME, f"cannot find host {host!r}: {exc}") from exc
    return [(int(family), int(kind), proto, address) for family, kind, proto, _, address in found]


def _in_order(addresses: Sequence[Address]) -> Sequence[Address]:
    """Return *addresses* in the order in which they are to be tried."""
    if len(addresses) < 2:
        return addresses
    ordered: list[Address] = []
    for _, family in groupby(addresses, key=lambda each: each[0]):
        members = list(family)
        _shuffle(members)
        ordered += members
    since = _forget_former()
    ordered.sort(key=lambda each: _failed_at.get(each[3], -inf) >= since)
    return ordered


def _note_failure(address: Any) -> None:
    _forget_former()
    _failed_at[address] = monotonic()


def _forget_former() -> float:
    """Forget failures that do not count any more; return since when they do."""
    since = monotonic() - AVOIDED_FOR
    for address, at in list(_failed_at.items()):
        if at < since:
            _failed_at.pop(address, None)
    return since


def _shuffle(addresses: list[Address]) -> None:
    # Without the random module, whose import costs more than a connection.
    addresses.sort(key=lambda _: os.urandom(8))


def _look_up(host: str, port: int) -> Sequence[tuple[Any, Any, int, str, Any]]:
    # When there is a name: it takes a few milliseconds to import.
    from gevent.socket import getaddrinfo

    return getaddrinfo(host, port, 0, _socket.SOCK_STREAM)


def _literal(host: str, port: int) -> Address | None:
    for family, address in (
        (_socket.AF_INET, (host, port)),
        (_socket.AF_INET6, (host, port, 0, 0)),
    ):
        try:
            _socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return (family, _socket.SOCK_STREAM, _socket.IPPROTO_TCP, address)
    return None


def _connect(
    address: Address, deadline: Deadline, settings: Mapping[str | int, int | bytes]
) -> RawSocket:
    family, kind, proto, where = address
    sock = RawSocket(family, kind, proto)
    try:
        sock.setblocking(False)
        configure(sock, settings)
        code = sock.connect_ex(where)
        if code in (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR):
            if _is_connected(sock):
                return sock
            _wait_writable(sock, deadline)
            code = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def _is_connected(sock: RawSocket) -> bool:
    """Return whether it is connected, as local ones are although the kernel says "in progress"."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def configure(sock: RawSocket, settings: Mapping[str | int, int | bytes]) -> None:
    """Set no-delay, keep-alive and *settings* on a TCP socket.

    Raises:
        ValueError: a setting that this platform does not know.
    """
    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
    wanted: dict[str | int, int | bytes] = {**KEEPALIVE, **settings}
    for name, value in wanted.items():
        option = getattr(_socket, name, None) if isinstance(name, str) else name
        if option is None:
            if name in KEEPALIVE:
                continue  # not on this platform; the default will do
            raise ValueError(f"socket_settings: {name!r} is not an option of this platform")
        sock.setsockopt(_socket.IPPROTO_TCP, option, value)


class _Connecting:
    """A socket on its way.  In the child of a fork it is closed, or both would talk on it."""

    def __init__(self, sock: RawSocket, watcher: Any) -> None:
        self._sock = sock
        self._watcher = watcher

    def forget(self) -> None:
        # The watcher goes before its descriptor: libev aborts the process on a closed one.
        self._watcher.stop()
        self._sock.close()


def _wait_writable(sock: RawSocket, deadline: Deadline) -> None:
    hub = get_hub()
    watcher = hub.loop.io(sock.fileno(), 2)
    connecting = _Connecting(sock, watcher)
    forget_at_fork(connecting)
    timeout = gevent.Timeout(deadline.left())
    try:
        with timeout:
            hub.wait(watcher)
    except gevent.Timeout as exc:
        if exc is not timeout:
            raise
        raise TimeoutError("timed out") from None
    finally:
        watcher.close()
