"""Pools of connections, of channels, and of the resources of other subclasses (``kombu.resource``).

``acquire`` returns a *facade* over a resource of the pool, which forwards everything to the resource
until it is released.  A facade has the resource's ``__class__``, so ``isinstance`` holds, and the
resource's equality, hash and text, also after the release.  Methods that Python looks up on the class
(``len(x)``, ``x[0]``) are forwarded by a subclass that is created once for each class of resources.
Connections have a facade of their own (``connection.PooledConnection``).
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty
from sys import getrefcount
from time import monotonic
from traceback import StackSummary, walk_stack
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypedDict
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import gevent
from greenlet import getcurrent

from greenconn import exceptions
from greenconn.caching import lazy
from greenconn.checks import Seconds, check_keywords
from greenconn.exceptions import OperationalError
from greenconn.green.deadline import Deadline, TimeLimit, is_seconds
from greenconn.green.hub import forget_at_fork
from greenconn.green.pool import Entry, FairPool, PoolStats
from greenconn.green.supervisor import spawn

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.abc import Lender
    from greenconn.connection import Connection

    class PoolArguments(TypedDict, total=False):
        """The further arguments of pools of all kinds."""

        close_after_fork: bool | None
        preload: int | None
        trace_acquire: bool | None


__all__ = ["ChannelPool", "ConnectionPool", "RelendingPool", "Resource", "all_pools"]

logger = logging.getLogger("greenconn.resource")

#: Hooks that a program can also replace on a single pool, and what else decides on what is kept.
_HOOKS: Final = frozenset({"Producer", "prepare", "release_resource", "trace_acquire"})
#: Special methods that a facade forwards if the class of the resource has them.
FORWARDED: Final = (
    *("__len__", "__iter__", "__next__", "__reversed__", "__contains__", "__call__", "__bool__"),
    *("__getitem__", "__setitem__", "__delitem__", "__lt__", "__le__", "__gt__", "__ge__"),
)
#: Number of frames in the trace of an acquire.
DEPTH: Final = 12
#: Called for each acquire: looking it up in its module has a cost.
_ref: Final = weakref.ref
#: What ``getrefcount`` returns for a facade to which only its loan refers.
UNSHARED: Final = 2


class Resource:
    """A pool of resources, each of which has one holder at a time.

    Any number of greenlets can acquire resources; they are served in the order of arrival.

    :meth:`acquire` returns a facade over a resource of the pool.  The facade is released by
    ``release()``, by the end of a ``with`` block, or when it is garbage-collected, and cannot be used
    after that.  So a former holder cannot use a resource that belongs to the next one.

    A subclass defines ``new`` and can define the other hooks: ``setup`` (called when the pool is
    created or resized), ``prepare``, ``is_alive``, ``release_resource``, ``close_resource``,
    ``collect_resource``.  A pool belongs to the hub of its first use.

    Arguments:
        limit: maximum number of resources, including those being created; None and 0 are no limit.
        preload: number of resources to create at once (may switch).
        close_after_fork: whether to forget all resources in the child of a fork.
        trace_acquire: whether to record where each resource is acquired, for the warning about one
            that was not released.
    """

    LimitExceeded: ClassVar[type[exceptions.LimitExceeded]] = exceptions.LimitExceeded
    close_after_fork: bool = False
    trace_acquire: bool = False
    #: Whether :meth:`acquire` finds out itself that an idle resource is dead.
    _checks_itself = False

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
            lender_checks=self._checks_itself,
        )
        _all[id(self)] = self
        self._checkouts = _Checkouts(self._pool.note_lost)
        self._pool.on_leave = self._checkouts.drop_kept
        self._loans = self._checkouts.by_id
        self._note_hooks()
        self._resource = _IdleQueue(self._pool, self._promise, self._add)
        self._sub_pools: WeakSet[Resource] = WeakSet()
        if self.close_after_fork:
            forget_at_fork(self)
        self.setup()
        try:
            for _ in range(min(self.preload, limit or self.preload)):
                self._pool.add(self._preloaded())
        except BaseException:
            # The caller does not get this pool, so it could not close its resources.
            self._abandon()
            raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._pool!r}>"

    # Hooks

    def setup(self) -> None:
        """Called when the pool was created or resized; does nothing."""

    def new(self) -> Any:
        """Return a new resource, or a :class:`~greenconn.caching.lazy` one.  May switch."""
        raise NotImplementedError(f"{type(self).__name__} does not define new()")

    def prepare(self, resource: Any) -> Any:
        """Prepare *resource* for use; return it, or one that replaces it.  May switch."""
        return resource() if isinstance(resource, lazy) else resource

    def is_alive(self, resource: Any) -> bool:
        """Return whether an idle resource can still be used.  Must not switch."""
        return True

    def release_resource(self, resource: Any) -> None:
        """Called when *resource* is released.  Must not switch."""

    def close_resource(self, resource: Any) -> None:
        """Close a resource that is no longer needed; called in a greenlet of its own.  May switch."""
        resource.close()

    def collect_resource(self, resource: Any) -> None:
        """Close a resource that may be in use; called by :meth:`force_close_all`.  May switch."""

    # Use

    def acquire(self, block: bool = False, timeout: Seconds | Deadline | None = None) -> Any:
        """Acquire a resource.  May switch.

        Arguments:
            block: whether to wait if none is free, in the order of arrival; False yields to the hub
                once and tries again.
            timeout: seconds for waiting and creating a resource together, or a deadline; None is no
                limit.

        Raises:
            LimitExceeded: none was free in time; names the holders, and how long each has held its
                resource.
            RuntimeError: the pool is closed.
            WrongHub: the pool belongs to another thread.
        """
        deadline = self._deadline(block, timeout)
        entry = self._pool.take(block, deadline)
        since = entry.since
        try:
            return self._lend(entry, block, deadline)
        except BaseException:
            self._put_back(entry, since)
            raise

    def release(self, resource: Any) -> None:
        """Release a resource that was acquired.  A second call does nothing.  Never switches."""
        pool = self._pool
        current = getcurrent()
        if current.parent is not pool.hub and (current is not pool.main or pool.hub.loop is None):
            pool.check_hub()
        loan = self._loans.get(id(resource))
        if loan is None or loan.facade is not None:
            self._release_unlent(resource)
            return
        entry = loan.entry
        if entry.loan is loan:
            since = entry.since
            resource.mark_released()
            loan.facade = resource
            try:
                pool.put_back(entry)
            except BaseException:
                self._put_back(entry, since)
                raise
            return
        try:
            self.returned(resource)
            if self._has_release_hook:
                self.release_resource(entry.item)
        finally:
            pool.put_back(entry)
            # Last: where a signal has interrupted it, the end of the facade is a release.
            self._loans.pop(loan.key, None)

    def replace(self, resource: Any) -> None:
        """Release a broken resource, which is closed.  A second call does nothing.  Never switches.

        A new one is created when it is needed.
        """
        self._pool.check_hub()
        loan = self._loans.get(id(resource))
        if loan is not None and loan.facade is None:
            try:
                self.expire(resource, "it was released to its pool as broken")
            finally:
                self._pool.remove(loan.entry.item)
                self._loans.pop(loan.key, None)

    def force_close_all(self, close_pool: bool = True) -> None:
        """Close all resources, also those in use.  May switch.

        Arguments:
            close_pool: whether to close the pool, too, so that waiting and future calls of
                :meth:`acquire` raise RuntimeError.

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
            limit: maximum number of resources; None and 0 are no limit.
            force: whether a pool that is in use can shrink, by closing all of its resources.
            ignore_errors: whether a pool that is in use can shrink, as its resources are released.
            reset: whether to close all resources first.

        Raises:
            RuntimeError: the pool is in use and would shrink, without *force* or *ignore_errors*.
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
        """The maximum number of resources; None and 0 are no limit.  Setting it calls :meth:`resize`."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self.resize(limit)

    @property
    def name(self) -> str:
        """Its name in messages: the URL of the broker, password masked, where it is for one."""
        return self._pool.name

    def stats(self) -> PoolStats:
        """Return ``limit``, ``in_use``, ``idle`` and ``waiting`` as of now, and the totals ``created``,
        ``discarded`` and ``timeouts``."""
        return self._pool.stats()

    def holders(self) -> list[tuple[str, float]]:
        """Return the name of each holder's greenlet, and for how many seconds it has held."""
        return self._pool.holders()

    def forget(self) -> None:
        """Forget all resources in the child of a fork.  Never switches."""
        for borrowed in self._checkouts.end_all():
            self.expire(borrowed, "it was acquired before a fork")
        for sub_pool in list(self._sub_pools):
            sub_pool.forget()
        self._pool.forget()

    @property
    def _dirty(self) -> list[Any]:
        # kombu's attribute for the resources in use, as many as stats() counts, for monitoring tools.
        return [*self._checkouts.facades(), *self._pool.lost()]

    def _add_when_empty(self) -> None:
        # kombu's private method, by which subclasses add one more.
        if self._limit and len(self._dirty) >= self._limit:
            raise self.LimitExceeded(self._limit)
        self._resource.put_nowait(self.new())

    # For a pool on top of this one

    def lend_to_pool(self, sub_pool: Resource, block: bool, deadline: Deadline | None) -> Any:
        """Acquire a resource for *sub_pool*, which keeps it until this pool needs it.  May switch.

        Raises:
            LimitExceeded, RuntimeError, WrongHub: as :meth:`acquire`.
        """
        entry = self._take(block, deadline)
        try:
            self._sub_pools.add(sub_pool)
            self._pool.sub_pools.assign(entry.item, sub_pool._pool)
        except BaseException:
            self._pool.put_back(entry)  # perhaps of the sub-pool already, which knows nothing of it
            raise
        return entry.item

    def take_back(self, core: Any) -> None:
        """Release a resource that a sub-pool no longer needs.  Never switches."""
        self._pool.release(core)

    def facade(self, core: Any, lender: Any) -> Any:
        """Return a facade over *core*, whose ``release`` calls that of *lender*.  Never switches."""
        return _facade_over(core, lender)

    def expire(self, borrowed: Any, reason: str) -> None:
        """Make each later use of a facade raise an error with *reason*.  Never switches."""
        _expire_facade(borrowed, reason)

    def returned(self, borrowed: Any) -> None:
        """Expire a facade that was released.  Never switches."""
        self.expire(borrowed, "it was released to its pool")

    def evict(self, reason: str) -> None:
        """Expire all facades acquired here or from a sub-pool.  Never switches."""
        for borrowed in self._checkouts.end_all():
            self.expire(borrowed, reason)
        for sub_pool in list(self._sub_pools):
            sub_pool._pool.clear()
            sub_pool.evict(reason)

    # Internals

    def _note_hooks(self) -> None:
        # Acquire and release are hot paths: hooks are called only if a subclass defines them.
        self._has_release_hook = self._has_own("release_resource")
        self._has_prepare_hook = self._has_own("prepare")
        self._pool.wants_back = self._has_release_hook or self._has_prepare_hook
        self._pool.on_returned = self.release_resource if self._has_release_hook else None
        if self._pool.wants_back or self.trace_acquire:
            self._checkouts.keep_none()

    def _has_own(self, hook: str) -> bool:
        return self._is_replaced(hook, Resource)

    def _is_replaced(self, hook: str, by_default: type[Resource]) -> bool:
        # Not by __dict__: on Python 3.11 and 3.12, reading an attribute takes six times as long once
        # the dict of its object was asked for.
        method = getattr(self, hook)
        return getattr(method, "__func__", None) is not getattr(by_default, hook)

    if not TYPE_CHECKING:  # otherwise a type checker accepts any attribute

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name in _HOOKS and hasattr(self, "_loans"):
                self._note_hooks()

    def _parent(self) -> FairPool[Any] | None:
        return None

    def _describe(self) -> str:
        return type(self).__name__

    def _deadline(self, block: bool, timeout: Seconds | Deadline | None) -> Deadline | None:
        return None if timeout is None else Deadline.of(timeout)

    def _lend(self, entry: Entry[Any], block: bool, deadline: Deadline | None) -> Any:
        """Lend what was just acquired, with a new facade.  May switch."""
        entry = self._ready(entry, block, deadline)
        since = entry.since
        try:
            borrowed = self.facade(entry.item, self)
            self._note_loan(borrowed, entry)
        except BaseException:
            self._put_back(entry, since)
            raise
        return borrowed

    def _put_back(self, entry: Entry[Any], since: float) -> None:
        """Release what was held since *since*, unless that was done before an error.  Never switches."""
        if entry.since is since:
            self._pool.put_back(entry)

    def _note_loan(self, borrowed: Any, entry: Entry[Any]) -> None:
        """Record that *borrowed*, a new facade over the resource of *entry*, is in use."""
        place = acquiring_place() if self.trace_acquire else None
        has_hooks = self._has_prepare_hook or self._has_release_hook
        keeps = place is None and not has_hooks and self._can_lend_again(borrowed)
        self._checkouts.lend(borrowed, entry, place, keeps)

    def _can_lend_again(self, borrowed: Any) -> bool:
        return hasattr(type(borrowed), "lend_again")

    def _ready(self, entry: Entry[Any], block: bool, deadline: Deadline | None) -> Entry[Any]:
        """Return *entry*, prepared, or what replaces it.  May switch."""
        entry = self._living(entry, block, deadline)
        if self._has_prepare_hook or isinstance(entry.item, lazy):
            entry = self._prepared(entry, block, deadline)
        return entry

    def _living(self, entry: Entry[Any], block: bool, deadline: Deadline | None) -> Entry[Any]:
        """Return *entry*, or what replaces it if it is dead and that was not found out.  May switch."""
        try:
            while self._checks_itself and not self._is_core_alive(entry.item):
                entry = self._pool.take_instead(entry, block, deadline)
        except BaseException:
            # Nothing is known of it; removing what has left the pool already does nothing.
            self._pool.remove(entry.item)
            raise
        return entry

    def _is_core_alive(self, core: Any) -> bool:
        return self.is_alive(core)

    def _take(self, block: bool, deadline: Deadline | None) -> Entry[Any]:
        entry = self._pool.take(block, deadline)
        since = entry.since
        try:
            return self._ready(entry, block, deadline)
        except BaseException:
            self._put_back(entry, since)
            raise

    def _prepared(self, entry: Entry[Any], block: bool, deadline: Deadline | None) -> Entry[Any]:
        """Return *entry*, just acquired, with what ``prepare`` makes of it.  May switch."""
        core = entry.item
        try:
            ready = self.prepare(core)
        except BaseException:
            self._release_unprepared(entry)
            raise
        if ready is not core and not self._pool.exchange(core, ready):
            # Closed or cleared meanwhile.
            spawn("pool-discard", self._end, ready)
            return self._take(block, deadline)
        return entry

    def _release_unprepared(self, entry: Entry[Any]) -> None:
        """Release what ``prepare`` failed for; by :meth:`release`, which a subclass may define."""
        if isinstance(entry.item, lazy):
            self._pool.put_back(entry)
            return
        try:
            borrowed = self.facade(entry.item, self)
            self._checkouts.lend(borrowed, entry, None)
        except BaseException:
            self._pool.put_back(entry)
            raise
        self.release(borrowed)

    def _release_unlent(self, resource: Any) -> None:
        """Called for a facade that is not acquired, such as one that was released before."""

    def _make(self, deadline: Deadline) -> Any:
        with TimeLimit(deadline, f"pool {self._pool.name!r}: creating another"):
            return self.new()

    def _preloaded(self) -> Any:
        return self.prepare(self.new())

    def _promise(self) -> Any:
        """Return what stands for a resource that was not created yet, and creates one when called."""
        return lazy(self.new)

    def _add(self, resource: Any) -> None:
        """Add an idle resource, or the promise of one."""
        self._pool.add(resource)

    def _end(self, resource: Any) -> None:
        if not isinstance(resource, lazy):
            self.close_resource(resource)

    def _abandon(self) -> None:
        spawn("pool-collect", self._collect_each, self._pool.close())

    def _collect(self, cores: list[Any]) -> None:
        """Close resources, even if the caller is killed while it waits for that.  May switch."""
        if cores:
            # In a greenlet of its own, which continues if the caller is killed.
            spawn("pool-collect", self._collect_each, cores).join()

    def _collect_each(self, cores: list[Any]) -> None:
        for core in cores:
            try:
                if not isinstance(core, lazy):
                    self.collect_resource(core)
            except Exception:
                # The program no longer needs it.
                logger.debug(
                    "pool %r: cannot close a resource",
                    self._pool.name,
                    exc_info=True,
                    extra={"pool": self._pool.name},
                )


