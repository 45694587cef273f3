"""A queue from which many greenlets take, in the order of their arrival, without polling.

Theory
------
A reader or a callback of the hub puts items in; greenlets take them.  Between the moment at which a
waiting greenlet is given an item and the moment at which it runs, it may be killed or time out, and
another greenlet may find the inbox not empty.  No item may be lost, and items are begun in their
order.

- An item is handed to the taker that has waited longest, at once; only without takers is it stored.
  So takers wait only while there are no items.
- ``_handed`` lists the takers that have an item and have not run yet, in the order of their items.
- A taker that is killed passes its item on: the item takes the place of the next handed one, that one
  of the one behind it, and the last goes to a waiting taker or to the front of the stored items.
- A greenlet that finds a stored item while others were handed older ones gets the oldest of all; each
  taker that was handed an item gets the next one instead.

``put``, ``put_back``, ``fail`` and ``clear`` never switch.  ``get`` may; a greenlet that always finds
an item gives the hub a turn now and then (``STREAK``, ``PACE``).
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from time import monotonic
from typing import Generic, Protocol, TypeVar

from greenconn.green.deadline import Deadline
from greenconn.green.hub import turn
from greenconn.green.slot import Slot

__all__ = ["Inbox", "Taker"]

T = TypeVar("T")

#: Items taken without a switch before the clock is looked at, and seconds before the hub gets a turn.
STREAK = 64
PACE = 0.005


class Taker(Protocol[T]):
    """A waiter of an inbox: a slot, or an object that passes items on to one.  Nothing here switches."""

    def offer(self, item: T, /) -> bool:
        """Accept *item*; return False if the waiter has left."""
        ...

    def exchange(self, item: T, /) -> T:
        """Take *item* instead of the one that was offered, and give that back."""
        ...

    def fail(self, exc: BaseException, /) -> bool:
        """Make the waiter raise *exc*."""
        ...


class Inbox(Generic[T]):
    """FIFO of items, with FIFO takers.

    ``put`` and ``fail`` may be called from anywhere (the reader, a hub callback) and never switch.
    An item is assigned to a taker before the taker runs.  The greenlet that runs first takes the oldest
    item: if a taker is killed before it runs, or another finds a newer item, the assigned items are
    moved up or down, so that items are begun in their order.
    Invariant: there are waiting takers only while there are no items.
    """

    __slots__ = ("_handed", "_items", "_streak", "_streak_began", "_takers")

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._takers: deque[Taker[T]] = deque()
        #: Takers that have an item but have not run yet, in the order of their items.
        self._handed: deque[Taker[T]] = deque()
        self._streak = 0
        self._streak_began = 0.0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def waiting(self) -> int:
        """The number of greenlets that wait for an item."""
        return len(self._takers)

    def put(self, item: T) -> None:
        """Append *item*, or hand it to the greenlet that has waited longest."""
        if not self._takers or not self._hand_over(item):
            self._items.append(item)

    def put_back(self, item: T) -> None:
        """Put *item*, which was taken but not used, where it comes before all others."""
        self._shift(item, 0)

    def _hand_over(self, item: T) -> bool:
        takers = self._takers
        while takers:
            taker = takers.popleft()
            if taker.offer(item):
                self._handed.append(taker)
                return True
        return False

    def _shift(self, item: T, start: int) -> None:
        for taker in islice(self._handed, start, None):
            item = taker.exchange(item)
        if not self._hand_over(item):
            self._items.appendleft(item)

    def fail(self, exc: BaseException) -> None:
        """Raise *exc* once in every greenlet that waits now.  Items stay."""
        takers, self._takers = self._takers, deque()
        for taker in takers:
            taker.fail(exc)

    def clear(self) -> list[T]:
        """Drop all items, and return them."""
        dropped = list(self._items)
        self._items.clear()
        return dropped

    def add_taker(self, taker: Taker[T]) -> None:
        """Let *taker* wait for an item; ``remove_taker`` or ``pass_on`` must follow."""
        self._takers.append(taker)

    def remove_taker(self, taker: Taker[T]) -> None:
        """Take *taker* out of the line: it has its item, or does not wait any more."""
        if taker in self._handed:
            self._handed.remove(taker)
        elif taker in self._takers:
            self._takers.remove(taker)

    def pass_on(self, taker: Taker[T], item: T) -> None:
        """Take *taker* out of the line: it was killed before it could use the *item* handed to it."""
        place = self._handed.index(taker)
        del self._handed[place]
        self._shift(item, place)

    def _take(self) -> T:
        item = self._items.popleft()
        for taker in reversed(self._handed):
            item = taker.exchange(item)
        return item

    def get(self, timeout: float | Deadline | None) -> T:
        """Take the oldest item.  May switch.

        Arguments:
            timeout: seconds, or a deadline that runs already; None waits.

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
                return self._take() if self._handed else items.popleft()
        # Made only now: one who finds an item has no use for it.
        deadline = Deadline.of(timeout)
        if deadline.left() == 0.0:
            turn()
            if items:
                return self._take()
            raise TimeoutError("timed out")
        self._streak = 0
        taker: Slot[T] = Slot()
        self.add_taker(taker)
        try:
            item = taker.wait(deadline)
        except BaseException:
            if taker.has_value:
                self.pass_on(taker, taker.value)
            else:
                self.remove_taker(taker)
            raise
        self.remove_taker(taker)
        self._streak_began = monotonic()
        return item
