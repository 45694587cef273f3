"""The stream: one reader, any writer, and one end that everybody hears of."""

from __future__ import annotations

import _socket
import errno
import os
import ssl
from _socket import SO_RCVBUF, SOL_SOCKET
from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from collections.abc import Callable, Iterator
from select import POLLIN
from time import monotonic
from typing import Any

import gevent
import greenlet
import pytest
from gevent import get_hub
from gevent.monkey import get_original
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greenconn.green import stream
from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.stream import FRESH, EndOfFile, Stream
from greenconn.green.writer import EARLY_FLUSH, HIGH_WATER
from greenconn.wire.tls import CertificateRejected, TlsError, TlsSession, tls_session
from tests.brokers.tls import CERTS
from tests.fix_interrupts import interruptions
from tests.fix_wires import Wire, until

LONG = Deadline(24 * 3600)  # made once for all tests, each of which has a timeout of its own


class Owner:
    """What a link does with its stream, reduced to noting it."""

    def __init__(self, wire: Wire, tls: TlsSession | None = None) -> None:
        self.wire = wire
        self.pieces: list[bytes] = []
        self.lost: list[BaseException] = []
        self.readers: set[object] = set()
        self.on_data: Callable[[bytes], None] = self.pieces.append
        self.stream = Stream(wire.take(), self._take, self.lost.append, "peer", tls)
        self.writer = self.stream.writer

    def _take(self, data: bytes) -> None:
        self.readers.add(gevent.getcurrent())
        self.on_data(data)

    @property
    def received(self) -> bytes:
        """All bytes so far."""
        return b"".join(self.pieces)

    def check_ended(self) -> None:
        """All that belongs to the stream is gone, or the next descriptor would suffer."""
        assert not self.stream.is_open
        until(lambda: self.stream._reader.dead)
        assert self.writer.pending == 0
        assert not self.writer.must_wait


@pytest.fixture
def owner(wire: Wire) -> Iterator[Owner]:
    owner = Owner(wire)
    yield owner
    owner.stream.close()


# Receiving.


def test_what_the_peer_sends_comes_through_one_reader(owner: Owner) -> None:
    sent = b""
    for number in range(20):
        owner.wire.send(b"%d " % number)
        sent += b"%d " % number
        yield_to_hub()
    until(lambda: owner.received == sent)
    assert len(owner.readers) == 1
    assert owner.stream.received == len(sent)
    assert owner.stream.receives == len(owner.pieces)


def test_a_piece_that_fills_all_room_may_be_the_last_for_now(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "RECEIVE", 16)
    monkeypatch.setattr(stream, "_buffers", {})
    owner = Owner(wire)
    for number in range(1, 20):
        owner.wire.send(bytes(16))
        until(lambda number=number: len(owner.received) == 16 * number)  # type: ignore[misc]
    owner.stream.close()


def test_a_piece_that_fills_the_room_of_its_owner_may_be_the_last_for_now(wire: Wire) -> None:
    buffers = OwnBuffers(3)
    buffers.has_begun = True
    lost: list[BaseException] = []
    stream = Stream(wire.take(), lambda data: None, lost.append, "peer", None, buffers)
    for number in range(1, 20):
        wire.theirs.send(bytes(5))
        until(lambda number=number: len(buffers.taken) == 5 * number)  # type: ignore[misc]
    assert not lost
    stream.close()


def test_the_time_of_the_last_byte_is_known(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stream, "monotonic", lambda: now[0])
    owner = Owner(wire)
    assert owner.stream.received_at == 100.0
    now[0] = 105.0
    owner.wire.send(b"x")
    until(lambda: owner.received == b"x")
    assert owner.stream.received_at == 105.0
    owner.stream.close()


def test_one_byte_at_a_time(owner: Owner) -> None:
    for byte in b"slowly, but it comes":
        owner.wire.send(bytes((byte,)))
        until(lambda byte=byte: owner.received[-1:] == bytes((byte,)))  # type: ignore[misc]
    assert owner.received == b"slowly, but it comes"


def test_a_megabyte_is_received_in_large_pieces(owner: Owner) -> None:
    owner.wire.send(bytes(1 << 20))
    until(lambda: len(owner.received) == 1 << 20)
    assert owner.stream.receives < 200


