"""A thread pool for blocking calls of libraries that are not made for gevent.

Who calls waits as for anything else, and the hub turns meanwhile.  A caller that is killed leaves
its call to its own end; what it returns is dropped.  In a process that is monkey-patched such a
library is green by itself, and its calls are made where they stand, shielded (see ``supervisor``).
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from gevent import get_hub, getcurrent, killall
from gevent.event import AsyncResult, Event
from gevent.monkey import is_module_patched
from gevent.threadpool import ThreadPool

from greenconn.green.deadline import NEVER
from greenconn.green.hub import join_at_thread_end, wait_natively
from greenconn.green.slot import Slot
from greenconn.green.supervisor import shielded, spawn
from greenconn.importing import native

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
        join_at_thread_end(self)

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
        if self._pool is None:
            return bool(self._callers)
        # gevent may have asked one thread too many to end: that request stays when none is left.
        return self._pool.size > 0 and len(self._pool) > 0

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


J = TypeVar("J")

#: The native ones, also in a patched process: they are for a native thread.
_allocate_lock: Callable[[], Any] = native("_thread", "allocate_lock")
_sleep: Callable[[float], None] = native("time", "sleep")


class CallOutcome(NamedTuple):
    """The outcome of one call."""

    value: Any = None
    error: BaseException | None = None


#: A job, the slot of its caller, and what to call with its result if the caller has gone.
_Call: TypeAlias = tuple[J, Slot[Any] | None, Callable[[Any], object] | None]


class NativeThread(Generic[J]):
    """One native thread, for blocking calls that must all run in one.

    Calls wait in the order in which they came, and all that wait are given to the thread together: what
    they have in common (a transaction) need not be done for each of them.  The hub never waits.  A fork
    waits until the thread is between two steps of its work (see ``fork_lock``), so that the child never
    inherits a lock of the C library below that no thread will release.

    Arguments:
        run: called in the thread with all calls that wait; returns an outcome for each.  It holds
            ``fork_lock`` while it is within a library that a fork must not interrupt.
        closed: makes the error of a call after the end.

    Attributes:
        fork_lock: a native lock.
    """

    def __init__(
        self,
        run: Callable[[Sequence[J]], Sequence[CallOutcome]],
        closed: Callable[[], Exception],
    ) -> None:
        self._run = run
        self._closed = closed
        self.fork_lock = _allocate_lock()
        self._pool: ThreadPool | None = ThreadPool(1)
        #: It, while the last call is under way.
        self._ending: ThreadPool | None = None
        #: Jobs, the slot of each caller, and what to call with the result if the caller has gone.
        self._pending: deque[_Call[J]] = deque()
        self._is_busy = False
        self._last: Callable[[], object] | None = None
        self._ended = Event()
        #: Whether the thread that it belongs to ends: its hub runs no more.
        self._is_alone = False
        _workers[id(self)] = self
        _install()
        join_at_thread_end(self)

    def call(self, job: J, on_left: Callable[[Any], object] | None = None) -> Any:
        """Have *job* done, and return what it returned.  May switch.

        Arguments:
            on_left: a caller that is killed does not interrupt the job: this is called with what it
                returned.  Must not switch.

        Raises:
            Exception: it is closed; made by *closed*.
            BaseException: what it raised.
        """
        if self._pool is None or self._last is not None:
            raise self._closed()
        slot: Slot[Any] = Slot()
        self._add((job, slot, on_left))
        try:
            return slot.wait(NEVER)
        except BaseException:
            if slot.has_value and on_left is not None:
                on_left(slot.value)
            raise

    def post(self, job: J, then: Callable[[Any], object]) -> None:
        """Have *job* done, and *then* called with what it returned.  Never switches.

        It is the last chance of what an ended caller has left: a worker that was closed still does it
        if it does anything else, and one that has ended drops it.
        """
        if self._pool is not None:
            self._add((job, None, then))

    def join(self) -> None:
        """Wait until it has ended; it must be closed.  May switch."""
        self._ended.wait()

    def close(self, last: Callable[[], object]) -> None:
        """End it when what waits is done.  Never switches.  A second call does nothing.

        Arguments:
            last: called in the thread at the end; what it raises is dropped.
        """
        if self._pool is None or self._last is not None:
            return
        self._last = last
        if self._is_alone:
            self._end_here()
        elif not self._is_busy:
            self._end()

    def release_threads(self) -> ThreadPool | None:
        """Do the rest without the hub; return the pool of the thread.  Never switches; it may block."""
        self._is_alone = True
        pool = self._ending if self._pool is None else self._pool
        if self._last is not None and not self._ended.is_set():
            self._end_here()
        return pool

    def forget(self) -> None:
        """Forget the thread in the child of a fork, where it does not exist.  Never switches."""
        pool, self._pool = self._pool, None
        self._pending.clear()
        if pool is not None:
            pool.fork_watcher.stop()

    @staticmethod
    def pause(seconds: float) -> None:
        """Let the thread sleep; for what it runs, which does not hold ``fork_lock`` then."""
        _sleep(seconds)

    # -- in the hub

    def _add(self, call: _Call[J]) -> None:
        self._pending.append(call)
        if self._is_busy:
            return
        self._is_busy = True
        if self._is_alone:
            self._begin()
        else:
            # What else this turn of the hub wants goes with it: a consumer acknowledges and claims.
            get_hub().loop.run_callback(self._begin)

    def _begin(self) -> None:
        if self._pool is None:
            return  # in the child of a fork
        calls, self._pending = self._pending, deque()
        # There is never more than one task, so this does not wait.
        result: AsyncResult[Any] = self._pool.spawn(self._work, calls)
        result.rawlink(partial(self._done, calls))

    def _work(self, calls: Collection[_Call[J]]) -> Sequence[CallOutcome]:
        # In the thread.
        try:
            return self._run([job for job, _, _ in calls])
        except BaseException as exc:
            return [CallOutcome(error=exc)] * len(calls)

    def _done(self, calls: Collection[_Call[J]], done: AsyncResult[Any]) -> None:
        if self._pool is None:
            return
        outcomes = done.get() or ()
        for (_, slot, callback), (value, error) in zip(calls, outcomes, strict=True):
            if error is not None:
                if slot is not None:
                    slot.fail(error)
            elif (slot is None or not slot.offer(value)) and callback is not None:
                callback(value)
        if self._pending:  # what they posted comes first
            self._begin()
            return
        self._is_busy = False
        if self._last is not None:
            self._end()

    def _end(self) -> None:
        pool, self._pool = self._pool, None
        _workers.pop(id(self), None)
        assert pool is not None
        self._ending = pool
        spawn("worker", self._finish, pool)

    def _end_here(self) -> None:
        """End it in the thread that it belongs to, where nothing else runs any more."""
        pool, self._pool = self._pool, None
        if self._is_busy and pool is not None:
            queue = pool.task_queue
            if not wait_natively(lambda: not queue.unfinished_tasks):
                return  # what its thread is at takes too long
        if self._pending:
            self._work(self._pending)
            self._pending.clear()
        self._close()
        self._ended.set()

    def _finish(self, pool: ThreadPool) -> None:
        try:
            pool.apply(self._close)
        finally:
            self._ended.set()
            pool.kill()
            self._ending = None

    def _close(self) -> None:
        # In the thread.
        assert self._last is not None
        with self.fork_lock:
            try:
                self._last()
            except Exception:
                return


_workers: weakref.WeakValueDictionary[int, NativeThread[Any]] = weakref.WeakValueDictionary()
_is_installed = False
#: Those whose gates are held while the process forks.
_held: list[NativeThread[Any]] = []


def _install() -> None:
    global _is_installed
    if not _is_installed:
        _is_installed = True
        os.register_at_fork(
            before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child
        )


def _before_fork() -> None:
    for worker in list(_workers.values()):
        worker.fork_lock.acquire()
        _held.append(worker)


def _in_parent() -> None:
    while _held:
        _held.pop().fork_lock.release()


def _in_child() -> None:
    while _held:
        # The old one may be waited for by a thread that does not exist here.
        worker = _held.pop()
        worker.fork_lock = _allocate_lock()
        worker.forget()
