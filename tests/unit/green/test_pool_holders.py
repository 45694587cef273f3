"""Who holds what a pool has lent, and the pools that took of it."""

from __future__ import annotations

import gc
import weakref
from itertools import count
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event
from greenlet import greenlet

from greenconn.green import pool as module
from greenconn.green.pool import NAMED, Entries, FairPool, SubPools, _sentence


class Thing:
    """Equal to all others."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Sub:
    """A pool that takes from another one."""

    def __init__(self, kept: int = 0, *names: tuple[str, float]) -> None:
        self.kept = kept
        self.names = list(names)
        self.given_up = 0

    def give_up(self) -> bool:
        self.given_up += 1
        if self.kept:
            self.kept -= 1
            return True
        return False

    def holders(self, now: float) -> list[tuple[str, float]]:
        return self.names


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as its only element."""
    time = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: time[0])
    return time


def ages(entries: Entries[Any], now: list[float]) -> list[float]:
    """The seconds for which they are held, in the order of messages."""
    return [age for _, age in SubPools(entries, lambda item: None).holders(now[0])]


def test_things_are_distinguished_by_identity(now: list[float]) -> None:
    entries: Entries[Thing] = Entries()
    first, second = Thing(), Thing()
    one, two = entries.add(first), entries.add(second)
    assert (one.item is first, two.item is second) == (True, True)
    assert entries.held(first) is None
    one.hold()
    now[0] += 1.5
    two.hold()
    now[0] += 1.0
    assert (entries.held(first), entries.held(second)) == (one, two)
    assert one.held_by(now[0]) == [("main", 2.5)]
    assert two.held_by(now[0]) == [("main", 1.0)]
    assert entries.held(Thing()) is None
    assert SubPools(entries, lambda item: None).holders(now[0]) == [("main", 2.5), ("main", 1.0)]


def test_what_nothing_holds_has_no_holder(now: list[float]) -> None:
    entries: Entries[Thing] = Entries()
    idle, held = entries.add(Thing()), entries.add(Thing())
    held.hold()
    assert idle.held_by(now[0]) == []
    assert ages(entries, now) == [0.0]
    assert list(map(id, entries.leave_all())) == [id(held.item), id(idle.item)]
    assert not entries
    assert held.holder is None


def test_what_leaves_keeps_no_loans() -> None:
    entries: Entries[Thing] = Entries()
    entry = entries.add(Thing())
    entry.hold()
    entry.loan = entry.spare = object()
    assert entries.leave(entry) is entry.item
    assert (entry.holder, entry.loan, entry.spare) == (None, None, None)
    assert entries.held(entry.item) is None
    assert entries.leave(entry) is entry.item  # again


def test_the_oldest_is_first_whoever_came_first(now: list[float]) -> None:
    entries: Entries[Thing] = Entries()
    first, second, third = Thing(), Thing(), Thing()
    entries.add(first).hold()
    now[0] += 1.0
    entries.add(second).hold()
    assert entries.exchange(first, third)  # now it stands behind
    assert ages(entries, now) == [1.0, 0.0]


def test_what_is_exchanged_keeps_its_holder_and_time(now: list[float]) -> None:
    entries: Entries[Thing] = Entries()
    first, second = Thing(), Thing()
    assert not entries.exchange(first, second)
    entry = entries.add(first)
    assert not entries.exchange(first, second)  # not held
    entry.hold()
    now[0] += 3.0
    assert entries.exchange(first, second)
    assert entries.held(first) is None
    assert entries.held(second) is entry
    assert entry.item is second
    assert entry.held_by(now[0]) == [("main", 3.0)]


