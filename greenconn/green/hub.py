"""The hub: yielding, the end of its turn, callbacks in it, what belongs to each hub, and their ends.

A hub ends with its thread, by a fork in the child, or with the interpreter.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from threading import enumerate as enumerate_threads  # for messages only: none is started
from threading import main_thread
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet, ref

import gevent
from gevent import get_hub
from gevent._hub_local import get_hub_if_exists, set_hub
from gevent.hub import Hub

from greenconn.exceptions import WrongHub
from greenconn.green.deadline import Deadline, mark_thrown
from greenconn.importing import native

if TYPE_CHECKING:
    from gevent.threadpool import ThreadPool


CLONE: Final = "give each thread a connection of its own (Connection.clone())"

T = TypeVar("T")

#: The native class: in a patched process ``threading.local`` means each greenlet.
_ThreadLocal: Any = native("threading", "local")

F = TypeVar("F", bound=Callable[..., Any])


def yield_to_hub() -> None:
    """Let every other greenlet that can run do so, after a poll for I/O.  May switch.

    ``gevent.sleep(0)`` polls only each 50th time and ``gevent.idle()`` starves beside a spinning
    greenlet, so this is a timer of no length at the lowest priority.
    """
    hub = get_hub()
    timer = hub.loop.timer(0, priority=-1)
    try:
        hub.wait(timer)
    except BaseException as exc:
        mark_thrown(exc)
        raise
    finally:
        timer.close()


def get_gevent_concurrent_error() -> type[Exception] | None:
    """Return gevent's error for a socket that two greenlets use (ours are never used so).

    It is looked up as kombu does it, and is None where a program's test hides gevent.
    """
    return getattr(sys.modules.get("gevent.exceptions"), "ConcurrentObjectUseError", None)


def wake_hub() -> None:
    """Let the hub of this thread poll without waiting, once.  Never switches."""
    timer = get_hub().loop.timer(0)
    timer.start(timer.close)


#: The module of gevent's default loop outside of Windows; those over CFFI lose what is fed to a watcher
#: that was not started, or have no such watcher.
_EXTENSION: Final = "gevent.libev.corecext"


class TurnEnd:
    """Calls *callback* in the hub when its turn ends: what is due now comes first.

    That is behind all watchers that have fired and all callbacks that are in line, also those that
    are put there meanwhile (for 5 ms, gevent's own limit), and before the hub polls again.

    Arguments:
        loop: the hub's.
        callback: like everything in the hub it must not switch.  The hub has looked for the last
            time at what is in line for it: who puts something there calls :func:`wake_hub`.
    """

    __slots__ = ("_watcher", "call")

    def __init__(self, loop: Any, callback: Callable[[], object]) -> None:
        #: Has it called at the end of this turn.  Never switches.
        self.call: Callable[[], object]
        self._watcher: Any = None
        if type(loop).__module__ == _EXTENSION:
            # Never started: an event is fed to it, and the lowest priority there is makes it last.
            self._watcher = loop.prepare(priority=-2)
            self.call = partial(self._watcher.feed, 0, callback)
        else:  # the others cannot do that: it is called between the other callbacks
            self.call = partial(loop.run_callback, callback)

    def close(self) -> None:
        """Stop the calls.  Never switches."""
        self.call = _nothing
        if self._watcher is not None:
            self._watcher.close()


def _nothing() -> None:
    pass


class HubAffinity:
    """The hub (so the thread) that an object belongs to from its first use."""

    __slots__ = ("hub",)

    def __init__(self) -> None:
        self.hub: Any = get_hub()

    def check(self, what: object, remedy: str = CLONE) -> None:
        """Raise unless the caller runs on this hub.

        Arguments:
            what: the object, for the message.
            remedy: what to do about it, for the message.

        Raises:
            WrongHub: names both threads and the remedy.
        """
        hub = get_hub()
        if hub is not self.hub:
            raise WrongHub(
                f"{what!r} belongs to thread {_thread_of(self.hub)} and was used from thread "
                f"{_thread_of(hub)}: {remedy}"
            )


def check_hub(part: object) -> None:
    """Raise if *part* (a channel, say) can tell that it belongs to another thread.  Never switches.

    Raises:
        WrongHub: it does.
    """
    check = getattr(part, "check_hub", None)
    if check is not None:
        check()


def _thread_of(hub: Any) -> str:
    """Return the name of a hub's thread.  (``current_thread`` would register threads and greenlets.)"""
    if hub.main_hub:
        return repr(main_thread().name)
    for thread in enumerate_threads():
        if thread.ident == hub.thread_ident:
            return repr(thread.name)
    return str(hub.thread_ident)


class PerHub(Generic[T]):
    """A variable with a value of its own in each hub; it goes with the thread.

    Arguments:
        make: makes the value when it is first asked for in a hub.  Must not switch.
    """

    __slots__ = ("_local", "_make")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._local = _ThreadLocal()

    def get(self) -> T:
        """Return the value of this hub, made now if there is none.  Never switches."""
        hub = get_hub()
        try:
            kept = self._local.kept
        except AttributeError:
            kept = None
        if kept is None or kept[0] is not hub:
            kept = self._local.kept = (hub, self._make())
        kept_value: T = kept[1]
        return kept_value

    def pop(self) -> T | None:
        """Take the value of this hub out; None if there was none.  Never switches."""
        kept = getattr(self._local, "kept", None)
        self._local.kept = None
        return kept[1] if kept is not None and kept[0] is get_hub() else None


def weakly(function: F) -> F:
    """Return *function* if it is no bound method, else one that calls it while its object lives.

    The hub holds its timers and watchers, and a greenlet that waits is never collected: they must not
    keep a connection that its program has dropped, so they refer weakly to what they serve.

    Later calls return None.  The object must not have ``__slots__`` without ``__weakref__``.
    """
    if not isinstance(function, MethodType):
        return function
    owner, method = ref(function.__self__), function.__func__

    def call(*args: Any) -> Any:
        living = owner()
        return None if living is None else method(living, *args)

    return cast(F, call)


def call_in_hub(hub: Hub, function: Callable[..., object], *args: Any) -> bool:
    """Have *function* called in *hub* soon.  Never switches; for ``__del__``, in any thread.

    Returns:
        False: that hub is gone, or the interpreter ends.
    """
    loop = None if sys.is_finalizing() else hub.loop
    if loop is None or hub.dead:
        return False
    loop.run_callback_threadsafe(function, *args)
    return True


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
    """The value that goes with a thread, and closes what belongs to the thread's hub.

    The hub of a native thread does not run when the thread has ended: sockets would stay open, unread
    and without heartbeats, and so would the descriptors of the hub.  A server that gives each request a
    thread (Django's ``runserver``) would be out of descriptors after some hundred.  Python drops the
    local variables of a thread at its end, in that thread, and so calls this one.
    """

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


def close_at_thread_end(member: Member) -> None:
    """Call ``member.end_with_thread()`` when this thread ends, if *member* still lives.

    Then the hub of the thread is destroyed.  The main thread ends with the interpreter: nothing is done
    there.  Never switches.
    """
    if not get_hub().main_hub:
        _ends.get().members.add(member)


def join_at_thread_end(owner: PoolOwner) -> None:
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
    # The parent's epoll is the child's, too, until the loop has one of its own: libuv would take a
    # socket out of it as soon as its watcher is closed, and the parent would be deaf.
    hub = get_hub_if_exists()
    if hub is not None and hub.loop is not None:
        hub.loop.reinit()
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
FLUSH_STEP: Final = 0.005


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
        gevent.sleep(FLUSH_STEP)