class RelendingPool(Resource):
    """A pool whose facades are lent again if nothing refers to them since their release.

    A facade has ``_pool`` (the lender, None after the release), ``_loan``, ``mark_released`` and
    ``lend_again``, or is never lent again.
    """

    def acquire(self, block: bool = False, timeout: Seconds | Deadline | None = None) -> Any:
        """Acquire a resource; see :meth:`Resource.acquire`.  May switch."""
        # The common case, in one piece, as a call of a function costs as much as ten of these lines:
        # nothing waits, and a resource is idle whose facade of the loan before the last can be lent
        # again.  (Programs often refer to that of the last one while they acquire the next.)
        pool = self._pool
        idle, entry = pool._idle, None
        if idle and not (pool._waiters or pool._lost or pool._checks_idle):
            current, last = getcurrent(), idle[-1].last
            # A greenlet often acquires again what it has released: its thread was checked before.
            is_same = last() is current
            if (
                pool.hub.loop is not None
                if current is pool.main
                else is_same or current.parent is pool.hub
            ) and (timeout is None or is_seconds(timeout)):
                entry, now = idle[-1], monotonic()
                if not is_same:
                    entry.last = last = _ref(current)
                # No call from here on, since a signal can interrupt after each.
                entry.holder = last
                entry.since = now
                del idle[-1]
        deadline = None
        if entry is None:
            deadline = self._deadline(block, timeout)
            entry = pool.take(block, deadline)
        loan, since = entry.spare, entry.since
        try:
            if (
                loan is not None
                # Only the pool refers to the facade, also weakly: the loan, and this expression.
                and getrefcount(loan.facade) == UNSHARED
                and loan.facade.__weakref__ is loan
                and loan.facade.lend_again(self)
            ):
                entry.spare, entry.loan = entry.loan, loan
                borrowed, loan.facade = loan.facade, None
                return borrowed
            return self._lend(entry, block, deadline or self._deadline(block, timeout))
        except BaseException:
            self._put_back(entry, since)
            raise

    def release(self, resource: Any) -> None:
        """Release what was acquired.  A second call does nothing.  Never switches."""
        # The common case, in one piece, as in acquire().
        pool = self._pool
        try:
            loan = resource._loan if resource._pool is self else None
        except (AttributeError, OperationalError):  # it is no facade of ours
            loan = None
        if loan is not None and not (pool._waiters or pool._may_discard):
            entry, current, parent = loan.entry, getcurrent(), pool._parent
            if (
                entry.loan is loan
                and (entry.holder() is current or current.parent is pool.hub)
                and (parent is None or not (parent._waiters or parent.wants_back))
            ):
                resource.mark_released()
                loan.facade = resource
                entry.holder = None
                pool._idle.append(entry)
                return
        super().release(resource)


