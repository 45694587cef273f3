"""A queue that many greenlets take from, in the order in which they came; nobody polls."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Generic, TypeVar

from greenconn.green.deadline import Deadline
from greenconn.green.hub import turn
from greenconn.green.slot import Slot

__all__ = ["Inbox"]

T = TypeVar("T")

#: Items taken without a switch before the clock is looked at, and seconds before the hub gets a turn.
STREAK = 64
PACE = 0.005


class Inbox(Generic[T]):
    """FIFO of items, with FIFO takers.

    ``put`` and ``fail`` may be called from anywhere (the reader, a hub callback) and never switch.
    Invariant: there are waiting takers only while there are no items.
    """

    __slots__ = ("_items", "_streak", "_streak_began", "_takers")

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._takers: deque[Slot[T]] = deque()
        self._streak = 0
        self._streak_began = 0.0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def waiting(self) -> int:
        """How many greenlets wait for an item."""
        return len(self._takers)

    def put(self, item: T) -> None:
        """Append *item*, or hand it to the greenlet that has waited longest."""
        takers = self._takers
        while takers:
            if takers.popleft().offer(item):
                return
        self._items.append(item)

    def put_back(self, item: T) -> None:
        """Put *item* where the next taker finds it first: for a taker that was killed with it."""
        takers = self._takers
        while takers:
            if takers.popleft().offer(item):
                return
        self._items.appendleft(item)

    def fail(self, exc: BaseException) -> None:
        """Raise *exc* once in every greenlet that waits now.  Items stay."""
        takers, self._takers = self._takers, deque()
        for taker in takers:
            taker.fail(exc)

    def clear(self) -> None:
        """Drop all items."""
        self._items.clear()

    def get(self, deadline: Deadline) -> T:
        """Take the oldest item.  May switch.

        Raises:
            TimeoutError: nothing came before the deadline.  The hub had a turn even if that was 0.
        """
        items = self._items
        if items:
            # A consumer that always finds an item never waits: it lets the others run now and then.
            streak = self._streak = self._streak + 1
            if streak >= STREAK:
                self._streak = 0
                now = monotonic()
                if now - self._streak_began > PACE:
                    self._streak_began = now
                    turn()
            if items:
                return items.popleft()
        left = deadline.left()
        if left == 0.0:
            turn()
            if items:
                return items.popleft()
            raise TimeoutError("timed out")
        self._streak = 0
        taker: Slot[T] = Slot()
        self._takers.append(taker)
        try:
            item = taker.wait(deadline)
        except BaseException:
            try:
                self._takers.remove(taker)
            except ValueError:
                # An item was on its way to this greenlet when it was killed: the next one gets it.
                if taker.has_value:
                    self.put_back(taker.value)
            raise
        self._streak_began = monotonic()
        return item
