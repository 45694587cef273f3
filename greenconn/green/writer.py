"""The sending side of a stream: any greenlet writes, and the end of the hub's turn flushes.

Rules
-----
- ``write`` takes whole messages and never switches, so frames of one message stay together.
- The first write of a hub turn is sent at once; what follows in the same turn leaves in one send when
  the turn ends: when all greenlets that could run have run, before the hub polls.  64 KiB, and what
  5 ms have gathered, are flushed early.
- What the socket does not take waits for a write watcher, whose hub callback sends again: no flusher
  greenlet is needed, since a raw non-blocking send never switches.
- A writer waits *before* its first byte, by ``wait_writable``, if ``must_wait`` is set.
  That is set after an early flush or 5 ms of writing without a switch (so that a loop that only
  publishes lets the others run), and while more than 1 MiB waits for a slow peer.
- Those who wait for a slow peer go on in the order in which they came: one is woken when there is
  room, and wakes the next as it goes.  So whenever somebody waits, either the write watcher is on or
  one who was woken has not run yet.
- An exception may come from outside between any two steps (``KeyboardInterrupt``, a signal handler that
  raises).  The end of the turn is asked for before anything is appended, so what was appended leaves all
  the same; ``pending`` is counted anew by each flush.  While the socket is given something nobody could
  tell how much it has taken: an exception then ends the stream.
"""

from __future__ import annotations

import errno
from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

from gevent import get_hub

from greenconn.green.deadline import Deadline
from greenconn.green.hub import TurnEnd, turn, wake_hub
from greenconn.green.slot import Slot

__all__ = ["HIGH_WATER", "Writer"]

#: Bytes that leave before the turn ends.
EARLY_FLUSH: Final = 64 * 1024
#: Bytes waiting for the peer above which writers wait, and below which they go on.
HIGH_WATER: Final = 1024 * 1024
LOW_WATER: Final = 512 * 1024
#: Seconds of writing without a switch after which the next writing call yields.
PACE: Final = 0.005
#: Above this many bytes buffers are handed to the kernel as they are; below, joining is cheaper.
GATHER: Final = 128 * 1024
IOV_MAX: Final = 512

Buffer = bytes | memoryview

_WOULD_BLOCK: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR})


