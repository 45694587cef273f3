"""Waiting for others: a condition, and the progress of a line of requests."""

from __future__ import annotations

from collections import deque

from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot


class Condition:
    """Wakes all who wait; each looks for itself what has changed.

    For one hub, so there is no lock: a waiter checks its condition in a loop, and nothing
    changes between that check and the call of :meth:`wait`.
    """

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots: dict[Slot[BaseException | None], None] = {}

    def __bool__(self) -> bool:
        """Return whether a greenlet waits."""
        return bool(self._slots)

    def wait(self, deadline: Deadline) -> None:
        """Wait for the next :meth:`wake_all`.  May switch.

        Raises:
            TimeoutError: there was none before the deadline.
            BaseException: what :meth:`wake_all` was given.
        """
        exc = self.outcome(deadline)
        if exc is not None:
            # Each begins with a traceback of its own.
            raise exc.with_traceback(None)

    def outcome(self, deadline: Deadline) -> BaseException | None:
        """Wait as :meth:`wait`, and return the error instead of raising it.  May switch.

        Raises:
            TimeoutError: there was no :meth:`wake_all` before the deadline.
        """
        slot: Slot[BaseException | None] = Slot()
        self._slots[slot] = None
        try:
            return slot.wait(deadline)
        finally:
            self._slots.pop(slot, None)

    def wake_all(self, exc: BaseException | None = None) -> None:
        """Wake all who wait now, with an error if *exc* is one.  Never switches."""
        slots = self._slots
        if slots:
            self._slots = {}
            for slot in slots:
                slot.offer(exc)

    def forget(self) -> None:
        """Forget the waiters in the child of a fork."""
        self._slots = {}


class Progress:
    """The number of requests that are done, and the waiters for some of them.

    Requests are done in the order in which they were made, so that a count says which ones are.  For
    one hub, so there is no lock.
    """

    __slots__ = ("_done", "_waiters")

    def __init__(self) -> None:
        self._done = 0
        #: (how many must be done, who waits for it), in order.
        self._waiters: deque[tuple[int, Slot[None]]] = deque()

    def wait(self, pending: int, deadline: Deadline) -> None:
        """Wait until all that are pending now are done.  May switch; not where there are none.

        Arguments:
            pending: their number.

        Raises:
            TimeoutError: they were not before the deadline.
            BaseException: what :meth:`fail` was given.
        """
        if pending:
            slot: Slot[None] = Slot()
            self._waiters.append((self._done + pending, slot))
            slot.wait(deadline)

    def advance(self, count: int) -> None:
        """Note that so many more are done.  Never switches."""
        self._done += count
        while self._waiters and self._waiters[0][0] <= self._done:
            self._waiters.popleft()[1].offer(None)

    def fail(self, exc: BaseException) -> None:
        """Make all who wait now raise *exc*.  Never switches."""
        waiters, self._waiters = self._waiters, deque()
        for _, slot in waiters:
            slot.fail(exc)