class CountingSocket(RawSocket):
    """Counts what it is asked to receive."""

    receives = 0

    def recv_into(self, *args: Any) -> int:
        self.receives += 1
        return super().recv_into(*args)

    def recvmsg_into(self, *args: Any) -> Any:
        self.receives += 1
        return super().recvmsg_into(*args)


class OwnBuffers:
    """Takes the bytes from the third on where it wants them, in pieces of up to *size* bytes."""

    def __init__(self, size: int) -> None:
        self.buffers = [bytearray(size), bytearray(2)]
        self.has_begun = False
        self.taken = b""

    def room(self) -> list[memoryview | bytearray] | None:
        return list(self.buffers) if self.has_begun else None

    def filled(self, count: int) -> None:
        self.taken += b"".join(self.buffers)[:count]


@pytest.mark.parametrize("has_room", [False, True])
def test_a_busy_stream_receives_at_least_64_kib_at_once(wire: Wire, has_room: bool) -> None:
    sock = CountingSocket(fileno=wire.take().detach())
    sock.setblocking(False)
    sock.setsockopt(SOL_SOCKET, SO_RCVBUF, 1 << 20)
    received: list[int] = []
    buffers = OwnBuffers(131072 - 2)

    def take(data: bytes) -> None:
        received.append(len(data))
        buffers.has_begun = has_room

    lost: list[BaseException] = []
    stream = Stream(sock, take, lost.append, "peer", None, buffers)
    stream.pause()
    sent = 0
    try:
        while True:
            sent += wire.theirs.send(bytes(1 << 16))
    except BlockingIOError:
        pass  # as much as there is room for
    until(lambda: sum(received) + len(buffers.taken) == sent)
    assert not lost
    assert sent > 1 << 19
    assert sock.receives <= sent / 65536 + 2
    assert sock.receives == stream.receives
    assert (len(buffers.taken) > 0) is has_room
    stream.close()


