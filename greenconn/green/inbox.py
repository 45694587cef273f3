"""A queue from which many greenlets take, in the order of their arrival, without polling.

Theory
------
A reader or a callback of the hub puts items in; greenlets take them.  Between the moment at which a
waiting greenlet is given an item and the moment at which it runs, it may be killed or time out, and
another greenlet may find the inbox not empty.  No item may be lost, and items are begun in their
order.

- An item is handed to the receiver that has waited longest, at once; it is stored only without
  receivers.  So receivers wait only while there are no items.
- ``_handed`` lists the receivers that have an item and have not run yet, in the order of their items.
- A receiver that is killed passes its item on: the item takes the place of the next handed one, that one
  of the one behind it, and the last goes to a waiting receiver or to the front of the stored items.
- A greenlet that finds a stored item while others were handed older ones gets the oldest of all; each
  receiver that was handed an item gets the next one instead.

``put``, ``put_back``, ``fail`` and ``clear`` never switch.  ``get`` may; a greenlet that always finds
an item gives the hub a turn now and then (``STREAK``, ``PACE``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.slot import Slot

T = TypeVar("T")

#: Items taken without a switch before the clock is looked at, and seconds before the hub gets a turn.
STREAK = 64
PACE = 0.005


class Receiver(Protocol[T]):
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
    """FIFO of items, with FIFO receivers.

    ``put`` and ``fail`` may be called from anywhere (the reader, a hub callback) and never switch.
    An item is assigned to a receiver before that runs.  The greenlet that runs first takes the
    oldest item: if a receiver is killed before it runs, or another finds a newer item, the assigned
    items are moved up or down, so that items are begun in their order.
    Invariant: there are waiting receivers only while there are no items.
    """

    __slots__ = ("_handed", "_items", "_receivers", "_streak", "_streak_began")

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._receivers: deque[Receiver[T]] = deque()
        #: Receivers that have an item but have not run yet, in the order of their items.
        self._handed: deque[Receiver[T]] = deque()
        self._streak = 0
        self._streak_began = 0.0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def waiting(self) -> int:
        """The number of greenlets that wait for an item."""
        return len(self._receivers)

    def put(self, item: T) -> None:
        """Append *item*, or hand it to the greenlet that has waited longest."""
        if not self._receivers or not self._hand_over(item):
            self._items.append(item)

    def put_back(self, item: T) -> None:
        """Put *item*, which was taken but not used, where it comes before all others."""
        self._shift(item, 0)

    def _hand_over(self, item: T) -> bool:
        receivers = self._receivers
        while receivers:
            receiver = receivers.popleft()
            if receiver.offer(item):
                self._handed.append(receiver)
                return True
        return False

    def _shift(self, item: T, start: int) -> None:
        for receiver in islice(self._handed, start, None):
            item = receiver.exchange(item)
        if not self._hand_over(item):
            self._items.appendleft(item)

    def fail(self, exc: BaseException) -> None:
        """Raise *exc* once in every greenlet that waits now.  Items stay."""
        receivers, self._receivers = self._receivers, deque()
        for receiver in receivers:
            receiver.fail(exc)

    def clear(self) -> list[T]:
        """Drop all items, and return them."""
        dropped = list(self._items)
        self._items.clear()
        return dropped

    def add_receiver(self, receiver: Receiver[T]) -> None:
        """Let *receiver* wait for an item; ``remove_receiver`` or ``pass_on`` must follow."""
        self._receivers.append(receiver)

    def remove_receiver(self, receiver: Receiver[T]) -> None:
        """Take *receiver* out of the line: it has its item, or does not wait any more."""
        if receiver in self._handed:
            self._handed.remove(receiver)
        elif receiver in self._receivers:
            self._receivers.remove(receiver)

    def pass_on(self, receiver: Receiver[T], item: T) -> None:
        """Take *receiver* out of the line: it was killed before it could use the *item* handed to it."""
        place = self._handed.index(receiver)
        del self._handed[place]
        self._shift(item, place)

    def _take(self) -> T:
        item = self._items.popleft()
        for receiver in reversed(self._handed):
            item = receiver.exchange(item)
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
                    yield_to_hub()
            if items:
                return self._take() if self._handed else items.popleft()
        # Made only now: one who finds an item has no use for it.
        deadline = Deadline.of(timeout)
        if deadline.left() == 0.0:
            yield_to_hub()
            if items:
                return self._take()
            raise TimeoutError("timed out")
        self._streak = 0
        receiver: Slot[T] = Slot()
        self.add_receiver(receiver)
        try:
            item = receiver.wait(deadline)
        except BaseException:
            if receiver.has_value:
                self.pass_on(receiver, receiver.value)
            else:
                self.remove_receiver(receiver)
            raise
        self.remove_receiver(receiver)
        self._streak_began = monotonic()
        return item


TakenItem = tuple[Inbox[Any], Any]


class _Waiter:
    """Stands in the line of receivers of one inbox for a slot that stands in several lines."""

    __slots__ = ("_inbox", "_slot")

    def __init__(self, inbox: Inbox[Any], slot: Slot[TakenItem]) -> None:
        self._inbox = inbox
        self._slot = slot

    def offer(self, item: Any) -> bool:
        return self._slot.offer((self._inbox, item))

    def exchange(self, item: Any) -> Any:
        return self._slot.exchange((self._inbox, item))[1]

    def fail(self, exc: BaseException) -> bool:
        return self._slot.fail(exc)


def take_any(inboxes: Iterable[Inbox[Any]], deadline: Deadline) -> TakenItem:
    """Take one item, and tell from which inbox.  May switch.

    Where several have items the first of them is taken from.  Receivers of one inbox are served in the
    order in which they came, whatever else they wait for.

    Raises:
        TimeoutError: nothing came before the deadline.  The hub had a turn even if that was 0.
        BaseException: what one of the inboxes was failed with.
    """
    inboxes = list(inboxes)
    for inbox in inboxes:
        if len(inbox):
            return inbox, inbox.get(deadline)
    if deadline.left() == 0.0:
        yield_to_hub()
        for inbox in inboxes:
            if len(inbox):
                return inbox, inbox.get(deadline)
        raise TimeoutError("timed out")
    slot: Slot[TakenItem] = Slot()
    doors = {inbox: _Waiter(inbox, slot) for inbox in inboxes}
    for inbox, door in doors.items():
        inbox.add_receiver(door)
    try:
        return slot.wait(deadline)
    except BaseException:
        if slot.has_value:
            # It was on its way to this greenlet when it was killed: the next one gets it.
            inbox, item = slot.value
            inbox.pass_on(doors.pop(inbox), item)
        raise
    finally:
        for inbox, door in doors.items():
            inbox.remove_receiver(door)
