"""Pools with kombu's hooks over stub resources: facades, limits, what gets lost."""

from __future__ import annotations

import copy
import gc
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.caching import lazy
from greenconn.exceptions import LimitExceeded, OperationalError
from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.resource import Resource
from tests.interpreter import printed
from tests.unit.green.test_pool import settle


class Box:
    """A resource: equal to others of its size, with some of what classes may have."""

    def __init__(self, number: int, size: int = 3) -> None:
        self.number = number
        self.size = size
        self.is_open = True
        self.closed = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and other.size == self.size

    def __hash__(self) -> int:
        return hash(self.size)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))

    def __getitem__(self, index: int) -> int:
        return range(self.size)[index]

    def __repr__(self) -> str:
        return f"<box {self.number}>"

    def close(self) -> None:
        """Close it."""
        self.closed += 1
        self.is_open = False

    def twice(self) -> int:
        """Use it."""
        return 2 * self.size


class Boxes(Resource):
    """A pool of boxes that takes down what its hooks are called for."""

    def __init__(self, limit: int | None = None, **kwargs: Any) -> None:
        self.made: list[Box] = []
        self.calls: list[str] = []
        self.go = Event()
        self.go.set()
        super().__init__(limit, **kwargs)

    def setup(self) -> None:
        """Hook."""
        self.calls.append("setup")

    def new(self) -> Box:
        """Hook."""
        if not self.go.is_set():
            assert self.go.wait(30)
        self.made.append(Box(len(self.made) + 1))
        return self.made[-1]

    def is_alive(self, resource: Any) -> bool:
        """Hook."""
        return bool(resource.is_open)

    def release_resource(self, resource: Any) -> None:
        """Hook."""
        self.calls.append(f"release {resource.number}")

    def collect_resource(self, resource: Any) -> None:
        """Hook."""
        self.calls.append(f"collect {resource.number}")


@pytest.fixture
def pool() -> Boxes:
    """Two boxes at most."""
    return Boxes(2)


# Facades


def test_a_facade_is_what_is_below_it(pool: Boxes) -> None:
    box = pool.acquire()
    below = pool.made[0]
    assert isinstance(box, Box)
    assert type(box) is not Box
    assert box.twice() == 6
    assert (len(box), box[1], list(box), 2 in box) == (3, 1, [0, 1, 2], True)
    assert (repr(box), str(box), f"{box}") == ("<box 1>",) * 3
    assert box == below
    assert below == box
    assert hash(box) == hash(below)
    assert {box: 1}[below] == 1
    assert box != Box(9, size=4)
    assert "twice" in dir(box)
    assert not callable(box)
    box.size = 5
    assert below.size == 5
    del box.size
    assert not hasattr(below, "size")
    below.size = 3
    assert type(copy.copy(box)) is Box
    assert isinstance(pool.acquire(), Box)
    assert box == pool.made[1]


def test_a_late_release_does_nothing(pool: Boxes) -> None:
    first = pool.acquire()
    first.release()
    second = pool.acquire()
    first.release()
    pool.release(first)
    pool.replace(first)
    assert pool.stats()["in_use"] == 1
    assert second.twice() == 6
    assert pool.calls == ["setup", "release 1"]


# Hooks


class KombuStyle(Resource):
    """Written for kombu: lazy resources on the shelf, evaluated by ``prepare``."""

    def __init__(self, limit: int | None) -> None:
        self.made = 0
        super().__init__(limit)

    def setup(self) -> None:
        """Fill the shelf."""
        for _ in range(self.limit or 0):
            self._resource.put_nowait(lazy(self.make))

    def new(self) -> Any:
        """Beyond the shelf."""
        return lazy(self.make)

    def make(self) -> Box:
        """The real one."""
        self.made += 1
        return Box(self.made)

    def prepare(self, resource: Any) -> Any:
        """Evaluate."""
        if callable(resource):
            resource = resource()
        resource.prepared = getattr(resource, "prepared", 0) + 1
        return resource


