"""The end of the interpreter: unsent data is flushed.

In a program that ends without closing its connections the last turn of the hub never ends, and what was
written in it would stay behind.  The hook runs in the main thread; writers of other threads have ended
with them.  A child of ``multiprocessing`` ends by ``os._exit``, but runs that package's finalizers.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Final, Protocol
from weakref import WeakKeyDictionary

import gevent
from gevent import get_hub

from greenconn.green.deadline import Deadline

#: Seconds that the end of the interpreter is held up at most.
EXIT_TIMEOUT: Final = 2.0
STEP: Final = 0.005


class Pending(Protocol):
    """An object that may be registered: hashable, and referred to weakly."""

    @property
    def pending(self) -> int:
        """Amount (bytes, channels) that the end of the interpreter waits for."""
        ...

    def flush(self) -> object:
        """Begin to send what is left.  Never switches."""
        ...


#: With the hub and the process that each belongs to.
_members: WeakKeyDictionary[Pending, tuple[object, int]] = WeakKeyDictionary()
#: The process in which the hook is installed.
_installed_in: int | None = None
_deadline: Deadline | None = None


def register(member: Pending) -> None:
    """Flush *member* at the end of the interpreter if it still lives.  Never switches."""
    pid = os.getpid()
    if pid != _installed_in:
        _install(pid)
    _members[member] = (get_hub(), pid)


def deadline() -> Deadline:
    """Return the deadline that all registered objects share; it begins at the first call."""
    global _deadline
    if _deadline is None:
        _deadline = Deadline(EXIT_TIMEOUT)
    return _deadline


def _install(pid: int) -> None:
    global _installed_in
    _installed_in = pid
    atexit.unregister(_flush_all)  # the parent's
    atexit.register(_flush_all)
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:
        multiprocessing.Finalize(None, _flush_all, exitpriority=0)


def _flush_all() -> None:
    here = (get_hub(), os.getpid())
    mine = [member for member, place in list(_members.items()) if place == here]
    for member in mine:
        member.flush()
    while any(member.pending for member in mine) and not deadline().has_ended:
        gevent.sleep(STEP)
