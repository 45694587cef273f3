"""The store of the ids of messages that were handled, or are; one in the memory of the process."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from greenconn.clocks import CLOCK

__all__ = ["Claim", "IdStore", "MemoryIds"]


class Claim(Enum):
    """The outcome of a claim."""

    NEW = "new"
    """It is the caller's."""

    BUSY = "busy"
    """It is another one's, whose lease has not ended."""

    HANDLED = "handled"
    """It was finished, less than its time to live ago."""


class IdStore(Protocol):
    """A store of ids.  All its methods may switch, and raise what the store raises."""

    def claim(self, id: str, owner: str, lease: float) -> Claim:
        """Claim *id* for *owner*, for *lease* seconds, unless it is known."""

    def renew(self, id: str, owner: str, lease: float) -> bool:
        """Have a claim last for *lease* seconds from now; return False if it is not *owner*'s."""

    def finish(self, id: str, owner: str, ttl: float) -> None:
        """Keep *id* as handled for *ttl* seconds."""

    def release(self, id: str, owner: str) -> None:
        """Forget a claim, if it is *owner*'s."""


class MemoryIds(IdStore):
    """Ids that are forgotten with the process.  None of its methods switches.

    Arguments:
        most: ids that are kept; beyond that, those that were handled first are forgotten first.
        clock: monotonic, in seconds.  None is the clock of the process, or of a test.

    Raises:
        ValueError: *most* is not a positive integer.
    """

    def __init__(self, most: int = 1_000_000, *, clock: Callable[[], float] | None = None) -> None:
        if not isinstance(most, int) or most < 1:
            raise ValueError(f"most must be a positive integer, got {most!r}")
        self._most = most
        self._clock = clock or (lambda: CLOCK.monotonic())
        #: Id -> its owner and the end of its lease.
        self._claims: dict[str, tuple[str, float]] = {}
        #: Id -> the end of its time, in the order in which they were finished.
        self._handled: dict[str, float] = {}

    def claim(self, id: str, owner: str, lease: float) -> Claim:
        """Claim an id."""
        now = self._clock()
        if self._handled.get(id, now) > now:
            return Claim.HANDLED
        if id in self._claims and self._claims[id][1] > now:
            return Claim.BUSY
        self._claims[id] = owner, now + lease
        return Claim.NEW

    def renew(self, id: str, owner: str, lease: float) -> bool:
        """Have a claim last longer."""
        if self._claims.get(id, ("",))[0] != owner:
            return False
        self._claims[id] = owner, self._clock() + lease
        return True

    def finish(self, id: str, owner: str, ttl: float) -> None:
        """Keep an id as handled."""
        now = self._clock()
        self.release(id, owner)
        self._handled.pop(id, None)
        self._handled[id] = now + ttl
        # All of one handler have the same time to live, so those that are over are in front.
        while self._handled:
            first = next(iter(self._handled))
            if len(self._handled) <= self._most and self._handled[first] > now:
                break
            del self._handled[first]

    def release(self, id: str, owner: str) -> None:
        """Forget a claim."""
        if self._claims.get(id, ("",))[0] == owner:
            del self._claims[id]
