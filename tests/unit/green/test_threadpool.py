"""Blocking calls that stand pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.event import Event

from greenconn.green import threadpool
from greenconn.green.supervisor import end, spawn
from greenconn.green.threadpool import CallPool, are_sockets_green, in_hub_thread, in_threadpool
from tests.fix_wires import until

#: That of threads, in a patched process too.
_thread: Any = monkey.get_original("threading", "get_ident")
_allocate_lock: Any = monkey.get_original("_thread", "allocate_lock")


@pytest.fixture
def pool() -> Iterator[CallPool]:
    """Two threads."""
    pool = CallPool(2)
    yield pool
    pool.close()


def test_call_and_its_result(pool: CallPool) -> None:
    assert pool.call(divmod, 7, 2) == (3, 1)
    assert pool.call(int, "ff", base=16) == 255
    assert pool.call(_thread) != _thread()


def test_error(pool: CallPool) -> None:
    with pytest.raises(ZeroDivisionError):
        pool.call(divmod, 1, 0)


def test_hub_turns_meanwhile(pool: CallPool) -> None:
    """The call returns only after the hub has turned some times."""
    may_return = _allocate_lock()
    may_return.acquire()

    def turn_and_release() -> None:
        for _ in range(5):
            gevent.sleep(0.001)
        may_return.release()

    turning = gevent.spawn(turn_and_release)
    assert pool.call(may_return.acquire, True, 30.0)
    turning.get(timeout=30)


def test_more_calls_than_threads(pool: CallPool) -> None:
    calls = [gevent.spawn(pool.call, str, number) for number in range(20)]
    gevent.joinall(calls, timeout=10, raise_error=True)
    assert [each.get() for each in calls] == [str(number) for number in range(20)]


def test_killed_caller_leaves_its_call(pool: CallPool) -> None:
    done: list[int] = []
    may_end = _allocate_lock()
    may_end.acquire()

    def slow() -> None:
        done.append(0)
        may_end.acquire()
        done.append(1)
        raise ValueError("nobody hears it")

    caller = gevent.spawn(pool.call, slow)
    until(lambda: done == [0])
    caller.kill()
    was_busy = pool.is_busy
    may_end.release()
    assert pool.call(str, 1) == "1"
    pool.close()
    assert (was_busy, pool.is_busy) == (True, False)
    assert done == [0, 1]


def test_without_threads_calls_are_direct() -> None:
    pool = CallPool(None)
    assert pool.call(_thread) == _thread()
    with pytest.raises(ZeroDivisionError):
        pool.call(divmod, 1, 0)
    pool.close()


def test_without_threads_a_caller_ends_behind_its_call() -> None:
    pool = CallPool(None)
    has_begun, may_return = Event(), Event()

    def call() -> None:
        has_begun.set()
        assert may_return.wait(30)

    caller = spawn("caller", pool.call, call)
    assert has_begun.wait(30)
    end(caller)
    gevent.idle()
    before = (caller.dead, pool.is_busy)
    may_return.set()
    caller.join(30)
    assert before == (False, True)
    assert (caller.dead, pool.is_busy) == (True, False)


def test_without_threads_the_end_of_all_ends_calls() -> None:
    pool = CallPool(None)
    caller = spawn("caller", pool.call, gevent.sleep, 1000)
    gevent.idle()
    assert pool.is_busy
    pool.close()
    assert (caller.dead, pool.is_busy) == (True, False)


def test_whether_sockets_are_green(patched: bool) -> None:
    assert are_sockets_green() is patched


@pytest.mark.parametrize("are_green", [False, True])
def test_what_switches_by_itself_needs_no_thread(
    monkeypatch: pytest.MonkeyPatch, are_green: bool
) -> None:
    monkeypatch.setattr(threadpool, "are_sockets_green", lambda: are_green)
    assert (in_threadpool(_thread) == _thread()) is are_green
    assert in_hub_thread(_thread) != _thread()  # a disk blocks all the same
    with pytest.raises(ZeroDivisionError):
        in_threadpool(lambda: 1 // 0)
