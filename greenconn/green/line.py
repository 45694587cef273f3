"""A waiting line: first come, first served, and a word to the log when it does not move."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Any, Generic, TypeVar

from gevent import get_hub
from greenlet import getcurrent, greenlet

from greenconn.green.slot import Slot

__all__ = ["Line"]

T = TypeVar("T")


#: A greenlet that waits, and since when if it does so without a timeout.
Waiter = tuple[weakref.ref[greenlet], float | None]


class Line(Generic[T]):
    """Those who wait for things of one kind.

    Arguments:
        patience: seconds; when somebody without a timeout has waited for so long,
        ring: is called in the hub, once until nobody waits any more.  It must not switch.
    """

    __slots__ = ("_has_rung", "_patience", "_ring", "_timer", "waiters")

    def __init__(self, patience: float, ring: Callable[[], object]) -> None:
        #: In the order in which they came.  Who leaves, leaves at once.
        self.waiters: OrderedDict[Slot[T], Waiter] = OrderedDict()
        self._patience = patience
        self._ring = ring
        self._timer: Any = None
        self._has_rung = False

    def enter(self, is_endless: bool) -> Slot[T]:
        """Stand at the end.  The caller's greenlet waits on what is returned, and then leaves.

        Arguments:
            is_endless: it will wait without a timeout.
        """
        slot: Slot[T] = Slot()
        self.waiters[slot] = (weakref.ref(getcurrent()), monotonic() if is_endless else None)
        if is_endless and self._timer is None and not self._has_rung:
            self._start(self._patience)
        return slot

    def leave(self, slot: Slot[T]) -> None:
        """Nobody waits on it any more, whatever became of it."""
        self.waiters.pop(slot, None)
        if not self.waiters:
            self.rest()

    def offer(self, thing: T) -> weakref.ref[greenlet] | None:
        """Give *thing* to the first who takes it and return that one; None: nobody.  Never switches."""
        waiters = self.waiters
        while waiters:
            slot, waiter = waiters.popitem(False)
            if slot.offer(thing):
                return waiter[0]
        return None

    def fail(self, exc: BaseException) -> None:
        """Raise *exc* in all who wait.  Never switches."""
        while self.waiters:
            self.waiters.popitem(last=False)[0].fail(exc)

    def rest(self) -> None:
        """Nobody waits any more: stop the clock."""
        self._has_rung = False
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()

    def _start(self, seconds: float) -> None:
        self._timer = get_hub().loop.timer(seconds, ref=False)
        self._timer.start(self._look)

    def _look(self) -> None:
        # In the hub.  Those with a timeout get an error soon enough.
        self.rest()
        since = next((since for _, since in self.waiters.values() if since is not None), None)
        if since is None:
            return
        left = since + self._patience - monotonic()
        if left > 0.001:
            self._start(left)
        else:
            self._has_rung = True
            self._ring()
