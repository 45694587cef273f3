"""Conditions, and the progress of a line of requests."""

from __future__ import annotations

import gevent
import pytest

from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import NEVER
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
