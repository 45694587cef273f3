"""A waiting line: first come, first served, and a word to the log when it does not move."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Any, Generic, TypeVar

from gevent import get_hub
from greenlet import getcurrent

from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot

__all__ = ["Line", "Waiter"]

T = TypeVar("T")


class Waiter(Slot[T]):
    """One who waits, since when, and whether for ever."""

    __slots__ = ("greenlet", "is_endless", "since")

    def __init__(self, is_endless: bool) -> None:
        Slot.__init__(self)
        self.greenlet = weakref.ref(getcurrent())
        self.since = monotonic()
        self.is_endless = is_endless


class Line(Generic[T]):
    """Those who wait for things of one kind.

    Arguments:
        patience: seconds; when somebody without a timeout has waited for so long,
        ring: is called in the hub, once until nobody waits any more.  It must not switch.
    """

    __slots__ = ("_has_rung", "_patience", "_ring", "_timer", "waiters")

    def __init__(self, patience: float, ring: Callable[[], object]) -> None:
        #: In the order in which they came.  Who leaves, leaves at once.
        self.waiters: OrderedDict[Waiter[T], None] = OrderedDict()
        self._patience = patience
        self._ring = ring
        self._timer: Any = None
        self._has_rung = False

    def wait(self, deadline: Deadline, refuse: Callable[[Line[T], T], object]) -> T:
        """Wait for what :meth:`offer` gives.  May switch.

        Arguments:
            refuse: gets this line, and what was given to this greenlet when it is killed before it
                wakes up.

        Raises:
            TimeoutError: nothing came before the deadline.
        """
        waiter: Waiter[T] = Waiter(deadline.at is None)
        waiters = self.waiters
        waiters[waiter] = None
        if self._timer is None and waiter.is_endless and not self._has_rung:
            self._start(self._patience)
        try:
            return waiter.wait(deadline)
        except BaseException:
            waiters.pop(waiter, None)
            if waiter.has_value:
                refuse(self, waiter.value)
            raise
        finally:
            if not waiters:
                self.rest()

    def offer(self, thing: T) -> Waiter[T] | None:
        """Give *thing* to the first who takes it and return that one; None: nobody.  Never switches."""
        waiters = self.waiters
        while waiters:
            waiter = waiters.popitem(False)[0]
            if waiter.offer(thing):
                return waiter
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
        since = next((waiter.since for waiter in self.waiters if waiter.is_endless), None)
        if since is None:
            return
        left = since + self._patience - monotonic()
        if left > 0.001:
            self._start(left)
        else:
            self._has_rung = True
            self._ring()
