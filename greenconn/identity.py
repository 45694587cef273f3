"""Unique names: message ids, consumer tags, reply queues."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import lru_cache
from uuid import UUID, uuid4

__all__ = ["program_name", "uuid"]


def uuid(_uuid: Callable[[], UUID] = uuid4) -> str:
    """Return a random UUID (version 4) as text.

    Arguments:
        _uuid: makes it; with the default no UUID object is made, which is faster.
    """
    if _uuid is not uuid4:
        return str(_uuid())
    # Random bytes each time: a store of them would be used twice after a fork.
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def program_name() -> str:
    """Return a name of this process for operators: ``program@host:pid``."""
    return f"{_program_at_host(sys.argv[0] if sys.argv else '')}:{os.getpid()}"


@lru_cache(maxsize=1)
def _program_at_host(path: str) -> str:
    host = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return f"{os.path.basename(path) or 'python'}@{host}"