def test_others_have_their_turn_while_large_pieces_come(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, turn = 1000, 5000
    monkeypatch.setattr("greenconn.green.stream.TURN", turn)
    without_turn = [0]  # bytes, since another greenlet ran

    class Endless(OwnBuffers):
        def filled(self, count: int) -> None:
            super().filled(count)
            without_turn[-1] += count
            wire.theirs.send(bytes(size))
            arrived(reading)

    buffers = Endless(size - 2)
    buffers.has_begun = True
    lost: list[BaseException] = []
    reading = Stream(wire.take(), lambda data: None, lost.append, "peer", None, buffers)
    wire.theirs.send(bytes(size))
    while len(buffers.taken) < 10 * turn:
        without_turn.append(0)
        yield_to_hub()
    assert max(without_turn) == turn
    assert not lost
    reading.close()


def test_a_part_goes_where_its_owner_wants_it(wire: Wire) -> None:
    buffers = OwnBuffers(3)
    pieces: list[bytes] = []

    def take(data: bytes) -> None:
        pieces.append(data)
        buffers.has_begun = True

    lost: list[BaseException] = []
    stream = Stream(wire.take(), take, lost.append, "peer", None, buffers)
    wire.send(b"ab")
    until(lambda: pieces == [b"ab"])
    wire.send(b"c")
    until(lambda: buffers.taken == b"c")
    wire.send(b"defghijkl")
    until(lambda: buffers.taken == b"cdefghijkl")
    wire.hang_up()
    until(lambda: lost)
    assert isinstance(lost[0], ConnectionResetError)
    assert pieces == [b"ab"]
    assert not stream.is_open


def test_pause_leaves_bytes_with_the_peer_and_resume_takes_them(owner: Owner) -> None:
    owner.wire.send(b"a")
    until(lambda: owner.pieces)
    owner.stream.pause()
    owner.stream.pause()
    assert owner.stream.is_paused
    owner.wire.send(b"b")
    for _ in range(20):
        yield_to_hub()
    assert owner.received == b"a"
    owner.stream.resume()
    owner.stream.resume()
    until(lambda: owner.received == b"ab")


def test_the_reader_may_pause_itself(owner: Owner) -> None:
    def take_one(data: bytes) -> None:
        owner.pieces.append(data)
        owner.stream.pause()

    owner.on_data = take_one
    for letter in (b"a", b"b", b"c"):
        owner.wire.send(letter)
        until(lambda letter=letter: owner.received.endswith(letter))  # type: ignore[misc]
        assert owner.stream.is_paused
        owner.stream.resume()


def test_an_idle_stream_costs_no_switch(owner: Owner) -> None:
    yield_to_hub()
    switched: list[object] = []
    former = greenlet.settrace(lambda event, ends: switched.extend(ends))
    try:
        gevent.sleep(0.05)
    finally:
        greenlet.settrace(former)
    assert owner.stream._reader not in switched


# Receiving without the hub.


def arrived(stream: Stream) -> None:
    """Keep the processor until there is something to receive, and nothing was for a while."""
    poll = get_original("select", "poll")()
    poll.register(stream._sock.fileno(), POLLIN)
    assert poll.poll(60_000)
    while monotonic() - stream.received_at < FRESH:
        pass


def test_what_came_while_no_hub_ran_is_taken_without_a_switch(owner: Owner) -> None:
    yield_to_hub()
    owner.stream.catch_up()
    assert not owner.pieces
    owner.wire.theirs.send(b"late")
    arrived(owner.stream)
    switched: list[object] = []
    former = greenlet.settrace(lambda event, ends: switched.extend(ends))
    try:
        owner.stream.catch_up()
    finally:
        greenlet.settrace(former)
    assert owner.received == b"late"
    assert not switched
    owner.wire.send(b"r than that")  # the reader goes on
    until(lambda: owner.received == b"later than that")


def test_a_stream_that_has_just_received_does_not_ask_the_kernel(owner: Owner) -> None:
    yield_to_hub()
    owner.wire.theirs.send(b"late")
    arrived(owner.stream)
    owner.stream.received_at = monotonic() + 60
    owner.stream.catch_up()
    assert not owner.pieces
    until(lambda: owner.received == b"late")


def test_an_end_that_came_while_no_hub_ran_is_reported(owner: Owner) -> None:
    yield_to_hub()
    owner.wire.theirs.send(b"bye")
    owner.wire.hang_up()
    while not owner.lost:
        arrived(owner.stream)
        owner.stream.catch_up()
    assert owner.received == b"bye"
    assert [type(each) for each in owner.lost] == [EndOfFile]
    owner.stream.catch_up()  # of a closed one: nothing
    owner.check_ended()


def test_a_paused_stream_takes_nothing_either_while_no_hub_runs(owner: Owner) -> None:
    yield_to_hub()
    owner.stream.pause()
    owner.wire.theirs.send(b"late")
    arrived(owner.stream)
    owner.stream.catch_up()
    assert not owner.pieces


def test_a_peer_that_always_has_more_does_not_keep_the_greenlet_that_catches_up(
    owner: Owner,
) -> None:
    def send_more(data: bytes) -> None:
        owner.pieces.append(data)
        owner.wire.theirs.send(data)
        arrived(owner.stream)

    yield_to_hub()
    owner.on_data = send_more
    owner.wire.theirs.send(b"x")
    arrived(owner.stream)
    owner.stream.catch_up()
    assert len(owner.pieces) == stream.AT_ONCE
    owner.on_data = owner.pieces.append


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_while_a_greenlet_catches_up_ends_the_stream(
    owner: Owner, error: type[BaseException]
) -> None:
    def fail(data: bytes) -> None:
        raise error

    yield_to_hub()
    owner.on_data = fail
    owner.wire.theirs.send(b"late")
    arrived(owner.stream)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            owner.stream.catch_up()
    else:
        owner.stream.catch_up()
    assert len(owner.lost) == 1
    owner.check_ended()


# Sending.


def test_what_is_written_reaches_the_peer(owner: Owner) -> None:
    owner.writer.write(b"hello ")
    owner.writer.write(b"peer")
    assert owner.wire.receive_until(10) == b"hello peer"


def test_a_full_socket_goes_on_when_the_peer_reads(owner: Owner) -> None:
    owner.writer.write(bytes(3 << 20))
    for _ in range(10):
        yield_to_hub()
    assert owner.writer.is_stalled
    owner.wire.send(b"still reading?")
    until(lambda: owner.received == b"still reading?")
    assert len(owner.wire.receive_until(3 << 20)) == 3 << 20
    until(lambda: not owner.writer.pending)


# Ends.


def test_end_of_file_is_reported_once(owner: Owner) -> None:
    owner.wire.send(b"last words")
    owner.wire.hang_up()
    until(lambda: owner.lost)
    assert owner.received == b"last words"
    assert isinstance(owner.lost[0], ConnectionResetError)
    assert owner.lost[0].errno == errno.ECONNRESET
    owner.check_ended()
    owner.stream.close()
    assert len(owner.lost) == 1


def test_a_reset_is_reported_once(owner: Owner) -> None:
    yield_to_hub()
    owner.wire.reset()
    until(lambda: owner.lost)
    assert isinstance(owner.lost[0], ConnectionError)
    owner.check_ended()
    assert len(owner.lost) == 1


def test_a_send_that_fails_ends_the_stream_once(owner: Owner) -> None:
    owner.stream.pause()
    yield_to_hub()
    owner.stream.pause()
    owner.wire.reset()
    for _ in range(1000):
        if owner.lost:
            break
        owner.writer.write(b"x")
        gevent.sleep(0.001)
    assert len(owner.lost) == 1
    assert isinstance(owner.lost[0], ConnectionError)
    owner.check_ended()


def test_an_error_of_the_owner_ends_the_stream(owner: Owner) -> None:
    def fail(data: bytes) -> None:
        raise ValueError("not our protocol")

    owner.on_data = fail
    owner.wire.send(b"x")
    until(lambda: owner.lost)
    assert [str(error) for error in owner.lost] == ["not our protocol"]
    owner.check_ended()
    until(owner.wire.is_ended)


@pytest.mark.parametrize("make", [gevent.GreenletExit, lambda: gevent.Timeout(None)])
def test_a_killed_reader_is_reported_as_a_loss(
    owner: Owner, make: Callable[[], BaseException]
) -> None:
    yield_to_hub()
    reader = owner.stream._reader
    error = make()
    reader.kill(error)
    until(lambda: owner.lost)
    assert len(owner.lost) == 1
    assert "reader was killed" in str(owner.lost[0])
    owner.check_ended()
    until(owner.wire.is_ended)
    if not isinstance(error, gevent.GreenletExit):
        with pytest.raises(type(error)):
            reader.get()


def test_a_reader_killed_before_it_began_is_noticed_too(owner: Owner) -> None:
    owner.stream._reader.kill()
    until(lambda: owner.lost)
    owner.check_ended()


def test_close_is_not_a_loss_and_may_be_repeated(owner: Owner) -> None:
    yield_to_hub()
    owner.writer.write(b"first ")
    owner.writer.write(b"second")
    owner.stream.close()
    owner.stream.close()
    assert not owner.stream.is_open
    assert owner.wire.receive_until(100) == b"first second"
    owner.check_ended()
    assert not owner.lost
    owner.writer.write(b"nobody sends this")
    owner.stream.resume()
    owner.stream.pause()
    assert not owner.stream.is_paused
    assert repr(owner.stream) == "<Stream peer: closed>"


def test_close_before_the_reader_began(owner: Owner) -> None:
    owner.stream.close()
    owner.check_ended()
    assert not owner.lost


def test_close_in_the_reader(owner: Owner) -> None:
    owner.on_data = lambda data: owner.stream.close()
    owner.wire.send(b"x")
    until(lambda: not owner.stream.is_open)
    owner.check_ended()
    assert not owner.lost


def test_close_in_a_hub_callback(owner: Owner) -> None:
    yield_to_hub()
    get_hub().loop.run_callback(owner.stream.close)
    until(lambda: not owner.stream.is_open)
    owner.check_ended()
    assert not owner.lost


def test_close_to_a_peer_that_is_gone_is_no_loss(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    yield_to_hub()
    now = monotonic()
    # Else a process that is not run for 5 ms sends the second write at once, and loses the peer.
    monkeypatch.setattr("greenconn.green.writer.monotonic", lambda: now)
    owner.writer.write(b"it comes")
    owner.wire.reset()
    owner.writer.write(b"too late")
    owner.stream.close()
    owner.check_ended()
    assert not owner.lost


def test_nobody_must_wait_after_an_early_flush_that_failed(owner: Owner) -> None:
    yield_to_hub()
    owner.writer.write(b"it comes")
    owner.wire.reset()
    owner.writer.write(bytes(EARLY_FLUSH))
    owner.stream.close()
    owner.check_ended()


@pytest.mark.parametrize("how", ["close", "reset", "kill"])
def test_writers_that_wait_go_on_when_the_stream_ends(owner: Owner, how: str) -> None:
    while owner.writer.pending <= HIGH_WATER:
        owner.writer.write(bytes(100_000))
    waiting = [gevent.spawn(owner.writer.wait_writable, LONG) for _ in range(3)]
    yield_to_hub()
    if how == "close":
        owner.stream.close()
    elif how == "reset":
        owner.wire.reset()
    else:
        owner.stream._reader.kill()
    gevent.joinall(waiting, timeout=5, raise_error=True)
    owner.check_ended()
    assert len(owner.lost) == (how != "close")


def test_the_descriptor_of_a_stream_that_ended_is_left_alone(owner: Owner) -> None:
    fd = owner.wire.ours.fileno()
    yield_to_hub()
    owner.wire.hang_up()
    until(lambda: owner.lost)
    other = Wire()
    try:
        assert fd in (other.ours.fileno(), other.theirs.fileno(), fd)
        other.send(b"for somebody else")
        for _ in range(20):
            yield_to_hub()
        assert other.ours.recv(100) == b"for somebody else"
        assert not owner.received
    finally:
        other.close()


def test_both_addresses_are_known(owner: Owner) -> None:
    ours, theirs = owner.stream.peer_address()
    assert ours == owner.wire.theirs.getpeername()
    assert theirs == owner.wire.theirs.getsockname()


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(["send", "write", "turn", "pause", "resume"]), max_size=30))
def test_both_directions_at_once(steps: list[str]) -> None:
    wire = Wire()
    owner = Owner(wire)
    try:
        sent = written = b""
        for number, step in enumerate(steps):
            piece = b"%d;" % number * 1000
            if step == "send":
                wire.send(piece)
                sent += piece
            elif step == "write":
                owner.writer.write(piece)
                written += piece
            elif step == "turn":
                yield_to_hub()
            elif step == "pause":
                owner.stream.pause()
            else:
                owner.stream.resume()
        owner.stream.resume()
        assert wire.receive_until(len(written)) == written
        until(lambda: owner.received == sent)
    finally:
        owner.stream.close()
        wire.close()


