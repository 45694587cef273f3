"""A pool of resources: kombu's class and hooks over the fair pool."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakSet

from gevent import get_hub

from greenconn import exceptions
from greenconn.caching import lazy
from greenconn.green import fork
from greenconn.green.deadline import Deadline
from greenconn.green.limit import Limit
from greenconn.green.pool import FairPool, PoolStats
from greenconn.green.supervisor import spawn
from greenconn.resource import facade
from greenconn.resource.loans import Loans

__all__ = ["Resource", "known"]

logger = logging.getLogger("greenconn.resource")

#: Hooks that a program may also replace on one pool.
_HOOKS: Final = frozenset({"prepare", "release_resource"})


class Resource:
    """Resources that are made by a subclass and lent to one holder at a time.

    Any number of greenlets may acquire; they are served in the order in which they came.

    :meth:`acquire` lends a facade over a resource that the pool keeps: it has the resource's class and
    equality, and it ends when it is given back, by ``release()``, the end of a ``with`` block, or
    because nobody refers to it any more.  So a former holder cannot touch what is the next one's.

    A subclass defines ``new`` and may define the other hooks: ``setup`` (called when the pool is made
    or resized), ``prepare``, ``is_alive``, ``release_resource``, ``close_resource``,
    ``collect_resource``.  A pool belongs to the hub of its first use.

    Arguments:
        limit: resources at most, those that are being made included; None or 0 is unlimited.
        preload: resources to make at once (may switch).
        close_after_fork: forget everything in the child of a fork.
        trace_acquire: remember where each resource was acquired, for the log when one gets lost.
    """

    LimitExceeded: ClassVar[type[exceptions.LimitExceeded]] = exceptions.LimitExceeded
    close_after_fork: bool = False
    trace_acquire: bool = False

    def __init__(
        self,
        limit: int | None = None,
        preload: int | None = None,
        close_after_fork: bool | None = None,
        trace_acquire: bool | None = None,
    ) -> None:
        self._limit = _checked(limit)
        self.preload = preload or 0
        if close_after_fork is not None:
            self.close_after_fork = close_after_fork
        if trace_acquire is not None:
            self.trace_acquire = trace_acquire
        is_alive = None if type(self).is_alive is Resource.is_alive else self.is_alive
        self._pool: FairPool[Any] = FairPool(
            self._make,
            self._end,
            is_alive,
            limit or None,
            self._describe,
            self.LimitExceeded,
            parent=self._parent(),
        )
        self._note_hooks()
        self._resource = _Shelf(self._pool, self.new)
        self._loans = Loans(self._pool.note_lost)
        self._sub_pools: WeakSet[Resource] = WeakSet()
        if self.close_after_fork:
            fork.register(self)
        self.setup()
        try:
            for _ in range(min(self.preload, limit or self.preload)):
                self._pool.add(self._preloaded())
        except BaseException:
            # Nobody will ever have this pool, so nobody could close what is in it.
            self._abandon()
            raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._pool!r}>"

    # Hooks

    def setup(self) -> None:
        """Called when the pool was made or resized; does nothing."""

    def new(self) -> Any:
        """Make a resource, or a :class:`~greenconn.caching.lazy` one.  May switch."""
        raise NotImplementedError(f"{type(self).__name__} does not define new()")

    def prepare(self, resource: Any) -> Any:
        """Make *resource* ready to be used; return it, or what takes its place.  May switch."""
        return resource() if isinstance(resource, lazy) else resource

    def is_alive(self, resource: Any) -> bool:
        """Whether an idle resource can still be used.  Must not switch."""
        return True

    def release_resource(self, resource: Any) -> None:
        """Called when *resource* is given back.  Must not switch."""

    def close_resource(self, resource: Any) -> None:
        """Close one that is not used any more; called in a greenlet of its own.  May switch."""
        resource.close()

    def collect_resource(self, resource: Any) -> None:
        """Close one that may be in use; called by :meth:`force_close_all`.  May switch."""

    # Use

    def acquire(self, block: bool = False, timeout: float | Deadline | None = None) -> Any:
        """Borrow a resource.  May switch.

        Arguments:
            block: wait when none is free, in the order of arrival; if False, let the hub turn once
                and look again.
            timeout: seconds for the wait and the making together, or a deadline; None waits.

        Raises:
            LimitExceeded: none was free (in time); says who holds what, and for how long.
            RuntimeError: the pool is closed.
            WrongHub: the pool belongs to another thread.
        """
        core = self._take(block, None if timeout is None else Deadline.of(timeout))
        try:
            borrowed = self.facade(core, self)
            self._loans.lend(borrowed, core, traced=self.trace_acquire)
        except BaseException:
            self._pool.release(core)
            raise
        return borrowed

    def release(self, resource: Any) -> None:
        """Give back what :meth:`acquire` gave.  Never switches.  Again: does nothing."""
        pool = self._pool
        if get_hub() is not pool.hub:
            pool.check_hub()
        loan = self._loans.end(resource)
        if loan is not None:
            try:
                self._returned(resource)
                if self._is_told:
                    self.release_resource(loan.core)
            finally:
                pool.release(loan.core)

    def replace(self, resource: Any) -> None:
        """Give back one that is defective: it is closed, and another one made when one is needed.

        Never switches.  Again: does nothing.
        """
        self._pool.check_hub()
        loan = self._loans.end(resource)
        if loan is not None:
            try:
                self._expire(resource, "it was given back to its pool as defective")
            finally:
                self._pool.remove(loan.core)

    def force_close_all(self, close_pool: bool = True) -> None:
        """Close all resources, also those in use.  May switch.

        Arguments:
            close_pool: nothing can be acquired any more, and who waits gets a RuntimeError.

        Raises:
            WrongHub: the pool belongs to another thread.
        """
        if self._pool.is_closed:
            return
        self._pool.check_hub_of_items()
        cores = self._pool.close() if close_pool else self._pool.clear()
        self.evict("its pool was closed by force")
        self._collect(cores)

    def resize(
        self,
        limit: int | None,
        force: bool = False,
        ignore_errors: bool = False,
        reset: bool = False,
    ) -> None:
        """Change the limit.  May switch if *reset* or *force* closes resources.

        Arguments:
            limit: resources at most; None or 0 is unlimited.
            force: to shrink a pool that is in use, close all of its resources.
            ignore_errors: shrink a pool that is in use as its resources are given back.
            reset: close all resources first.

        Raises:
            RuntimeError: the pool is in use, and would shrink by neither of these.
            WrongHub: the pool belongs to another thread.
        """
        limit = _checked(limit)
        self._pool.check_hub_of_items()
        before, in_use = self._limit or 0, self._pool.stats()["in_use"]
        if in_use and 0 < (limit or 0) < before and not ignore_errors:
            if not force:
                raise RuntimeError(
                    f"pool {self._pool.name!r}: cannot shrink from {before} to {limit} while {in_use} "
                    f"are in use (pass force or ignore_errors)"
                )
            reset = True
        self._limit = limit
        if reset:
            self.force_close_all(close_pool=False)
        self._pool.resize(limit or None)
        self.setup()

    @property
    def limit(self) -> int | None:
        """Resources at most; None or 0 is unlimited.  Setting it is :meth:`resize`."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self.resize(limit)

    def stats(self) -> PoolStats:
        """Numbers of now and since the beginning: ``limit``, ``in_use``, ``idle``, ``waiting``,
        ``created``, ``discarded``, ``timeouts``."""
        return self._pool.stats()

    def holders(self) -> list[tuple[str, float]]:
        """Who holds a resource, by the name of the greenlet, and for how many seconds."""
        return self._pool.holders()

    def forget(self) -> None:
        """In the child of a fork: begin anew, empty.  Never switches."""
        for borrowed in self._loans.end_all():
            self._expire(borrowed, "it was acquired before a fork")
        for sub_pool in list(self._sub_pools):
            sub_pool.forget()
        self._pool.forget()

    @property
    def _dirty(self) -> list[Any]:
        # kombu's name for what is lent, which monitors count.
        return self._loans.out()

    # For a pool above this one, which lends what it takes here

    def lend_to_pool(self, sub_pool: Resource, block: bool, deadline: Deadline | None) -> Any:
        """Take a resource for *sub_pool*, which keeps it until it is asked for it.  May switch.

        Raises:
            LimitExceeded, RuntimeError, WrongHub: as :meth:`acquire`.
        """
        core = self._take(block, deadline)
        self._pool.sub_pools.assign(core, sub_pool._pool)
        self._sub_pools.add(sub_pool)
        return core

    def take_back(self, core: Any) -> None:
        """Take back what a sub-pool does not want any more.  Never switches."""
        self._pool.release(core)

    def facade(self, core: Any, lender: Any) -> Any:
        """A facade over *core*, which *lender* lends.  Never switches."""
        return facade.facade_over(core, lender)

    def expire(self, borrowed: Any, reason: str) -> None:
        """End such a facade: from now on it raises, naming the *reason*.  Never switches."""
        facade.expire(borrowed, reason)

    def returned(self, borrowed: Any) -> None:
        """End a facade that was given back.  Never switches."""
        self.expire(borrowed, "it was given back to its pool")

    def evict(self, reason: str) -> None:
        """End all that was acquired here or from a sub-pool: using it raises.  Never switches."""
        for borrowed in self._loans.end_all():
            self._expire(borrowed, reason)
        for sub_pool in list(self._sub_pools):
            sub_pool._pool.clear()
            sub_pool.evict(reason)

    # Within

    def _note_hooks(self) -> None:
        # These are called for each loan, so only where there is something to ask or to tell.
        self._is_told = self._has_own("release_resource")
        self._prepares = self._has_own("prepare")
        self._pool.wants_back = self._is_told or self._prepares
        self._pool.on_returned = self.release_resource if self._is_told else None

    def _has_own(self, hook: str) -> bool:
        return hook in self.__dict__ or getattr(type(self), hook) is not getattr(Resource, hook)

    if not TYPE_CHECKING:  # or a type checker would let any name pass

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name in _HOOKS and "_pool" in self.__dict__:
                self._note_hooks()

    def _parent(self) -> FairPool[Any] | None:
        return None

    def _describe(self) -> str:
        return type(self).__name__

    def _take(self, block: bool, deadline: Deadline | None) -> Any:
        pool = self._pool
        core = pool.acquire(block, deadline)
        if self._prepares or isinstance(core, lazy):
            try:
                ready = self.prepare(core)
            except BaseException:
                pool.release(core)
                raise
            if ready is not core:
                if not pool.exchange(core, ready):
                    spawn("pool-discard", self._end, ready)
                    return self._take(block, deadline)
                core = ready
        return core

    def _expire(self, borrowed: Any, reason: str) -> None:
        self.expire(borrowed, reason)

    def _returned(self, borrowed: Any) -> None:
        self.returned(borrowed)

    def _make(self, deadline: Deadline) -> Any:
        with Limit(deadline, f"pool {self._pool.name!r}: making another"):
            return self.new()

    def _preloaded(self) -> Any:
        return self.prepare(self.new())

    def _end(self, resource: Any) -> None:
        if not isinstance(resource, lazy):
            self.close_resource(resource)

    def _abandon(self) -> None:
        spawn("pool-collect", self._collect_each, self._pool.close())

    def _collect(self, cores: list[Any]) -> None:
        """Close them, whatever becomes of the caller.  May switch."""
        if cores:
            # Who is interrupted while they close leaves them to it, and hears of it.
            spawn("pool-collect", self._collect_each, cores).join()

    def _collect_each(self, cores: list[Any]) -> None:
        for core in cores:
            try:
                if not isinstance(core, lazy):
                    self.collect_resource(core)
            except Exception:
                # It was not wanted any more.
                logger.debug("pool %r: collecting failed", self._pool.name, exc_info=True)


