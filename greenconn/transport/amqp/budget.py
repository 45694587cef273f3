"""How many bytes of unbounded consumers wait in this process, and when reading must pause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot

__all__ = ["HARD_LIMIT", "PAUSE_ABOVE", "RESUME_BELOW", "InboxBudget"]

#: Bytes of bodies in inboxes above which the connection stops receiving, and below which it goes on.
PAUSE_ABOVE: Final = 64 * 1024 * 1024
RESUME_BELOW: Final = 32 * 1024 * 1024
#: Bytes at which the connection is closed, since replies that somebody waits for kept it reading.
HARD_LIMIT: Final = 256 * 1024 * 1024


class InboxBudget:
    """The bytes held by consumers that neither acks nor prefetch bound, of one connection.

    Reading pauses above 64 MiB (so that TCP makes the broker wait), but never while a greenlet waits
    for a reply or a confirm on this connection: the answer may be behind the messages.

    Arguments:
        pause, resume: stop and start receiving; they must not switch.
    """

    __slots__ = ("_on_idle", "_pause", "_resume", "held", "is_paused", "waiting")

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        #: Bytes in inboxes.
        self.held = 0
        #: Greenlets that wait for an answer on this connection.
        self.waiting = 0
        self.is_paused = False
        self._pause = pause
        self._resume = resume
        #: Filled when nobody waits any more.
        self._on_idle: list[Slot[None]] = []

    def hold(self, size: int) -> None:
        """Count a body that went into an inbox."""
        self.held += size
        if self.held > PAUSE_ABOVE and not self.waiting and not self.is_paused:
            self.is_paused = True
            self._pause()

    def release(self, size: int) -> None:
        """Count a body that was taken out."""
        self.held -= size
        if self.is_paused and self.held < RESUME_BELOW:
            self._go_on()

    def begin_wait(self) -> None:
        """Somebody waits for an answer from now on."""
        self.waiting += 1
        if self.is_paused:
            self._go_on()

    def end_wait(self) -> None:
        """Somebody waits no more."""
        self.waiting -= 1
        if self._on_idle and not self.waiting:
            for slot in self._on_idle:
                slot.offer(None)

    def wait_idle(self, deadline: Deadline) -> None:
        """Wait until nobody waits for an answer on this connection.  May switch.

        Raises:
            TimeoutError: somebody still did at the deadline.
        """
        while self.waiting:
            slot: Slot[None] = Slot()
            self._on_idle.append(slot)
            try:
                slot.wait(deadline)
            finally:
                self._on_idle.remove(slot)

    @property
    def is_exceeded(self) -> bool:
        """Whether the hard limit is reached."""
        return self.held > HARD_LIMIT

    def end(self) -> None:
        """The connection has ended.  Again: does nothing."""
        self._pause = self._resume = _nothing

    def _go_on(self) -> None:
        self.is_paused = False
        self._resume()


def _nothing() -> None:
    pass
