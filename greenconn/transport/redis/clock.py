"""The time that marks what is held: the clients', as kombu's programs do it."""

from __future__ import annotations

from time import time
from typing import Final

from greenconn.wire.resp import bulk

__all__ = ["mark", "packed_mark"]

_FORMAT: Final = b"%.6f"


def mark() -> bytes:
    """Return the time now, in seconds since 1970, as a score of ``unacked_index``."""
    return _FORMAT % time()


def packed_mark() -> bytes:
    """Return the same as the last argument of a command."""
    return bulk(_FORMAT % time())