# TLS.


class Server:
    """The peer's side of TLS, driven by a greenlet: it notes what it gets and sends it back."""

    def __init__(self, wire: Wire, name: str = "server", asks: bool = False) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTS / f"{name}.pem", CERTS / f"{name}.key")
        if asks:
            context.load_verify_locations(CERTS / "ca.pem")
            context.verify_mode = ssl.CERT_REQUIRED
        self.wire = wire
        self.session = TlsSession(context, None, server_side=True)
        self.received = b""
        self.error: TlsError | None = None
        self.piece = 1 << 16
        self.has_ended = False
        self.echoes = True
        self._greenlet = gevent.spawn(self._serve)

    def _serve(self) -> None:
        self.session.start()
        while not self.has_ended:
            try:
                data = self.wire.theirs.recv(self.piece)
            except BlockingIOError:
                gevent.sleep(0.001)
                continue
            except OSError:
                return
            if not data:
                self.has_ended = True
                return
            try:
                plain = self.session.feed(data)
            except TlsError as exc:
                self.error = exc
                return
            finally:
                self.wire.send(self.session.take_output())
            self.received += plain
            if plain and self.echoes:
                self.send(plain)

    def send(self, plain: bytes) -> None:
        self.wire.send(self.session.encrypt(plain))

    def stop(self) -> None:
        self._greenlet.kill()


