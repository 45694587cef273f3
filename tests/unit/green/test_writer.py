"""The writer: whole frames in their order, few sends, and a bound on what waits."""

from __future__ import annotations

import errno
import gc
import random
import socket
from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic, thread_time
from typing import Any
from weakref import ref

import gevent
import pytest
from gevent import get_hub
from gevent.event import Event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greenconn.green import writer as writer_module
from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.writer import (
    EARLY_FLUSH,
    GATHER,
    HIGH_WATER,
    IOV_MAX,
    LOW_WATER,
    Buffer,
    Writer,
)
from tests.fix_interrupts import Signal, interruptions, signals
from tests.fix_leaks import HubErrors
from tests.fix_wires import Wire, until
from tests.loops import needs_turn_end

LONG = Deadline(24 * 3600)  # made once for all tests, each of which has a timeout of its own


class Line:
    """A writer on a wire, and the errors that it reported."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.errors: list[OSError] = []
        self.writer = Writer(wire.ours, self.on_error)

    def on_error(self, exc: OSError) -> None:
        # As the stream does.
        self.errors.append(exc)
        self.writer.close()

    def fill(self, pending: int = HIGH_WATER + 1) -> int:
        """Write without waiting until *pending* bytes wait; returns the bytes written."""
        written = 0
        while self.writer.pending < pending:
            self.writer.write(bytes(60_000))
            written += 60_000
        return written


@pytest.fixture
def line(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """A line on which only bytes count: on a busy machine any turn is long."""
    monkeypatch.setattr(writer_module, "PACE", 3600.0)
    line = Line(wire)
    yield line
    line.writer.close()


@pytest.fixture
def paced_line(wire: Wire) -> Iterator[Line]:
    """A line on which the time counts, too."""
    line = Line(wire)
    yield line
    line.writer.close()


def test_what_follows_an_early_flush_is_gathered_again(
    paced_line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("greenconn.green.writer.monotonic", lambda: now)
    writer = paced_line.writer
    writer.write(b"at once")
    now += 0.006
    writer.write(b"after 6 ms of the same turn")
    assert (writer.sends, writer.must_wait) == (2, True)
    for _ in range(10):
        now += 0.0004
        writer.write(b"behind it")
    assert writer.sends == 2
    now += 0.002
    writer.write(b"5 ms later")
    assert (writer.sends, writer.pending) == (3, 0)


def test_the_first_write_of_a_turn_leaves_at_once_and_the_rest_in_one_send(line: Line) -> None:
    writer, wire = line.writer, line.wire
    writer.write(b"first ")
    assert wire.receive() == b"first "
    for number in range(100):
        writer.write(b"%d " % number)
    assert wire.receive() == b""
    assert writer.sends == 1
    yield_to_hub()
    assert wire.receive().split() == [b"%d" % number for number in range(100)]
    assert writer.sends == 2
    assert writer.pending == 0
    yield_to_hub()
    assert writer.sends == 2
    writer.write(b"again")
    assert wire.receive() == b"again"
    assert writer.sends == 3


@needs_turn_end
def test_greenlets_that_wake_one_another_write_in_one_turn(line: Line) -> None:
    # As those do that hand a pooled connection on: each runs because of a callback of the one before.
    writer, wire = line.writer, line.wire
    loop, count = get_hub().loop, 40  # (after 50 gevent may poll)

    def chain(number: int) -> None:
        writer.write(b"%d " % number)
        if number < count:
            loop.run_callback(chain, number + 1)

    loop.run_callback(chain, 1)
    yield_to_hub()
    assert wire.receive().split() == [b"%d" % number for number in range(1, count + 1)]
    assert writer.sends == 2


def test_who_hears_of_an_error_at_the_end_of_a_turn_is_awake_at_once(wire: Wire) -> None:
    # Nothing else happens that would wake the hub: no timer but that of the test, no other socket.
    heard = Event()
    loop = get_hub().loop

    def on_error(exc: OSError) -> None:
        writer.close()
        loop.run_callback(heard.set)

    writer = Writer(wire.take(), on_error)

    def write() -> None:
        # In one of the callbacks after which the hub polls.
        writer.write(b"leaves at once")
        wire.reset()
        writer.write(b"leaves when the turn ends, and cannot")
        assert not heard.is_set()

    began = monotonic()
    gevent.spawn(write)
    assert heard.wait(30.0)
    assert monotonic() - began < 9.0
    wire.ours.close()


def test_what_is_written_late_in_a_long_turn_leaves_at_once(paced_line: Line) -> None:
    writer = paced_line.writer
    writer.write(b"a")
    began = monotonic()
    while monotonic() - began < 0.006:
        pass
    writer.write(b"b")
    assert writer.sends == 2
    assert writer.must_wait


def test_a_lonely_write_costs_one_send(line: Line) -> None:
    line.writer.write(b"x")
    yield_to_hub()
    assert line.writer.sends == 1


def test_64_kib_leave_before_the_turn_ends(line: Line) -> None:
    writer, wire = line.writer, line.wire
    writer.write(b"a")
    piece = bytes(1024)
    for _ in range(EARLY_FLUSH // 1024):
        writer.write(piece)
    assert writer.sends == 2
    assert writer.must_wait
    assert len(wire.receive_until(1 + EARLY_FLUSH)) == 1 + EARLY_FLUSH


def test_the_gate_lets_others_run_and_opens(line: Line) -> None:
    writer, ran = line.writer, Event()
    writer.write(b"a")
    writer.write(bytes(EARLY_FLUSH))
    assert writer.must_wait
    gevent.spawn(ran.set)
    writer.wait_writable(LONG)
    assert ran.is_set()
    assert not writer.must_wait


@needs_turn_end
@pytest.mark.parametrize("killed", [None, 0, 3])
def test_who_comes_while_another_lets_the_hub_turn_stands_behind_it(
    line: Line, killed: int | None
) -> None:
    writer, order = line.writer, []

    def write(number: int) -> None:
        if writer.must_wait:
            writer.wait_writable(LONG)
        order.append(number)
        writer.write(b"x")

    def write_all() -> None:
        # All begin in the turn in which ``must_wait`` was set.
        writer.write(b"a")
        writer.write(bytes(EARLY_FLUSH))
        for greenlet in greenlets:
            greenlet.start()

    greenlets = [gevent.Greenlet(write, number) for number in range(10)]
    gevent.spawn(write_all).join()
    if killed is not None:
        greenlets[killed].kill()
    gevent.joinall(greenlets, raise_error=True)
    assert order == [number for number in range(10) if number != killed]
    assert not writer.must_wait


def test_those_behind_one_who_fills_the_buffer_go_on_in_their_order(line: Line) -> None:
    writer, order = line.writer, []
    written = [1 + EARLY_FLUSH]

    def write(number: int) -> None:
        if writer.must_wait:
            writer.wait_writable(LONG)
        order.append(number)
        if number:
            writer.write(b"x")
        written.append(1 if number else line.fill())

    def write_all() -> None:
        # All begin in the turn in which ``must_wait`` was set.
        writer.write(b"a")
        writer.write(bytes(EARLY_FLUSH))
        for greenlet in greenlets:
            greenlet.start()

    greenlets = [gevent.Greenlet(write, number) for number in range(5)]
    gevent.spawn(write_all).join()
    until(lambda: len(written) == 2)
    line.wire.receive_until(sum(written) + 4)
    gevent.joinall(greenlets, timeout=30, raise_error=True)
    assert order == list(range(5))


def test_after_the_end_of_a_turn_nobody_must_wait(line: Line) -> None:
    line.writer.write(b"a")
    line.writer.write(bytes(EARLY_FLUSH))
    yield_to_hub()
    assert not line.writer.must_wait


def test_a_loop_that_only_writes_lets_the_others_run(line: Line) -> None:
    writer, wire = line.writer, line.wire
    gaps: list[float] = []

    def read() -> None:
        last = thread_time()  # not the machine's noise
        while True:
            wire.receive()
            gaps.append(thread_time() - last)
            last = thread_time()
            gevent.sleep(0)

    reader = gevent.spawn(read)
    yield_to_hub()
    message = bytes(300)
    for _ in range(100_000):
        if writer.must_wait:
            writer.wait_writable(LONG)
        writer.write(message)
    reader.kill()
    assert len(gaps) > 100
    assert sorted(gaps)[-5] < 0.1


def test_greenlets_that_write_in_turn_need_not_wait(line: Line) -> None:
    # Once they stood in line they would do so for ever, as some always wait.
    writer, gates = line.writer, 0

    def write() -> None:
        nonlocal gates
        if writer.must_wait:
            gates += 1
            writer.wait_writable(LONG)
        writer.write(bytes(1024))

    count = 3 * EARLY_FLUSH // 1024
    gevent.joinall([gevent.spawn(write) for _ in range(count)], raise_error=True)
    assert len(line.wire.receive_until(count * 1024)) == count * 1024
    assert gates == 0
    assert writer.sends >= 3


def test_who_writes_alone_behind_others_lets_them_run(line: Line) -> None:
    writer = line.writer
    gates: list[int] = []

    def write_much() -> None:
        while not gates:
            if writer.must_wait:
                gates.append(written)
                writer.wait_writable(LONG)
            write()

    written = 0

    def write() -> None:
        nonlocal written
        written += 1024
        writer.write(bytes(1024))

    gevent.joinall([gevent.spawn(write), gevent.spawn(write_much)], raise_error=True)
    # Its first 64 KiB may have been begun by the other one.
    assert gates
    assert gates[0] <= 2 * EARLY_FLUSH + 4096
    assert not writer.must_wait


def test_a_greenlet_that_has_written_is_not_kept(line: Line) -> None:
    greenlet = gevent.spawn(line.writer.write, b"x")
    greenlet.join()
    ended = ref(greenlet)
    del greenlet
    yield_to_hub()
    gc.collect()
    assert ended() is None


def test_a_slow_loop_that_only_writes_little_lets_the_others_run_too(paced_line: Line) -> None:
    writer = paced_line.writer
    ran: list[int] = []

    def look() -> None:
        while True:
            ran.append(1)
            gevent.sleep(0)

    looker = gevent.spawn(look)
    yield_to_hub()
    for _ in range(10):
        if writer.must_wait:
            writer.wait_writable(LONG)
        writer.write(b"x")
        until_ = monotonic() + 0.006
        while monotonic() < until_:
            pass
    looker.kill()
    assert len(ran) >= 5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.integers(0, 30_000) | st.just(300_000), max_size=40), st.integers(0, 1 << 32))
def test_bytes_leave_in_the_order_of_the_writes(sizes: list[int], seed: int) -> None:
    wire = Wire()
    line = Line(wire)
    rng = random.Random(seed)
    expected = b"".join(rng.randbytes(size) for size in sizes)
    try:
        received, position = b"", 0
        for size in sizes:
            if line.writer.must_wait and rng.random() < 0.5 and line.writer.pending < HIGH_WATER:
                line.writer.wait_writable(LONG)
            piece = expected[position : position + size]
            position += size
            if rng.random() < 0.3:
                cut = rng.randint(0, size)
                line.writer.write_many([piece[:cut], memoryview(piece)[cut:]])
            else:
                line.writer.write(piece)
            if rng.random() < 0.2:
                yield_to_hub()
            if rng.random() < 0.2:
                received += wire.receive(rng.randint(1, 100_000))
        received += wire.receive_until(len(expected) - len(received))
        assert received == expected
        until(lambda: not line.writer.pending)
        assert not line.errors
        assert not line.writer.is_stalled
    finally:
        line.writer.close()
        wire.close()


def test_a_message_of_several_buffers_stays_together(line: Line) -> None:
    writer, wire = line.writer, line.wire
    body = bytes(100_000)

    def write() -> None:
        if writer.must_wait:
            writer.wait_writable(LONG)
        writer.write_many([b"<", memoryview(body), b">"])

    greenlets = [gevent.spawn(write) for _ in range(5)]
    received = wire.receive_until(5 * 100_002)
    gevent.joinall(greenlets, raise_error=True)
    assert received == (b"<" + body + b">") * 5


def test_more_buffers_than_one_send_takes_leave_nevertheless(line: Line) -> None:
    writer, wire = line.writer, line.wire
    pieces = [b"%07d;" % number * 32 for number in range(5_000)]
    filled = line.fill(EARLY_FLUSH)
    for piece in pieces:
        writer.write(piece)
    large = [bytes(70_000) for _ in range(20)]
    writer.write_many([*large])
    expected = bytes(filled) + b"".join(pieces) + b"".join(large)
    assert wire.receive_until(len(expected)) == expected
    until(lambda: not writer.pending)


# A peer that reads slowly or not at all.


def test_a_peer_that_does_not_read_makes_writers_wait_with_bounded_memory(line: Line) -> None:
    writer, wire = line.writer, line.wire
    waiting = 0

    def write() -> None:
        nonlocal waiting
        for _ in range(200):
            if writer.must_wait:
                waiting += 1
                writer.wait_writable(LONG)
                waiting -= 1
            writer.write(bytes(10_000))

    writers = [gevent.spawn(write) for _ in range(10)]
    until(lambda: waiting == 10)
    for _ in range(20):
        yield_to_hub()
    assert HIGH_WATER < writer.pending <= HIGH_WATER + 20_000
    assert writer.is_stalled
    assert waiting == 10
    total = 10 * 200 * 10_000
    assert len(wire.receive_until(total, 60)) == total
    gevent.joinall(writers, raise_error=True)
    until(lambda: not writer.pending)
    assert not writer.must_wait
    assert not writer.is_stalled


def test_a_flush_tells_whether_the_socket_has_taken_all(line: Line) -> None:
    writer, wire = line.writer, line.wire
    assert writer.flush()
    writer.write(b"a")
    writer.write(b"b")
    assert writer.flush()
    assert wire.receive_until(2) == b"ab"
    filled = line.fill()
    assert not writer.flush()
    assert len(wire.receive_until(filled)) == filled
    until(lambda: not writer.is_stalled)
    assert writer.flush()
    line.fill()
    writer.close()
    assert writer.flush()


def test_those_who_wait_go_on_in_the_order_in_which_they_came(line: Line) -> None:
    writer, wire = line.writer, line.wire
    filled = line.fill()
    order: list[int] = []

    def write(number: int) -> None:
        writer.wait_writable(LONG)
        order.append(number)
        writer.write(bytes(100_000))

    writers = [gevent.spawn(write, number) for number in range(200)]
    yield_to_hub()
    assert not order
    wire.receive_until(filled + 200 * 100_000, 60)
    gevent.joinall(writers, timeout=30, raise_error=True)
    assert order == list(range(200))
    assert not writer.must_wait


def test_every_one_of_many_who_wait_goes_on_though_the_socket_is_never_full_again(
    line: Line,
) -> None:
    writer, wire = line.writer, line.wire
    filled = line.fill()
    done: list[int] = []

    def write(number: int) -> None:
        writer.wait_writable(LONG)
        writer.write(b"x")
        done.append(number)

    writers = [gevent.spawn(write, number) for number in range(500)]
    yield_to_hub()
    wire.receive_until(filled + 500)
    gevent.joinall(writers, timeout=10, raise_error=True)
    assert done == list(range(500))


def test_one_who_comes_later_does_not_overtake_those_who_wait(line: Line) -> None:
    writer, wire = line.writer, line.wire
    filled = line.fill()
    order: list[str] = []

    def write(name: str) -> None:
        if writer.must_wait:
            writer.wait_writable(LONG)
        order.append(name)
        writer.write(b"x")

    early = [gevent.spawn(write, "early") for _ in range(3)]
    yield_to_hub()
    # The very moment at which there is room and the first of them was woken, but has not run.
    until(lambda: wire.receive_until(10_000) and writer.pending <= LOW_WATER)
    late = gevent.spawn(write, "late")
    gevent.joinall([*early, late], timeout=10, raise_error=True)
    assert order == ["early"] * 3 + ["late"]
    assert filled


def test_who_waits_goes_on_when_half_of_the_bytes_have_left(line: Line) -> None:
    writer, wire = line.writer, line.wire
    filled = line.fill()
    waiter = gevent.spawn(writer.wait_writable, LONG)
    until(lambda: wire.receive_until(10_000) and writer.pending <= HIGH_WATER)
    yield_to_hub()
    assert writer.pending > LOW_WATER  # the kernel takes much less at a time
    assert not waiter.dead
    until(lambda: wire.receive_until(10_000) and writer.pending <= LOW_WATER)
    waiter.get(timeout=30)
    assert filled


class Counting:
    """A socket that records how many buffers it was offered by each call, and may be full."""

    is_full = False

    def __init__(self, sock: RawSocket) -> None:
        self._sock = sock
        self.offered: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: Any) -> int:
        self.offered.append(1)
        if self.is_full:
            raise BlockingIOError(errno.EAGAIN, "full")
        return self._sock.send(data)

    def sendmsg(self, buffers: list[Any]) -> int:
        self.offered.append(len(buffers))
        if self.is_full:
            raise BlockingIOError(errno.EAGAIN, "full")
        return self._sock.sendmsg(buffers)


@pytest.mark.parametrize(
    ("count", "size", "offered"),
    [
        (2, GATHER // 2 - 1, 1),
        (2, GATHER // 2, 2),
        (IOV_MAX, GATHER // IOV_MAX - 1, 1),
        (IOV_MAX, GATHER // IOV_MAX, IOV_MAX),
        (IOV_MAX + 1, GATHER // IOV_MAX, 1),
    ],
)
def test_small_buffers_and_too_many_are_joined(
    line: Line, count: int, size: int, offered: int
) -> None:
    line.writer.close()
    wire = line.wire
    sock = Counting(wire.ours)
    line.writer = Writer(sock, line.on_error)  # type: ignore[arg-type]  # all that it uses of one
    line.writer.write_many([bytes([number % 256]) * size for number in range(count)])
    line.writer.flush()
    assert sock.offered[0] == offered
    expected = b"".join(bytes([number % 256]) * size for number in range(count))
    assert wire.receive_until(count * size) == expected


def stall(line: Line) -> Counting:
    """Give the line a socket that is full until the test says otherwise."""
    line.writer.close()
    sock = Counting(line.wire.ours)
    sock.is_full = True
    line.writer = Writer(sock, line.on_error)  # type: ignore[arg-type]  # all that it uses of one
    return sock


@pytest.mark.parametrize("is_above", [False, True])
def test_a_mebibyte_may_wait_before_greenlets_do(line: Line, is_above: bool) -> None:
    stall(line)
    writer = line.writer
    writer.write(bytes(HIGH_WATER - 1))
    writer.write(b"12" if is_above else b"1")
    assert writer.must_wait  # for a turn of the hub, as much was written
    for _ in range(2):
        if is_above:
            with pytest.raises(TimeoutError):
                writer.wait_writable(Deadline(0))
        else:
            writer.wait_writable(Deadline(0))
        assert writer.must_wait is is_above


def test_who_has_yielded_is_not_overtaken_by_who_came_meanwhile(line: Line) -> None:
    sock = stall(line)
    writer = line.writer
    writer.write(bytes(HIGH_WATER))
    writer.write(b"1")
    order: list[str] = []

    def wait(name: str) -> None:
        writer.wait_writable(LONG)
        order.append(name)

    waiters = [gevent.spawn(wait, name) for name in ("first", "second")]
    for _ in range(3):
        yield_to_hub()
    assert order == []
    sock.is_full = False
    until(lambda: line.wire.receive() is not None and len(order) == 2)
    gevent.joinall(waiters, timeout=30, raise_error=True)
    assert order == ["first", "second"]


@pytest.mark.parametrize("size", [1000, 100_000, 4_000_000])
def test_one_message_a_turn_must_wait_for_a_slow_peer_too(line: Line, size: int) -> None:
    writer = line.writer
    for _ in range(10_000_000 // size):
        if writer.must_wait:
            break
        writer.write(bytes(size))
        yield_to_hub()
    assert HIGH_WATER < writer.pending <= HIGH_WATER + size
    assert writer.must_wait
    with pytest.raises(TimeoutError):
        writer.wait_writable(Deadline(0))


def test_two_buffers_that_are_not_joined_are_counted(line: Line) -> None:
    writer, wire = line.writer, line.wire
    writer.write_many([b"head", bytes(4_000_000)])
    yield_to_hub()
    assert 0 < writer.pending < 4_000_004
    assert len(wire.receive_until(4_000_004)) == 4_000_004
    until(lambda: not writer.pending)


def test_the_deadline_of_one_who_waits_counts_and_nothing_of_it_is_written(line: Line) -> None:
    writer, wire = line.writer, line.wire
    filled = line.fill(2 * HIGH_WATER)  # of which the kernel may still take some
    pending = writer.pending
    with pytest.raises(TimeoutError):
        writer.wait_writable(Deadline(0.02))
    with pytest.raises(TimeoutError):
        writer.wait_writable(Deadline(0))
    assert HIGH_WATER < writer.pending <= pending
    assert writer.must_wait
    assert len(wire.receive_until(filled)) == filled
    until(lambda: not writer.must_wait)


def test_each_switch_of_one_who_waits_may_be_its_last(line: Line) -> None:
    writer, wire = line.writer, line.wire
    total = 0

    def wait() -> None:
        nonlocal total
        total += line.fill()
        get_hub().loop.run_callback(wire.receive, 1 << 18)
        if writer.must_wait:
            writer.wait_writable(LONG)
        total += 6
        writer.write(b"<done>")

    done = 0

    def read() -> None:
        while True:
            wire.receive(50_000)
            gevent.sleep(0)

    reader = gevent.spawn(read)
    for run in interruptions(wait, delays=(0, 1, 2, 3)):
        done += run.raised is None
        # Whoever was killed, another goes on.
        writer.wait_writable(LONG)
    until(lambda: not writer.pending)
    reader.kill()
    assert done
    assert not writer.must_wait
    assert not writer.is_stalled


def test_one_who_is_killed_when_it_was_woken_gives_its_turn_to_the_next(line: Line) -> None:
    writer, wire = line.writer, line.wire
    filled = line.fill()
    first, second = (gevent.spawn(writer.wait_writable, LONG) for _ in range(2))
    yield_to_hub()
    # Killed in the turn in which it is woken, before it runs.
    wire.receive_until(filled - 2 * EARLY_FLUSH)
    first.kill(block=False)
    wire.receive_until(2 * EARLY_FLUSH)
    second.get(timeout=30)
    until(lambda: not writer.must_wait)


def test_after_the_last_one_who_waits_was_killed_nobody_must_wait(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def wait() -> None:
        try:
            line.writer.wait_writable(LONG)
        finally:
            seen.append(line.writer.must_wait)

    def killing(writer: Writer) -> None:
        waiter.kill(block=False)  # before it runs, as it is woken
        wake(writer)

    filled = line.fill()
    waiter = gevent.spawn(wait)
    yield_to_hub()
    wake = Writer._wake_next
    monkeypatch.setattr(Writer, "_wake_next", killing)
    line.wire.receive_until(filled)
    waiter.join(30)
    assert seen == [False]
    assert isinstance(waiter.value, gevent.GreenletExit)


# The end.


def test_close_lets_those_who_wait_go_on_and_forgets_what_has_not_left(line: Line) -> None:
    writer = line.writer
    line.fill()
    waiting = [gevent.spawn(writer.wait_writable, LONG) for _ in range(3)]
    yield_to_hub()
    writer.close()
    writer.close()
    gevent.joinall(waiting, timeout=5, raise_error=True)
    assert writer.pending == 0
    assert not writer.must_wait
    assert not writer.is_stalled
    line.wire.close()
    for _ in range(5):
        yield_to_hub()
    assert not line.errors


def test_what_is_written_after_the_end_is_dropped(line: Line) -> None:
    writer = line.writer
    writer.close()
    sends = writer.sends
    for _ in range(1000):
        writer.write(bytes(10_000))
        writer.write_many([b"a", b"b"])
        writer.write_sealed(b"c")
    yield_to_hub()
    assert writer.pending == 0
    assert writer.sends == sends
    assert not writer.must_wait
    writer.wait_writable(Deadline(0))
    writer.flush()


@pytest.mark.parametrize("is_stalled", [False, True])
def test_an_error_is_reported_once(line: Line, is_stalled: bool) -> None:
    writer = line.writer
    if is_stalled:
        line.fill()
        waiting = gevent.spawn(writer.wait_writable, LONG)
        yield_to_hub()
    line.wire.reset()
    end = monotonic() + 10
    while not line.errors and monotonic() < end:
        writer.write(b"x")
        gevent.sleep(0.001)
    for _ in range(10):
        writer.write(b"x")
        yield_to_hub()
    assert len(line.errors) == 1
    assert isinstance(line.errors[0], ConnectionError)
    if is_stalled:
        waiting.get(timeout=30)


def test_nothing_is_left_of_a_watcher_on_a_closed_descriptor(line: Line) -> None:
    line.fill()
    line.writer.close()
    line.wire.close()
    other = Wire()  # it takes the descriptor of the one before
    try:
        for _ in range(10):
            yield_to_hub()
        assert not other.receive()
    finally:
        other.close()


# Callbacks before the flush.


def test_what_gains_by_waiting_is_written_at_the_end_of_the_turn(line: Line) -> None:
    writer, wire = line.writer, line.wire
    calls: list[int] = []

    def last() -> None:
        calls.append(1)
        writer.write(b"acks ")

    writer.before_flush(last)
    assert wire.receive() == b""
    writer.write(b"1 ")
    writer.write(b"2 ")
    assert wire.receive() == b""
    yield_to_hub()
    assert wire.receive() == b"1 2 acks "
    assert writer.sends == 1
    yield_to_hub()
    assert calls == [1]
    writer.before_flush(last)
    writer.flush()
    assert wire.receive() == b"acks "
    assert calls == [1, 1]


def test_a_callback_can_add_another_one_to_the_same_turn(line: Line) -> None:
    writer, wire = line.writer, line.wire

    def first() -> None:
        writer.write(b"settled ")
        writer.before_flush(lambda: writer.write(b"claim "))

    writer.before_flush(first)
    yield_to_hub()
    assert wire.receive() == b"settled claim "
    assert writer.sends == 1
    writer.before_flush(first)
    writer.flush()
    yield_to_hub()
    assert wire.receive() == b"settled claim "


def test_a_callback_that_fails_ends_the_stream(line: Line, hub_errors: HubErrors) -> None:
    writer, wire = line.writer, line.wire

    def fail() -> None:
        raise LookupError("broken")

    writer.write(b"1 ")
    writer.before_flush(fail)
    writer.write(b"2 ")
    yield_to_hub()
    assert [type(error.value) for error in hub_errors] == [LookupError]
    hub_errors.clear()
    # Nobody knows which answers it was to write: they would be missing for ever.
    (error,) = line.errors
    assert str(error).endswith("sending was interrupted by LookupError('broken')")
    assert wire.receive() == b"1 "
    assert writer.take_unsent() == ([b"2 "], 0)


# Sealing.


def test_what_is_sealed_leaves_in_the_order_of_the_sealing(line: Line) -> None:
    writer, wire = line.writer, line.wire
    records = 0

    def seal(plain: bytes) -> bytes:
        nonlocal records
        records += 1
        return b"[%d:%d]" % (records, len(plain))

    writer.write_sealed(b"[0]")
    assert wire.receive() == b"[0]"
    writer.seal = seal
    writer.write(b"abc")
    writer.write(b"de")
    writer.write(b"fgh")
    yield_to_hub()
    assert wire.receive() == b"[1:3][2:5]"
    assert writer.pending == 0
    assert writer.sends == 3


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_large_is_sealed_part_by_part(line: Line, count: int) -> None:
    writer, wire = line.writer, line.wire
    sizes = []

    def seal(plain: bytes) -> bytes:
        sizes.append(len(plain))
        return plain

    writer.seal = seal
    body = bytes(range(251)) * 40_000
    frames: list[Buffer] = [b"head", memoryview(body)[:1_000_000], b"", b"end", body[1_000_000:]]
    whole = b"".join(frames) * count
    for _ in range(count):
        writer.write_many(list(frames))
    assert writer.is_stalled  # in the midst of it
    assert wire.receive_until(len(whole)) == whole
    until(lambda: not writer.pending)
    assert max(sizes) <= GATHER
    assert len(sizes) < len(whole) // GATHER + 10 * count
    writer.close()
    assert writer.take_unsent()[0] == []


def test_a_send_that_fails_between_two_parts_leaves_all_of_it_unsent(line: Line) -> None:
    line.writer.close()
    sock = Counting(line.wire.ours)
    writer = line.writer = Writer(sock, line.on_error)  # type: ignore[arg-type]  # as above
    parts = 0

    def seal(plain: bytes) -> bytes:
        nonlocal parts
        parts += 1
        if parts == 2:
            line.wire.ours.shutdown(socket.SHUT_RDWR)
        return plain

    writer.seal = seal
    body = bytes(4 * GATHER)
    writer.write_many([b"head", body])
    assert (parts, writer.pending, len(line.errors)) == (2, 0, 1)
    assert writer.take_unsent() == ([b"head", body], 0)


def test_a_record_of_tls_goes_before_plain_text_that_still_waits(line: Line) -> None:
    writer, wire = line.writer, line.wire
    writer.seal = lambda plain: b"<" + plain + b">"
    filled = 0
    while not writer.is_stalled:
        writer.write_sealed(bytes(60_000))
        filled += 60_000
    writer.write(b"plain")
    writer.write_sealed(b"record")
    assert wire.receive_until(filled + 13)[filled:] == b"record<plain>"


def test_a_record_of_tls_for_which_there_is_no_room_waits(line: Line) -> None:
    line.writer.close()
    sock = Counting(line.wire.ours)
    writer = line.writer = Writer(sock, line.on_error)  # type: ignore[arg-type]  # as above
    sock.is_full = True
    writer.write_sealed(b"record")
    assert (writer.pending, writer.is_stalled) == (6, True)
    sock.is_full = False
    assert line.wire.receive_until(6) == b"record"
    until(lambda: not writer.pending)
    assert not writer.is_stalled


def test_a_seal_that_waits_for_input_sends_nothing_yet(line: Line) -> None:
    writer, wire = line.writer, line.wire
    writer.seal = lambda plain: b""
    writer.write(b"abc")
    writer.write(b"abc")
    yield_to_hub()
    assert writer.pending == 0
    writer.write_sealed(b"abcabc")
    assert wire.receive() == b"abcabc"
    assert writer.pending == 0


def test_a_seal_that_fails_ends_the_line(line: Line) -> None:
    def fail(plain: bytes) -> bytes:
        raise OSError(1, "tls is over")

    line.writer.seal = fail
    line.writer.write(b"a")
    line.writer.write(b"b")
    yield_to_hub()
    assert [str(error) for error in line.errors] == ["[Errno 1] tls is over"]
    assert line.writer.pending == 0


def test_the_time_of_the_last_send_is_known(line: Line) -> None:
    before = line.writer.sent_at
    until(lambda: monotonic() > before + 0.01)
    line.writer.write(b"x")
    assert line.writer.sent_at > before + 0.01


MARK = memoryview(b"")


def test_what_has_not_left_can_be_taken_at_the_end(line: Line) -> None:
    writer, wire = line.writer, line.wire
    writer.write(b"first")
    writer.mark(MARK)  # it has left: that is not noted
    writer.write_many([b"se", b"co", b"nd"])
    writer.mark(MARK)
    writer.close()
    assert writer.take_unsent() == ([b"se", b"co", b"nd", MARK], 0)
    assert writer.take_unsent()[0] == []
    assert wire.receive_until(5) == b"first"


@pytest.mark.parametrize("is_sealed", [False, True])
def test_what_has_left_late_is_not_taken_at_the_end(line: Line, is_sealed: bool) -> None:
    writer, wire = line.writer, line.wire
    if is_sealed:
        writer.seal = bytes
    writer.write(bytes(8_000_000))
    assert writer.is_stalled
    wire.receive_until(8_000_000)
    until(lambda: not writer.pending)
    writer.close()
    assert writer.take_unsent()[0] == []


def test_of_what_was_offered_it_is_known_how_much_has_left(line: Line) -> None:
    writer, wire = line.writer, line.wire
    writer.write(b"first")
    yield_to_hub()
    writer.write_many([b"big", memoryview(bytes(8_000_000)), b"end"])
    assert writer.is_stalled
    writer.mark(MARK)
    writer.write(b"behind")
    wire.receive_until(100_000)
    pending = writer.pending
    until(lambda: writer.pending < pending)
    left = 8_000_012 - writer.pending
    writer.close()
    buffers, begun = writer.take_unsent()
    assert begun == left > 100_000
    assert [len(each) for each in buffers] == [3, 8_000_000, 3, 0, 6]
    assert buffers[3] is MARK


def test_marks_alone_are_not_sent(line: Line) -> None:
    writer, wire = line.writer, line.wire
    count = line.fill()
    writer.mark(MARK)
    wire.receive_until(count)
    until(lambda: not writer.pending)
    sends = writer.sends
    yield_to_hub()
    writer.write(b"next")
    assert wire.receive_until(4) == b"next"
    assert writer.sends == sends + 1
    writer.close()
    assert writer.take_unsent()[0] == []


def test_what_is_sealed_has_left_when_the_last_of_its_record_has(line: Line) -> None:
    writer, wire = line.writer, line.wire
    writer.seal = lambda plain: b"<" + plain + b">"
    writer.write(b"first")
    yield_to_hub()
    writer.write(bytes(8_000_000))
    assert writer.is_stalled
    writer.write(b"behind")
    wire.receive_until(100_000)
    writer.close()
    buffers, begun = writer.take_unsent()
    assert begun == 0
    assert [len(each) for each in buffers] == [8_000_000, 6]


# Waiting until all has left.


def test_drain_does_not_switch_while_the_peer_takes_all(line: Line) -> None:
    line.writer.write(b"1 ")
    line.writer.write(b"2 ")
    line.writer.drain(Deadline(0))
    assert line.wire.receive() == b"1 2 "


def test_drain_waits_for_what_was_written_before_it_only(line: Line) -> None:
    written = line.fill()
    drainer = gevent.spawn(line.writer.drain, LONG)
    yield_to_hub()
    behind = line.fill(line.writer.pending + 60_000)
    assert not drainer.ready()
    assert len(line.wire.receive_until(written)) == written
    until(drainer.ready)
    drainer.get()
    assert len(line.wire.receive_until(behind)) == behind


def test_drain_of_a_peer_that_takes_nothing_times_out(line: Line) -> None:
    line.fill()
    with pytest.raises(TimeoutError):
        line.writer.drain(Deadline(0.01))
    drainer = gevent.spawn(line.writer.drain, LONG)
    yield_to_hub()
    drainer.kill()
    drainer = gevent.spawn(line.writer.drain, LONG)
    yield_to_hub()
    line.writer.close()
    drainer.get(timeout=30)  # its caller asks whether the stream is still there


# Signals, whose handlers raise between any two steps.


def all_of(line: Line) -> bytes:
    """What leaves by *line*, up to a mark behind it: the kernel need not deliver at once."""
    received, is_marked = b"", False
    while not received.endswith(b"."):
        received += line.wire.receive()
        if not (is_marked or line.writer.pending):
            with suppress(BlockingIOError):
                is_marked = line.wire.ours.send(b".") == 1
        yield_to_hub()
    return received[:-1]


@pytest.mark.parametrize("written", [0, 1, 2], ids=["first", "second", "third"])
@pytest.mark.parametrize("size", [1, EARLY_FLUSH, GATHER + 1])
@pytest.mark.parametrize("is_sealed", [False, True])
def test_after_a_signal_amid_a_write_all_leaves_or_the_stream_ends(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, written: int, size: int, is_sealed: bool
) -> None:
    monkeypatch.setattr(writer_module, "PACE", 3600.0)
    before, mine, after = b"1" * written, b"2" * size, b"3"
    lines, survivors = [Line(wire)], 0
    if is_sealed:
        lines[0].writer.seal = bytes
    if before:
        lines[0].writer.write(before)
    for raised in signals(lambda: lines[-1].writer.write(mine)):
        line = lines[-1]
        assert raised is None or isinstance(raised, Signal)
        yield_to_hub()
        line.writer.write(after)
        with gevent.Timeout(10):
            received = all_of(line)
        if line.errors:
            assert "sending was interrupted by Signal()" in str(line.errors[0])
        else:
            survivors += 1
            # Nothing is missing but, perhaps, the message of the signal.
            assert received in (before + mine + after, before + after)
            assert line.writer.pending == 0
        line.writer.close()
        lines.append(Line(wire))
        if is_sealed:
            lines[-1].writer.seal = bytes
        if before:
            lines[-1].writer.write(before)
    lines[-1].writer.close()
    assert survivors > 10


@pytest.mark.parametrize("is_full", [False, True], ids=["yields", "waits for room"])
def test_a_signal_amid_a_wait_keeps_no_other_writer_waiting(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    monkeypatch.setattr(writer_module, "PACE", 3600.0)
    line, others = Line(wire), list[Any]()

    def read() -> None:
        while line.writer.pending:
            wire.receive()
            yield_to_hub()

    def wait_amid_a_signal() -> None:
        # Behind those that wait before it, and in front of those that come later.
        line.writer.wait_writable(LONG)

    def prepare() -> None:
        line.writer.write(b"first")
        if is_full:
            line.fill()
            others[:] = [gevent.spawn(line.writer.wait_writable, LONG) for _ in range(2)]
            yield_to_hub()
        else:
            line.writer.write_many([bytes(EARLY_FLUSH)] * 2)
        assert line.writer.must_wait
        gevent.spawn(read)

    prepare()
    for raised in signals(wait_amid_a_signal, between_calls=False):
        assert raised is None or isinstance(raised, Signal)
        others += [gevent.spawn(line.writer.wait_writable, LONG) for _ in range(2)]
        gevent.joinall(others, 30, raise_error=True)
        assert all(each.successful() for each in others)
        if line.errors:
            assert "sending was interrupted by Signal()" in str(line.errors[0])
        line.writer.close()
        line = Line(wire)
        prepare()
    line.writer.close()
    gevent.joinall(others)


def test_a_callback_of_the_end_of_a_turn_that_ends_the_writer(line: Line) -> None:
    called: list[int] = []
    line.writer.before_flush(line.writer.close)
    line.writer.before_flush(lambda: called.append(1))
    yield_to_hub()
    assert called == [1]
    assert line.errors == []


def test_a_signal_amid_the_end_of_a_turn_does_not_stop_the_writer(line: Line) -> None:
    called: list[int] = []
    for raised in signals(lambda: line.writer.before_flush(lambda: None)):
        assert raised is None or isinstance(raised, Signal)
        called.clear()
        line.writer.before_flush(lambda: called.append(1))
        yield_to_hub()
        assert called == [1]


def test_a_message_of_several_buffers_may_leave_before_the_turn_ends(line: Line) -> None:
    writer, wire = line.writer, line.wire
    assert writer.must_wait is False
    writer.write_many([b"at ", b"once"])
    assert (writer.sends, writer.must_wait) == (1, False)
    writer.write_many([bytes(EARLY_FLUSH - 2), b"x"])
    assert (writer.sends, writer.pending, writer.must_wait) == (1, EARLY_FLUSH - 1, False)
    writer.write_many([b"y"])
    assert (writer.sends, writer.must_wait) == (2, True)
    assert wire.receive_until(7 + EARLY_FLUSH)[-2:] == b"xy"


@pytest.mark.parametrize("is_late", [False, True])
def test_who_writes_for_long_lets_others_run(
    line: Line, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    monkeypatch.setattr(writer_module, "PACE", 1.0)
    now = 100.0
    monkeypatch.setattr(writer_module, "monotonic", lambda: now)
    line.writer.write_many([b"1"])
    now += 1.25 if is_late else 1.0
    line.writer.write_many([b"2"])
    assert (line.writer.sends, line.writer.must_wait) == ((2, True) if is_late else (1, False))


def test_what_the_socket_did_not_take_may_be_offered_where_no_hub_runs(line: Line) -> None:
    writer, wire = line.writer, line.wire
    line.fill()
    before = writer.pending
    end = monotonic() + 60
    while writer.pending == before:
        assert monotonic() < end, "nothing is sent again"
        wire.receive()
        writer.resend()  # no switch since then: the write watcher had no turn
