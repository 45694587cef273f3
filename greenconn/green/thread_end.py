"""The end of a native thread: what belongs to its hub is closed.

A thread that uses gevent has a hub of its own, which nobody runs when the thread has ended: sockets
would stay open, unread and without heartbeats, and so would the descriptors of the hub itself.  A server
that gives each request a thread (Django's ``runserver``) would be out of descriptors after some hundred.

Python drops the values of a thread's local variables at its end, in that thread.  One of them tells us.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Final, Protocol
from weakref import WeakSet

from gevent import get_hub
from gevent._hub_local import set_hub
from gevent.hub import Hub
from gevent.monkey import get_original

from greenconn.green.perhub import PerHub

__all__ = ["Member", "register"]

logger = logging.getLogger("greenconn.green")

#: The native ones: those of a patched process are of greenlets.
_get_ident: Final = get_original("_thread", "get_ident")
_sleep: Final = get_original("time", "sleep")

#: Seconds that the threads of the hub's own pool (it looks up names in them) have for their end.
POOL_TIMEOUT: Final = 0.2
STEP: Final = 0.002


class Member(Protocol):
    """An object that may be registered: hashable, and referred to weakly."""

    def end_with_thread(self) -> None:
        """Close it, in its thread, whose greenlets run no more.  Never switches; it may block."""
        ...


class _ThreadEnd:
    """The value that goes with a thread."""

    def __init__(self) -> None:
        self.members: WeakSet[Member] = WeakSet()
        self._hub: Hub = get_hub()
        self._pid = os.getpid()

    def __del__(self) -> None:
        hub = self._hub
        # The interpreter ends, the thread is the parent's of a fork, or its hub was destroyed already.
        if (
            sys.is_finalizing()
            or os.getpid() != self._pid
            or _get_ident() != hub.thread_ident
            or hub.loop is None
        ):
            return
        # gevent's own variable may be gone already: nothing here may make another hub.
        set_hub(hub)
        for member in list(self.members):
            try:
                member.end_with_thread()
            except Exception:
                logger.exception("closing %r at the end of its thread", member)
        _destroy(hub)


def register(member: Member) -> None:
    """Call ``member.end_with_thread()`` when this thread ends, if *member* still lives.

    Then the hub of the thread is destroyed.  The main thread ends with the interpreter: nothing is done
    there.  Never switches.
    """
    if not get_hub().main_hub:
        _ends.get().members.add(member)


def _destroy(hub: Hub) -> None:
    """Give back the descriptors of the hub of this thread.  Never switches."""
    pool = hub.threadpool
    pool.maxsize = 0  # its threads end as soon as they have nothing to do
    ends_at = time.monotonic() + POOL_TIMEOUT
    while pool.size and time.monotonic() < ends_at:
        _sleep(STEP)
    if not pool.size:  # else the hub would wait for them, in greenlets
        hub.destroy(destroy_loop=True)


_ends: Final[PerHub[_ThreadEnd]] = PerHub(_ThreadEnd)
