"""A byte stream over a socket: one greenlet reads, any greenlet writes.

The reader only receives, decrypts, parses (``on_data``) and hands over.  It waits in one place, for the
socket to be readable, and runs no user code, so replies reach their waiters even while handlers are
busy. Writing is left to ``writer``, which never switches.

A stream ends once: by ``close``, or by a fault (end of file, an error of the socket, an exception of
``on_data``, a killed reader), which ``on_lost`` gets.  Watchers are closed before their descriptor,
since libev aborts the process on a closed one.  With TLS the same bytes go through a session without
I/O: what the session wants to send goes to the writer.

Connecting: a name and a port, or a path, become a connected socket within one deadline.  A name with
several addresses may stand for the nodes of a cluster, or for a load balancer's.  The addresses of a
family are tried in random order, so that the clients are spread over the nodes, and one that failed a
moment ago is tried last, also if it took the connection and was silent then.
"""

from __future__ import annotations

import _socket
import errno
import os
from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from math import inf
from select import POLLIN
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol
from weakref import WeakKeyDictionary

from gevent import Greenlet, get_hub
from gevent.hub import Hub
from greenlet import getcurrent

from greenconn.exceptions import RecoverableConnectionError, error_reason, error_text
from greenconn.green.deadline import Deadline
from greenconn.green.hub import flush_at_exit, forget_at_fork, weakly
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.slot import SingleFlight, Slot
from greenconn.green.supervisor import State, Ticker, moved, spawn
from greenconn.green.writer import Writer
from greenconn.importing import native
from greenconn.url import mask_secrets

if TYPE_CHECKING:
    from greenconn.wire.tls import TlsSession


Address = tuple[int, int, int, Any]

#: Seconds for which an address that could not be connected to is tried after the others.
AVOIDED_FOR: Final = 30.0
#: When each address last failed, as a socket names it.
_failed_at: dict[Any, float] = {}
#: Lookups of names.  Each takes one of the few threads of the hub, and cannot be interrupted: while no
#: name server replies, those that each attempt begins would soon take all of them.
_lookups: Final = SingleFlight("name")
forget_at_fork(_lookups)

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
    found, deadline = resolve(host, port, deadline)
    addresses = _in_order(found)
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


def resolve(host: str, port: int, deadline: Deadline) -> tuple[Sequence[Address], Deadline]:
    """Return the addresses of *host*, and the deadline of what follows.  May switch, for a name."""
    literal = _literal(host, port)
    if literal is not None:
        return [literal], deadline  # getaddrinfo of a number costs 100 us and a thread
    if "://" in host:  # a name of no host, and it may have a password
        raise ValueError(f"host must be a name or an address, got the URL {mask_secrets(host)!r}")
    try:
        infos = _lookups.run((get_hub(), host, port), partial(_look_up, host, port), deadline)
    except TimeoutError as exc:
        if exc.errno is not None:  # of the lookup
            raise
        raise TimeoutError(f"looking up {host!r} took longer than {_seconds(deadline)}") from None
    except OSError as exc:
        raise type(exc)(exc.errno, f"cannot find host {host!r}: {exc.strerror}") from exc
    except UnicodeError as exc:  # a label that is empty or too long
        raise _socket.gaierror(_socket.EAI_NONAME, f"cannot find host {host!r}: {exc}") from exc
    addresses = [(int(family), int(kind), proto, at) for family, kind, proto, _, at in infos]
    return addresses, deadline.renewed()


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
    slot: Slot[None] = Slot()
    try:
        watcher.start(slot.offer, None)
        slot.wait(deadline)
    finally:
        watcher.close()


#: Bytes asked for in one receive: the largest frame of AMQP's usual limit.
RECEIVE: Final = 128 * 1024

#: Seconds that a thread at its end blocks at least.
STEP: Final = 0.001

#: Bytes of large bodies that are received before the hub has a turn.  Who takes a body then frees its
#: memory for the next one: new memory from the kernel would cost several times what the receive does.
TURN: Final = 1 << 20
#: Receives, at most, of who catches up.
AT_ONCE: Final = 8
#: Seconds: who has received something that recently need not look whether the peer has ended it, which
#: costs a call of the kernel: a caller of RPC would, for each request.
FRESH: Final = 0.001

