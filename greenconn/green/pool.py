"""A bounded, fair pool: greenlets get resources in the order in which they asked.

Theory.  A slot of the pool is idle (its resource is not in use), held (a greenlet uses the resource, or
was just given it) or reserved (a greenlet is creating the resource).  The rules:

- held + idle + reserved never exceeds the limit.  A slot is reserved before anything switches.
- Greenlets wait only while nothing is idle and no slot is free.  Every change ends with
  :meth:`FairPool._serve`, which assigns what is free to the waiters in the order of arrival.  So a new
  caller that sees waiters queues behind them, and one that sees none cannot overtake any.
- An assignment is accepted or it did not happen: ``offer`` returns None when the waiter has left.  A
  waiter that is killed between the assignment and its wake-up passes the resource on.
- A sub-pool acquires its resources from its parent, and keeps idle ones.  The parent counts these as
  held, since releasing and acquiring them each time would double the cost.  Before a greenlet has to
  wait, or a resource is created, the sub-pools give up their idle ones.
- Idle resources are reused last in, first out.  Dead ones are discarded when they are about to be
  reused.  Slow work (creating, closing) happens outside of these rules.

Cost: an uncontended acquire and release touch one list and the entry of the resource, which lasts as
long as the resource.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from enum import Enum
from time import monotonic
from traceback import StackSummary
from typing import Any, Final, Generic, TypedDict, TypeVar

from gevent import get_hub
from greenlet import getcurrent, greenlet

from greenconn.exceptions import LimitExceeded
from greenconn.green.deadline import Deadline
from greenconn.green.hub import HubAffinity, yield_to_hub
from greenconn.green.slot import Slot
from greenconn.green.supervisor import State, moved, spawn
from greenconn.listeners import LISTENERS, PoolWaitEvent, notify

T = TypeVar("T")

#: Called for each acquire: looking it up in its module has a cost.
_ref: Final = weakref.ref

logger = logging.getLogger("greenconn.green")

#: Seconds after which a wait without a timeout is worth a warning.
WARN_AFTER: Final = 30.0
#: Holders that a message names.
NAMED: Final = 10


class _Permit(Enum):
    """The right to create a resource, assigned to a waiter in place of a resource."""

    PERMIT = "permit"


class PoolState(State):
    """The stages of a pool's life."""

    OPEN = "open"
    #: Nothing can be acquired any more; what is released is disposed of.
    CLOSED = "closed"


POOL_MOVES: Final[Mapping[PoolState, frozenset[PoolState]]] = {
    PoolState.OPEN: frozenset({PoolState.CLOSED}),
    PoolState.CLOSED: frozenset(),
}
#: Used by each release: looking up a member of an Enum has a cost.
_CLOSED: Final = PoolState.CLOSED
#: The hub of a pool that was not used yet.
_UNUSED: Final = object()


class PoolStats(TypedDict):
    """The numbers of a pool."""

    limit: int | None
    in_use: int  #: held or being created
    idle: int
    waiting: int
    created: int  #: since the beginning
    discarded: int  #: since the beginning
    timeouts: int  #: acquires that got nothing


#: A reference to what is gone.
_NOTHING: Final[weakref.ref[Any]] = weakref.ref(set())


class Entry(Generic[T]):
    """A resource in a pool, and its holder.

    Attributes:
        item: the resource.
        holder: the greenlet, or the sub-pool, that holds it; None while nothing does.
        since: when it was acquired.
        last: the greenlet that took it when it was idle.  Often the same one takes it again, and
            another reference would take longer.
        loan, spare: for the lender of the pool, which can keep there what it made for the resource;
            gone as soon as the resource leaves the pool.

    Greenlets are referred to weakly, so that a greenlet without another reference can be collected.
    """

    __slots__ = ("holder", "item", "last", "loan", "since", "spare")

    def __init__(self, item: T) -> None:
        self.item = item
        self.last = _NOTHING
        self.holder: weakref.ref[Any] | None = None
        self.since = 0.0
        self.loan: Any = None
        self.spare: Any = None

    def hold(self, holder: weakref.ref[Any] | None = None) -> Entry[T]:
        """Record that *holder*, by default the current greenlet, holds it from now on; return this."""
        self.holder = holder or weakref.ref(getcurrent())
        self.since = monotonic()
        return self

    def held_by(self, now: float) -> list[tuple[str, float]]:
        """Return the name of the holder, and for how many seconds at *now*; empty if not held."""
        holder = self.holder
        return [] if holder is None else [(_name(holder()), now - self.since)]


