"""The time that marks what is held: the clients', as kombu's programs do it."""

from __future__ import annotations

from time import time
from typing import Final

__all__ = ["mark", "packed_mark"]

_FORMAT: Final = b"%.6f"
#: The same as an argument of a command: it has 17 characters from 2001 to 2286.
_PACKED: Final = b"$17\r\n%.6f\r\n"


def mark() -> bytes:
    """Return the time now, in seconds since 1970, as a score of ``unacked_index``."""
    return _FORMAT % time()


def packed_mark() -> bytes:
    """Return the same as the last argument of a command."""
    return _PACKED % time()