@pytest.fixture
def server(wire: Wire) -> Iterator[Server]:
    server = Server(wire)
    yield server
    server.stop()


def tls_owner(wire: Wire, hostname: str = "localhost") -> Owner:
    return Owner(wire, tls_session({"ca_certs": str(CERTS / "ca.pem")}, hostname))


def test_tls_carries_bytes_both_ways(wire: Wire, server: Server) -> None:
    owner = tls_owner(wire)
    owner.stream.handshake(LONG)
    owner.writer.write(b"hello")
    until(lambda: owner.received == b"hello")
    body = os.urandom(1 << 20)
    owner.writer.write(body)
    until(lambda: len(owner.received) == 5 + len(body), 30)
    assert owner.received[5:] == body
    until(lambda: not owner.writer.pending)
    owner.stream.close()
    until(lambda: server.session.has_ended)
    assert not owner.lost
    owner.check_ended()


def test_tls_of_one_byte_at_a_time(wire: Wire, server: Server) -> None:
    server.piece = 1
    owner = tls_owner(wire)
    owner.stream.handshake(LONG)
    owner.writer.write(b"hello")
    until(lambda: owner.received == b"hello")
    owner.stream.close()


def test_writes_before_the_end_of_the_handshake_are_not_needed_to_go_on(
    wire: Wire, server: Server
) -> None:
    owner = tls_owner(wire)
    owner.stream.handshake(LONG)
    writers = [gevent.spawn(owner.writer.write, b"%02d" % number) for number in range(50)]
    gevent.joinall(writers, raise_error=True)
    until(lambda: len(server.received) == 100)
    assert server.received == b"".join(b"%02d" % number for number in range(50))
    owner.stream.close()