@pytest.mark.parametrize("limit", [2, None])
def test_a_subclass_written_for_kombu(limit: int | None) -> None:
    pool = KombuStyle(limit)
    assert pool.made == 0
    one = pool.acquire()
    assert (pool.made, one.prepared) == (1, 1)
    one.release()
    one = pool.acquire()
    assert (pool.made, one.prepared) == (1, 2)
    two = pool.acquire()
    assert pool.made == 2
    if limit:
        with pytest.raises(LimitExceeded):
            pool.acquire()
    one.release()
    two.release()
    pool.force_close_all()


def test_a_failing_prepare_releases_by_the_method(pool: Boxes) -> None:
    class Counting(Boxes):
        def prepare(self, resource: Any) -> Any:
            raise LookupError

        def release(self, resource: Any) -> None:
            self.calls.append(f"given back {resource.number}")
            super().release(resource)

    counting = Counting(1)
    with pytest.raises(LookupError):
        counting.acquire()
    assert counting.calls == ["setup", "given back 1", "release 1"]
    assert counting.stats()["idle"] == 1


def test_a_failing_release_hook_releases_all_the_same() -> None:
    class Broken(Boxes):
        def release_resource(self, resource: Any) -> None:
            raise LookupError

    broken = Broken(1)
    box = broken.acquire()
    with pytest.raises(LookupError):
        box.release()
    assert broken.stats()["idle"] == 1


# The limit


def test_the_limit_is_exceeded() -> None:
    class Exceeded(LimitExceeded):
        pass

    class Own(Boxes):
        LimitExceeded = Exceeded

        def _describe(self) -> str:
            return "amqp://h/v"

    pool = Own(2)
    boxes = [pool.acquire(), pool.acquire()]
    with pytest.raises(
        Exceeded, match=r"'amqp://h/v': none free \(2 of 2 in use, 0 waiting\); held"
    ):
        pool.acquire()
    with pytest.raises(Exceeded, match=r"none free within 0\.0 s"):
        pool.acquire(block=True, timeout=0.01)
    with pytest.raises(Exceeded, match=r"none free within 0\.0 s"):
        pool.acquire(block=True, timeout=Deadline(0.01))
    assert boxes[0].twice() == 6
    assert pool.holders()[0][0] == "main"


def test_the_deadline_covers_the_making(pool: Boxes) -> None:
    pool.go.clear()
    with pytest.raises(
        TimeoutError, match=r"pool 'Boxes': creating another took longer than 0\.02 s"
    ):
        pool.acquire(timeout=0.02)
    pool.go.set()
    assert pool.stats()["in_use"] == 0


def test_resizing(pool: Boxes) -> None:
    one, two = pool.acquire(), pool.acquire()
    with pytest.raises(RuntimeError, match="cannot shrink from 2 to 1 while 2 are in use"):
        pool.resize(1)
    assert pool.limit == 2
    pool.limit = 3
    three = pool.acquire()
    assert three.number == 3
    pool.resize(1, ignore_errors=True)
    for box in (one, two, three):
        box.release()
    settle()
    assert pool.stats() | {"timeouts": 0} == {
        "limit": 1,
        "in_use": 0,
        "idle": 1,
        "waiting": 0,
        "created": 3,
        "discarded": 2,
        "timeouts": 0,
    }
    pool.resize(None)
    assert pool.stats()["limit"] is None
    assert pool.calls.count("setup") == 4


# The end


def test_closing_all(pool: Boxes) -> None:
    used, idle = pool.acquire(), pool.acquire()
    idle.release()
    waiting = gevent.spawn(lambda: (pool.acquire(), pool.acquire(block=True)))
    yield_to_hub()
    pool.force_close_all()
    assert sorted(pool.calls[-2:]) == ["collect 1", "collect 2"]
    with pytest.raises(OperationalError, match="closed by force"):
        used.twice()
    used.release()
    with pytest.raises(RuntimeError, match="is closed"):
        waiting.get(timeout=5)
    with pytest.raises(RuntimeError, match="is closed"):
        pool.acquire()
    pool.force_close_all()
    assert len(pool.calls) == 4  # setup, release, two collected


