"""A thread pool for blocking calls of libraries that are not made for gevent.

Who calls waits as for anything else, and the hub turns meanwhile.  A caller that is killed leaves
its call to its own end; what it returns is dropped.  In a process that is monkey-patched such a
library is green by itself, and its calls are made where they stand, shielded (see ``supervisor``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from gevent import get_hub, getcurrent, killall
from gevent.monkey import is_module_patched
from gevent.threadpool import ThreadPool

from greenconn.green import thread_end
from greenconn.green.supervisor import shielded

T = TypeVar("T")


def are_sockets_green() -> bool:
    """Return whether a library that uses the standard library's sockets and locks lets the hub turn.

    Only with both: a greenlet that holds a native lock while it waits for a socket would stop all.
    """
    return is_module_patched("socket") and is_module_patched("threading")


class CallPool:
    """Runs blocking calls.

    Arguments:
        threads: how many at once; more wait for their turn.  None: none, calls are made directly.
    """

    def __init__(self, threads: int | None) -> None:
        #: Makes its threads when they are first needed.
        self._pool = None if threads is None else ThreadPool(threads)
        #: Without threads: those who are within a call.
        self._callers: set[Any] = set()
        thread_end.register_pool(self)

    def release_threads(self) -> ThreadPool | None:
        """Return the pool of its threads.  Never switches."""
        return self._pool

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call *function* and return what it returns.  May switch."""
        if self._pool is None:
            current = getcurrent()
            self._callers.add(current)
            try:
                return shielded(function, *args, **kwargs)
            finally:
                self._callers.discard(current)
        value: T = _unpacked(self._pool.spawn(_outcome, function, args, kwargs).get())
        return value

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way, or waits for a thread."""
        return bool(self._callers) if self._pool is None else len(self._pool) > 0

    def close(self) -> None:
        """End the threads, each with the call that it is at.  May switch.

        Without threads the callers are killed within their calls: there was time to leave.
        """
        if self._pool is not None:
            self._pool.kill()
        else:
            killall(list(self._callers))


def in_threadpool(function: Callable[[], T]) -> T:
    """Call *function*, which blocks once in a while, in the hub's own threads.  May switch."""
    return function() if are_sockets_green() else in_hub_thread(function)


def in_hub_thread(function: Callable[[], T]) -> T:
    """Call *function*, which waits for a disk, in the hub's own threads.  May switch."""
    value: T = _unpacked(get_hub().threadpool.spawn(_outcome, function, (), {}).get())
    return value


def _unpacked(result: Any) -> Any:
    outcome, error = result
    if error is not None:
        try:
            raise error
        finally:
            del error, result  # they hold this frame
    return outcome


def _outcome(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, BaseException | None]:
    # As a value: gevent prints the errors of its threads, even if a greenlet waits for them.
    try:
        return function(*args, **kwargs), None
    except BaseException as exc:
        return None, exc
