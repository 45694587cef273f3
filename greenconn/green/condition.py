"""A condition: greenlets wait until it is notified, and check their predicate again."""

from __future__ import annotations

from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot

__all__ = ["Condition"]


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
