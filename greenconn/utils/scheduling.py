"""Round-robin scheduling (kombu.utils.scheduling)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from greenconn.importing import symbol_by_name
from greenconn.transport.hooks.channel import FairCycle

__all__ = [
    "CYCLE_ALIASES",
    "FairCycle",
    "cycle_by_name",
    "priority_cycle",
    "round_robin_cycle",
    "sorted_cycle",
]

CYCLE_ALIASES: Final = {
    name: f"{__name__}:{name}_cycle" for name in ("priority", "round_robin", "sorted")
}


class round_robin_cycle:  # noqa: N801 - kombu's name
    """An order in which what was used goes to the end."""

    def __init__(self, it: list[Any] | None = None) -> None:
        self.items: list[Any] = [] if it is None else it

    def update(self, it: Iterable[Any]) -> None:
        """Take other items."""
        self.items[:] = it

    def consume(self, n: int) -> list[Any]:
        """Return the next *n* items; they stay where they are."""
        return self.items[:n]

    def rotate(self, last_used: Any) -> Any:
        """Move an item to the end, if it is there, and return it."""
        if last_used in self.items:
            self.items.remove(last_used)
            self.items.append(last_used)
        return last_used


class priority_cycle(round_robin_cycle):  # noqa: N801 - kombu's name
    """An order that stays: the first item is always asked first."""

    def rotate(self, last_used: Any) -> Any:
        """Do nothing."""


class sorted_cycle(priority_cycle):  # noqa: N801 - kombu's name
    """The first items, in alphabetical order."""

    def consume(self, n: int) -> list[Any]:
        """Return the first *n* items, sorted."""
        return sorted(self.items[:n])


def cycle_by_name(name: Any) -> Any:
    """Return the class of an order by its alias or class path."""
    return symbol_by_name(name, CYCLE_ALIASES)
