"""The end of a native thread: what belongs to its hub is closed.

A thread that uses gevent has a hub of its own, which does not run when the thread has ended: sockets
would stay open, unread and without heartbeats, and so would the descriptors of the hub itself.  A server
that gives each request a thread (Django's ``runserver``) would be out of descriptors after some hundred.

Python drops the values of a thread's local variables at its end, in that thread.  One of them tells us.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakSet

from gevent import get_hub
from gevent._hub_local import set_hub
from gevent.hub import Hub

from greenconn.green.hub import PerHub
from greenconn.importing import native

if TYPE_CHECKING:
    from gevent.threadpool import ThreadPool

logger = logging.getLogger("greenconn.green")

#: The native ones: those of a patched process are of greenlets.
_get_ident: Final = native("_thread", "get_ident")
_sleep: Final = native("time", "sleep")

#: Seconds that the threads of the hub's pools (its own one looks up names) have for their end.
POOL_TIMEOUT: Final = 0.2
STEP: Final = 0.002


class Member(Protocol):
    """An object that may be registered: hashable, and referred to weakly."""

    def end_with_thread(self) -> None:
        """Close it, in its thread, whose greenlets run no more.  Never switches; it may block."""
        ...


class PoolOwner(Protocol):
    """An object with native threads that may be registered."""

    def release_threads(self) -> ThreadPool | None:
        """Return the pool of its threads, if there is one, and rely on the hub no more.

        Called before anything is closed.  Never switches; it may block.
        """
        ...


class _ThreadEnd:
    """The value that goes with a thread."""

    def __init__(self) -> None:
        self.members: WeakSet[Member] = WeakSet()
        self.pool_owners: WeakSet[PoolOwner] = WeakSet()
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
        owned = [each.release_threads() for each in list(self.pool_owners)]
        for member in list(self.members):
            try:
                member.end_with_thread()
            except Exception:
                logger.exception("closing %r at the end of its thread", member)
        _destroy(hub, [hub.threadpool, *(pool for pool in owned if pool is not None)])


def register(member: Member) -> None:
    """Call ``member.end_with_thread()`` when this thread ends, if *member* still lives.

    Then the hub of the thread is destroyed.  The main thread ends with the interpreter: nothing is done
    there.  Never switches.
    """
    if not get_hub().main_hub:
        _ends.get().members.add(member)


def register_pool(owner: PoolOwner) -> None:
    """Let the threads of *owner* end with this thread, after its members.  Never switches."""
    if not get_hub().main_hub:
        _ends.get().pool_owners.add(owner)


def wait_natively(is_true: Callable[[], bool]) -> bool:
    """Block this thread, which ends, until *is_true*, but not for long; return whether it is."""
    ends_at = time.monotonic() + POOL_TIMEOUT
    while not is_true():
        if time.monotonic() > ends_at:
            return False
        _sleep(STEP)
    return True


def _destroy(hub: Hub, pools: Iterable[ThreadPool]) -> None:
    """Give back the threads and descriptors of the hub of this thread.  Never switches."""
    for pool in pools:
        # A thread ends with this, behind what waits; ``maxsize = 0`` would begin a greenlet, which never
        # runs.
        for _ in range(pool.size):
            pool.task_queue.put(None)  # type: ignore[arg-type]  # the stubs lack it
    # Else the hub would wait for them, in greenlets, and they would tell it what they have done.
    if wait_natively(lambda: not any(pool.size for pool in pools)):
        hub.destroy(destroy_loop=True)


_ends: Final[PerHub[_ThreadEnd]] = PerHub(_ThreadEnd)
