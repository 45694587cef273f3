"""The partitions of an outbox that a relay holds, shared with other relays.

Each row belongs to one of 32 partitions by its key.  A relay publishes the rows of those that it
holds a lease of, so that no two relays publish messages of one key side by side, which would break
their order.  Locks of rows would not do: the second row of a key is free while the first is locked.

The clocks of the machines need not agree.  A relay increments the ``beat`` of its leases; one that has
seen the same owner and beat for the whole length of a lease *by its own clock* may take it, if it is
still unchanged then.  The owner counts from before it asked for the increment, so it stops first.

Each relay has a lease of its own besides, by which the others know that it is there: each is entitled
to an equal part of the partitions, releases what it has beyond that, and takes what is free.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from greenconn.contrib.outbox.envelope import PARTITIONS
from greenconn.contrib.outbox.store import Lease, OutboxStore
from greenconn.identity import uuid

__all__ = ["Partitions"]

#: A lease is renewed so many times in its length, and where that failed, tried so many times.
RENEWALS: Final = 3
TRIES: Final = 10
_NAMES: Final = {f"partition-{number:02}": number for number in range(PARTITIONS)}


class Partitions:
    """The partitions that one relay holds.  Not for two greenlets at once, but for :meth:`left`.

    Arguments:
        store: the database.
        length: seconds that a lease lasts.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, store: OutboxStore, length: float, clock: Callable[[], float] = monotonic
    ) -> None:
        #: Of this relay alone: one that is started again is another one.
        self.owner: Final = uuid()
        self.held: frozenset[int] = frozenset()
        self._presence: Final = f"relay-{self.owner}"
        self._store = store
        self._length = length
        self._clock = clock
        self._valid_until = self._renew_at = clock()
        #: By name: each lease, and since when it is seen unchanged.
        self._seen: dict[str, tuple[Lease, float]] = {}

    def left(self, partition: int) -> float:
        """Return for how many seconds a partition is held yet; 0 if it is not.  Never switches."""
        return max(0.0, self._valid_until - self._clock()) if partition in self.held else 0.0

    @property
    def are_valid(self) -> bool:
        """Whether the leases have not ended."""
        return self._clock() < self._valid_until

    @property
    def renewal_due(self) -> float:
        """Seconds until :meth:`renew` is due, at least 0."""
        return max(0.0, self._renew_at - self._clock())

    def renew(self) -> None:
        """Renew the leases, and see which there are.  May switch."""
        begun = self._clock()
        self._renew_at = begun + self._length / TRIES
        self._store.renew_leases(self.owner)
        self._observe()
        self._renew_at = begun + self._length / RENEWALS
        self._valid_until = begun + self._length

    def rebalance(self) -> None:
        """Take what is free and release what is too much.  May switch.

        Nothing of these partitions may be under way.
        """
        self._complete()
        now = self._clock()
        old = {name for name, (_, since) in self._seen.items() if now - since >= self._length}
        relays = [name for name in self._seen if name not in _NAMES]
        gone = [self._seen[name][0] for name in relays if name in old and name != self._presence]
        if gone:
            self._store.delete_leases(gone)
        entitled = -(-PARTITIONS // (len(relays) - len(gone)))
        surplus = sorted(self.held)[entitled:]
        free = [
            lease
            for name, (lease, _) in sorted(self._seen.items())
            if name in _NAMES and lease.owner != self.owner and (not lease.owner or name in old)
        ]
        wanted = free[: max(0, entitled - len(self.held))]
        if surplus:
            self._store.free_leases([_name_of(each) for each in surplus], self.owner)
        if wanted:
            self._store.take_leases(wanted, self.owner)
        if gone or surplus or wanted:
            # What was taken now is valid for longer than the others; nothing is made of that.
            self._observe()

    def release(self) -> None:
        """Release all partitions: another relay may take them at once.  May switch."""
        self._valid_until = self._clock()
        held, self.held = self.held, frozenset()
        if held:
            self._store.free_leases([_name_of(each) for each in held], self.owner)
        presence = self._seen.pop(self._presence, None)
        if presence is not None:
            self._store.delete_leases([presence[0]])

    def _complete(self) -> None:
        """Insert the leases that are missing: at the very first start, and this relay's own."""
        missing = [Lease(name=name, owner="", beat=0) for name in _NAMES if name not in self._seen]
        if self._presence not in self._seen:
            missing.append(Lease(name=self._presence, owner=self.owner, beat=0))
        if missing:
            self._store.add_leases(missing)
            self._observe()

    def _observe(self) -> None:
        now = self._clock()
        seen = {}
        for lease in self._store.leases():
            former = self._seen.get(lease.name)
            seen[lease.name] = former if former and former[0] == lease else (lease, now)
        self._seen = seen
        self.held = frozenset(
            number
            for name, number in _NAMES.items()
            if name in seen and seen[name][0].owner == self.owner
        )


def _name_of(partition: int) -> str:
    return f"partition-{partition:02}"
