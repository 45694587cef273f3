"""Who holds what, and since when."""

from __future__ import annotations

import weakref
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from greenlet import getcurrent, greenlet

__all__ = ["Holders", "sentence"]

T = TypeVar("T")

#: Holders that a message names.
NAMED: Final = 10


class Holders(dict[int, tuple[T, weakref.ref[greenlet], float]], Generic[T]):
    """Things by identity (they may be equal, or not hashable), with their holder and the time.

    A greenlet is referred to weakly: one that nothing else refers to may still be collected.
    """

    def hold(self, item: T, holder: weakref.ref[greenlet] | None = None) -> T:
        """Note that *holder*, by default the caller's greenlet, has *item* from now on."""
        self[id(item)] = (item, holder or weakref.ref(getcurrent()), monotonic())
        return item

    def exchange(self, item: T, other: T) -> bool:
        """Take it that the holder of *item* has had *other* all the time; False when nobody has it."""
        entry = self.pop(id(item), None)
        if entry is None:
            return False
        self[id(other)] = (other, *entry[1:])
        return True

    def held(self) -> list[T]:
        """All things held."""
        return [item for item, _, _ in self.values()]

    def oldest_first(self) -> list[tuple[str, float]]:
        """The names of the holders, and for how many seconds they have been."""
        now = monotonic()
        found = [(_name(holder()), now - since) for _, holder, since in self.values()]
        return sorted(found, key=lambda entry: -entry[1])

    def of(self, item: T) -> list[tuple[str, float]]:
        """The name of the holder of *item*, and for how many seconds it has been; empty for none."""
        entry = self.get(id(item))
        return [] if entry is None else [(_name(entry[1]()), monotonic() - entry[2])]


def sentence(entries: list[tuple[str, float]]) -> str:
    """``held by 'a' for 3.1 s, 'b' for 0.2 s``; empty when nothing is held."""
    if not entries:
        return ""
    named = [f"{name!r} for {age:.1f} s" for name, age in entries[:NAMED]]
    more = f" and {len(entries) - NAMED} more" if len(entries) > NAMED else ""
    return f"held by {', '.join(named)}{more}"


def _name(holder: Any) -> str:
    if holder is None or getattr(holder, "dead", False):
        return "a greenlet that has ended"
    if holder.parent is None:
        return "main"
    return str(getattr(holder, "name", None) or f"greenlet-{id(holder):x}")