class Entries(dict[int, Entry[T]], Generic[T]):
    """The resources of a pool, by identity (they may be equal, or not hashable)."""

    def add(self, item: T) -> Entry[T]:
        """Add *item*, which nothing holds."""
        entry = self[id(item)] = Entry(item)
        return entry

    def held(self, item: T) -> Entry[T] | None:
        """Return the entry of *item* if it is held."""
        entry = self.get(id(item))
        return None if entry is None or entry.holder is None else entry

    def exchange(self, item: T, other: T) -> bool:
        """Record *other* in place of *item*, with its holder and time; False if *item* is not held."""
        entry = self.held(item)
        if entry is None:
            return False
        del self[id(item)]
        entry.item = other
        self[id(other)] = entry
        return True

    def leave(self, entry: Entry[T]) -> T:
        """Remove *entry* and return its resource; a later release of it does nothing."""
        self.pop(id(entry.item), None)
        entry.holder = entry.loan = entry.spare = None
        return entry.item

    def leave_all(self) -> list[T]:
        """Remove all, and return the resources, those held first."""
        entries = sorted(self.values(), key=lambda entry: entry.holder is None)
        return [self.leave(entry) for entry in entries]


class SubPoolRef(weakref.ref[Any]):
    """A sub-pool, as the holder of an item."""

    __slots__ = ("item",)

    item: Any


class SubPools:
    """The sub-pools of one pool.

    Arguments:
        entries: the items of the pool.
        on_left: called with an item whose sub-pool was garbage-collected.  The garbage collector
            calls it, in any thread: it must only record.
    """

    __slots__ = ("__weakref__", "_entries", "_left", "_sub_pools")

    def __init__(self, entries: Entries[Any], on_left: Callable[[Any], object]) -> None:
        def left(held_by: weakref.ref[Any]) -> None:
            assert isinstance(held_by, SubPoolRef)
            on_left(held_by.item)

        self._entries = entries
        self._left = left
        self._sub_pools: list[weakref.ref[FairPool[Any]]] = []

    def assign(self, item: Any, sub_pool: FairPool[Any]) -> None:
        """Make *sub_pool* the holder of *item*, which is held."""
        held_by = SubPoolRef(sub_pool, self._left)
        held_by.item = item
        self._entries[id(item)].hold(held_by)
        if sub_pool not in self.all():
            self._sub_pools = [weakref.ref(each) for each in (*self.all(), sub_pool)]

    def all(self) -> list[FairPool[Any]]:
        """Return the sub-pools that are alive."""
        return [sub_pool for each in self._sub_pools if (sub_pool := each()) is not None]

    def has(self, item: Any) -> bool:
        """Return whether a sub-pool holds *item*, or did when it was garbage-collected."""
        entry = self._entries.get(id(item))
        return entry is not None and type(entry.holder) is SubPoolRef

    def kept(self) -> int:
        """Return the number of idle items in all sub-pools."""
        return sum(sub_pool.kept for sub_pool in self.all())

    def reclaim(self) -> bool:
        """Have a sub-pool give up an idle item; False when there is none.  Never switches."""
        if not self._sub_pools:
            return False
        return any(sub_pool.give_up() for sub_pool in self.all())

    def holders(self, now: float) -> list[tuple[str, float]]:
        """Return the holders of items of the pool and of its sub-pools, longest first.

        With each go the seconds until *now*.  One time for all: the order of those that came at
        almost the same time would be chance otherwise.
        """
        own = [each for each in self._entries.values() if type(each.holder) is not SubPoolRef]
        found = [holder for entry in own for holder in entry.held_by(now)]
        for sub_pool in self.all():
            found += sub_pool.holders(now)
        return sorted(found, key=lambda entry: -entry[1])


