"""The calls of a database that a relay needs.

Each is a transaction of its own and may block; a relay makes one at a time, always from the same
greenlet or thread.  What a call raises is logged, and the call made again later.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Backlog", "Lease", "OutboxStore", "PendingMessage"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingMessage:
    """A row that was not published yet."""

    id: int
    partition: int
    ordering_key: str | None
    attempts: int
    envelope: str
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A row of the table of leases: a partition and the relay that holds it, or the presence of one."""

    name: str
    owner: str
    """The relay; empty: none."""

    beat: int
    """A number that its owner increments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """The rows of an outbox that were not published."""

    waiting: int
    """All of them."""

    failing: int
    """Those of them that the broker has refused at least once."""

    oldest_ms: int | None
    """The time of the oldest one, in milliseconds since 1970; None without any."""


class OutboxStore(Protocol):
    """The database of an outbox."""

    def pending(self, partitions: Collection[int], now: int, limit: int) -> list[PendingMessage]:
        """Return the first rows of *partitions*, in the order of their ids.

        Rows that are to be tried again later are left out, and all rows of their keys.

        Arguments:
            now: milliseconds since 1970.
        """

    def mark_sent(self, ids: Sequence[int], now: int) -> None:
        """Note that rows were published."""

    def mark_failed(self, id: int, error: str, retry: int) -> None:
        """Note that a row could not be published, and when to try again (milliseconds since 1970)."""

    def prune(self, before: int, limit: int) -> int:
        """Delete at most *limit* rows that were published before; return how many there were."""

    def backlog(self) -> Backlog:
        """Count the rows that were not published."""

    def leases(self) -> list[Lease]:
        """Return all leases."""

    def add_leases(self, leases: Collection[Lease]) -> None:
        """Insert leases; those whose name is there are left as they are."""

    def renew_leases(self, owner: str) -> None:
        """Increment ``beat`` of all leases of *owner*."""

    def take_leases(self, leases: Collection[Lease], owner: str) -> None:
        """Give *owner* those leases that have not changed; their ``beat`` is incremented."""

    def free_leases(self, names: Collection[str], owner: str) -> None:
        """Take leases from *owner*."""

    def delete_leases(self, leases: Collection[Lease]) -> None:
        """Delete those leases that have not changed."""

    def close(self) -> None:
        """Close the connection to the database, if it is the caller's own."""
