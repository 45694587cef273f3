"""The store of the ids of messages that were handled, or are."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

__all__ = ["Claim", "IdStore"]


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