#: A waiting greenlet, and since when if it has no timeout.
Waiter = tuple[weakref.ref[greenlet], float | None]


class WaitQueue(Generic[T]):
    """The greenlets that wait for an item of a pool, in the order of arrival.

    Arguments:
        warn_after: seconds after which a wait without a timeout is too long.
        warn: called in the hub when a wait is too long, once until nothing waits any more.  It must
            not switch.
    """

    __slots__ = ("_has_warned", "_timer", "_warn", "_warn_after", "waiters")

    def __init__(self, warn_after: float, warn: Callable[[], object]) -> None:
        #: In the order of arrival.
        self.waiters: OrderedDict[Slot[T], Waiter] = OrderedDict()
        self._warn_after = warn_after
        self._warn = warn
        self._timer: Any = None
        self._has_warned = False

    def enter(self, is_endless: bool) -> Slot[T]:
        """Append the current greenlet.  It must wait on the slot returned, and then ``leave``.

        Arguments:
            is_endless: it waits without a timeout.
        """
        slot: Slot[T] = Slot()
        waiter = weakref.ref(getcurrent()), monotonic() if is_endless else None
        if is_endless and self._timer is None and not self._has_warned:
            self._start(self._warn_after)
        # No call from here on, since a signal can interrupt after each.
        self.waiters[slot] = waiter
        return slot

    def leave(self, slot: Slot[T]) -> None:
        """Remove the waiter of *slot*, if it is still there."""
        self.waiters.pop(slot, None)
        if not self.waiters:
            self.stop_timer()

    def offer(self, item: T) -> weakref.ref[greenlet] | None:
        """Assign *item* to the first waiter that takes it, and return that; None: none did.

        Never switches.
        """
        waiters = self.waiters
        while waiters:
            slot, waiter = waiters.popitem(False)
            if slot.offer(item):
                return waiter[0]
        return None

    def fail(self, exc: BaseException) -> None:
        """Raise *exc* in all waiters.  Never switches."""
        while self.waiters:
            self.waiters.popitem(last=False)[0].fail(exc)

    def stop_timer(self) -> None:
        """Stop the timer of the warning, as nothing waits any more."""
        self._has_warned = False
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _start(self, seconds: float) -> None:
        self._timer = get_hub().loop.timer(seconds, ref=False)
        self._timer.start(self._check)

    def _check(self) -> None:
        # In the hub.  Waiters with a timeout get an error soon enough.
        self.stop_timer()
        since = next((since for _, since in self.waiters.values() if since is not None), None)
        if since is None:
            return
        left = since + self._warn_after - monotonic()
        if left > 0.001:
            self._start(left)
        else:
            self._has_warned = True
            self._warn()


