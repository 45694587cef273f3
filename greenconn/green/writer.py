"""The sending side of a stream, which any greenlet can write to.

Theory.  Many small writes of one turn of the hub become one send, and a slow peer makes writers wait.
A turn ends when all greenlets that are ready have run, before the hub polls.  The rules:

- ``write`` takes whole messages and never switches, so that the frames of a message stay together.
- The first write of a turn is sent at once.  The rest is buffered and sent when the turn ends, or
  earlier when there are 64 KiB, or 5 ms after the turn began.
- When the socket is full, the rest is sent by a write watcher, in the hub.  This needs no greenlet,
  since a non-blocking send never switches.
- A greenlet waits *before* its first byte: if ``must_wait`` is set it calls ``wait_writable``.  It is
  set when one greenlet alone has written 64 KiB or for 5 ms, so that a loop that only publishes lets
  other greenlets run, and while more than 1 MiB waits for a slow peer.
- Greenlets that write in turn, as those do that wait for their replies, do not set it: they would
  stand in a line that is never empty again, where each write waits for the one before.
- Greenlets wait in the order of arrival.  One is woken when there is room, and wakes the next when it
  continues.  So while a greenlet waits, the write watcher is active or a woken greenlet has not run yet.
- An exception from outside (``KeyboardInterrupt``, a signal handler that raises) can come between any
  two steps.  The end of the turn is scheduled before anything is appended, so what was appended is sent
  anyway; each flush counts ``pending`` anew.  An exception during a send ends the stream, since it is
  unknown how much the socket has accepted; a ``RecursionError`` does so at the end of the turn, as the
  stack of the writer has no room for it.

Cost: a write that is not the first of a turn appends to a list and reads the clock.
"""

from __future__ import annotations

import errno
from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any, Final

from gevent import get_hub
from greenlet import getcurrent

from greenconn.exceptions import error_text
from greenconn.green.deadline import Deadline
from greenconn.green.hub import TurnEnd, wake_hub, yield_to_hub
from greenconn.green.slot import Slot

#: Bytes that are sent before the turn ends.
EARLY_FLUSH: Final = 64 * 1024
#: Pending bytes above which writers wait, and below which they are woken.
HIGH_WATER: Final = 1024 * 1024
LOW_WATER: Final = 512 * 1024
#: Seconds of writing without a switch after which the next writer yields.
PACE: Final = 0.005
#: Bytes above which buffers are passed to the kernel one by one.  Below, joining them is cheaper.
GATHER: Final = 128 * 1024
IOV_MAX: Final = 512

Buffer = bytes | memoryview

_WOULD_BLOCK: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR})