class _Shelf:
    """kombu's name for what is idle: ``setup`` of a subclass may put something there, monitors count."""

    def __init__(self, pool: FairPool[Any], make: Callable[[], Any]) -> None:
        self.put_nowait = pool.add
        self._pool = pool
        self._make = make

    def qsize(self) -> int:
        """Return the number of resources that can be lent at once, those not made yet included."""
        stats = self._pool.stats()
        limit = stats["limit"]
        return stats["idle"] if limit is None else max(limit - stats["in_use"], 0)

    @property
    def queue(self) -> list[Any]:
        """These resources, those not made yet as lazy ones; the one that is lent next comes last."""
        idle = self._pool.idle()
        return [lazy(self._make)] * (self.qsize() - len(idle)) + idle


def known(pool: type[Resource], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a pool takes; kombu ignores the others."""
    names = ("preload", "close_after_fork", "trace_acquire")
    others = kwargs.keys() - set(names)
    if others:
        logger.warning("%s: arguments without effect: %s", pool.__name__, ", ".join(sorted(others)))
    return {name: value for name, value in kwargs.items() if name in names}


def _checked(limit: int | None) -> int | None:
    if isinstance(limit, bool):
        raise TypeError("the limit must be an int, not bool")
    if limit is not None and limit < 0:
        raise ValueError(f"the limit of a pool is {limit}, it must be 0 or more")
    return limit
