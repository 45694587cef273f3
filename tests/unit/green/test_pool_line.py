"""The waiting line: first come, first served, and a word when it does not move."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

from greenconn.green import pool as module
from greenconn.green.deadline import Deadline
from greenconn.green.pool import WaitingLine
from greenconn.green.slot import Slot

WAIT = 30.0


class Rings:
    """Counts how often the word was said."""

    def __init__(self) -> None:
        self.count = 0
        self.came = Event()

    def ring(self) -> None:
        self.count += 1
        self.came.set()

    def wait(self) -> None:
        assert self.came.wait(WAIT)
        self.came.clear()


@pytest.fixture
def rings() -> Rings:
    return Rings()


def waiting(line: WaitingLine[int], is_endless: bool = False) -> gevent.Greenlet[[], int]:
    """A greenlet that stands in the line, and returns what it is given."""

    def wait() -> int:
        slot = line.enter(is_endless)
        try:
            return slot.wait(Deadline(WAIT))
        finally:
            line.leave(slot)

    return gevent.spawn(wait)


def test_the_first_is_served_first(rings: Rings) -> None:
    line: WaitingLine[int] = WaitingLine(WAIT, rings.ring)
    greenlets = [waiting(line) for _ in range(3)]
    gevent.sleep(0)
    assert len(line.waiters) == 3
    for number, each in enumerate(greenlets):
        found = line.offer(number)
        assert found is not None
        assert found() is each
    assert line.offer(3) is None
    assert [each.get(timeout=WAIT) for each in greenlets] == [0, 1, 2]
    assert not line.waiters
    assert rings.count == 0


def test_who_has_left_is_passed_over(rings: Rings) -> None:
    line: WaitingLine[int] = WaitingLine(WAIT, rings.ring)
    gone, there = waiting(line), waiting(line)
    gevent.sleep(0)
    gone.kill()
    assert len(line.waiters) == 1
    slot: Slot[int] = line.enter(False)
    line.waiters.move_to_end(slot, last=False)
    slot.fail(LookupError())  # it takes nothing any more
    found = line.offer(1)
    assert found is not None
    assert found() is there
    assert there.get(timeout=WAIT) == 1
    line.leave(slot)


def test_an_error_ends_all_waits(rings: Rings) -> None:
    line: WaitingLine[int] = WaitingLine(WAIT, rings.ring)
    greenlets = [waiting(line) for _ in range(3)]
    gevent.sleep(0)
    line.fail(LookupError("over"))
    for each in greenlets:
        with pytest.raises(LookupError, match="over"):
            each.get(timeout=WAIT)
    assert not line.waiters


def test_the_word_is_said_once_until_nobody_waits(rings: Rings) -> None:
    line: WaitingLine[int] = WaitingLine(0.01, rings.ring)
    for count in (1, 2):
        slot = line.enter(True)
        rings.wait()
        another = line.enter(True)
        gevent.sleep(0.03)
        assert rings.count == count
        line.leave(slot)
        gevent.sleep(0.03)
        assert rings.count == count
        line.leave(another)


def test_it_is_not_said_of_those_with_a_timeout(rings: Rings) -> None:
    line: WaitingLine[int] = WaitingLine(0.01, rings.ring)
    slot = line.enter(False)
    gevent.sleep(0.03)
    assert rings.count == 0
    endless = line.enter(True)
    line.leave(endless)  # the clock goes on while the other one waits
    gevent.sleep(0.03)
    assert rings.count == 0
    line.leave(slot)


def test_it_waits_for_the_patience_of_who_is_the_first_now(
    rings: Rings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    line: WaitingLine[int] = WaitingLine(0.02, rings.ring)
    first = line.enter(True)
    now[0] += 0.015
    second = line.enter(True)
    line.leave(first)
    gevent.sleep(
        0.03
    )  # the clock rings, and the second one has not waited for so long by its own time
    assert rings.count == 0
    now[0] += 0.02
    rings.wait()
    assert rings.count == 1
    line.leave(second)


def test_the_clock_stops_when_nobody_waits(rings: Rings) -> None:
    line: WaitingLine[int] = WaitingLine(0.01, rings.ring)
    line.leave(line.enter(True))
    gevent.sleep(0.03)
    assert rings.count == 0
    line.rest()  # nothing to stop


def test_who_leaves_twice_harms_nobody(rings: Rings) -> None:
    line: WaitingLine[int] = WaitingLine(WAIT, rings.ring)
    slot, other = line.enter(False), line.enter(False)
    leave: Callable[[Slot[int]], None] = line.leave
    leave(slot)
    leave(slot)
    assert list(line.waiters) == [other]
    leave(other)