class Writer:
    """Coalescing writer of one socket.

    Arguments:
        sock: a connected non-blocking socket; not owned.
        on_error: called with the ``OSError`` of a failed send, perhaps in the hub: it must not switch.
        seal: turns plaintext into what goes over the wire (TLS), or None.
    """

    def __init__(
        self,
        sock: RawSocket,
        on_error: Callable[[OSError], None],
        seal: Callable[[bytes], bytes] | None = None,
    ) -> None:
        #: True when a caller in a greenlet has to call ``wait_writable`` before it writes.
        self.must_wait = False
        #: Number of sends, for those who count system calls.
        self.sends = 0
        #: Bytes that have not left.
        self.pending = 0
        #: Time of the last send, on the monotonic clock.
        self.sent_at = monotonic()
        self.seal = seal
        self._sock = sock
        self._on_error = on_error
        loop = get_hub().loop
        self._turn_end = TurnEnd(loop, self._end_turn)
        self._watcher: Any = loop.io(sock.fileno(), 2)
        self._out: list[Buffer] = []  # written, not yet offered to the socket
        self._tail: deque[Buffer] = deque()  # offered; the socket was full.  Not empty = stalled
        # What was offered last and may not have wholly left, as it was written, and how many bytes
        # of it have (of what was sealed nobody can tell before all has).
        self._offered: Sequence[Buffer] = ()
        self._offered_left = 0
        self._unsent: list[Buffer] = []  # after the end
        # Something was sent in this turn of the hub, which will flush at its end.
        self._in_turn = False
        self._turn_began = 0.0
        self._yield_due = False
        self._before_flush: list[Callable[[], None]] = []
        self._waiters: deque[Slot[None]] = deque()
        #: Those who wait until what was offered has left.
        self._drainers: list[Slot[None]] = []
        self._is_waking = False  # a waiter was woken and has not run yet
        self._closed = False

    @property
    def is_stalled(self) -> bool:
        """Whether the peer does not take what we send."""
        return bool(self._tail)

    def write(self, data: Buffer) -> None:
        """Append whole frames.  Never switches."""
        if self._in_turn:
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
        is_first = not self._in_turn
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
        self._in_turn = True
        self._turn_began = monotonic()

    def _flush_early(self) -> None:
        self._flush()
        # What follows before the turn ends is gathered again, not sent piece by piece.
        self._turn_began = monotonic()
        self._yield_due = self.must_wait = not self._closed  # a send that failed may have closed it

    def mark(self, mark: memoryview) -> None:
        """Put *mark* behind what was written last, if that is pending.  Never switches.

        Arguments:
            mark: empty; who takes the unsent finds it by its identity.
        """
        if self.pending:
            self._out.append(mark)

    def write_sealed(self, data: bytes) -> None:
        """Send ciphertext that was made already (a step of a handshake, an alert).  Never switches.

        It goes before what is still plaintext, since its record number is the lower one.
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
        except BaseException as exc:
            self._interrupted(exc)
            raise

    def before_flush(self, callback: Callable[[], None]) -> None:
        """Call *callback* in the hub when this turn ends, just before the flush: it may write.

        For what gains by waiting for the end of the turn: acknowledgements that can be merged.
        """
        if not self._in_turn:
            self._begin_turn()
        self._before_flush.append(callback)

    def wait_writable(self, deadline: Deadline) -> None:
        """Let others run, and wait while too much is pending.  May switch; call before writing.

        Raises:
            TimeoutError: the peer took nothing until the deadline.
        """
        if self._yield_due:
            self._yield_due = False
            # As if it had been woken: who comes meanwhile stands in line behind it, so that writers
            # go on in the order in which they came.
            self._is_waking = True
            try:
                turn()
            finally:
                self._wake_next()
                self._update_must_wait()
            if self.pending > HIGH_WATER and not self._closed:
                self._wait_for_room(deadline, is_first=True)
        elif (self.pending > HIGH_WATER or self._waiters or self._is_waking) and not self._closed:
            self._wait_for_room(deadline)

    def _wait_for_room(self, deadline: Deadline, is_first: bool = False) -> None:
        slot: Slot[None] = Slot()
        if is_first:
            self._waiters.appendleft(slot)
        else:
            self._waiters.append(slot)
        self.must_wait = True
        while True:
            try:
                slot.wait(deadline)
            except BaseException:
                if slot in self._waiters:
                    self._waiters.remove(slot)
                else:
                    self._wake_next()  # it was this one's turn: now it is the next one's
                self._update_must_wait()
                raise
            if self._closed:
                return
            if self.pending <= HIGH_WATER:
                self._wake_next()
                self._update_must_wait()
                return
            # It was filled again meanwhile: first in line once more.
            self._is_waking = False
            slot = Slot()
            self._waiters.appendleft(slot)

    def close(self) -> None:
        """Stop the watcher and forget what has not left.  Never switches.  Again: does nothing."""
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
        """Close in the child of a fork, without waking the waiters, which are the parent's."""
        self._closed = True
        # The watcher goes before its descriptor: libev aborts the process on a closed one.
        self._watcher.stop()
        self._watcher.close()
        self._turn_end.close()
        self._out.clear()
        self._tail.clear()
        self._offered = ()
        self._before_flush.clear()
        self.pending = 0
        self._in_turn = False
        self.must_wait = False

    def take_unsent(self) -> tuple[list[Buffer], int]:
        """After ``close``: what was written and offered last or not at all, as it was written.

        Returns:
            The buffers, marks between them, and how many bytes of those had left.  Once.
        """
        unsent, self._unsent = self._unsent, []
        return unsent, self._offered_left

    def flush(self) -> None:
        """Offer everything to the socket now.  Never switches."""
        try:
            self._run_before_flush()
        except BaseException as exc:
            self._interrupted(exc)
            raise
        self._flush()

    def drain(self, deadline: Deadline) -> None:
        """Wait until the socket has taken what was written by now.  May switch.

        Where the peer takes what we send it does not switch: a flush is enough.

        Raises:
            TimeoutError: the peer took too little until the deadline.
        """
        self.flush()
        # What lies behind a tail is offered when that has left, and may leave a tail of its own.
        for _ in range(2):
            if self._closed or not self._tail:
                return
            slot: Slot[None] = Slot()
            self._drainers.append(slot)
            try:
                slot.wait(deadline)
            finally:
                if slot in self._drainers:
                    self._drainers.remove(slot)

    def resend(self) -> None:
        """Offer what the socket did not take once more, where no hub runs.  Never switches."""
        self._on_writable()

    # In the hub: one non-blocking send, no lock, no wait, no logging, no user code.

    def _end_turn(self) -> None:
        try:
            if self._before_flush:
                self._run_before_flush()
            self._in_turn = False
            if self._yield_due:
                self._yield_due = False
                self._update_must_wait()
            if self._out:
                self._flush()
        except BaseException as exc:
            self._interrupted(exc)
            raise

    def _run_before_flush(self) -> None:
        callbacks, self._before_flush = self._before_flush, []
        for callback in callbacks:
            callback()

    def _flush(self) -> None:
        out = self._out
        if self._closed:
            out.clear()  # nobody takes it any more
            self.pending = 0
            self._in_turn = False
            return
        if self._tail or not out:
            return
        try:
            self._out = []
            self._offered, self._offered_left = out, 0
            if self.seal is not None:
                try:
                    sealed = self.seal(b"".join(out))
                except OSError as exc:
                    self._fail(exc)
                    return
                self.pending = len(sealed)
                buffers: list[Buffer] = [sealed]
            elif len(out) > 1 and (self.pending < GATHER or len(out) > IOV_MAX):
                joined = b"".join(out)
                self.pending = len(joined)
                buffers = [joined]
            else:
                self.pending = len(out[0]) if len(out) == 1 else sum(map(len, out))
                buffers = out
            if not self.pending:
                self._offered = ()  # marks, of what has left
                return
            sent = self._send(buffers)
            if sent < 0:
                return
            self.pending -= sent
            if self.pending:
                self._keep(buffers, sent)
                self._note_left(sent)
            else:
                self._offered = ()
        except BaseException as exc:
            self._interrupted(exc)
            raise

    def _keep(self, buffers: list[Buffer], sent: int) -> None:
        """Keep what the socket did not take and watch for room."""
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
        """Return the number of bytes sent; -1 after an error."""
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
        # The callback wakes others, and this may be the end of the hub's turn.
        wake_hub()
        self._on_error(exc)

    def _interrupted(self, exc: BaseException) -> None:
        """Fail, as an exception came between two steps that belong together."""
        self._fail(
            ConnectionAbortedError(errno.ECONNABORTED, f"sending was interrupted by {exc!r}")
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
            self._is_waking = waiters.popleft().offer(None)

    def _update_must_wait(self) -> None:
        self.must_wait = not self._closed and (
            self._yield_due or self.pending > HIGH_WATER or bool(self._waiters) or self._is_waking
        )


def _is_over(exc: OSError) -> None:
    """Ignore the outcome, as the writer was closed."""