def test_a_failing_collect_does_not_keep_the_others() -> None:
    class Broken(Boxes):
        def collect_resource(self, resource: Any) -> None:
            super().collect_resource(resource)
            raise LookupError

    pool = Broken(2)
    boxes = [pool.acquire(), pool.acquire()]
    pool.force_close_all()
    assert sorted(pool.calls[1:]) == ["collect 1", "collect 2"]
    del boxes


def test_one_killed_while_it_closes_all_closes_all() -> None:
    class Slow(Boxes):
        def collect_resource(self, resource: Any) -> None:
            assert self.go.wait(30)
            super().collect_resource(resource)

    pool = Slow(3)
    boxes = [pool.acquire() for _ in range(3)]
    pool.go.clear()
    closing = gevent.spawn(pool.force_close_all)
    yield_to_hub()
    closing.kill()
    pool.go.set()
    settle()
    assert pool.calls == ["setup", "collect 1", "collect 2", "collect 3"]
    del boxes


# What gets lost


def test_one_that_is_dropped_comes_back(pool: Boxes, caplog: pytest.LogCaptureFixture) -> None:
    pool.acquire()
    box = pool.acquire()
    assert (len(pool.made), pool.stats()["in_use"]) == (1, 1)
    del box
    assert len(pool._dirty) == pool.stats()["in_use"] == 1  # until the hub has seen it
    settle()
    assert pool.stats()["in_use"] == 0
    assert pool.stats()["idle"] == 1
    text = r"'Boxes': an object held by 'main' for \d+\.\d s was garbage-collected without being"
    assert re.search(text, caplog.text)
    assert "acquired here" not in caplog.text


def test_one_dropped_in_a_circle_comes_back_and_wakes_who_waits() -> None:
    pool = Boxes(1)

    def hold() -> None:
        circle: list[Any] = [pool.acquire()]
        circle.append(circle)

    gc.collect()
    hold()
    waiting = gevent.spawn(lambda: pool.acquire(block=True).number)
    yield_to_hub()
    assert pool.stats()["waiting"] == 1
    gc.collect()
    assert waiting.get(timeout=30) == 1


def test_the_log_reports_where_a_lost_one_was_acquired(caplog: pytest.LogCaptureFixture) -> None:
    pool = Boxes(1, trace_acquire=True)

    def who_forgets() -> None:
        pool.acquire()

    who_forgets()
    settle()
    assert "in who_forgets\n    pool.acquire()\n" in caplog.text
    assert "greenconn/resource.py" not in caplog.text


# One hub, and forks


def test_a_child_begins_anew() -> None:
    program = textwrap.dedent(
        """
        import os, gevent
        from tests.unit.test_resource import Boxes
        pool, other = Boxes(1, close_after_fork=True), Boxes(1)
        box, kept = pool.acquire(), other.acquire()
        waiting = gevent.spawn(pool.acquire, True)
        gevent.sleep(0.001)
        pid = os.fork()
        if pid == 0:
            assert pool.stats()["in_use"] == pool.stats()["waiting"] == 0
            try:
                box.twice()
            except Exception as exc:
                print(exc, flush=True)
            box.release()
            assert pool.acquire().number == 2
            assert kept.twice() == 6
            gevent.sleep(0.01)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert box.twice() == 6
        box.release()
        assert waiting.get(timeout=30).number == 1
        """
    )
    said = printed("-c", program, env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert said == "<box 1> cannot be used any more: it was acquired before a fork\n"


@pytest.mark.parametrize("delay", range(6))
def test_kills_at_every_switch_point_lose_nothing(delay: int) -> None:
    pool = Boxes(1)
    held = pool.acquire()
    users = [gevent.spawn(lambda: pool.acquire(block=True).release()) for _ in range(4)]
    yield_to_hub()
    pool.go.clear()
    for step in range(6):
        if step == delay:
            users[1].kill(block=False)
        if step == 2:
            pool.replace(held)
        if step == 4:
            pool.go.set()
        yield_to_hub()
    gevent.joinall(users, timeout=5, raise_error=True)
    assert pool.stats()["in_use"] == pool.stats()["waiting"] == 0
    assert pool.acquire(block=False).twice() == 6
    settle()
