"""What lives on the hub of a native thread ends with that thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original
from gevent.threadpool import ThreadPool

from greenconn.green import hub
from greenconn.green.hub import close_at_thread_end, join_at_thread_end

_start = get_original("_thread", "start_new_thread")
_get_ident = get_original("_thread", "get_ident")
_get_native_id = get_original("_thread", "get_native_id")
_lock = get_original("_thread", "allocate_lock")
_sleep = get_original("time", "sleep")
#: Seconds that a thread may take.
WAIT = 30.0


def in_native_thread(function: Callable[[], object]) -> None:
    """Call *function* in a thread of its own and wait for its end, also in a patched process."""
    wait_for_end(started(function))


def started(function: Callable[[], object]) -> int:
    """Call *function* in a thread of its own and return its number in the system."""
    numbers: list[int] = []
    has_begun = _lock()
    has_begun.acquire()

    def run() -> None:
        numbers.append(_get_native_id())
        has_begun.release()
        function()

    _start(run, ())
    assert has_begun.acquire(timeout=WAIT)
    return numbers[0]


def wait_for_end(number: int) -> None:
    """Wait until the system knows a thread no more: then all its values are dropped."""
    end = monotonic() + WAIT
    while Path(f"/proc/self/task/{number}").exists():
        assert monotonic() < end, "the thread did not end"
        _sleep(0.001)


def descriptors() -> int:
    """Return the number of open descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Member:
    """Remembers where it was ended."""

    def __init__(self, error: Exception | None = None) -> None:
        self.ended_in: list[int] = []
        self._error = error
        close_at_thread_end(self)

    def end_with_thread(self) -> None:
        self.ended_in.append(_get_ident())
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("has_pool", [True, False])
def test_it_is_ended_in_its_thread_and_the_hub_with_it(
    monkeypatch: pytest.MonkeyPatch, has_pool: bool
) -> None:
    # On a busy machine the thread of the hub's pool may need longer; then descriptors stay.
    monkeypatch.setattr(hub, "POOL_TIMEOUT", 20.0)
    made: list[Member] = []
    idents: list[int] = []

    def use() -> None:
        idents.append(_get_ident())
        made.append(Member())
        gevent.sleep(0)
        if has_pool:
            gevent.get_hub().threadpool.apply(int)  # as a look-up of a name does

    in_native_thread(use)
    before = descriptors()
    for _ in range(10):
        in_native_thread(use)
    assert descriptors() <= before
    assert [each.ended_in for each in made] == [[ident] for ident in idents]


def test_threads_of_a_pool_end_with_the_thread_of_its_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "POOL_TIMEOUT", 20.0)
    calls: list[str] = []
    threads: list[Any] = []
    owners: list[Owner] = []

    class Owner(Member):
        def __init__(self) -> None:
            super().__init__()
            self.pool = ThreadPool(2)
            join_at_thread_end(self)

        def release_threads(self) -> ThreadPool:
            calls.append("release_threads")
            return self.pool

        def end_with_thread(self) -> None:
            calls.append("end_with_thread")

    def use() -> None:
        owner = Owner()
        owners.append(owner)
        both = [owner.pool.spawn(_get_native_id) for _ in range(2)]
        threads.extend(each.get() for each in both)

    in_native_thread(use)
    assert calls == ["release_threads", "end_with_thread"]
    for thread in threads:
        wait_for_end(thread)
    assert owners[0].pool.size == 0


def test_one_that_fails_does_not_keep_the_others(caplog: pytest.LogCaptureFixture) -> None:
    made: list[Member] = []
    in_native_thread(lambda: made.extend([Member(ValueError("no")), Member()]))
    assert [len(each.ended_in) for each in made] == [1, 1]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_one_that_is_gone_is_not_called() -> None:
    seen: list[bool] = []

    class Noted(Member):
        def end_with_thread(self) -> None:
            seen.append(True)

    in_native_thread(lambda: Noted() and None)
    assert seen == []


def test_a_hub_that_was_destroyed_is_left_alone() -> None:
    made: list[Member] = []

    def use() -> None:
        made.append(Member())
        gevent.get_hub().destroy(destroy_loop=True)

    in_native_thread(use)
    assert made[0].ended_in == []


def test_the_child_of_a_fork_leaves_the_threads_of_its_parent_alone() -> None:
    made: list[Member] = []
    ready, go = _lock(), _lock()
    ready.acquire()
    go.acquire()

    def use() -> None:
        made.append(Member())
        ready.release()
        go.acquire()

    thread = started(use)
    assert ready.acquire(timeout=WAIT)
    pid = os.fork()
    if not pid:
        os._exit(len(made[0].ended_in))  # the child has no other threads: their values are dropped
    assert os.waitpid(pid, 0)[1] == 0
    go.release()
    wait_for_end(thread)