def test_holders_are_named_and_not_kept_alive() -> None:
    held: Entries[Thing] = Entries()
    entries = [held.add(Thing()) for _ in range(3)]
    go_on = Event()

    def hold() -> None:
        entries[0].hold()
        go_on.wait()

    named = gevent.spawn(hold)
    named.name = "worker-7"
    ended = gevent.spawn(entries[1].hold)
    gevent.sleep(0)
    assert entries[0].held_by(monotonic())[0][0] == "worker-7"
    assert entries[1].held_by(monotonic())[0][0] == "a greenlet that has ended"
    del ended
    go_on.set()
    named.join()
    gevent.sleep(0)
    reference: weakref.ref[greenlet] = weakref.ref(named)
    del named
    gc.collect()
    assert reference() is None
    found = SubPools(held, lambda item: None).holders(monotonic())
    assert {name for name, _ in found} == {"a greenlet that has ended"}
    entries[2].hold(reference)
    assert entries[2].held_by(monotonic())[0][0] == "a greenlet that has ended"


def test_the_order_does_not_depend_on_when_each_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries: Entries[Thing] = Entries()
    first, second = entries.add(Thing()), entries.add(Thing())
    first.hold()
    second.hold()
    first.since, second.since = 50.0, 50.5
    moments = count(60)
    monkeypatch.setattr(module, "monotonic", lambda: float(next(moments)))
    pool = FairPool(lambda deadline: Thing(), lambda thing: None)
    pool._entries.update(entries)
    assert [seconds for _, seconds in pool.holders()] == [10.0, 9.5]


def test_the_sentence_names_the_first() -> None:
    assert _sentence([]) == ""
    assert _sentence([("a", 3.14), ("b", 0.2)]) == "held by 'a' for 3.1 s, 'b' for 0.2 s"
    many = [(f"g{number}", 1.0) for number in range(NAMED)]
    assert _sentence(many).endswith("'g9' for 1.0 s")
    assert _sentence([*many, ("x", 0.5), ("y", 0.5)]).endswith("'g9' for 1.0 s and 2 more")


def held_in(entries: Entries[Any]) -> Thing:
    """A thing in *entries*, which the current greenlet holds."""
    thing = Thing()
    entries.add(thing).hold()
    return thing


def test_sub_pools_count_as_holders(now: list[float]) -> None:
    entries: Entries[Any] = Entries()
    pools: Any = SubPools(entries, lambda item: None)
    own, lent = held_in(entries), held_in(entries)
    sub, other = Sub(1, ("deep", 7.0)), Sub(0, ("flat", 0.5))
    pools.assign(lent, sub)
    pools.assign(held_in(entries), other)
    pools.assign(held_in(entries), sub)
    assert pools.all() == [sub, other]
    assert pools.has(lent)
    assert not pools.has(own)
    assert not pools.has(Thing())
    assert pools.kept() == 1
    now[0] += 2.0
    assert pools.holders(now[0]) == [("deep", 7.0), ("main", 2.0), ("flat", 0.5)]


def test_what_nobody_uses_is_given_up_by_the_first_who_has_it() -> None:
    entries: Entries[Any] = Entries()
    pools: Any = SubPools(entries, lambda item: None)
    subs = [Sub(0), Sub(2), Sub(1)]
    for each in subs:
        pools.assign(held_in(entries), each)
    assert [pools.reclaim() for _ in range(4)] == [True, True, True, False]
    assert [each.given_up for each in subs] == [4, 4, 2]
    assert pools.kept() == 0


def test_what_a_collected_sub_pool_held_is_reported() -> None:
    left: list[object] = []
    entries: Entries[Any] = Entries()
    pools: Any = SubPools(entries, left.append)
    item, sub = held_in(entries), Sub()
    pools.assign(item, sub)
    del sub
    gc.collect()
    assert len(left) == 1
    assert left[0] is item
    assert pools.all() == []
    assert pools.has(item)  # until the pool has taken it back
    held = entries.held(item)
    assert held is not None
    assert held.held_by(monotonic())[0][0] == "a greenlet that has ended"
    other = Sub()
    pools.assign(held_in(entries), other)
    assert pools.all() == [other]
