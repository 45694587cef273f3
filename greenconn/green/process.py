"""A fork and the end of the process: what the child forgets, and what is sent before the end."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Final, Protocol
from weakref import WeakKeyDictionary

import gevent
from gevent import get_hub

from greenconn.green.deadline import Deadline


class ForkAware(Protocol):
    """An object of the parent that its child must forget."""

    def forget(self) -> None:
        """Drop what is the parent's, without a word to any peer.  Never switches."""
        ...


#: By identity, since members may be equal; in the order of registration.
_fork_aware: dict[int, weakref.ref[ForkAware]] = {}
_has_fork_hook = False


def forget_at_fork(member: ForkAware) -> None:
    """Call ``member.forget()`` in the child of every fork, as long as *member* lives.

    The hook runs in the child before ``os.fork`` returns, by whatever it was called (``os``,
    ``gevent.os``, ``multiprocessing``, a pre-forking server).  It neither switches greenlets nor runs
    the loop, and what it calls must not either.  Only a weak reference is kept.
    """
    global _has_fork_hook
    if not _has_fork_hook:
        _has_fork_hook = True
        os.register_at_fork(after_in_child=_forget_all)
    key = id(member)

    def drop(gone: weakref.ref[ForkAware]) -> None:
        # The identity may have been given to another object meanwhile.
        if _fork_aware.get(key) is gone:
            del _fork_aware[key]

    _fork_aware[key] = weakref.ref(member, drop)


def _forget_all() -> None:
    first_error: BaseException | None = None
    for reference in list(_fork_aware.values()):
        member = reference()
        if member is not None:
            try:
                member.forget()
            except BaseException as exc:
                first_error = first_error or exc
    if first_error is not None:
        raise first_error  # the interpreter prints it as an ignored exception


#: Seconds that the end of the interpreter is held up at most.
EXIT_TIMEOUT: Final = 2.0
STEP: Final = 0.005


class Pending(Protocol):
    """An object that may be flushed at the end: hashable, and referred to weakly."""

    @property
    def pending(self) -> int:
        """Amount (bytes, channels) that the end of the interpreter waits for."""
        ...

    def flush(self) -> object:
        """Begin to send what is left.  Never switches."""
        ...


#: With the hub and the process that each belongs to.
_pending: WeakKeyDictionary[Pending, tuple[object, int]] = WeakKeyDictionary()
#: The process in which the hook is installed.
_exit_hook_of: int | None = None
_exit_deadline: Deadline | None = None


def flush_at_exit(member: Pending) -> None:
    """Flush *member* at the end of the interpreter if it still lives.  Never switches.

    In a program that ends without closing its connections the last turn of the hub never ends, and what
    was written in it would stay behind.  The hook runs in the main thread; writers of other threads have
    ended with them.  A child of ``multiprocessing`` ends by ``os._exit``, but runs that package's
    finalizers.
    """
    pid = os.getpid()
    if pid != _exit_hook_of:
        _install_exit_hook(pid)
    _pending[member] = (get_hub(), pid)


def exit_deadline() -> Deadline:
    """Return the deadline that all registered objects share; it begins at the first call."""
    global _exit_deadline
    if _exit_deadline is None:
        _exit_deadline = Deadline(EXIT_TIMEOUT)
    return _exit_deadline


def _install_exit_hook(pid: int) -> None:
    global _exit_hook_of
    _exit_hook_of = pid
    atexit.unregister(_flush_all)  # the parent's
    atexit.register(_flush_all)
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:
        multiprocessing.Finalize(None, _flush_all, exitpriority=0)


def _flush_all() -> None:
    here = (get_hub(), os.getpid())
    mine = [member for member, place in list(_pending.items()) if place == here]
    for member in mine:
        member.flush()
    while any(member.pending for member in mine) and not exit_deadline().has_ended:
        gevent.sleep(STEP)
