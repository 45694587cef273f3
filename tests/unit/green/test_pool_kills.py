"""The fair pool under many callers, kills and timeouts: order of arrival, and no place is ever lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import getcurrent
from greenlet import gettrace, settrace

from greenconn.exceptions import LimitExceeded
from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.pool import FairPool


class Thing:
    """A resource that knows whether it is in use."""

    def __init__(self) -> None:
        self.user: object = None
        self.is_alive = True

    def use(self) -> None:
        """It must be used by one at a time."""
        assert self.user is None
        self.user = getcurrent()
        try:
            yield_to_hub()
        finally:
            self.user = None


class Fixture:
    """A pool of things that take a turn to make and to end, some of which die or cannot be made."""

    def __init__(self, limit: int, seed: int = 0, broken: float = 0.0) -> None:
        self.random = random.Random(seed)
        self.broken = broken
        self.living: set[int] = set()
        self.most = 0
        self.things: dict[int, Thing] = {}
        self.limit = limit
        self.pool: FairPool[Thing] = FairPool(self.make, self.end, lambda t: t.is_alive, limit)

    def make(self, deadline: Deadline) -> Thing:
        """It takes a turn and may fail."""
        thing = Thing()
        self.living.add(id(thing))
        self.things[id(thing)] = thing
        self.most = max(self.most, len(self.living))
        try:
            yield_to_hub()
            if self.random.random() < self.broken:
                raise LookupError("cannot be made")
        except BaseException:
            self.living.discard(id(thing))
            raise
        return thing

    def end(self, thing: Thing) -> None:
        """It takes no time off the limit: the place is free before."""
        assert thing.user is None
        thing.is_alive = False

    def work(self, rounds: int, timeout: float | None = None) -> None:
        """Acquire, use, give back: what every user does."""
        for _ in range(rounds):
            try:
                thing = self.pool.acquire(deadline=timeout)
            except (LimitExceeded, LookupError):
                continue
            try:
                thing.use()
                if self.random.random() < self.broken:
                    thing.is_alive = False
            finally:
                self.living.discard(id(thing)) if not thing.is_alive else None
                self.pool.release(thing)

    def check_whole(self) -> None:
        """Nothing is held, nobody waits, and all places can be had at once."""
        stats = self.pool.stats()
        assert (stats["in_use"], stats["waiting"]) == (0, 0)
        assert stats["idle"] <= self.limit
        assert stats["created"] - stats["discarded"] == stats["idle"]
        self.broken = 0.0
        things = [self.pool.acquire(deadline=5) for _ in range(self.limit)]
        assert len({id(thing) for thing in things}) == self.limit
        with pytest.raises(LimitExceeded):
            self.pool.acquire(block=False)
        for thing in things:
            self.pool.release(thing)
        for _ in range(3):
            yield_to_hub()


@contextmanager
def switches(of: set[object], at: Callable[[int, object], None]) -> Iterator[list[int]]:
    """Call *at* with a count and the greenlet each time that one of *of* switches away."""
    count = [0]

    def trace(event: str, greenlets: tuple[Any, Any]) -> None:
        if greenlets[0] in of:
            at(count[0], greenlets[0])
            count[0] += 1

    before = gettrace()
    settrace(trace)
    try:
        yield count
    finally:
        settrace(before)


def run_and_kill(number: int | None, delay: int, seed: int) -> int:
    """Run a few greenlets and kill the one that is the *number*-th to switch away, *delay* turns later.

    Returns:
        how many switches there were.
    """
    fixture = Fixture(2, seed, broken=0.15)
    greenlets = [gevent.spawn(fixture.work, 3, None if each % 3 else 0.002) for each in range(7)]

    def kill(target: gevent.Greenlet[..., object]) -> None:
        for _ in range(delay):
            yield_to_hub()
        target.kill(block=False)

    killers: list[gevent.Greenlet[..., object]] = []

    def at(count: int, greenlet: object) -> None:
        if count == number:
            target: Any = greenlet
            if delay:
                killers.append(gevent.spawn(kill, target))
            else:
                target.kill(block=False)

    with switches(set(greenlets), at) as count:
        gevent.joinall(greenlets, timeout=30)
        gevent.joinall(killers, timeout=30)
    assert all(greenlet.ready() and greenlet.successful() for greenlet in greenlets)
    fixture.check_whole()
    return count[0]


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_one_killed_at_any_switch_point_loses_no_place(delay: int, long: bool) -> None:
    for seed in range(20 if long else 1):
        count = run_and_kill(None, 0, seed)
        assert count > 40
        for number in range(count):
            run_and_kill(number, delay, seed)


def spawned(fixture: Fixture, size: int, order: list[int]) -> list[gevent.Greenlet[..., object]]:
    """Greenlets that note the order in which they were served."""

    def one(number: int) -> None:
        thing = fixture.pool.acquire()
        order.append(number)
        try:
            thing.use()
        finally:
            fixture.pool.release(thing)

    return [gevent.spawn(one, number) for number in range(size)]


def test_many_callers_are_served_in_the_order_of_arrival(long: bool) -> None:
    fixture = Fixture(10)
    order: list[int] = []
    greenlets = spawned(fixture, 10_000 if long else 1_000, order)
    gevent.joinall(greenlets, timeout=120, raise_error=True)
    assert order == sorted(order)
    assert len(order) == len(greenlets)
    assert fixture.most == 10
    fixture.check_whole()


def test_random_kills_do_not_change_the_order_of_the_others(long: bool) -> None:
    fixture = Fixture(10)
    order: list[int] = []
    greenlets = spawned(fixture, 10_000 if long else 1_000, order)
    chance = random.Random(3)
    while not all(greenlet.ready() for greenlet in greenlets):
        yield_to_hub()
        for _ in range(5):
            chance.choice(greenlets).kill(block=False)
    assert order == sorted(order)
    assert len(order) > 100
    fixture.check_whole()


@pytest.mark.parametrize("seed", range(5))
def test_random_kills_timeouts_failures_and_deaths_lose_no_place(seed: int, long: bool) -> None:
    fixture = Fixture(10, seed, broken=0.1)
    size = 10_000 if long else 300
    greenlets = [
        gevent.spawn(fixture.work, 3, fixture.random.choice([None, None, 0.001, 0.01, 1.0]))
        for _ in range(size)
    ]
    killing = True

    def kill() -> None:
        while killing:
            yield_to_hub()
            target = fixture.random.choice(greenlets)
            target.kill(block=False)

    def resize() -> None:
        while killing:
            yield_to_hub()
            fixture.pool.resize(fixture.random.choice([1, 5, 10, 20, None]))

    others = [gevent.spawn(kill), gevent.spawn(resize)]
    gevent.joinall(greenlets, timeout=240, raise_error=True)
    killing = False
    gevent.joinall(others, timeout=5, raise_error=True)
    fixture.pool.resize(10)
    fixture.check_whole()


def test_timeouts_of_the_users_lose_no_place() -> None:
    fixture = Fixture(3, seed=1)

    def impatient(number: int) -> None:
        timeout = gevent.Timeout.start_new(number * 0.0002)
        try:
            fixture.work(5)
        except gevent.Timeout:
            pass
        finally:
            timeout.close()

    greenlets = [gevent.spawn(impatient, number) for number in range(200)]
    gevent.joinall(greenlets, timeout=20, raise_error=True)
    fixture.check_whole()