def test_a_certificate_that_is_not_accepted_ends_the_handshake(wire: Wire) -> None:
    server = Server(wire, "elsewhere")
    owner = tls_owner(wire)
    with pytest.raises(CertificateRejected):
        owner.stream.handshake(LONG)
    assert len(owner.lost) == 1
    owner.check_ended()
    # The peer hears why, by an alert.
    until(lambda: server.error is not None)
    server.stop()


def test_a_peer_that_speaks_no_tls_ends_the_handshake(wire: Wire) -> None:
    owner = tls_owner(wire)
    wire.send(b"AMQP\x00\x00\x09\x01")
    with pytest.raises(TlsError, match="does not speak TLS"):
        owner.stream.handshake(LONG)
    owner.check_ended()


def test_a_peer_that_is_silent_ends_the_handshake_by_its_deadline(wire: Wire) -> None:
    owner = tls_owner(wire)
    with pytest.raises(TimeoutError):
        owner.stream.handshake(Deadline(0.02))
    assert owner.stream.is_open
    owner.stream.close()
    owner.check_ended()


@pytest.mark.parametrize("how", ["hang_up", "reset"])
def test_a_peer_that_goes_amid_the_handshake(wire: Wire, how: str) -> None:
    owner = tls_owner(wire)
    getattr(wire, how)()
    with pytest.raises(OSError, match=r"during the handshake|reset|Broken pipe|Errno"):
        owner.stream.handshake(LONG)
    assert len(owner.lost) == 1
    owner.check_ended()


def test_a_stream_closed_amid_the_handshake_wakes_its_waiter(wire: Wire) -> None:
    owner = tls_owner(wire)
    waiting = gevent.spawn(owner.stream.handshake, LONG)
    yield_to_hub()
    owner.stream.close()
    with pytest.raises(ConnectionAbortedError):
        waiting.get(timeout=5)
    assert not owner.lost
    owner.check_ended()


def test_a_peer_that_cuts_tls_short_is_an_error(wire: Wire, server: Server) -> None:
    owner = tls_owner(wire)
    owner.stream.handshake(LONG)
    until(lambda: server.session.handshake_done)
    server.stop()
    wire.hang_up()
    until(lambda: owner.lost)
    assert "without close_notify" in str(owner.lost[0])
    owner.check_ended()


def test_a_peer_that_ends_tls_in_order_is_an_ordinary_end(wire: Wire, server: Server) -> None:
    owner = tls_owner(wire)
    owner.stream.handshake(LONG)
    until(lambda: server.session.handshake_done)
    server.send(b"bye")
    server.stop()
    wire.send(server.session.close_notify())
    wire.hang_up()
    until(lambda: owner.lost)
    assert owner.received == b"bye"
    assert isinstance(owner.lost[0], ConnectionResetError)
    owner.check_ended()


def test_close_notify_is_the_end_although_the_socket_stays_open(wire: Wire, server: Server) -> None:
    owner = tls_owner(wire)
    owner.stream.handshake(LONG)
    until(lambda: server.session.handshake_done)
    server.send(b"bye")
    server.stop()
    wire.send(server.session.close_notify())
    until(lambda: owner.lost)
    assert owner.received == b"bye"
    assert "closed the TLS connection" in str(owner.lost[0])
    owner.check_ended()


def test_a_broken_record_ends_the_stream(wire: Wire, server: Server) -> None:
    owner = tls_owner(wire)
    owner.stream.handshake(LONG)
    server.stop()
    wire.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    until(lambda: owner.lost)
    assert isinstance(owner.lost[0], TlsError)
    owner.check_ended()


def test_a_server_that_wants_our_certificate_says_so_after_the_handshake(wire: Wire) -> None:
    server = Server(wire, asks=True)
    owner = tls_owner(wire)
    try:
        owner.stream.handshake(LONG)
    except TlsError as exc:
        owner.lost.append(exc)  # the alert came with the end of the handshake
    until(lambda: owner.lost)
    assert "certificate" in str(owner.lost[0])
    owner.check_ended()
    server.stop()


