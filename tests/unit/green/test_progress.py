"""Progress: who waits for a number of requests is woken when as many are done."""

from __future__ import annotations

import gevent
import pytest

from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.progress import Progress


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


def test_nothing_pending_is_not_waited_for() -> None:
    Progress().wait(0, Deadline(0))


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
