"""Greenlets that wait for a change."""

from __future__ import annotations

from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot

__all__ = ["Waiters"]


class Waiters:
    """Those who wait until something has changed, and look again then."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots: dict[Slot[BaseException | None], None] = {}

    def wait(self, deadline: Deadline) -> None:
        """Wait for the next change.  May switch.

        Raises:
            TimeoutError: there was none before the deadline.
            BaseException: what :meth:`wake` was given.
        """
        exc = self.news(deadline)
        if exc is not None:
            # Each begins with a traceback of its own.
            raise exc.with_traceback(None)

    def news(self, deadline: Deadline) -> BaseException | None:
        """Wait for the next change, and return what :meth:`wake` was given.  May switch.

        Raises:
            TimeoutError: there was none before the deadline.
        """
        slot: Slot[BaseException | None] = Slot()
        self._slots[slot] = None
        try:
            return slot.wait(deadline)
        finally:
            self._slots.pop(slot, None)

    def wake(self, exc: BaseException | None = None) -> None:
        """Wake all who wait now, with an error if *exc* is one.  Never switches."""
        slots, self._slots = self._slots, {}
        for slot in slots:
            slot.offer(exc)

    def forget(self) -> None:
        """After a fork, in the child: nobody here waits."""
        self._slots = {}