class Writer:
    """The coalescing writer of one socket.

    Arguments:
        sock: a connected non-blocking socket, which the caller closes.
        on_error: called with the ``OSError`` of a failed send, maybe in the hub; it must not switch.
        seal: encrypts plaintext (TLS); None sends it as it is.
    """

    def __init__(
        self,
        sock: RawSocket,
        on_error: Callable[[OSError], None],
        seal: Callable[[bytes], bytes] | None = None,
    ) -> None:
        #: Whether a greenlet must call ``wait_writable`` before it writes.
        self.must_wait = False
        #: Number of system calls, for statistics.
        self.sends = 0
        #: Bytes that were written and not sent yet.
        self.pending = 0
        #: Time of the last send, on the monotonic clock.
        self.sent_at = monotonic()
        self.seal = seal
        self._sock = sock
        self._on_error = on_error
        loop = get_hub().loop
        self._turn_end = TurnEnd(loop, self._end_turn)
        self._watcher: Any = loop.io(sock.fileno(), 2)
        self._out: list[Buffer] = []  # written, not yet passed to the socket
        #: The rest of the last send, as the socket was full.
        self._tail: deque[Buffer] = deque()
        # The plaintext of the last flush while a part of it is unsent, and the number of its bytes
        # that were sent.  With TLS that number is known only when all was sent.
        self._offered: Sequence[Buffer] = ()
        self._offered_left = 0
        self._unsent: list[Buffer] = []  # after close()
        #: Whether this turn has written, so that a flush at its end is scheduled.
        self.in_turn = False
        self._turn_began = 0.0
        #: The greenlet that wrote when the turn began, or at its last early flush.
        self._pacing: Any = None
        self._yield_due = False
        self._before_flush: list[Callable[[], None]] = []
        self._waiters: deque[Slot[None]] = deque()
        #: Greenlets that wait in drain().
        self._drainers: list[Slot[None]] = []
        self._is_waking = False  # whether a woken waiter has not run yet
        self._closed = False

    @property
    def is_stalled(self) -> bool:
        """Whether the socket is full, as the peer does not read."""
        return bool(self._tail)

    def write(self, data: Buffer) -> None:
        """Append whole frames.  Never switches."""
        if self.in_turn:
            self._out.append(data)
            size = self.pending = self.pending + len(data)
            if size >= EARLY_FLUSH or monotonic() - self._turn_began > PACE:
                self._flush_early()
        else:
            self._begin_turn()
            self._out.append(data)
            self.pending += len(data)
            self._flush()

    def write_many(self, buffers: list[Buffer]) -> None:
        """Append one message that is made of several buffers, in one step.  Never switches."""
        is_first = not self.in_turn
        if is_first:
            self._begin_turn()
        self._out.extend(buffers)
        self.pending += sum(map(len, buffers))
        if is_first:
            self._flush()
        elif self.pending >= EARLY_FLUSH or monotonic() - self._turn_began > PACE:
            self._flush_early()

    def _begin_turn(self) -> None:
        self._turn_end.call()
        self.in_turn = True
        self._turn_began = monotonic()
        self._pacing = getcurrent()

    def _flush_early(self) -> None:
        self._flush()
        # Later writes of this turn are buffered again.
        self._turn_began = monotonic()
        writing = getcurrent()
        if writing is self._pacing:
            self._yield_due = self.must_wait = not self._closed  # a failed send closes it
        else:
            self._pacing = writing  # it has written only a part of that

    def mark(self, mark: memoryview) -> None:
        """Append *mark* to the buffers, if anything is pending.  Never switches.

        Arguments:
            mark: an empty buffer, to be found by its identity in the result of ``take_unsent``.
        """
        if self.pending:
            self._out.append(mark)

    def write_sealed(self, data: bytes) -> None:
        """Send ciphertext of the TLS layer (a step of the handshake, an alert).  Never switches.

        It precedes the buffered plaintext, whose TLS records will have higher numbers.
        """
        if self._closed or not data:
            return
        self.pending += len(data)
        if self._tail:
            self._tail.append(data)
            return
        try:
            sent = self._send([data])
            if sent >= 0:
                self.pending -= sent
                if sent < len(data):
                    self._keep([data], sent)
        except RecursionError:
            raise  # as for a flush
        except BaseException as exc:
            self._interrupted(exc)
            raise

    def before_flush(self, callback: Callable[[], None]) -> None:
        """Call *callback* in the hub when this turn ends, before the flush.  Never switches.

        The callback may write.  It serves to merge frames of one turn, as acks.
        """
        if not self.in_turn:
            self._begin_turn()
        self._before_flush.append(callback)

    def wait_writable(self, deadline: Deadline) -> None:
        """Yield, or wait for a slow peer.  May switch; call before writing, if :attr:`must_wait`.

        Raises:
            TimeoutError: the peer did not read enough until the deadline.
        """
        if self._yield_due:
            self._yield_due = False
            try:
                # Count this greenlet as woken, so that later ones queue behind it.
                self._is_waking = True
                yield_to_hub()
            finally:
                try:
                    self._wake_next()
                    self._update_must_wait()
                except BaseException as exc:
                    self._interrupted(exc)
                    raise
            if self.pending > HIGH_WATER and not self._closed:
                self._wait_for_room(deadline, is_first=True)
        elif (self.pending > HIGH_WATER or self._waiters or self._is_waking) and not self._closed:
            self._wait_for_room(deadline)

    def _wait_for_room(self, deadline: Deadline, is_first: bool = False) -> None:
        """Wait in the line of writers until the buffer has room.  May switch."""
        slot: Slot[None] = Slot()
        try:
            if is_first:
                self._waiters.appendleft(slot)
            else:
                self._waiters.append(slot)
            self.must_wait = True
            slot.wait(deadline)
            while self.pending > HIGH_WATER and not self._closed:
                # Other writes have filled the buffer before this greenlet ran: wait again, in front.
                self._is_waking = False
                slot = Slot()
                self._waiters.appendleft(slot)
                slot.wait(deadline)
        finally:
            try:
                if slot.is_filled:
                    self._wake_next()
                elif slot in self._waiters:
                    self._waiters.remove(slot)  # killed, or out of time
                self._update_must_wait()
            except BaseException as exc:
                self._interrupted(exc)
                raise

    def close(self) -> None:
        """Stop sending and keep the unsent buffers.  Never switches.  A second call does nothing."""
        if self._closed:
            return
        self._unsent = [*self._offered, *self._out]
        self._on_error = _is_over
        self.forget()
        waiters, self._waiters = self._waiters, deque()
        for slot in waiters:
            slot.offer(None)
        self._wake_drainers()

    def forget(self) -> None:
        """Close in the child of a fork, without waking the waiters of the parent process."""
        self._closed = True
        # Before the descriptor is closed: libev aborts the process on a closed one.
        self._watcher.close()
        self._turn_end.close()
        self._out.clear()
        self._tail.clear()
        self._offered = ()
        self._before_flush = []  # a new one, as the end of the turn may be amid the former
        self.pending = 0
        self.in_turn = False
        self._pacing = None
        self.must_wait = False

    def take_unsent(self) -> tuple[list[Buffer], int]:
        """Take and return what was unsent when the writer was closed.

        Returns:
            The buffers of the last flush, if not all was sent, and those after it, as they were
            written, with the marks; and the number of their bytes that were sent.
        """
        unsent, self._unsent = self._unsent, []
        return unsent, self._offered_left

    def flush(self) -> bool:
        """Pass everything to the socket now.  Never switches.

        Returns:
            Whether the socket has taken it, or nothing is sent any more.
        """
        try:
            self._run_before_flush()
        except RecursionError:
            raise  # the callbacks are left for the end of the turn
        except BaseException as exc:
            self._interrupted(exc)
            raise
        self._flush()
        return not (self._tail or self._offered)

    def drain(self, deadline: Deadline) -> None:
        """Wait until the socket has accepted all that was written so far.  Switches if it is full.

        Raises:
            TimeoutError: the peer did not read enough until the deadline.
        """
        self.flush()
        # Buffers behind a tail are sent after it, and may leave a tail again.
        for _ in range(2):
            if self._closed or not (self._tail or self._offered):
                return
            slot: Slot[None] = Slot()
            self._drainers.append(slot)
            try:
                slot.wait(deadline)
            finally:
                if slot in self._drainers:
                    self._drainers.remove(slot)

    def resend(self) -> None:
        """Send the tail again, where no hub runs.  Never switches."""
        self._on_writable()

    # In the hub: one non-blocking send, no lock, no wait, no logging, no user code.

    def _end_turn(self) -> None:
        """Send what was written in this turn of the hub.  In the hub."""
        try:
            # Also what a callback adds: the turn has no second end for it.
            self._run_before_flush()
            self.in_turn = False
            self._pacing = None  # it may have ended
            if self._yield_due:
                self._yield_due = False
                self._update_must_wait()
            if self._out or self._offered:
                self._flush()
        except BaseException as exc:
            self._interrupted(exc)
            raise

    def _run_before_flush(self) -> None:
        callbacks = self._before_flush
        while callbacks:
            callbacks[0]()
            del callbacks[0]  # not before: where the stack is full, it is for the end of the turn

    def _flush(self) -> None:
        """Send what is written, in one system call; the rest stays.  Never switches."""
        out = self._out
        if self._closed:
            out.clear()
            self.pending = 0
            self.in_turn = False
            return
        if self._tail:
            self._update_must_wait()  # also for one message a turn
            return
        if self._offered:
            # A send found a full stack: it is unknown how much the socket has accepted.  The end of
            # the turn, which has room for that, ends the stream.
            if not self.in_turn:
                self._fail(ConnectionAbortedError(errno.ECONNABORTED, "sending was interrupted"))
            return
        if not out:
            return
        try:
            self._out = []
            self._offered, self._offered_left = out, 0
            if self.seal is not None:
                self._seal_and_send(out, self.seal)
                return
            if len(out) == 1:
                buffers = out
                self.pending = len(out[0])
            elif self.pending < GATHER or len(out) > IOV_MAX:
                joined = b"".join(out)
                self.pending = len(joined)
                buffers = [joined]
            else:
                self.pending = sum(map(len, out))
                buffers = out
            if not self.pending:
                self._offered = ()  # only marks
                return
            sent = self._send(buffers)
            if sent < 0:
                return
            self.pending -= sent
            if self.pending:
                self._keep(buffers, sent)
                self._note_left(sent)
                self._update_must_wait()
            else:
                self._offered = ()
        except RecursionError:
            raise  # the end of the turn ends the stream: here is no room for that
        except BaseException as exc:
            self._interrupted(exc)
            raise

    def _seal_and_send(self, out: list[Buffer], seal: Callable[[bytes], bytes]) -> None:
        """Encrypt *out* and send it, part by part; what the full socket does not take is the tail."""
        parts = [b"".join(out)] if self.pending <= GATHER else _parts(out)
        self.pending = 0
        for part in parts:
            try:
                sealed = seal(part)
            except OSError as exc:
                self._fail(exc)
                return
            self.write_sealed(sealed)
            if self._closed:
                return
        self._note_left(0)
        if self._tail:
            self._update_must_wait()

    def _keep(self, buffers: list[Buffer], sent: int) -> None:
        """Keep the part of *buffers* that was not sent, and watch for room."""
        tail = self._tail
        for buffer in buffers:
            length = len(buffer)
            if sent >= length:
                sent -= length
            elif sent:
                tail.append(memoryview(buffer)[sent:])
                sent = 0
            else:
                tail.append(buffer)
        if not self._watcher.active:
            self._watcher.start(self._on_writable)

    def _note_left(self, sent: int) -> None:
        if not self._tail:
            self._offered = ()
        elif self.seal is None:
            self._offered_left += sent

    def _send(self, buffers: list[Buffer]) -> int:
        """Return the number of bytes sent; -1 for an error, which was reported."""
        self.sends += 1
        try:
            if len(buffers) == 1:
                sent = self._sock.send(buffers[0])
            else:
                sent = self._sock.sendmsg(buffers[:IOV_MAX])
        except OSError as exc:
            if exc.errno in _WOULD_BLOCK:
                return 0
            self._fail(exc)
            return -1
        self.sent_at = monotonic()
        return sent

    def _fail(self, exc: OSError) -> None:
        # The callback wakes greenlets, and without this the hub might poll first.
        wake_hub()
        self._on_error(exc)

    def _interrupted(self, exc: BaseException) -> None:
        """End the stream, as an exception interrupted a step that must not be interrupted."""
        self._fail(
            ConnectionAbortedError(
                errno.ECONNABORTED, f"sending was interrupted by {error_text(exc, repr)}"
            )
        )

    def _on_writable(self) -> None:
        try:
            tail = self._tail
            if tail:
                buffers = list(tail)
                sent = self._send(buffers)
                if sent < 0:
                    return
                self.pending -= sent
                tail.clear()
                self._keep(buffers, sent)
                self._note_left(sent)
            if not tail:
                self._watcher.stop()
                self._flush()
                if self._drainers:
                    self._wake_drainers()
            if self.pending <= LOW_WATER and not self._is_waking:
                self._wake_next()
            self._update_must_wait()
        except BaseException as exc:
            self._interrupted(exc)
            raise

    def _wake_drainers(self) -> None:
        drainers, self._drainers = self._drainers, []
        for slot in drainers:
            slot.offer(None)

    def _wake_next(self) -> None:
        self._is_waking = False
        waiters = self._waiters
        while waiters and self.pending <= HIGH_WATER and not self._is_waking:
            # Left in the line until it is awake: one that a signal keeps asleep is found again.
            self._is_waking = waiters[0].offer(None)
            waiters.popleft()

    def _update_must_wait(self) -> None:
        self.must_wait = not self._closed and (
            self._yield_due or self.pending > HIGH_WATER or bool(self._waiters) or self._is_waking
        )


def _parts(buffers: list[Buffer]) -> Iterator[bytes]:
    """Join *buffers* to parts of ``GATHER`` bytes at most: what is encrypted stays in the cache."""
    pieces: list[memoryview] = []
    size = 0
    for buffer in buffers:
        for begin in range(0, len(buffer), GATHER):
            piece = memoryview(buffer)[begin : begin + GATHER]
            if size + len(piece) > GATHER:
                yield b"".join(pieces)
                pieces, size = [], 0
            pieces.append(piece)
            size += len(piece)
    yield b"".join(pieces)


def _is_over(exc: OSError) -> None:
    """Ignore the outcome, as the writer was closed."""
