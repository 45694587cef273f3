"""The hub: yielding to it, the end of its turn, callbacks in it, and what belongs to each hub."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from threading import enumerate as enumerate_threads  # for messages only: none is started
from threading import main_thread
from types import MethodType
from typing import Any, Final, Generic, TypeVar, cast
from weakref import ref

from gevent import get_hub
from gevent.hub import Hub

from greenconn.exceptions import WrongHub
from greenconn.importing import native

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
        try:
            # Never started: an event is fed to it, and the lowest priority there is makes it last.
            self._watcher: Any = loop.prepare(priority=-2)
        except TypeError:  # libuv has no such thing: it is called between the other callbacks
            self._watcher = None
            self.call = partial(loop.run_callback, callback)
        else:
            self.call = partial(self._watcher.feed, 0, callback)

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
