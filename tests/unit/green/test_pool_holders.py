"""Who holds what a pool has lent, and the pools that took of it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import gevent
import pytest
from gevent.event import Event
from greenlet import greenlet

from greenconn.green import pool as module
from greenconn.green.pool import NAMED, Holders, SubPools, _sentence


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

    def holders(self) -> list[tuple[str, float]]:
        return self.names


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as its only element."""
    time = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: time[0])
    return time


def test_things_are_distinguished_by_identity(now: list[float]) -> None:
    holders: Holders[Thing] = Holders()
    first, second = Thing(), Thing()
    assert holders.hold(first) is first
    now[0] += 1.5
    assert holders.hold(second) is second
    now[0] += 1.0
    assert list(map(id, holders.held())) == [id(first), id(second)]
    assert holders.of(first) == [("main", 2.5)]
    assert holders.of(second) == [("main", 1.0)]
    assert holders.of(Thing()) == []
    assert holders.oldest_first() == [("main", 2.5), ("main", 1.0)]


def test_the_oldest_is_first_whoever_came_first(now: list[float]) -> None:
    holders: Holders[Thing] = Holders()
    first, second, third = Thing(), Thing(), Thing()
    holders.hold(first)
    now[0] += 1.0
    holders.hold(second)
    assert holders.exchange(first, third)  # now it stands behind
    assert [age for _, age in holders.oldest_first()] == [1.0, 0.0]


def test_what_is_exchanged_keeps_its_holder_and_time(now: list[float]) -> None:
    holders: Holders[Thing] = Holders()
    first, second = Thing(), Thing()
    assert not holders.exchange(first, second)
    assert holders.held() == []
    holders.hold(first)
    now[0] += 3.0
    assert holders.exchange(first, second)
    assert holders.of(first) == []
    assert holders.of(second) == [("main", 3.0)]


def test_holders_are_named_and_not_kept_alive() -> None:
    holders: Holders[Thing] = Holders()
    things = [Thing() for _ in range(3)]
    go_on = Event()

    def hold(thing: Thing) -> None:
        holders.hold(thing)
        go_on.wait()

    named = gevent.spawn(hold, things[0])
    named.name = "worker-7"
    ended = gevent.spawn(holders.hold, things[1])
    gevent.sleep(0)
    assert holders.of(things[0])[0][0] == "worker-7"
    assert holders.of(things[1])[0][0] == "a greenlet that has ended"
    del ended
    go_on.set()
    named.join()
    gevent.sleep(0)
    reference: weakref.ref[greenlet] = weakref.ref(named)
    del named
    gc.collect()
    assert reference() is None
    assert {name for name, _ in holders.oldest_first()} == {"a greenlet that has ended"}
    holders.hold(things[2], reference)
    assert holders.of(things[2])[0][0] == "a greenlet that has ended"


def test_the_sentence_names_the_first() -> None:
    assert _sentence([]) == ""
    assert _sentence([("a", 3.14), ("b", 0.2)]) == "held by 'a' for 3.1 s, 'b' for 0.2 s"
    many = [(f"g{number}", 1.0) for number in range(NAMED)]
    assert _sentence(many).endswith("'g9' for 1.0 s")
    assert _sentence([*many, ("x", 0.5), ("y", 0.5)]).endswith("'g9' for 1.0 s and 2 more")


def test_sub_pools_count_as_holders(now: list[float]) -> None:
    held: Holders[Any] = Holders()
    pools = SubPools(held, lambda item: None)
    own, lent = Thing(), Thing()
    sub, other = Sub(1, ("deep", 7.0)), Sub(0, ("flat", 0.5))
    held.hold(own)
    pools.assign(lent, sub)
    pools.assign(Thing(), other)
    pools.assign(Thing(), sub)
    assert pools.all() == [sub, other]
    assert pools.has(lent)
    assert not pools.has(own)
    assert not pools.has(Thing())
    assert pools.kept() == 1
    now[0] += 2.0
    assert pools.holders() == [("deep", 7.0), ("main", 2.0), ("flat", 0.5)]


def test_what_nobody_uses_is_given_up_by_the_first_who_has_it() -> None:
    pools = SubPools(Holders(), lambda item: None)
    subs = [Sub(0), Sub(2), Sub(1)]
    for each in subs:
        pools.assign(Thing(), each)
    assert [pools.reclaim() for _ in range(4)] == [True, True, True, False]
    assert [each.given_up for each in subs] == [4, 4, 2]
    assert pools.kept() == 0


def test_what_a_collected_sub_pool_held_is_reported() -> None:
    left: list[object] = []
    held: Holders[Any] = Holders()
    pools = SubPools(held, left.append)
    item, sub = Thing(), Sub()
    pools.assign(item, sub)
    del sub
    gc.collect()
    assert len(left) == 1
    assert left[0] is item
    assert pools.all() == []
    assert pools.has(item)  # until the pool has taken it back
    assert held.of(item)[0][0] == "a greenlet that has ended"
    other = Sub()
    pools.assign(Thing(), other)
    assert pools.all() == [other]
