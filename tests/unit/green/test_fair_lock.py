"""A lock that is handed over in order."""

from __future__ import annotations

import gevent
import pytest
from gevent import GreenletExit

from greenconn.green.slot import FairLock


def test_who_takes_it_again_at_once_keeps_nobody_out() -> None:
    lock, order = FairLock(), []

    def work(name: str, times: int) -> None:
        for _ in range(times):
            with lock:
                order.append(name)
                gevent.sleep(0)

    greedy, modest = gevent.spawn(work, "greedy", 5), gevent.spawn(work, "modest", 2)
    gevent.joinall([greedy, modest], raise_error=True, timeout=5)
    assert order == ["greedy", "modest", "greedy", "modest", "greedy", "greedy", "greedy"]


def test_order_is_that_of_asking() -> None:
    lock, order = FairLock(), []

    def work(number: int) -> None:
        with lock:
            order.append(number)

    with lock:
        waiting = [gevent.spawn(work, number) for number in range(5)]
        gevent.sleep(0)
        assert order == []
    gevent.joinall(waiting, raise_error=True, timeout=5)
    assert order == [0, 1, 2, 3, 4]


def test_who_is_first_takes_it_before_all_that_wait() -> None:
    lock, order = FairLock(), []

    def work(number: int) -> None:
        with lock.first() if number < 0 else lock:
            order.append(number)

    with lock.first():
        waiting = [gevent.spawn(work, number) for number in (0, 1, -1, 2, -2)]
        gevent.sleep(0)
        waiting[-1].kill()
        assert order == []
    gevent.joinall(waiting, timeout=5)
    assert order == [-1, 0, 1, 2]
    with pytest.raises(KeyError), lock.first():
        raise KeyError
    with lock.first():
        pass


@pytest.mark.parametrize("is_handed_over", [False, True])
def test_who_is_killed_leaves_it_to_the_next(is_handed_over: bool) -> None:
    lock, order = FairLock(), []

    def work(number: int) -> None:
        with lock:
            order.append(number)

    with lock:
        first, second = gevent.spawn(work, 1), gevent.spawn(work, 2)
        gevent.sleep(0)
        if not is_handed_over:
            first.kill()
    if is_handed_over:
        first.kill(GreenletExit, block=False)
    gevent.joinall([first, second], timeout=5)
    assert 2 in order
    with lock:
        order.append(3)
    assert order[-1] == 3


def test_error_inside_releases_it() -> None:
    lock = FairLock()
    with pytest.raises(KeyError), lock:
        raise KeyError
    with lock:
        pass
