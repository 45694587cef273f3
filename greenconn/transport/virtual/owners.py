"""The names under which links own exclusive queues and consumers, and which of them are over.

What a broker keeps for a link is marked with its owner, and the lease of that owner says how long others
must take it for alive.  Where the link was lost in this very process that is not waited for.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Final

__all__ = ["is_lost", "new_owner", "note_lost"]

#: Owners that are remembered: their leases are over long before so many more have come.
_MOST: Final = 10_000

#: The owners whose links have ended in this process.
_lost: deque[str] = deque(maxlen=_MOST)


def new_owner() -> str:
    """Return a name that no other link has."""
    return os.urandom(8).hex()


def note_lost(owner: str) -> None:
    """Note that the link of *owner* has ended in this process.  Never switches."""
    _lost.append(owner)


def is_lost(owner: str | None) -> bool:
    """Return whether the link of *owner* has ended in this process.  Never switches."""
    return owner is not None and owner in _lost
