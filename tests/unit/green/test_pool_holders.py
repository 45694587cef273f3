"""Who holds what a pool has lent, and the pools that took of it."""

from __future__ import annotations

import gc
import weakref
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event
from greenlet import greenlet

from greenconn.green import pool as module
from greenconn.green.pool import Entries, SubPools


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