class FairPool(Generic[T]):
    """A pool of at most *limit* resources for any number of greenlets.

    Arguments:
        create: returns a new resource; gets the deadline of the caller.  May switch.
        dispose: closes a resource that is out of use; called in a greenlet of its own.
        is_alive: returns whether an idle resource can still be used.  Must not switch.
        lender_checks: whether the caller of :meth:`take` finds out itself that an idle resource is
            dead, and calls :meth:`take_instead`.
        limit: resources at most, those being created included; None is unlimited.
        describe: returns the pool's name for messages (without secrets).
        error: class of the error when nothing is free.
        warn_after: seconds after which a wait without a timeout is logged, once until nothing waits.
        parent: the pool from which *create* acquires, and to which resources are released.
    """

    def __init__(
        self,
        create: Callable[[Deadline], T],
        dispose: Callable[[T], object] | None = None,
        is_alive: Callable[[T], bool] | None = None,
        limit: int | None = None,
        describe: Callable[[], str] | None = None,
        error: type[LimitExceeded] = LimitExceeded,
        warn_after: float = WARN_AFTER,
        parent: FairPool[T] | None = None,
        lender_checks: bool = False,
    ) -> None:
        self._create = create
        self._dispose = dispose
        if is_alive is None and parent is not None:
            is_alive = parent._is_alive
        self._is_alive: Callable[[T], bool] | None = is_alive
        self._checks_idle = is_alive is not None and not lender_checks
        self._limit = limit
        self._describe = describe
        self._error = error
        self._warn_after = warn_after
        self._parent = parent
        self._created = self._discarded = self._timeouts = 0
        self._state = PoolState.OPEN
        #: Whether released items may have to be discarded: there were more than the limit when that was
        #: changed.  (What belonged to a pool that was closed has left it.)
        self._may_discard = False
        #: Whether sub-pools must release their items at once, instead of keeping idle ones.
        self.wants_back = False
        #: Called with each item that a sub-pool releases.  Must not switch.
        self.on_returned: Callable[[T], object] | None = None
        #: Called with each entry that leaves the pool by itself, before that.  Must not switch.
        self.on_leave: Callable[[Entry[T]], object] | None = None
        self._begin()

    def _begin(self) -> None:
        # All of this belongs to the greenlets of one hub and is changed without a switch.  In the
        # child of a fork it is made anew; a call that finds another queue of waiters than before was
        # begun by the parent process.
        self._hub_affinity: HubAffinity | None = None
        #: The hub of the first use, and the main greenlet of its thread.  See :meth:`check_hub`.
        self.hub: Any = _UNUSED
        self.main: Any = _UNUSED
        self._entries: Entries[T] = Entries()
        self._idle: list[Entry[T]] = []
        self._reserved = 0
        self._queue: WaitQueue[Entry[T] | _Permit] = WaitQueue(self._warn_after, self._warn)
        self._waiters = self._queue.waiters
        self.sub_pools = SubPools(self._entries, self.note_lost)
        # Also appended to by the garbage collector, in any thread.
        self._lost: deque[tuple[T, StackSummary | None, float | None]] = deque()

    def __repr__(self) -> str:
        closed = ", closed" if self._state is _CLOSED else ""
        return f"<pool {self.name!r}: {self._usage()}{closed}>"

    @property
    def name(self) -> str:
        """The name of the pool in messages."""
        return self._describe() if self._describe is not None else "pool"

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be acquired any more."""
        return self._state is _CLOSED

    @property
    def kept(self) -> int:
        """The number of idle items, which it can release to its parent."""
        return len(self._idle)

    def give_up(self) -> bool:
        """Release the least recently used idle item to the parent; False if none.  Never switches."""
        if self._parent is None or not self._idle:
            return False
        entry = self._idle.pop(0)
        try:
            self._return(self._leave(entry))
        except BaseException:
            self._mend(entry)
            raise
        return True

    def stats(self) -> PoolStats:
        """Return the current numbers and the totals."""
        kept = self.sub_pools.kept()
        return {
            "limit": self._limit,
            "in_use": self._used() - kept,
            "idle": len(self._idle) + kept,
            "waiting": len(self._waiters),
            "created": self._created,
            "discarded": self._discarded,
            "timeouts": self._timeouts,
        }

    def idle(self) -> list[T]:
        """Return the idle items of this pool; the next to be acquired comes last."""
        return [entry.item for entry in self._idle]

    def lost(self) -> list[T]:
        """Return the items that were garbage-collected and are still to be released."""
        # By number: an iterator would not bear what the garbage collector appends meanwhile.
        return [self._lost[number][0] for number in range(len(self._lost))]

    def holders(self, now: float | None = None) -> list[tuple[str, float]]:
        """Return for each holder the name of its greenlet, and for how many seconds at *now*."""
        return self.sub_pools.holders(monotonic() if now is None else now)

    def acquire(self, block: bool = True, deadline: Deadline | float | None = None) -> T:
        """Acquire a resource.  May switch.

        Arguments:
            block: wait for one; if False, let the hub turn once and try again.
            deadline: seconds or a deadline, for the wait and the creation together.

        Raises:
            LimitExceeded: none was free in time; names the holders, and for how long they have held.
            RuntimeError: the pool is closed.
            WrongHub: used from another thread than before.
            BaseException: the error of *create*; the slot goes to the next waiter.
        """
        return self.take(block, deadline).item

    def take(self, block: bool = True, deadline: Deadline | float | None = None) -> Entry[T]:
        """Acquire a resource, for a lender that keeps something with it; see :meth:`acquire`."""
        # A greenlet whose parent is the hub, or the main greenlet unless that hub was destroyed, has
        # this hub: asking gevent for it takes three times as long.
        current = getcurrent()
        if current.parent is not self.hub and (current is not self.main or self.hub.loop is None):
            self.check_hub()
        if self._lost:
            self._take_back()
        idle = self._idle
        while idle and not self._waiters:
            # The common case, in one piece: nothing waits, and a resource is idle.
            entry = idle[-1]
            if self._checks_idle and not self._can_be_used(entry):
                del idle[-1]
                self._discard(entry)
                continue
            holder, now = entry.last, monotonic()
            if holder() is not current:
                entry.last = holder = _ref(current)
            # No call from here on, since a signal can interrupt after each.
            entry.holder = holder
            entry.since = now
            del idle[-1]
            return entry
        return self._take_slowly(block, Deadline.of(deadline))

    def take_instead(
        self, entry: Entry[T], block: bool = True, deadline: Deadline | float | None = None
    ) -> Entry[T]:
        """Discard *entry*, which is held and dead, and acquire another in its slot.  May switch."""
        try:
            self._discard(entry)
        except BaseException:
            self._serve()
            raise
        if self._idle and not self._waiters:
            return self.take(block, deadline)
        return self._open(Deadline.of(deadline))

    def release(self, item: T) -> bool:
        """Release a resource, once for each acquire.  Never switches.

        Returns:
            False when *item* is not held: nothing was done.
        """
        self.check_hub()
        entry = self._entries.held(item)
        if entry is None:
            return False
        self.put_back(entry)
        return True

    def put_back(self, entry: Entry[T]) -> None:
        """Release what is held, where the caller has checked the hub; see :meth:`release`."""
        if entry.holder is None:
            return  # it has left the pool
        entry.holder = None
        if not (self._waiters or self._may_discard or self._parent is not None):
            self._idle.append(entry)
            return
        try:
            self._assign(entry)
        except BaseException:
            self._mend(entry)
            raise

    def _mend(self, entry: Entry[T]) -> None:
        """Keep *entry* as idle, or release it to the parent, if an exception left it without a holder.

        The handler of a signal may raise anywhere.  Never switches.
        """
        item, parent = entry.item, self._parent
        if self._entries.get(id(item)) is entry:
            if entry.holder is None and not any(each is entry for each in self._idle):
                self._idle.append(entry)
        elif parent is not None and parent.sub_pools.has(item):
            parent.release(item)

    def _assign(self, entry: Entry[T]) -> None:
        """Let the next waiter have what was held, or keep it as idle.  Never switches."""
        if self._may_discard and self._is_above_limit():
            self._discard(entry)
        elif self._parent is not None and (self._parent._waiters or self._parent.wants_back):
            try:
                self._return(self._leave(entry))
            finally:
                self._serve()
        elif not self._waiters:
            self._idle.append(entry)
        elif (not self._checks_idle or self._can_be_used(entry)) and (
            holder := self._queue.offer(entry)
        ):
            # Directly to the next holder: while a greenlet waits nothing is idle.
            entry.hold(holder)
        else:
            self._idle.append(entry)
            self._serve()

    def remove(self, item: T) -> bool:
        """Release a defective resource, which is disposed of.  Never switches."""
        self.check_hub()
        entry = self._entries.held(item)
        if entry is None:
            return False
        self._leave(entry)
        self._discarded += 1
        try:
            if self._parent is not None:
                self._parent.remove(item)
            elif self._dispose is not None:
                spawn("pool-discard", self._dispose, item)
        except BaseException:
            self._mend(entry)
            raise
        finally:
            self._serve()
        return True

    def exchange(self, item: T, other: T) -> bool:
        """Replace *item* by *other* for its holder; False when *item* is not held any more."""
        return self._entries.exchange(item, other)

    def add(self, item: T) -> bool:
        """Add a resource that was made elsewhere; False when there is no room."""
        if self._state is _CLOSED or not self._has_room():
            return False
        self._created += 1
        self._idle.append(self._entries.add(item))
        self._serve()
        return True

    def withdraw(self, item: T) -> None:
        """Remove an idle resource, which the caller has from now on.  Never switches."""
        entry = self._entries[id(item)]
        self._idle.remove(entry)
        self._leave(entry)
        self._serve()

    def note_lost(self, item: T, place: StackSummary | None = None) -> None:
        """Record that *item* was garbage-collected without a release.  May be called at any time.

        The hub or the next acquire releases the item and logs that.

        Arguments:
            place: where it was acquired, if that was traced.
        """
        entry = self._entries.get(id(item))
        self._lost.append((item, place, None if entry is None else entry.since))
        hub = self.hub
        if hub is not _UNUSED and hub.loop is not None:
            hub.loop.run_callback_threadsafe(self._take_back)

    def resize(self, limit: int | None) -> None:
        """Change the limit.  Never switches.

        Idle resources above it are discarded at once, the least recently used first, and those in use
        when they are released.
        """
        self._limit = limit
        while self.sub_pools.reclaim():
            pass  # idle ones can go at once
        self._may_discard = self._is_above_limit()
        if limit is not None:
            beyond = len(self._entries) + self._reserved - limit
            for entry in self._idle[: max(0, beyond)]:
                self._discard(entry)
            del self._idle[: max(0, beyond)]
        self._serve()

    def clear(self) -> list[T]:
        """Remove all resources, also those in use, and return them.  Never switches.

        Releasing them later does nothing.
        """
        items = self._entries.leave_all()
        self._idle.clear()
        self._lost.clear()
        self._serve()
        return items

    def close(self) -> list[T]:
        """Close the pool and return its resources; waiting and future acquires raise RuntimeError."""
        self._state = moved(self._state, _CLOSED, POOL_MOVES, "a pool")
        self._queue.fail(self._closed_error())
        return self.clear()

    def forget(self) -> list[T]:
        """Remove and return all resources in the child of a fork, as they are the parent's."""
        items = self._entries.leave_all()
        self._queue.stop_timer()
        self._begin()
        return items

    def check_hub(self) -> None:
        """Raise WrongHub unless the caller's hub is that of the first use."""
        if self._hub_affinity is None:
            self._hub_affinity = HubAffinity()
            self.hub = self._hub_affinity.hub
            self.main = self.hub.parent
        self._hub_affinity.check(self)

    def check_hub_of_items(self) -> None:
        """Raise WrongHub if its resources belong to another hub; any hub may use an empty pool."""
        if self._entries or self._reserved:
            self.check_hub()

    def _has_room(self) -> bool:
        limit = self._limit
        return limit is None or len(self._entries) + self._reserved < limit

    def _is_above_limit(self) -> bool:
        limit = self._limit
        return limit is not None and len(self._entries) + self._reserved > limit

    def _used(self) -> int:
        """Return the number of slots that are held or reserved."""
        return len(self._entries) - len(self._idle) + self._reserved

    def _may_create(self) -> bool:
        """Return whether there is a slot to create a resource in, and no others wait."""
        if self._state is _CLOSED:
            raise self._closed_error()
        return not self._waiters and self._has_room()

    def _take_slowly(self, block: bool, deadline: Deadline) -> Entry[T]:
        """Acquire where nothing was idle, or others wait already.  May switch."""
        if self.sub_pools.reclaim():
            return self.take(block, deadline)
        if self._may_create():
            return self._open(deadline)
        if not block or (deadline.at is not None and deadline.has_ended):
            return self._take_now(deadline, block)
        queue, began_at = self._queue, monotonic()
        slot = queue.enter(deadline.at is None)
        try:
            given = slot.wait(deadline)
            self._notify_wait(began_at, None)
            if not queue.waiters:
                queue.stop_timer()
        except BaseException as exc:
            queue.leave(slot)
            if slot.has_value and queue is self._queue:
                self._pass_on(slot.value)
            if not slot.has_expired:
                self._notify_wait(began_at, exc)
                raise
            self._timeouts += 1
            error = self._error(self._timeout_text(deadline.timeout))
            self._notify_wait(began_at, error)
            raise error from None
        if queue is not self._queue:
            raise self._forked_error()
        if given is not _Permit.PERMIT:
            if given.holder is None:
                # The pool was cleared or closed before this greenlet ran.
                return self.take(block, deadline)
            try:
                if not self._checks_idle or self._can_be_used(given):
                    return given
            except BaseException:
                self.put_back(given)
                raise
            return self.take_instead(given, block, deadline)
        self._reserved -= 1  # until it is opened, which counts it again
        if self._state is _CLOSED:
            raise self._closed_error()
        return self._open(deadline)

    def _notify_wait(self, began_at: float, error: BaseException | None) -> None:
        if (calls := LISTENERS.pool_wait) is not None:
            notify(calls, PoolWaitEvent(self.name, monotonic() - began_at, error))

    def _take_now(self, deadline: Deadline, block: bool) -> Entry[T]:
        """Acquire without a wait for another's release.  May switch."""
        yield_to_hub()
        if self._idle and not self._waiters:
            return self.take(block, deadline)
        if self._may_create():
            return self._open(deadline)
        self._timeouts += 1
        raise self._error(self._timeout_text(deadline.timeout if block else None))

    def _open(self, deadline: Deadline) -> Entry[T]:
        """Reserve a slot, create a resource in it, and hold it.  May switch."""
        queue, item = self._queue, None
        self._reserved += 1
        try:
            item = self._create(deadline)
            self._created += 1
            entry, key = Entry(item).hold(), id(item)
        except BaseException:
            if queue is self._queue:
                self._reserved -= 1
                try:
                    if item is not None:
                        self._discard(Entry(item))
                finally:
                    self._serve()
            raise
        if queue is not self._queue:
            raise self._forked_error()
        # No call from here on, since a signal can interrupt after each.
        self._entries[key] = entry
        self._reserved -= 1
        if self._state is _CLOSED:
            self._discard(entry)
            raise self._closed_error()
        return entry

    def _serve(self) -> None:
        """Assign what is free to the waiters, in the order in which they came.  Never switches."""
        waiters, idle = self._waiters, self._idle
        while waiters:
            if idle:
                entry = idle.pop()
                if not self._can_be_used(entry):
                    self._discard(entry)
                elif holder := self._queue.offer(entry):
                    entry.hold(holder)
                else:
                    idle.append(entry)
            elif self._has_room():
                if self._queue.offer(_Permit.PERMIT):
                    self._reserved += 1
            else:
                return

    def _can_be_used(self, entry: Entry[T]) -> bool:
        try:
            return self._is_alive is None or self._is_alive(entry.item)
        except BaseException:
            # Nothing is known of it, so it is dropped, and the waiters get its slot.
            self._idle[:] = [each for each in self._idle if each is not entry]
            self._leave(entry)
            get_hub().loop.run_callback(self._serve)
            raise

    def _pass_on(self, given: Entry[T] | _Permit) -> None:
        """Pass on what was assigned to a waiter that has left."""
        if given is not _Permit.PERMIT:
            self.put_back(given)
        else:
            self._reserved -= 1
            self._serve()

    def _leave(self, entry: Entry[T]) -> T:
        if self.on_leave is not None:
            self.on_leave(entry)
        return self._entries.leave(entry)

    def _discard(self, entry: Entry[T]) -> None:
        self._discarded += 1
        item = self._leave(entry)
        try:
            if self._parent is not None:
                self._return(item)
            elif self._dispose is not None:
                spawn("pool-discard", self._dispose, item)
        except BaseException:
            self._mend(entry)
            raise

    def _return(self, item: T) -> None:
        """Release *item* to the parent."""
        parent = self._parent
        assert parent is not None
        try:
            if parent.on_returned is not None:
                parent.on_returned(item)
        finally:
            parent.release(item)

    def _take_back(self) -> None:
        # In the hub, where a log handler must not run, or in an acquire.
        while self._lost:
            # It stays until it is released: a signal can interrupt that.
            item, place, since = self._lost[0]
            entry = self._entries.held(item)
            if entry is None or entry.since is not since:
                self._lost.popleft()
                continue
            by = _sentence(entry.held_by(monotonic()))
            is_of_sub_pool = self.sub_pools.has(item)
            self.release(item)
            self._lost.popleft()
            if not is_of_sub_pool:
                where = (
                    "" if place is None else "; it was acquired here:\n" + "".join(place.format())
                )
                text = (
                    "pool %r: an object %s was garbage-collected without being released: "
                    "the pool takes it back%s"
                )
                spawn("log", logger.warning, text, self.name, by, where, extra={"pool": self.name})

    def _warn(self) -> None:
        # In the hub, where a log handler must not run.  The text is made here, of the current state.
        text = self._timeout_text(self._warn_after)
        spawn("log", logger.warning, "%s; still waiting", text, extra={"pool": self.name})

    def _closed_error(self) -> RuntimeError:
        return RuntimeError(f"pool {self.name!r} is closed")

    def _forked_error(self) -> RuntimeError:
        return RuntimeError(f"pool {self.name!r}: this acquire was begun before a fork")

    def _usage(self) -> str:
        limit = "any number" if self._limit is None else self._limit
        in_use = self._used() - self.sub_pools.kept()
        return f"{in_use} of {limit} in use, {len(self._waiters)} waiting"

    def _timeout_text(self, timeout: float | None) -> str:
        within = "" if timeout is None else f" within {timeout:.1f} s"
        text = f"pool {self.name!r}: none free{within} ({self._usage()})"
        held_by = _sentence(self.holders())
        return f"{text}; {held_by}" if held_by else text


def _sentence(entries: list[tuple[str, float]]) -> str:
    """Return ``held by 'a' for 3.1 s, 'b' for 0.2 s``; empty when nothing is held."""
    if not entries:
        return ""
    named = [f"{name!r} for {age:.1f} s" for name, age in entries[:NAMED]]
    more = f" and {len(entries) - NAMED} more" if len(entries) > NAMED else ""
    return f"held by {', '.join(named)}{more}"


def _name(holder: Any) -> str:
    if holder is None or getattr(holder, "dead", False):
        return "a greenlet that has ended"
    if holder.parent is None:
        return "main"
    return str(getattr(holder, "name", None) or f"greenlet-{id(holder):x}")
