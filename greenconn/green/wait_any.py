"""Waiting for whichever of several inboxes has an item first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.inbox import Inbox
from greenconn.green.slot import Slot

__all__ = ["take_any"]

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
