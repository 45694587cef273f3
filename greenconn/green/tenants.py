"""Tenants of a pool: pools above it, which keep what they took while nobody uses it.

To the pool that counts as held, since giving it back and taking it again is half of the cost of a
loan.  But before anybody waits, or another is made, the tenants are asked for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from greenconn.green.holders import Holders

__all__ = ["Tenancy", "Tenant", "Tenants"]


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