#: What is received goes through one buffer for each hub: a receive never switches, and to ask the
#: kernel for new memory of that size, and give most of it back, costs more than to copy what came.
_buffers: Final[WeakKeyDictionary[Hub, memoryview]] = WeakKeyDictionary()

#: The native class: in a patched process ``select.poll`` waits in the hub.
_poll: Any = native("select", "poll")

_WOULD_BLOCK: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR})


class EndOfFile(ConnectionResetError):
    """The peer closed the connection in good order."""


class StreamState(State):
    """The stages of a stream's life."""

    #: Nothing is received: the reader has not begun, or the peer has to wait.
    PAUSED = "paused"
    #: What comes is received.
    READING = "reading"
    #: Closed by us, or lost.
    CLOSED = "closed"


STREAM_MOVES: Final[Mapping[StreamState, frozenset[StreamState]]] = {
    StreamState.PAUSED: frozenset({StreamState.READING, StreamState.CLOSED}),
    StreamState.READING: frozenset({StreamState.PAUSED, StreamState.CLOSED}),
    StreamState.CLOSED: frozenset(),
}
#: Asked for at each receive, and members of an Enum are not looked up for nothing.
_PAUSED: Final[StreamState] = StreamState.PAUSED
_READING: Final[StreamState] = StreamState.READING
_CLOSED: Final[StreamState] = StreamState.CLOSED


class ReceiveBuffer(Protocol):
    """A buffer into which large pieces are received, so that they are not copied."""

    def room(self) -> Sequence[memoryview | bytearray] | None:
        """Buffers for the next bytes, one after the other; None for those of ``on_data``."""
        ...

    def filled(self, count: int) -> None:
        """Take *count* bytes that were received into ``room``; the rules are those of ``on_data``."""
        ...


