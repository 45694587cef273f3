"""Delivery tags, as kombu writes them into what it stores."""

from __future__ import annotations

import os
from itertools import count

__all__ = ["TagMaker"]


class TagMaker:
    """Delivery tags that nobody else makes, in the form of kombu's (UUIDs)."""

    __slots__ = ("_numbers", "_prefix")

    def __init__(self) -> None:
        digits = os.urandom(10).hex()
        self._prefix = f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-a{digits[15:18]}-".encode()
        self._numbers = count(int.from_bytes(os.urandom(5), "big"))

    def next(self) -> bytes:
        """The next tag."""
        return b"%b%012x" % (self._prefix, next(self._numbers))
