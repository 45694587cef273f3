"""The fair pool: order of arrival, the limit, and what is said when nothing is free."""

from __future__ import annotations

import gc
import re
import traceback
import weakref
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, TypeAlias

import gevent
import pytest
from gevent.event import Event
from gevent.threadpool import ThreadPool

from greenconn.exceptions import ConnectionLimitExceeded, LimitExceeded, OperationalError, WrongHub
from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.pool import FairPool
from greenconn.listeners import LISTENERS, Listener, PoolWaitEvent
from tests.fix_wires import until


class Thing:
    """A resource with a number.  All are equal and none is hashable, as connections may be."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_alive = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.number}>"


class Factory:
    """Makes things; ``go`` and ``error`` decide when and whether."""

    def __init__(self) -> None:
        self.made = 0
        self.disposed: list[int] = []
        self.go = Event()
        self.go.set()
        self.errors: list[BaseException] = []
        self.at_once = self.most_at_once = 0

    def __call__(self, deadline: Deadline) -> Thing:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            if not self.go.is_set():
                assert self.go.wait(30)
            if self.errors:
                raise self.errors.pop(0)
            self.made += 1
            return Thing(self.made)
        finally:
            self.at_once -= 1

    def dispose(self, thing: Thing) -> None:
        """Takes a while."""
        yield_to_hub()
        self.disposed.append(thing.number)

    def pool(self, limit: int | None = 2, **kwargs: object) -> FairPool[Thing]:
        """A pool of these things."""
        return FairPool(
            self,
            self.dispose,
            lambda thing: thing.is_alive,
            limit,
            lambda: "amqp://h/v",
            **kwargs,  # type: ignore[arg-type]
        )

    def lending(self, limit: int | None = 2, count: int = 1, **kwargs: Any) -> tuple[Any, ...]:
        """A pool of these things, and so many things that it has lent."""
        pool = self.pool(limit, **kwargs)
        return pool, *(pool.acquire() for _ in range(count))


@pytest.fixture
def factory() -> Factory:
    """Makes things."""
    return Factory()


@pytest.fixture
def spawned() -> Iterator[Callable[..., gevent.Greenlet[..., Thing]]]:
    """Greenlets that are gone after the test."""
    greenlets: list[gevent.Greenlet[..., Thing]] = []

    def spawn(function: Callable[..., Thing], *args: object) -> gevent.Greenlet[..., Thing]:
        greenlet = gevent.spawn(function, *args)
        greenlets.append(greenlet)
        yield_to_hub()
        return greenlet

    yield spawn
    gevent.killall(greenlets)


def settle() -> None:
    """Let those who dispose end."""
    for _ in range(3):
        yield_to_hub()


Spawn: TypeAlias = "Callable[..., gevent.Greenlet[..., Thing]]"


def test_the_latest_is_used_first(factory: Factory) -> None:
    pool, one, two = factory.lending(3, count=2)
    pool.release(one)
    pool.release(two)
    assert pool.acquire() is two
    assert pool.acquire() is one
    assert factory.made == 2


def test_waiters_are_served_in_the_order_of_arrival(factory: Factory, spawned: Spawn) -> None:
    pool, thing = factory.lending(1)
    waiters = [spawned(pool.acquire) for _ in range(5)]
    for served in range(5):
        pool.release(thing)
        assert waiters[served].get(timeout=30) is thing
        assert not any(waiter.ready() for waiter in waiters[served + 1 :])


def test_nobody_barges_in(factory: Factory, spawned: Spawn) -> None:
    pool, thing = factory.lending(1)
    waiter = spawned(pool.acquire)
    pool.release(thing)  # on its way to the waiter, who has not run yet
    with pytest.raises(LimitExceeded):
        pool.acquire(block=False)
    assert waiter.get(timeout=5) is thing


def test_who_releases_and_asks_again_queues_up(factory: Factory, spawned: Spawn) -> None:
    pool = factory.pool(1)
    pool.release(pool.acquire())
    order: list[int] = []

    def work(number: int) -> Thing:
        for _ in range(3):
            thing = pool.acquire()
            order.append(number)
            pool.release(thing)
        return thing

    held = pool.acquire()
    workers = [spawned(work, number) for number in range(3)]
    pool.release(held)
    gevent.joinall(workers, timeout=5, raise_error=True)
    assert order[:6] == [0, 1, 2, 0, 1, 2]


def test_the_limit_holds_while_many_connect(factory: Factory, spawned: Spawn) -> None:
    pool = factory.pool(3)
    factory.go.clear()
    workers = [spawned(lambda: pool.release(pool.acquire()) and None) for _ in range(50)]
    assert factory.at_once == 3
    assert pool.stats()["in_use"] == 3
    assert pool.stats()["waiting"] == 47
    factory.go.set()
    gevent.joinall(workers, timeout=5, raise_error=True)
    assert factory.most_at_once == 3
    assert factory.made == 3
    assert pool.stats()["idle"] == 3


def test_a_failed_creation_is_the_next_ones_turn(factory: Factory, spawned: Spawn) -> None:
    pool = factory.pool(1)
    factory.go.clear()
    factory.errors = [LookupError("first"), LookupError("second")]
    workers = [spawned(pool.acquire) for _ in range(3)]
    factory.go.set()
    for worker, text in zip(workers, ["first", "second"], strict=False):
        with pytest.raises(LookupError, match=text):
            worker.get(timeout=5)
    assert workers[2].get(timeout=5).number == 1
    assert pool.stats()["in_use"] == 1


def test_a_killed_creation_is_the_next_ones_turn(factory: Factory, spawned: Spawn) -> None:
    pool = factory.pool(1)
    factory.go.clear()
    first, second = spawned(pool.acquire), spawned(pool.acquire)
    first.kill()
    factory.go.set()
    assert second.get(timeout=30).number == 1


def test_one_killed_after_the_hand_off_passes_it_on(factory: Factory, spawned: Spawn) -> None:
    pool, thing = factory.lending(1)
    first, second = spawned(pool.acquire), spawned(pool.acquire)
    first.kill(block=False)
    pool.release(thing)
    assert second.get(timeout=30) is thing
    assert first.value is None or isinstance(first.value, gevent.GreenletExit)


def test_one_killed_after_it_was_permitted_passes_it_on(factory: Factory, spawned: Spawn) -> None:
    pool, thing = factory.lending(1)
    first, second = spawned(pool.acquire), spawned(pool.acquire)
    first.kill(block=False)
    pool.remove(thing)
    assert second.get(timeout=30).number == 2
    settle()
    assert factory.disposed == [1]


def test_timeouts_leave_the_line(factory: Factory, spawned: Spawn) -> None:
    pool, thing = factory.lending(1)
    with pytest.raises(LimitExceeded, match=r"none free within 0\.0 s"):
        pool.acquire(deadline=0)
    with pytest.raises(LimitExceeded):
        pool.acquire(deadline=0.01)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        pool.acquire()
    assert pool.stats()["waiting"] == 0
    assert pool.stats()["timeouts"] == 2
    pool.release(thing)
    assert pool.acquire(block=False) is thing


def test_what_is_said_names_the_holders(factory: Factory) -> None:
    pool = factory.pool(2, error=ConnectionLimitExceeded)
    forever = Event()

    def hold() -> None:
        pool.acquire()
        forever.wait(5)

    holder = gevent.spawn(hold)
    holder.name = "report-writer"
    yield_to_hub()
    gone = gevent.spawn(pool.acquire)
    gone.join()
    del gone
    with pytest.raises(ConnectionLimitExceeded) as caught:
        pool.acquire(deadline=0.02)
    forever.set()
    holder.join()
    assert re.fullmatch(
        r"pool 'amqp://h/v': none free within 0\.0 s \(2 of 2 in use, 0 waiting\); held by "
        r"'report-writer' for 0\.\d s, 'a greenlet that has ended' for 0\.\d s",
        str(caught.value),
    )
    assert isinstance(caught.value, OperationalError)
    with pytest.raises(LimitExceeded, match=r"none free \(2 of 2"):
        pool.acquire(block=False)


def test_at_most_ten_holders_are_named(factory: Factory) -> None:
    pool = factory.pool(12)
    for _ in range(12):
        pool.acquire()
    with pytest.raises(LimitExceeded, match=r"'main' for \d+\.\d s and 2 more$") as caught:
        pool.acquire(block=False)
    assert str(caught.value).count("'main' for") == 10
    assert len(pool.holders()) == 12


def test_not_blocking_lets_the_hub_turn_first(factory: Factory) -> None:
    pool, thing = factory.lending(1)
    releases = gevent.spawn(pool.release, thing)
    assert pool.acquire(block=False) is thing
    releases.get(timeout=30)


def test_dead_ones_are_replaced(factory: Factory, spawned: Spawn) -> None:
    pool, one, two = factory.lending(2, count=2)
    pool.release(one)
    pool.release(two)
    two.is_alive = False
    assert pool.acquire() is one
    assert pool.acquire().number == 3
    one.is_alive = False
    waiter = spawned(pool.acquire)
    pool.release(one)
    assert waiter.get(timeout=30).number == 4
    settle()
    assert factory.disposed == [2, 1]
    assert pool.stats() == {
        "limit": 2,
        "in_use": 2,
        "idle": 0,
        "waiting": 0,
        "created": 4,
        "discarded": 2,
        "timeouts": 0,
    }


def test_one_that_dies_on_its_way_is_replaced(factory: Factory, spawned: Spawn) -> None:
    pool, thing = factory.lending(1)
    waiter = spawned(pool.acquire)
    pool.release(thing)
    thing.is_alive = False
    assert waiter.get(timeout=30).number == 2


def test_giving_back_twice_does_nothing(factory: Factory) -> None:
    pool, thing = factory.lending()
    assert pool.release(thing)
    assert not pool.release(thing)
    assert not pool.remove(thing)
    assert pool.stats()["idle"] == 1


def test_no_limit(factory: Factory) -> None:
    pool = factory.pool(None)
    things = [pool.acquire(block=False) for _ in range(100)]
    for thing in things:
        pool.release(thing)
    assert pool.acquire() is things[-1]
    assert repr(pool) == "<pool 'amqp://h/v': 1 of any number in use, 0 waiting>"


def test_a_higher_limit_serves_who_waits(factory: Factory, spawned: Spawn) -> None:
    pool = factory.pool(1)
    pool.acquire()
    waiters = [spawned(pool.acquire) for _ in range(3)]
    pool.resize(3)
    assert [waiters[number].get(timeout=30).number for number in (0, 1)] == [2, 3]
    assert not waiters[2].ready()
    pool.resize(None)
    assert waiters[2].get(timeout=30).number == 4


def test_a_lower_limit_drops_what_is_idle_and_later_what_comes_back(factory: Factory) -> None:
    pool = factory.pool(5)
    things = [pool.acquire() for _ in range(5)]
    for thing in things[:3]:
        pool.release(thing)
    pool.resize(3)
    settle()
    assert factory.disposed == [1, 2]
    pool.resize(1)
    pool.release(things[3])
    pool.release(things[4])
    assert pool.stats()["idle"] == 1
    assert pool.stats()["in_use"] == 0
    settle()
    assert sorted(factory.disposed) == [1, 2, 3, 4]


def test_a_lower_limit_keeps_waiters_waiting(factory: Factory, spawned: Spawn) -> None:
    pool, one, two = factory.lending(2, count=2)
    waiter = spawned(pool.acquire)
    pool.resize(1)
    pool.release(one)
    yield_to_hub()
    assert not waiter.ready()
    pool.release(two)
    assert waiter.get(timeout=30) is two


def test_closing(factory: Factory, spawned: Spawn) -> None:
    pool, one, two = factory.lending(2, count=2)
    waiter = spawned(pool.acquire)
    pool.release(two)
    assert waiter.get(timeout=30) is two
    waiting = spawned(pool.acquire)
    assert pool.close() == [one, two]
    with pytest.raises(RuntimeError, match="is closed"):
        waiting.get(timeout=5)
    with pytest.raises(RuntimeError, match="pool 'amqp://h/v' is closed"):
        pool.acquire()
    assert not pool.release(one)
    assert pool.is_closed


@pytest.mark.parametrize("by", ["release", "remove"])
def test_closing_while_something_is_on_its_way(factory: Factory, spawned: Spawn, by: str) -> None:
    pool, thing = factory.lending(1)
    waiter = spawned(pool.acquire)
    getattr(pool, by)(thing)
    pool.close()
    with pytest.raises(RuntimeError, match="is closed"):
        waiter.get(timeout=5)
    assert factory.made == 1
    assert pool.stats()["in_use"] == 0


def test_closing_while_one_is_created(factory: Factory, spawned: Spawn) -> None:
    pool = factory.pool(1)
    factory.go.clear()
    creating = spawned(pool.acquire)
    pool.close()
    factory.go.set()
    with pytest.raises(RuntimeError, match="is closed"):
        creating.get(timeout=5)
    settle()
    assert factory.disposed == [1]


def test_what_was_cleared_is_not_released_again_as_lost(factory: Factory) -> None:
    pool, thing = factory.lending(1)
    pool.note_lost(thing)
    assert pool.clear() == [thing]
    assert pool.lost() == []


def test_listeners_learn_how_long_a_wait_was(factory: Factory, spawned: Spawn) -> None:
    class Recorder(Listener):
        def on_pool_wait(self, event: PoolWaitEvent) -> None:
            heard.append(event)

    heard: list[PoolWaitEvent] = []
    pool, thing = factory.lending(1)
    recorder = Recorder()
    LISTENERS.add(recorder)
    try:
        began_at = monotonic()
        waiter = spawned(pool.acquire)
        pool.release(thing)
        assert waiter.get(timeout=30) is thing
        ended_at = monotonic()
    finally:
        LISTENERS.remove(recorder)
    (event,) = heard
    assert 0.0 <= event.duration <= ended_at - began_at


def test_clearing_makes_room_at_once(factory: Factory, spawned: Spawn) -> None:
    pool, one, two = factory.lending(2, count=2)
    waiter = spawned(pool.acquire)
    pool.release(two)  # on its way
    assert pool.clear() == [one, two]
    assert waiter.get(timeout=30).number == 3
    assert not pool.release(one)
    assert pool.stats()["in_use"] == 1


def test_clearing_what_is_in_use_makes_room_for_who_waits(factory: Factory, spawned: Spawn) -> None:
    pool, held = factory.lending(1)
    waiter = spawned(pool.acquire)
    assert pool.clear() == [held]
    assert waiter.get(timeout=30).number == 2


def test_adding_what_was_made_elsewhere(factory: Factory, spawned: Spawn) -> None:
    pool = factory.pool(1)
    assert pool.add(Thing(77))
    assert not pool.add(Thing(78))
    assert pool.acquire().number == 77
    pool.resize(2)
    waiter = spawned(pool.acquire)
    assert waiter.get(timeout=30).number == 1


def test_exchanging(factory: Factory) -> None:
    pool = factory.pool(1)
    thing, other = pool.acquire(), Thing(9)
    assert pool.exchange(thing, other)
    assert not pool.exchange(thing, other)
    assert not pool.release(thing)
    assert pool.release(other)
    assert pool.acquire() is other


def test_a_long_wait_is_logged_once_until_nobody_waits(
    factory: Factory, spawned: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    pool, thing = factory.lending(1, warn_after=0.03)
    for times in (1, 2):
        waiters = [spawned(pool.acquire) for _ in range(3)]
        until(lambda times=times: len(caplog.records) == times)  # type: ignore[misc]
        gevent.sleep(0.12)
        assert [record.levelname for record in caplog.records] == ["WARNING"] * times
        # The clock runs since the first began to wait; on a busy machine the others may be behind it.
        text = r"none free within 0\.0 s \(1 of 1 in use, [123] waiting\); held by 'main'"
        assert re.search(text, caplog.text)
        for waiter in waiters:
            pool.release(thing)
            thing = waiter.get(timeout=30)


def test_a_wait_that_goes_on_when_another_ends_is_logged(
    factory: Factory, spawned: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    pool, thing = factory.lending(1, warn_after=0.05)
    first, second = spawned(pool.acquire), spawned(pool.acquire)
    gevent.sleep(0.01)
    pool.release(thing)
    thing = first.get(timeout=30)
    until(lambda: caplog.records)
    pool.release(thing)
    assert second.get(timeout=30) is thing


def test_a_wait_with_a_timeout_is_not_logged(
    factory: Factory, caplog: pytest.LogCaptureFixture
) -> None:
    pool = factory.pool(1, warn_after=0.01)
    pool.acquire()
    with pytest.raises(LimitExceeded):
        pool.acquire(deadline=0.05)
    assert not caplog.records


def test_one_that_was_lost_comes_back_by_the_next_acquire(
    factory: Factory, caplog: pytest.LogCaptureFixture
) -> None:
    pool, thing = factory.lending(1)
    pool.note_lost(thing)
    assert pool.stats()["in_use"] == 1  # only noted
    assert pool.acquire(block=False) is thing
    assert not caplog.records  # that is left to a greenlet
    settle()
    text = r"'amqp://h/v': an object held by 'main' for \d+\.\d s was garbage-collected"
    assert re.search(text, caplog.text)


def test_where_one_that_was_lost_was_acquired_is_logged(
    factory: Factory, caplog: pytest.LogCaptureFixture
) -> None:
    pool = factory.pool(1)
    pool.note_lost(pool.acquire(), traceback.StackSummary.extract(traceback.walk_stack(None)))
    assert pool.acquire().number == 1
    settle()
    (record,) = caplog.records
    _, _, trace = record.getMessage().partition("; it was acquired here:\n")
    assert f'File "{__file__}"' in trace


def test_only_the_pool_of_a_parent_gives_up_what_is_idle(factory: Factory) -> None:
    parent = factory.pool(2)
    pool: FairPool[Thing] = FairPool(
        lambda deadline: parent.acquire(True, deadline), limit=2, parent=parent
    )
    assert not pool.give_up()
    things = [pool.acquire(), pool.acquire()]
    assert not pool.give_up()
    for thing in things:
        pool.release(thing)
    assert (pool.kept, parent.kept) == (2, 0)
    assert pool.give_up()
    assert (pool.kept, parent.kept) == (1, 1)
    assert pool.acquire() is things[1]
    assert not parent.give_up()


def test_what_is_removed_leaves_the_parent_too(factory: Factory) -> None:
    parent = factory.pool(1)
    pool: FairPool[Thing] = FairPool(
        lambda deadline: parent.acquire(True, deadline), limit=1, parent=parent
    )
    defective = pool.acquire()
    assert pool.remove(defective)
    assert pool.acquire().number == 2
    settle()
    assert factory.disposed == [1]
    assert (parent.stats()["in_use"], parent.stats()["discarded"]) == (1, 1)


def test_one_that_was_lost_comes_back_by_the_hub(
    factory: Factory, spawned: Spawn, thread: ThreadPool
) -> None:
    pool, thing = factory.lending(1)
    waiter = spawned(pool.acquire)
    thread.apply(pool.note_lost, (thing,))  # the collector runs anywhere
    assert waiter.get(timeout=30) is thing


def test_one_hub_only(factory: Factory, thread: ThreadPool) -> None:
    pool, thing = factory.lending(1)
    for use in (pool.acquire, lambda: pool.release(thing), lambda: pool.remove(thing)):
        with pytest.raises(WrongHub, match="give each thread a connection of its own"):
            thread.apply(use)
    assert pool.release(thing)


def test_forgetting(factory: Factory, spawned: Spawn) -> None:
    pool, one = factory.lending(2)
    factory.go.clear()
    creating = spawned(pool.acquire)
    waiting = spawned(pool.acquire)
    assert pool.forget() == [one]
    assert pool.stats()["in_use"] == pool.stats()["waiting"] == 0
    factory.go.set()
    with pytest.raises(RuntimeError, match="before a fork"):
        creating.get(timeout=5)
    waiting.kill()
    assert not pool.release(one)
    assert pool.stats()["in_use"] == pool.stats()["waiting"] == 0
    assert pool.acquire().number == 3


def test_forgetting_what_is_on_its_way(factory: Factory, spawned: Spawn) -> None:
    pool, thing = factory.lending(1)
    waiter, killed = spawned(pool.acquire), spawned(pool.acquire)
    pool.release(thing)
    killed.kill(block=False)
    pool.forget()
    with pytest.raises(RuntimeError, match="before a fork"):
        waiter.get(timeout=5)
    assert pool.stats()["in_use"] == 0


def test_nothing_refers_to_a_holder(factory: Factory) -> None:
    pool = factory.pool(1)

    class Marked(gevent.Greenlet):  # type: ignore[type-arg]
        pass

    holder = Marked(pool.acquire)
    holder.start()
    holder.join()
    gone = weakref.ref(holder)
    del holder
    yield_to_hub()  # the hub lets go of it
    gc.collect()
    assert gone() is None
    assert pool.holders()[0][0] == "a greenlet that has ended"


def test_what_was_removed_is_counted(factory: Factory) -> None:
    pool, one, two = factory.lending(2, count=2)
    assert pool.remove(one)
    assert not pool.remove(one)
    assert (pool.stats()["discarded"], pool.stats()["in_use"]) == (1, 1)
    assert pool.remove(two)
    assert (pool.stats()["discarded"], pool.stats()["created"]) == (2, 2)
    settle()
    assert factory.disposed == [1, 2]


def test_what_is_being_made_is_in_use(factory: Factory, spawned: Spawn) -> None:
    pool, held = factory.lending(3)
    factory.go.clear()
    making = spawned(pool.acquire)
    assert pool.stats()["in_use"] == 2
    assert repr(pool) == "<pool 'amqp://h/v': 2 of 3 in use, 0 waiting>"
    factory.go.set()
    assert making.get(timeout=30) is not held
    assert factory.pool(None).stats()["limit"] is None


def test_who_does_not_wait_may_be_given_what_the_turn_frees(
    factory: Factory, spawned: Spawn
) -> None:
    pool, thing = factory.lending(1)
    for give in (pool.release, pool.remove):
        gevent.spawn(give, thing)
        thing = pool.acquire(block=False)
    assert (factory.made, pool.stats()["timeouts"]) == (2, 0)
    gevent.spawn(pool.remove, thing)
    assert pool.acquire(True, Deadline(0)).number == 3
    with pytest.raises(LimitExceeded):
        pool.acquire(block=False)
    assert pool.stats()["timeouts"] == 1


def test_what_was_lost_before_the_first_use_is_noted(factory: Factory) -> None:
    pool = factory.pool(1)
    pool.note_lost(Thing(7))  # it has no hub yet
    assert pool.acquire().number == 1


def test_one_that_is_made_instead_counts_against_the_limit(
    factory: Factory, spawned: Spawn
) -> None:
    pool = factory.pool(1)
    dead = pool.take()
    factory.go.clear()
    instead = spawned(lambda: pool.take_instead(dead).item)
    other = spawned(pool.acquire)
    stats = pool.stats()
    assert (factory.at_once, stats["in_use"], stats["waiting"]) == (1, 1, 1)
    factory.go.set()
    thing = instead.get(timeout=30)
    assert (thing.number, other.ready()) == (2, False)
    pool.release(thing)
    assert other.get(timeout=30) is thing


def test_one_that_the_lender_finds_dead_is_replaced(factory: Factory, spawned: Spawn) -> None:
    pool, one, two = factory.lending(2, lender_checks=True, count=2)
    pool.release(one)
    pool.release(two)
    two.is_alive = False
    dead = pool.take()
    assert dead.item is two  # it was not asked
    assert pool.take_instead(dead).item is one
    taken = pool.take()
    waiter = spawned(pool.acquire)
    assert pool.take_instead(taken).item.number == 4  # before those that wait
    assert not waiter.ready()
    assert pool.release(one)
    assert waiter.get(timeout=30) is one
    settle()
    assert factory.disposed == [2, 3]
    assert (pool.stats()["created"], pool.stats()["discarded"]) == (4, 2)


def test_one_is_replaced_in_its_slot_whatever_the_limit_is_now(factory: Factory) -> None:
    pool = factory.pool(3)
    dead, *_ = [pool.take() for _ in range(3)]
    pool.resize(1)
    assert pool.take_instead(dead, block=False).item.number == 4
    assert pool.stats()["in_use"] == 3


def test_a_pool_at_its_lower_limit_keeps_what_is_released(factory: Factory) -> None:
    pool = factory.pool(3)
    things = [pool.acquire() for _ in range(3)]
    pool.resize(2)
    assert pool.release(things[0])
    assert pool.stats()["idle"] == 0
    assert pool.release(things[1])
    assert pool.release(things[2])
    assert pool.idle() == things[1:]
    settle()
    assert factory.disposed == [1]


def test_what_was_held_when_the_pool_was_closed_is_not_released(factory: Factory) -> None:
    pool = factory.pool(2)
    entry = pool.take()
    pool.close()
    pool.resize(5)
    pool.put_back(entry)
    assert pool.idle() == []
    assert pool.stats()["in_use"] == 0
    assert not pool.add(Thing(9))


def test_one_that_cannot_be_checked_leaves_the_pool(factory: Factory) -> None:
    asked: list[Thing] = []

    def fail(thing: Thing) -> bool:
        asked.append(thing)
        raise LookupError

    pool, thing = factory.lending(1)
    pool.release(thing)
    pool._is_alive = fail
    with pytest.raises(LookupError):
        pool.acquire()
    assert asked == [thing]
    pool._is_alive = None
    assert pool.stats()["idle"] == pool.stats()["in_use"] == 0
    assert pool.acquire().number == 2


def test_a_check_that_fails_at_a_release_gives_the_slot_to_the_next(
    factory: Factory, spawned: Spawn
) -> None:
    def fail(thing: Thing) -> bool:
        raise LookupError

    pool = factory.pool(1)
    entry = pool.take()
    waiter = spawned(pool.acquire)
    settle()
    pool._is_alive = fail
    with pytest.raises(LookupError):
        pool.put_back(entry)
    assert waiter.get(timeout=30).number == 2
    assert (pool.stats()["in_use"], pool.stats()["waiting"]) == (1, 0)


def test_a_hub_that_was_destroyed_is_another_one(factory: Factory, thread: ThreadPool) -> None:
    def work() -> None:
        pool = factory.pool(1)
        pool.release(pool.acquire())
        gevent.get_hub().destroy(destroy_loop=True)
        with pytest.raises(WrongHub):
            pool.acquire()

    thread.apply(work)


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_hook_that_fails_keeps_nobody_waiting(is_dead: bool) -> None:
    def fail(item: object) -> None:
        raise LookupError("no")

    parent: FairPool[object] = FairPool(lambda deadline: object(), limit=1)
    child: FairPool[object] = FairPool(
        lambda deadline: parent.acquire(True, deadline), limit=1, parent=parent
    )
    held = child.take()
    others = [gevent.spawn(pool.acquire, True, 30.0) for pool in (parent, child)]
    gevent.sleep(0)
    assert not any(each.ready() for each in others)
    parent.on_returned = fail
    with pytest.raises(LookupError):
        if is_dead:
            child.take_instead(held)
        else:
            child.release(held.item)
    parent.on_returned = None
    parent.release(others[0].get(timeout=30.0))
    child.release(others[1].get(timeout=30.0))
