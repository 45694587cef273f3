"""Who holds what, and since when.

A holder is a greenlet, or a tenant: a pool above, which keeps what it took while nobody uses it.  To
the pool below that counts as held, since giving it back and taking it again is half of the cost of a
loan.  But before anybody waits, or another is made, the tenants are asked for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from greenlet import getcurrent, greenlet

__all__ = ["Holders", "Tenants", "sentence"]

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


class Tenant(Protocol):
    """A pool that takes what it lends from another pool."""

    @property
    def kept(self) -> int:
        """How many of those that it took nobody uses."""

    def give_up(self) -> bool:
        """Give back one of these; False when there is none.  Never switches."""

    def holders(self) -> list[tuple[str, float]]:
        """Who uses the others, by name, and for how many seconds."""


class Tenancy(weakref.ref[Any]):
    """A tenant, as the holder of an item."""

    __slots__ = ("item",)

    item: Any


class Tenants:
    """Those of one pool.

    Arguments:
        held: what the pool has lent.
        on_left: called with what a tenant held that was collected.  It is called by the garbage
            collector, in any thread: it must only take a note.
    """

    __slots__ = ("__weakref__", "_held", "_left", "_tenants")

    def __init__(self, held: Holders[Any], on_left: Callable[[Any], object]) -> None:
        def left(tenancy: weakref.ref[Any]) -> None:
            assert isinstance(tenancy, Tenancy)
            on_left(tenancy.item)

        self._held = held
        self._left = left
        self._tenants: list[weakref.ref[Any]] = []

    def cede(self, item: Any, tenant: Tenant) -> None:
        """*tenant* has *item* from now on, whoever had it."""
        tenancy = Tenancy(tenant, self._left)
        tenancy.item = item
        self._held[id(item)] = (item, tenancy, monotonic())
        if tenant not in self.all():
            self._tenants = [weakref.ref(each) for each in (*self.all(), tenant)]

    def all(self) -> list[Any]:
        """Those that there are."""
        return [tenant for each in self._tenants if (tenant := each()) is not None]

    def has(self, item: Any) -> bool:
        """Whether a tenant has *item*, or had it when it was collected."""
        entry = self._held.get(id(item))
        return entry is not None and type(entry[1]) is Tenancy

    def kept(self) -> int:
        """How many items nobody uses."""
        return sum(tenant.kept for tenant in self.all())

    def reclaim(self) -> bool:
        """Have one of them given back; False when there is none.  Never switches."""
        return any(tenant.give_up() for tenant in self.all())

    def holders(self) -> list[tuple[str, float]]:
        """Who uses something, of the pool or of a tenant; who has done so for longest comes first."""
        own = {key: entry for key, entry in self._held.items() if type(entry[1]) is not Tenancy}
        found = Holders(own).oldest_first()
        for tenant in self.all():
            found += tenant.holders()
        return sorted(found, key=lambda entry: -entry[1])
