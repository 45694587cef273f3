"""Progress of a line of requests: greenlets wait until as many as there are now are done.

Requests are done in the order in which they were made, so that a count says which ones are.
"""

from __future__ import annotations

from collections import deque

from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot

__all__ = ["Progress"]


class Progress:
    """The number of requests that are done, and the waiters for some of them.

    For one hub, so there is no lock.
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
