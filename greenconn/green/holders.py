"""The holders of what a pool has lent, and since when they hold it.

A holder is a greenlet, or a sub-pool: a pool above, which keeps what it took while nobody uses it.  To
the pool below that counts as held, since giving it back and taking it again is half of the cost of a
loan.  But before anybody waits, or another is made, the sub-pools are asked for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from greenlet import getcurrent, greenlet

__all__ = ["Holders", "SubPools", "sentence"]

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


class SubPool(Protocol):
    """A pool that takes what it lends from another pool, its parent."""

    @property
    def kept(self) -> int:
        """The number of items that it took and nobody uses."""

    def give_up(self) -> bool:
        """Give back one of these; False when there is none.  Never switches."""

    def holders(self) -> list[tuple[str, float]]:
        """Return who uses the others, by name, and for how many seconds."""


class SubPoolRef(weakref.ref[Any]):
    """A sub-pool, as the holder of an item."""

    __slots__ = ("item",)

    item: Any


class SubPools:
    """Those of one pool.

    Arguments:
        held: what the pool has lent.
        on_left: called with what a sub-pool held that was collected.  It is called by the garbage
            collector, in any thread: it must only take a note.
    """

    __slots__ = ("__weakref__", "_held", "_left", "_sub_pools")

    def __init__(self, held: Holders[Any], on_left: Callable[[Any], object]) -> None:
        def left(held_by: weakref.ref[Any]) -> None:
            assert isinstance(held_by, SubPoolRef)
            on_left(held_by.item)

        self._held = held
        self._left = left
        self._sub_pools: list[weakref.ref[Any]] = []

    def assign(self, item: Any, sub_pool: SubPool) -> None:
        """Make *sub_pool* the holder of *item*, whoever had it."""
        held_by = SubPoolRef(sub_pool, self._left)
        held_by.item = item
        self._held[id(item)] = (item, held_by, monotonic())
        if sub_pool not in self.all():
            self._sub_pools = [weakref.ref(each) for each in (*self.all(), sub_pool)]

    def all(self) -> list[Any]:
        """Return those that there are."""
        return [sub_pool for each in self._sub_pools if (sub_pool := each()) is not None]

    def has(self, item: Any) -> bool:
        """Return whether a sub-pool has *item*, or had it when it was collected."""
        entry = self._held.get(id(item))
        return entry is not None and type(entry[1]) is SubPoolRef

    def kept(self) -> int:
        """Return the number of items that nobody uses."""
        return sum(sub_pool.kept for sub_pool in self.all())

    def reclaim(self) -> bool:
        """Have one of them given back; False when there is none.  Never switches."""
        return any(sub_pool.give_up() for sub_pool in self.all())

    def holders(self) -> list[tuple[str, float]]:
        """Return who uses an item of the pool or of a sub-pool, and for how long; the longest first."""
        own = {key: entry for key, entry in self._held.items() if type(entry[1]) is not SubPoolRef}
        found = Holders(own).oldest_first()
        for sub_pool in self.all():
            found += sub_pool.holders()
        return sorted(found, key=lambda entry: -entry[1])