class ConnectionPool(RelendingPool):
    """A pool of connections, clones of a given one.

    ``acquire`` returns a ``PooledConnection`` over a connection that the pool keeps open: of the same
    class and equal, with the same channels.

    Arguments:
        connection: the connection to clone; it is not in the pool itself.
        limit: maximum number of connections, including those being opened; None and 0 are no limit.
        preload: number of connections to open at once (may switch).
    """

    LimitExceeded: ClassVar[type[exceptions.LimitExceeded]] = exceptions.ConnectionLimitExceeded
    close_after_fork = True

    def __init__(
        self, connection: Connection, limit: int | None = None, **kwargs: Unpack[PoolArguments]
    ) -> None:
        self.connection = connection
        # The renewal of a facade includes it, at less cost.
        self._checks_itself = type(self).is_alive is ConnectionPool.is_alive
        super().__init__(limit=limit, **_known(type(self), kwargs))

    def new(self) -> Any:
        """Return a clone of the connection, which is not open."""
        return self.connection.clone()

    def is_alive(self, resource: Any) -> bool:
        """Return whether it was not closed."""
        try:
            is_alive: bool = resource.is_reusable
        except AttributeError:
            return True
        return is_alive

    def collect_resource(self, resource: Any, socket_timeout: float | None = 0.1) -> None:
        """Close the connection, after its unsent messages were sent, within 2 s.  May switch."""
        if isinstance(resource, lazy):
            return  # it was never created
        try:
            resource.close()
        finally:
            resource.collect(socket_timeout)

    def _collect(self, cores: list[Any]) -> None:
        # Concurrently, since the peer of one may not respond.
        gevent.joinall([spawn("pool-collect", self._collect_each, [core]) for core in cores])

    @contextmanager
    def acquire_channel(
        self, block: bool = False, timeout: Seconds | Deadline | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """Acquire a connection, and yield it with its default channel.  May switch."""
        with self.acquire(block=block, timeout=timeout) as connection:
            yield connection, connection.default_channel

    def _describe(self) -> str:
        return str(self.connection.as_uri())

    def _preloaded(self) -> Any:
        connection = self.prepare(self.new())
        try:
            connection.connect()
        except BaseException:
            connection.collect()  # it may be open already
            raise
        return connection

    def facade(self, core: Any, lender: Any) -> Any:
        """Return a facade over *core*, whose ``release`` calls that of *lender*.  Never switches."""
        try:
            lend = core.lend
        except AttributeError:
            return super().facade(core, lender)
        return lend(lender)

    def expire(self, borrowed: Any, reason: str) -> None:
        """Make each later use of a facade raise an error with *reason*.  Never switches."""
        # On the class, since a general facade forwards the lookup to its resource.
        expire = getattr(type(borrowed), "expire", None)
        if expire is None:
            super().expire(borrowed, reason)
        else:
            expire(borrowed, reason)

    def returned(self, borrowed: Any) -> None:
        """Mark a facade as released, so that later uses are logged.  Never switches."""
        try:
            mark_released = type(borrowed).mark_released
        except AttributeError:
            super().returned(borrowed)
        else:
            mark_released(borrowed)


class ChannelPool(Resource):
    """A pool of channels of one connection.

    It survives reconnects: a closed channel is replaced by a new one when it is next needed.

    Arguments:
        connection: the connection on which the channels are opened.
        limit: maximum number of channels, including those being opened; None and 0 are no limit.
        preload: number of channels to open at once (may switch).
    """

    LimitExceeded: ClassVar[type[exceptions.LimitExceeded]] = exceptions.ChannelLimitExceeded
    close_after_fork = True

    def __init__(
        self, connection: Connection, limit: int | None = None, **kwargs: Unpack[PoolArguments]
    ) -> None:
        self.connection = connection
        super().__init__(limit=limit, **_known(type(self), kwargs))

    def new(self) -> Any:
        """Open a channel.  May switch."""
        return self.connection.channel()

    def is_alive(self, resource: Any) -> bool:
        """Return whether it is open."""
        return bool(getattr(resource, "is_open", True))

    def collect_resource(self, resource: Any) -> None:
        """Close the channel."""
        resource.close()

    def _describe(self) -> str:
        return f"channels of {self.connection.as_uri()}"


class _IdleQueue:
    """kombu's queue of idle resources, for the ``setup`` of subclasses and for monitoring tools."""

    def __init__(
        self,
        pool: FairPool[Any],
        promise: Callable[[], Any],
        put_nowait: Callable[[Any], object],
    ) -> None:
        self.put_nowait = put_nowait
        self._pool = pool
        self._promise = promise

    def qsize(self) -> int:
        """Return the number of resources that can be acquired now, including those not created yet."""
        stats = self._pool.stats()
        limit = stats["limit"]
        return stats["idle"] if limit is None else max(limit - stats["in_use"], 0)

    @property
    def queue(self) -> list[Any]:
        """The idle resources, and lazy ones for those not created yet; the last is acquired next."""
        idle = self._pool.idle()
        return [self._promise()] * (self.qsize() - len(idle)) + idle

    def get_nowait(self) -> Any:
        """Take out the resource that would be acquired next; the pool makes another one for it.

        Raises:
            queue.Empty: there is none.
        """
        idle = self._pool.idle()
        if not idle and not self.qsize():
            raise Empty
        if not idle or self._pool.give_up():
            return self._promise()
        self._pool.withdraw(idle[-1])
        return idle[-1]


class _Loan(weakref.ref[Any]):
    """A weak reference to a facade in use, which may be collected without a release.

    Attributes:
        entry: that of the resource below the facade.
        facade: the facade while it is not in use, for the next loan; None while it is.
        place: the stack where it was acquired; None unless that is traced.
        since: when it was acquired; None if the facade is lent again and again.
    """

    __slots__ = ("entry", "facade", "key", "place", "since")

    since: float | None
    entry: Entry[Any]
    facade: Any
    key: int
    place: StackSummary | None


class _Checkouts:
    """The facades in use, by identity, since facades may be equal or unhashable.

    A facade that a pool can lend again is kept after its release, with its loan, until it is lent
    again, which happens only if nothing else refers to it.  An entry keeps two, since a program often
    refers to the last one while it acquires the next.

    Arguments:
        on_lost: called with the resource of a facade that was collected without a release, and the
            stack of its acquire, if that is traced.  The garbage collector calls it, in any thread,
            between any two instructions: it must only record.
    """

    def __init__(self, on_lost: Callable[[Any, StackSummary | None], object]) -> None:
        by_id: dict[int, _Loan] = {}

        def lost(loan: weakref.ref[Any]) -> None:
            assert isinstance(loan, _Loan)
            if by_id.get(loan.key) is loan and not sys.is_finalizing():
                del by_id[loan.key]
                # Otherwise a signal has interrupted the end of its release.
                if loan.since is None or loan.entry.since is loan.since:
                    on_lost(loan.entry.item, loan.place)

        #: By the identity of the facade, also those of facades that are kept.
        self.by_id = by_id
        self._lost = lost

    def lend(
        self, facade: Any, entry: Entry[Any], place: StackSummary | None, keeps: bool = False
    ) -> None:
        """Record that *facade* is in use, over the resource of *entry*.

        Arguments:
            place: the stack of the acquire, if it is traced.
            keeps: whether the facade can be lent again after its release.
        """
        loan = _Loan(facade, self._lost)
        loan.entry = entry
        loan.facade = None
        loan.key = key = id(facade)
        loan.place = place
        loan.since = None if keeps else entry.since
        if keeps:
            former: _Loan | None = entry.spare
            entry.spare, entry.loan = entry.loan, loan
            if former is not None:
                self._drop(former)  # the program keeps its facade
            facade._loan = loan
        # Last, since from here on the facade's end is a release.
        self.by_id[key] = loan

    def drop_kept(self, entry: Entry[Any]) -> None:
        """Drop the facades that *entry* keeps, as its resource leaves the pool."""
        for loan in (entry.loan, entry.spare):
            if loan is not None:
                self._drop(loan)

    def keep_none(self) -> None:
        """Keep no facade after its release any more; those in use are released as others are."""
        for loan in list(self.by_id.values()):
            loan.entry.loan = loan.entry.spare = None
            self._drop(loan)

    def _drop(self, loan: _Loan) -> None:
        """Drop the facade of *loan*, if it is kept."""
        # Otherwise another facade may have its identity by now.
        if loan.facade is not None:
            self.by_id.pop(loan.key, None)
            loan.facade._loan = None  # they refer to each other
            loan.facade = None

    def facades(self) -> list[Any]:
        """Return all facades in use."""
        return [
            facade
            for loan in list(self.by_id.values())
            if loan.facade is None and (facade := loan()) is not None
        ]

    def end_all(self) -> list[Any]:
        """End all loans, and return their facades."""
        facades = self.facades()
        self.by_id.clear()
        return facades


class Facade:
    """The facade of a resource whose class has none of its own; see :func:`_facade_over`."""

    __slots__ = ("__core", "__pool", "__reason", "__weakref__")

    def __init__(self, core: object, pool: Lender) -> None:
        object.__setattr__(self, "_Facade__core", core)
        object.__setattr__(self, "_Facade__pool", pool)
        object.__setattr__(self, "_Facade__reason", None)

    def release(self) -> None:
        """Release the resource to its pool.  A second call does nothing."""
        self.__pool.release(self)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, exc_type: object, *_: object) -> None:
        # After an exception the state of the resource is unknown.
        if exc_type is None:
            self.__pool.release(self)
        else:
            self.__pool.replace(self)

    @property
    def __class__(self) -> type:
        return type(self.__core)

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("the class of a pooled resource cannot be changed")

    def __getattr__(self, name: str) -> Any:
        return getattr(_live(self), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(_live(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_live(self), name)

    def __eq__(self, other: object) -> bool:
        if other is self:
            return True
        if _is_facade(other):
            other = object.__getattribute__(other, "_Facade__core")
        return bool(self.__core == other)

    def __hash__(self) -> int:
        return hash(self.__core)

    def __repr__(self) -> str:
        return repr(self.__core)

    def __str__(self) -> str:
        return str(self.__core)

    def __dir__(self) -> list[str]:
        return dir(self.__core)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _live(self).__reduce_ex__(protocol)


#: Class of resources -> class of their facades.
_classes: WeakKeyDictionary[type, type[Facade]] = WeakKeyDictionary()


def _facade_over(core: Any, pool: Lender) -> Any:
    """Return a facade that forwards everything to *core*, and is released to *pool*.

    The end of a ``with`` block releases it, too; after an exception as broken.
    """
    kind = type(core)
    made = _classes.get(kind)
    if made is None:
        # Not hasattr(), which finds the metaclass's __call__ in every class.
        found = {name for cls in kind.__mro__ for name in vars(cls)}
        members: dict[str, Any] = {name: _forwarder(name) for name in FORWARDED if name in found}
        made = _classes[kind] = type(kind.__name__, (Facade,), {"__slots__": (), **members})
    return made(core, pool)


def _expire_facade(facade: Any, reason: str) -> None:
    """Make each later use of *facade* raise an error with *reason*."""
    object.__setattr__(facade, "_Facade__reason", reason)


def _is_facade(borrowed: Any) -> bool:
    """Return whether it is a facade; ``isinstance`` would see the class of the resource."""
    return issubclass(type(borrowed), Facade)


def _live(facade: Facade) -> Any:
    core = object.__getattribute__(facade, "_Facade__core")
    reason = object.__getattribute__(facade, "_Facade__reason")
    if reason is not None:
        raise OperationalError(f"{core!r} cannot be used any more: {reason}")
    return core


def _forwarder(name: str) -> Callable[..., Any]:
    def forward(self: Facade, *args: Any) -> Any:
        return getattr(_live(self), name)(*args)

    forward.__name__ = name
    return forward


def acquiring_place() -> StackSummary:
    """Return the stack of an acquire."""
    # Without the frames of the library, unless it is the greenlet's first.  Source lines are read only
    # when the summary is formatted.
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("greenconn."):
        frame = frame.f_back
    summary = StackSummary.extract(walk_stack(frame), limit=DEPTH, lookup_lines=False)
    summary.reverse()
    return summary


def _known(pool: type[Resource], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a pool accepts."""
    check_keywords(pool.__name__, kwargs, _ARGUMENTS, is_kombus=True)
    return {name: kwargs[name] for name in _ARGUMENTS if name in kwargs}


#: The arguments of pools of all kinds.
_ARGUMENTS: Final = ("close_after_fork", "preload", "trace_acquire")
#: By identity, since a pool need not be hashable.
_all: Final[WeakValueDictionary[int, Resource]] = WeakValueDictionary()


def all_pools() -> list[Resource]:
    """Return the pools of this process, of all threads.  Never switches."""
    return list(_all.values())


def _checked(limit: int | None) -> int | None:
    if isinstance(limit, bool):
        raise TypeError(f"limit must be an int, not bool, got {limit!r}")
    if isinstance(limit, str):
        raise TypeError(f"limit must be an integer, at least 0, or None, got {limit!r}")
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be an integer, at least 0, or None, got {limit}")
    return limit