class Stream:
    """A connected socket with a reader greenlet and a coalescing writer.

    Arguments:
        sock: connected and non-blocking; owned from now on.
        on_data: called by the reader with what was received.  It must not switch and must not run
            user code.  An exception from it ends the stream.
        on_lost: called once, without switching, with the reason when the stream ends by anything
            but ``close``: end of file, an error of the socket, or one from *on_data*.
        name: of the peer, for greenlet names and messages.
        tls: a TLS session that has not begun, or None.
        room: where large pieces are received; not asked with TLS, which receives what is sealed.
    """

    def __init__(
        self,
        sock: RawSocket,
        on_data: Callable[[bytes], None],
        on_lost: Callable[[BaseException], None],
        name: str,
        tls: TlsSession | None = None,
        room: ReceiveBuffer | None = None,
    ) -> None:
        self.name = name
        #: Number of receives and bytes received, for those who count.
        self.receives = 0
        self.received = 0
        #: Time of the last byte received, on the monotonic clock.
        self.received_at = monotonic()
        self._sock = sock
        self._on_data = on_data
        self._on_lost = on_lost
        self._tls = tls
        self._room = room if tls is None else None
        self._shaken: Slot[None] | None = None
        self._state = _PAUSED
        self._hub = get_hub()
        self._buffer = _buffer_of(self._hub)
        self._watcher: Any = self._hub.loop.io(sock.fileno(), 1)
        readable = _poll()
        readable.register(sock.fileno(), POLLIN)
        #: Asked with 0, it tells whether there is something to receive.
        self._poll: Callable[[int], list[tuple[int, int]]] = readable.poll
        self.writer = Writer(sock, self._end)
        flush_at_exit(self.writer)
        self._reader: Greenlet[..., Any] = spawn(f"reader:{name}", self._read)
        self._reader.rawlink(self._on_reader_dead)
        forget_at_fork(self)

    def __repr__(self) -> str:
        return f"<Stream {self.name}: {self._state.value}>"

    @property
    def is_open(self) -> bool:
        """Whether bytes may still come and go."""
        return self._state is not _CLOSED

    @property
    def is_paused(self) -> bool:
        """Whether reading was paused."""
        return self._state is _PAUSED

    def peer_address(self) -> tuple[Any, Any]:
        """Local and remote address, for messages and for those who look at sockets."""
        return self._sock.getsockname(), self._sock.getpeername()

    def handshake(self, deadline: Deadline) -> None:
        """Do the TLS handshake, if there is TLS.  May switch.

        Raises:
            OSError: as TLS says, e.g. a certificate that does not verify.
            TimeoutError: the peer did not finish it in time.
        """
        if self._tls is None:
            return
        self._shaken = Slot()
        self.writer.write_sealed(self._tls.start())
        self._shaken.wait(deadline.renewed())

    def pause(self) -> None:
        """Stop receiving, so that the peer has to wait.  Never switches."""
        if self._state is _READING:
            self._move(_PAUSED)
            self._watcher.stop()

    def resume(self) -> None:
        """Receive again.  Never switches."""
        if self._state is _PAUSED:
            self._move(_READING)
            self._watcher.start(self._reader.switch)

    def lift_user_timeout(self) -> None:
        """Lift ``TCP_USER_TIMEOUT``, as the peer has announced that it stops reading.

        The kernel would end the connection after ``TCP_USER_TIMEOUT`` with a full window, although
        the peer answers its probes.  Heartbeats and keep-alive go on watching.  Never switches.
        """
        option = getattr(_socket, "TCP_USER_TIMEOUT", None)
        if option is not None and self._state is not _CLOSED:
            try:
                self._sock.setsockopt(_socket.IPPROTO_TCP, option, 0)
            except OSError:
                pass  # no TCP socket

    def close(self) -> None:
        """Offer what is pending to the socket once and close it.  Never switches.

        Again, or after the stream was lost: does nothing.
        """
        if self._state is _CLOSED:
            return
        self._on_lost = _is_known  # a send that fails now is no news
        self.writer.flush()
        if self._tls is not None and self._tls.handshake_done and not self.writer.is_stalled:
            try:
                self._sock.send(self._tls.close_notify())
            except OSError:
                pass  # a courtesy: the peer may be gone
        self._tear_down()

    def exchange_blocking(self, is_done: Callable[[], bool], deadline: Deadline) -> None:
        """Send what is pending, and receive until *is_done()*, the end of the stream or *deadline*.

        Never switches: it blocks, for a thread that ends, in which no greenlet runs any more.
        """
        on_data = self._on_data if self._tls is None else self._decrypt
        self.writer.flush()
        try:
            while self._state is not _CLOSED and not is_done() and not deadline.has_ended:
                self._sock.settimeout(deadline.left() or STEP)
                if self.writer.is_stalled:
                    self.writer.resend()
                    continue
                data = self._sock.recv(RECEIVE)
                if not data:
                    self._end_of_file()
                on_data(data)
        except Exception as exc:
            self._end(exc)

    def forget(self) -> None:
        """After a fork, in the child: drop the descriptor without a word to the peer."""
        if self._state is not _CLOSED:
            self._move(_CLOSED)
            self.writer.forget()
            self._watcher.close()
            self._sock.close()

    def _move(self, state: StreamState) -> None:
        self._state = moved(self._state, state, STREAM_MOVES, "a stream")

    def _tear_down(self) -> None:
        if self._state is _CLOSED:
            return
        self._move(_CLOSED)
        # Watchers go before their descriptor: libev aborts the process on a closed one.
        self.writer.close()
        self._watcher.close()
        self._sock.close()
        # Who owns this refers to it: let go of the owner, so that no collector is needed.
        self._on_data, self._room = _nobody_takes, None
        if self._shaken is not None:
            self._shaken.fail(ConnectionAbortedError(errno.ECONNABORTED, "the stream was closed"))
        if getcurrent() is not self._reader:
            # It waits in one place only and ends by itself: to kill it would cost ten times as much.
            self._hub.loop.run_callback(self._reader.switch)

    def _end(self, exc: BaseException) -> None:
        """End by a fault.  Never switches."""
        if self._state is _CLOSED:
            return
        if self._shaken is not None:
            self._shaken.fail(exc)
        self._tear_down()
        on_lost, self._on_lost = self._on_lost, _is_known
        on_lost(exc)

    def _read(self) -> None:
        """Receive, parse and hand over, as the reader."""
        switch_to_hub = self._hub.switch
        is_more = False
        turn = 0  # bytes that had been received when the hub had its last one
        self.resume()
        try:
            while self._state is not _CLOSED:
                if not is_more or self.received - turn >= TURN or self._state is not _READING:
                    switch_to_hub()  # until the watcher finds the socket readable, or it is closed
                    if self._state is _CLOSED:
                        break
                    turn = self.received
                is_more = self._receive()
        except Exception as exc:
            self._end(exc)

    def _receive(self) -> bool:
        """Receive once, and pass on what came.  Never switches.

        Returns:
            Whether a piece of a large body filled its room: most likely more of it lies there.

        Raises:
            OSError: of the socket.
            EndOfFile: the peer closed the connection.
        """
        where = self._room
        room = None if where is None else where.room()
        try:
            if room is None:
                count = self._sock.recv_into(self._buffer)
            else:
                count = self._sock.recvmsg_into(room)[0]
        except OSError as exc:
            if exc.errno in _WOULD_BLOCK:
                return False
            raise
        if not count:
            self._end_of_file()
        self.receives += 1
        self.received += count
        self.received_at = monotonic()
        if room is None or where is None:
            data = self._buffer[:count].tobytes()
            if self._tls is None:
                self._on_data(data)
            else:
                self._decrypt(data)
            return False
        where.filled(count)
        return count == sum(map(len, room))

    def catch_up(self) -> None:
        """Take what the socket has received while no hub ran.  Never switches.

        For a greenlet that writes what nothing answers: after a long computation the peer may have
        ended the connection, which only the kernel knows.
        """
        if monotonic() - self.received_at < FRESH:
            return
        try:
            for _ in range(AT_ONCE):
                if self._state is not _READING or not self._poll(0):
                    return
                self._receive()
        except Exception as exc:
            self._end(exc)
        except BaseException as exc:
            # As for a reader that is killed: what was received may be lost.
            self._end(
                ConnectionAbortedError(
                    errno.ECONNABORTED, f"interrupted by {error_text(exc, repr)}"
                )
            )
            raise

    def _on_reader_dead(self, reader: object) -> None:
        # In the hub.  If the stream is open, the reader was killed, maybe before it began:
        # without it no reply would ever be read.
        self._end(ConnectionAbortedError(errno.ECONNABORTED, "the reader was killed"))

    def _end_of_file(self) -> None:
        if self._tls is not None:
            self._tls.feed_eof()
        raise EndOfFile(errno.ECONNRESET, "the peer closed the connection")

    def _decrypt(self, data: bytes) -> None:
        tls = self._tls
        assert tls is not None
        try:
            plain = tls.feed(data)
        finally:
            # The handshake's next step, an alert, or what a renegotiation asked for.
            output = tls.take_output()
            if output and self._state is not _CLOSED:
                self.writer.write_sealed(output)
        if self._shaken is not None and tls.handshake_done:
            self.writer.seal = tls.encrypt
            self._shaken.offer(None)
            self._shaken = None
        if plain:
            self._on_data(plain)
        if tls.has_ended:
            # close_notify: nothing more comes, whether or not the socket ends as well.
            raise EndOfFile(errno.ECONNRESET, "the peer closed the TLS connection")


def _buffer_of(hub: Hub) -> memoryview:
    buffer = _buffers.get(hub)
    if buffer is None:
        buffer = _buffers[hub] = memoryview(bytearray(RECEIVE))
    return buffer


def _nobody_takes(data: bytes) -> None:
    """Ignore bytes that came after the end."""


def _is_known(exc: BaseException) -> None:
    """Ignore the end of a stream that its owner closed."""


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
        #: What interrupted a command.  Set first, as a stack that is full has no room for a call:
        #: nothing that comes is taken for a reply any more, and the reader ends it.
        self._interruption: BaseException | None = None
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
        that of another command from now on.  Where the stack is full, what comes next ends it.
        """
        self._interruption = exc
        if not isinstance(exc, RecursionError):
            self._end_interrupted(exc)

    def _end_interrupted(self, exc: BaseException) -> None:
        error = self.lost_error(
            f"{self.where}: a command was interrupted by {error_text(exc, repr)}"
        )
        self.end(error)
        self._interruption = None

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
        error: BaseException = self.lost_error(
            f"{self.where}: connection lost: {error_reason(exc)}"
        )
        error.__cause__ = exc
        self.end(error)
