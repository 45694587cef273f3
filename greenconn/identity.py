"""Unique names: message ids, consumer tags, reply queues."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import lru_cache
from uuid import UUID, uuid4

__all__ = ["note_slot", "process_place", "program_name", "uuid"]

#: The number of this process among those that run the same program; None: nothing has numbered it.
_slot: int | None = None


def note_slot(number: int | None) -> None:
    """Note the number of this process, which it has again after a restart; None: it has none."""
    global _slot
    _slot = number


def process_place() -> dict[str, str]:
    """Return what names this process over restarts: ``{host}`` and, if it is known, ``{slot}``."""
    place = {"{host}": _host()}
    if _slot is not None:
        place["{slot}"] = str(_slot)
    return place


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


def _host() -> str:
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


@lru_cache(maxsize=1)
def _program_at_host(path: str) -> str:
    return f"{os.path.basename(path) or 'python'}@{_host()}"
