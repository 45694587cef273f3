"""Names that are made up or checked: queues, delivery tags, and the owners of exclusive queues.

A broker marks exclusive queues and consumers with the owner, a link, and the lease of that owner says
how long others must assume that it is alive.  No link waits for the lease of one that was lost in this
very process.
"""

from __future__ import annotations

import base64
import os
import uuid
from collections import deque
from itertools import count
from typing import Final, TypeGuard


def is_name(value: object) -> TypeGuard[str]:
    """Return whether *value*, which a stranger may have written, can name something."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a character
        return False
    return True


def generated_name(prefix: str) -> str:
    """Return a unique name as a server makes it: *prefix* and 22 random letters."""
    return prefix + base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()


class TagMaker:
    """Unique delivery tags in kombu's form (UUIDs)."""

    def __init__(self) -> None:
        digits = os.urandom(10).hex()
        self._prefix = f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-a{digits[15:18]}-".encode()
        self._numbers = count(int.from_bytes(os.urandom(5), "big"))

    def next(self) -> bytes:
        """Return the next tag."""
        return b"%b%012x" % (self._prefix, next(self._numbers))


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
