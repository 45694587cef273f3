"""A native thread whose callers are greenlets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original

from greenconn.green.hub import close_at_thread_end
from greenconn.green.threadpool import CallOutcome, NativeThread
from tests.forked import holds_in_child
from tests.unit.green.test_thread_end import in_native_thread, wait_for_end

Job = Callable[[], Any]
sleep: Callable[[float], None] = get_original("time", "sleep")
get_ident: Callable[[], int] = get_original("_thread", "get_ident")
get_native_id: Callable[[], int] = get_original("_thread", "get_native_id")


class Work:
    """What a worker does, batch by batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.worker: NativeThread[Job] = NativeThread(self.run, partial(RuntimeError, "closed"))

    def run(self, jobs: Sequence[Job]) -> Sequence[CallOutcome]:
        self.sizes.append(len(jobs))
        outcomes = []
        with self.worker.fork_lock:
            for job in jobs:
                try:
                    outcomes.append(CallOutcome(job()))
                except Exception as exc:
                    outcomes.append(CallOutcome(error=exc))
        return outcomes


@pytest.fixture
def work() -> Iterator[Work]:
    """A worker, closed after the test."""
    work = Work()
    yield work
    work.worker.close(lambda: None)
    work.worker.join()


class Busy:
    """The worker has something to do until the end of a ``with`` block."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._reading, self._writing = os.pipe()

    def __enter__(self) -> Busy:
        begun: list[bool] = []

        def job() -> None:
            begun.append(True)
            os.read(self._reading, 1)

        self.caller = gevent.spawn(self._work.worker.call, job)
        while not begun:
            gevent.sleep(0.001)
        return self

    def __exit__(self, *error: object) -> None:
        os.write(self._writing, b"x")
        self.caller.get(timeout=30)
        os.close(self._reading)
        os.close(self._writing)


def test_it_runs_in_one_thread_of_its_own(work: Work) -> None:
    idents = {work.worker.call(get_ident) for _ in range(3)}
    assert len(idents) == 1
    assert get_ident() not in idents


def test_the_hub_goes_on(work: Work) -> None:
    with Busy(work) as busy:
        for _ in range(10):
            gevent.sleep(0.001)
            assert not busy.caller.ready()


def test_what_waits_is_done_together_and_in_order(work: Work) -> None:
    done: list[int] = []
    with Busy(work):
        others = [gevent.spawn(work.worker.call, partial(done.append, n)) for n in range(10)]
        gevent.sleep(0)
    gevent.joinall(others, raise_error=True)
    assert work.sizes == [1, 10]
    assert done == list(range(10))


def test_what_one_turn_of_the_hub_wants_is_done_together(work: Work) -> None:
    callers = [gevent.spawn(work.worker.call, partial(int, n)) for n in range(3)]
    gevent.sleep(0)
    work.worker.post(partial(int, 3), print)
    gevent.joinall(callers, raise_error=True)
    assert work.sizes == [4]
    assert [caller.get() for caller in callers] == [0, 1, 2]


def test_a_child_does_nothing_of_what_its_parent_has_not_begun(work: Work) -> None:
    done: list[int] = []
    work.worker.post(partial(done.append, 1), print)

    def is_left() -> bool:
        gevent.reinit()
        gevent.sleep(0.01)
        return not done

    assert holds_in_child(is_left)
    assert work.worker.call(lambda: done) == [1]


def test_each_gets_its_own_outcome(work: Work) -> None:
    def fail() -> None:
        raise LookupError("this one")

    assert work.worker.call(lambda: 1) == 1
    with pytest.raises(LookupError, match="this one"):
        work.worker.call(fail)
    assert work.worker.call(lambda: 2) == 2


def test_killed_caller_interrupts_nothing(work: Work) -> None:
    done: list[int] = []

    def job() -> None:
        sleep(0.02)
        done.append(1)

    caller = gevent.spawn(work.worker.call, job)
    gevent.sleep(0.005)
    caller.kill()
    work.worker.call(lambda: None)
    assert done == [1]


def test_close_finishes_what_waits() -> None:
    work = Work()
    done: list[str] = []
    callers = [gevent.spawn(work.worker.call, partial(done.append, f"{n}")) for n in range(3)]
    gevent.sleep(0)
    work.worker.close(lambda: done.append("last"))
    with pytest.raises(RuntimeError, match="closed"):
        work.worker.call(lambda: None)
    work.worker.join()
    gevent.joinall(callers, raise_error=True)
    assert done == ["0", "1", "2", "last"]


def test_fork_waits_until_the_gate_is_free(work: Work) -> None:
    """The child inherits no lock that the thread held."""
    state = {"begun": False, "inside": False}

    def job() -> None:
        state["begun"] = state["inside"] = True
        sleep(0.05)
        state["inside"] = False

    caller = gevent.spawn(work.worker.call, job)
    while not state["begun"]:  # it may be over before it is looked at
        gevent.sleep(0.001)
    assert holds_in_child(lambda: not state["inside"] and work.worker.fork_lock.acquire(False))
    caller.get(timeout=30)
    assert work.worker.call(os.getpid) == os.getpid()


def test_its_time_is_not_the_callers(work: Work) -> None:
    with Busy(work) as busy:
        busy.caller.kill()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            work.worker.call(os.getpid)
    assert work.worker.call(os.getpid) == os.getpid()


def test_a_pause_takes_its_time() -> None:
    began = monotonic()
    NativeThread.pause(0.02)
    assert monotonic() - began >= 0.02


def test_what_a_killed_caller_left_is_passed_on(work: Work) -> None:
    done: list[Any] = []
    with Busy(work) as busy:
        caller = gevent.spawn(work.worker.call, lambda: "left", done.append)
        gevent.sleep(0)
        caller.kill()
        assert not busy.caller.ready()
    assert work.worker.call(lambda: "next", done.append) == "next"
    assert done == ["left"]


def test_what_a_caller_left_at_the_last_moment_is_passed_on(work: Work) -> None:
    done: list[Any] = []
    caller = gevent.spawn(work.worker.call, lambda: "x", done.append)
    tell = work.worker._done

    def kill_first(calls: Any, result: Any) -> None:
        caller.kill(block=False)  # it comes before the value wakes it
        tell(calls, result)

    work.worker._done = kill_first  # type: ignore[method-assign, assignment]
    caller.join(30)
    assert isinstance(caller.value, gevent.GreenletExit)
    assert done == ["x"]


def test_a_callback_may_post_more_although_it_closes(work: Work) -> None:
    done: list[Any] = []

    def then(value: Any) -> None:
        done.append(value)
        if len(done) < 3:
            for _ in range(2):
                work.worker.post(lambda: len(done), then)

    with Busy(work):
        caller = gevent.spawn(work.worker.call, lambda: "left", then)
        gevent.sleep(0)
        caller.kill()
        work.worker.close(lambda: done.append("closed"))
    work.worker.join()
    assert done[0] == "left"
    assert done[-1] == "closed"
    assert len(done) == 6
    work.worker.post(lambda: "late", done.append)
    assert done[-1] == "closed"


def test_a_thread_that_ends_has_its_work_done() -> None:
    done: list[str] = []
    numbers: list[int] = []
    kept: list[Any] = []

    class Owner:
        def __init__(self, worker: NativeThread[Job]) -> None:
            self.worker = worker
            close_at_thread_end(self)

        def end_with_thread(self) -> None:
            self.worker.post(partial(done.append, "later"), print)
            self.worker.close(partial(done.append, "closed"))

    def use() -> None:
        work = Work()
        numbers.append(work.worker.call(get_native_id))
        work.worker.post(partial(done.append, "posted"), print)  # begun, and not told
        kept.extend((work, Owner(work.worker)))

    in_native_thread(use)
    wait_for_end(numbers[0])
    kept.clear()
    assert done == ["posted", "later", "closed"]


@pytest.mark.parametrize("is_busy", [True, False])
def test_a_worker_that_closes_ends_with_its_thread(is_busy: bool) -> None:
    done: list[str] = []
    numbers: list[int] = []
    kept: list[Any] = []

    def use() -> None:
        work = Work()
        kept.append(work)
        numbers.append(work.worker.call(get_native_id))
        if is_busy:
            work.worker.post(partial(done.append, "posted"), print)
        work.worker.close(partial(done.append, "closed"))

    in_native_thread(use)
    wait_for_end(numbers[0])
    kept.clear()
    assert done == [*(["posted"] if is_busy else []), "closed"]
