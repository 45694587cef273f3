"""Greenlets that wait until something is different."""

from __future__ import annotations

from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot

__all__ = ["Watch"]


class Watch:
    """Wakes all who wait, each time; each of them looks for itself what has changed."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        #: Those who wait; mostly one, for which a list is smallest.
        self._slots: list[Slot[None]] = []

    def announce(self) -> None:
        """Wake all who wait.  Never switches."""
        for slot in self._slots:
            slot.offer(None)

    def wait(self, deadline: Deadline) -> None:
        """Wait for the next announcement.  May switch.

        Raises:
            TimeoutError: there was none before the deadline.
        """
        slot: Slot[None] = Slot()
        self._slots.append(slot)
        try:
            slot.wait(deadline)
        finally:
            self._slots.remove(slot)
