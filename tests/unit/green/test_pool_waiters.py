"""The queue of waiters: first come, first served, and a warning when it does not move."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

from greenconn.green import pool as module
from greenconn.green.deadline import Deadline
from greenconn.green.pool import WaitQueue
from greenconn.green.slot import Slot

WAIT = 30.0


class Warnings:
    """Counts the warnings."""

    def __init__(self) -> None:
        self.count = 0
        self.came = Event()

    def warn(self) -> None:
        self.count += 1
        self.came.set()

    def wait(self) -> None:
        assert self.came.wait(WAIT)
        self.came.clear()


@pytest.fixture
def warnings() -> Warnings:
    return Warnings()


def waiting(queue: WaitQueue[int], is_endless: bool = False) -> gevent.Greenlet[[], int]:
    """A greenlet that waits in the queue, and returns what it is given."""

    def wait() -> int:
        slot = queue.enter(is_endless)
        try:
            return slot.wait(Deadline(WAIT))
        finally:
            queue.leave(slot)

    return gevent.spawn(wait)


def test_the_first_is_served_first(warnings: Warnings) -> None:
    queue: WaitQueue[int] = WaitQueue(WAIT, warnings.warn)
    greenlets = [waiting(queue) for _ in range(3)]
    gevent.sleep(0)
    assert len(queue.waiters) == 3
    for number, each in enumerate(greenlets):
        found = queue.offer(number)
        assert found is not None
        assert found() is each
    assert queue.offer(3) is None
    assert [each.get(timeout=WAIT) for each in greenlets] == [0, 1, 2]
    assert not queue.waiters
    assert warnings.count == 0


def test_who_has_left_is_passed_over(warnings: Warnings) -> None:
    queue: WaitQueue[int] = WaitQueue(WAIT, warnings.warn)
    gone, there = waiting(queue), waiting(queue)
    gevent.sleep(0)
    gone.kill()
    assert len(queue.waiters) == 1
    slot: Slot[int] = queue.enter(False)
    queue.waiters.move_to_end(slot, last=False)
    slot.fail(LookupError())  # it takes nothing any more
    found = queue.offer(1)
    assert found is not None
    assert found() is there
    assert there.get(timeout=WAIT) == 1
    queue.leave(slot)


def test_an_error_ends_all_waits(warnings: Warnings) -> None:
    queue: WaitQueue[int] = WaitQueue(WAIT, warnings.warn)
    greenlets = [waiting(queue) for _ in range(3)]
    gevent.sleep(0)
    queue.fail(LookupError("over"))
    for each in greenlets:
        with pytest.raises(LookupError, match="over"):
            each.get(timeout=WAIT)
    assert not queue.waiters


def test_the_word_is_said_once_until_nobody_waits(warnings: Warnings) -> None:
    queue: WaitQueue[int] = WaitQueue(0.01, warnings.warn)
    for count in (1, 2):
        slot = queue.enter(True)
        warnings.wait()
        another = queue.enter(True)
        gevent.sleep(0.03)
        assert warnings.count == count
        queue.leave(slot)
        gevent.sleep(0.03)
        assert warnings.count == count
        queue.leave(another)


def test_it_is_not_said_of_those_with_a_timeout(warnings: Warnings) -> None:
    queue: WaitQueue[int] = WaitQueue(0.01, warnings.warn)
    slot = queue.enter(False)
    gevent.sleep(0.03)
    assert warnings.count == 0
    endless = queue.enter(True)
    queue.leave(endless)  # the clock goes on while the other one waits
    gevent.sleep(0.03)
    assert warnings.count == 0
    queue.leave(slot)


def test_it_warns_after_the_wait_of_the_first_in_line(
    warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    queue: WaitQueue[int] = WaitQueue(0.02, warnings.warn)
    first = queue.enter(True)
    now[0] += 0.015
    second = queue.enter(True)
    queue.leave(first)
    gevent.sleep(
        0.03
    )  # the clock warnings, and the second one has not waited for so long by its own time
    assert warnings.count == 0
    now[0] += 0.02
    warnings.wait()
    assert warnings.count == 1
    queue.leave(second)


def test_the_clock_stops_when_nobody_waits(warnings: Warnings) -> None:
    queue: WaitQueue[int] = WaitQueue(0.01, warnings.warn)
    queue.leave(queue.enter(True))
    gevent.sleep(0.03)
    assert warnings.count == 0
    queue.stop_timer()  # nothing to stop


def test_who_leaves_twice_harms_nobody(warnings: Warnings) -> None:
    queue: WaitQueue[int] = WaitQueue(WAIT, warnings.warn)
    slot, other = queue.enter(False), queue.enter(False)
    leave: Callable[[Slot[int]], None] = queue.leave
    leave(slot)
    leave(slot)
    assert list(queue.waiters) == [other]
    leave(other)