def test_each_switch_of_a_handshake_may_be_the_last() -> None:
    wires: list[Wire] = []
    owners: list[Owner] = []

    def connect() -> None:
        wires.append(Wire())
        server = Server(wires[-1])
        owner = tls_owner(wires[-1])
        owners.append(owner)
        try:
            owner.stream.handshake(LONG)
            owner.writer.write(b"x")
        finally:
            owner.stream.close()
            server.stop()

    done = 0
    for run in interruptions(connect, delays=(0, 1)):
        done += run.raised is None
        until(lambda: owners[-1].stream._reader.dead)
        wires.pop().close()
    assert done


# Fork.


def test_a_forked_child_forgets_and_its_parent_does_not_notice(owner: Owner) -> None:
    yield_to_hub()
    owner.writer.write(b"before ")
    while owner.writer.pending <= 2 * HIGH_WATER:  # of which the kernel may still take some
        owner.writer.write(bytes(100_000))
    waiting = gevent.spawn(owner.writer.wait_writable, LONG)
    yield_to_hub()
    owner.stream.pause()
    pending, received = owner.writer.pending, len(owner.received)
    descriptor, watcher = owner.wire.ours.fileno(), owner.stream._watcher
    pid = os.fork()
    if not pid:
        status = 1
        try:
            is_forgotten = (
                not owner.stream.is_open and owner.writer.pending == 0 and owner.lost == []
            )
            # Else the peer would not learn that the parent has ended, and libev would poll for both.
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)
            is_forgotten = is_forgotten and not watcher.active
            owner.writer.write(b"from the child")
            owner.stream.close()
            status = 0 if is_forgotten else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert owner.stream.is_open
    assert HIGH_WATER < owner.writer.pending <= pending
    owner.stream.resume()
    owner.wire.send(b"after")
    until(lambda: len(owner.received) > received)
    rest = owner.wire.receive_until(7 + pending)
    assert rest.startswith(b"before ")
    waiting.get(timeout=30)
    assert owner.wire.theirs.fileno() >= 0
    assert owner.stream.is_open


def test_the_limit_of_the_kernel_is_lifted(owner: Owner) -> None:
    if not hasattr(_socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this kernel has no such limit")
    option = (_socket.IPPROTO_TCP, _socket.TCP_USER_TIMEOUT)
    owner.wire.ours.setsockopt(*option, 5000)
    owner.stream.lift_user_timeout()
    assert owner.wire.ours.getsockopt(*option) == 0
    assert owner.stream.is_open
    owner.stream.close()
    owner.stream.lift_user_timeout()  # there is no socket any more
    assert owner.lost == []


def test_a_socket_of_another_kind_has_no_such_limit() -> None:
    ours, theirs = _socket.socketpair()
    ours.setblocking(False)
    lost: list[BaseException] = []
    plain = Stream(ours, lambda data: None, lost.append, "peer", None)
    plain.lift_user_timeout()
    assert (plain.is_open, lost) == (True, [])
    plain.close()
    theirs.close()


# Where no greenlet runs any more.


def test_a_thread_that_ends_sends_and_receives_without_a_switch(owner: Owner) -> None:
    owner.wire.send(b"reply")
    owner.writer.write_many([b"one ", b"two"])
    owner.stream.exchange_blocking(lambda: owner.received == b"reply", Deadline(60))
    assert owner.received == b"reply"
    assert owner.readers == {gevent.getcurrent()}
    assert owner.wire.receive_until(7) == b"one two"
    assert (owner.stream.is_open, owner.lost) == (True, [])
    owner.stream.exchange_blocking(lambda: False, Deadline(0))  # there is no time left
    assert owner.stream.is_open


def test_the_peer_may_close_while_a_thread_ends(owner: Owner) -> None:
    owner.wire.send(b"last")
    owner.wire.close()
    owner.stream.exchange_blocking(lambda: False, Deadline(60))
    assert owner.received == b"last"
    (lost,) = owner.lost
    assert isinstance(lost, EndOfFile)
    owner.check_ended()


def test_a_peer_that_is_silent_holds_no_thread(owner: Owner) -> None:
    owner.stream.exchange_blocking(lambda: False, Deadline(0.01))
    (lost,) = owner.lost
    assert isinstance(lost, TimeoutError)
    owner.check_ended()
