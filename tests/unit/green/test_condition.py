"""Conditions, and the progress of a line of requests."""

from __future__ import annotations

import gevent
import pytest

from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.slot import Condition, Progress


def test_all_who_wait_are_woken_and_look_again() -> None:
    condition, seen = Condition(), [0]

    def wait_for(number: int) -> int:
        while seen[0] < number:
            condition.wait(NEVER)
        return seen[0]

    waiters = [gevent.spawn(wait_for, number) for number in (1, 1, 2)]
    yield_to_hub()
    assert condition
    seen[0] = 1
    condition.wake_all()
    assert [each.get(timeout=30) for each in waiters[:2]] == [1, 1]
    assert condition  # one looked again, in vain
    seen[0] = 2
    condition.wake_all()
    assert waiters[2].get(timeout=30) == 2
    assert not condition


def test_who_comes_after_a_change_waits_for_the_next() -> None:
    condition = Condition()
    condition.wake_all()
    with pytest.raises(TimeoutError):
        condition.wait(Deadline(0.001))
    assert not condition


def test_each_gets_the_error_with_a_traceback_of_its_own() -> None:
    condition, error = Condition(), RecoverableConnectionError("closed")
    waiters = [gevent.spawn(condition.wait, NEVER) for _ in range(2)]
    notified = gevent.spawn(condition.outcome, NEVER)
    yield_to_hub()
    condition.wake_all(error)
    for each in waiters:
        with pytest.raises(RecoverableConnectionError, match="closed"):
            each.get(timeout=30)
    assert notified.get(timeout=30) is error


def test_who_was_killed_or_woken_already_is_not_woken() -> None:
    condition = Condition()
    killed = gevent.spawn(condition.wait, NEVER)
    other = gevent.spawn(condition.wait, NEVER)
    yield_to_hub()
    killed.kill()
    assert condition
    condition.wake_all()
    condition.wake_all()
    assert other.get(timeout=30) is None
    assert not condition


def test_each_waits_for_as_many_as_there_were() -> None:
    progress = Progress()
    progress.advance(7)
    first = gevent.spawn(progress.wait, 1, NEVER)
    third = gevent.spawn(progress.wait, 3, NEVER)
    yield_to_hub()
    progress.advance(1)
    first.get(timeout=30)
    second = gevent.spawn(progress.wait, 2, NEVER)
    yield_to_hub()
    assert not third.ready()
    progress.advance(1)
    yield_to_hub()
    assert not third.ready()
    assert not second.ready()
    progress.advance(1)
    second.get(timeout=30)
    third.get(timeout=30)


def test_one_step_may_end_many_waits() -> None:
    progress = Progress()
    waiting = [gevent.spawn(progress.wait, count, NEVER) for count in (1, 2, 2)]
    yield_to_hub()
    progress.advance(2)
    gevent.joinall(waiting, timeout=30, raise_error=True)
    assert all(each.successful() for each in waiting)


def test_who_has_left_holds_nobody_up() -> None:
    progress = Progress()
    with pytest.raises(TimeoutError):
        progress.wait(1, Deadline(0.001))
    killed = gevent.spawn(progress.wait, 1, NEVER)
    other = gevent.spawn(progress.wait, 2, NEVER)
    yield_to_hub()
    killed.kill()
    progress.advance(2)
    other.get(timeout=30)


def test_all_who_wait_get_the_error_and_later_ones_do_not() -> None:
    progress = Progress()
    waiting = [gevent.spawn(progress.wait, count, NEVER) for count in (1, 2)]
    yield_to_hub()
    progress.fail(RecoverableConnectionError("closed"))
    for each in waiting:
        with pytest.raises(RecoverableConnectionError, match="closed"):
            each.get(timeout=30)
    later = gevent.spawn(progress.wait, 1, NEVER)
    yield_to_hub()
    assert not later.ready()
    progress.advance(1)
    later.get(timeout=30)
