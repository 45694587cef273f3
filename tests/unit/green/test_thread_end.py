"""What lives on the hub of a native thread ends with that thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from gevent.monkey import get_original

from greenconn.green import thread_end

_start = get_original("_thread", "start_new_thread")
_get_ident = get_original("_thread", "get_ident")
_lock = get_original("_thread", "allocate_lock")


def in_native_thread(function: Callable[[], object]) -> None:
    """Call *function* in a thread of its own and wait for its end, also in a patched process."""
    ended = _lock()
    ended.acquire()

    class Last:
        """Goes behind all other values of the thread."""

        def __del__(self) -> None:
            ended.release()

    def run() -> None:
        function()
        last.value = Last()

    last = get_original("threading", "local")()
    _start(run, ())
    assert ended.acquire(timeout=30)


def descriptors() -> int:
    """Return the number of open descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Member:
    """Remembers where it was ended."""

    def __init__(self, error: Exception | None = None) -> None:
        self.ended_in: list[int] = []
        self._error = error
        thread_end.register(self)

    def end_with_thread(self) -> None:
        self.ended_in.append(_get_ident())
        if self._error is not None:
            raise self._error


def test_it_is_ended_in_its_thread_and_the_hub_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine the thread of the hub's pool may need longer; then descriptors stay.
    monkeypatch.setattr(thread_end, "POOL_TIMEOUT", 20.0)
    made: list[Member] = []
    idents: list[int] = []

    def use() -> None:
        idents.append(_get_ident())
        made.append(Member())
        gevent.sleep(0)
        gevent.get_hub().threadpool.apply(int)  # as a look-up of a name does

    in_native_thread(use)
    before = descriptors()
    for _ in range(10):
        in_native_thread(use)
    assert descriptors() <= before
    assert [each.ended_in for each in made] == [[ident] for ident in idents]


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


def test_in_the_main_thread_nothing_is_noted() -> None:
    member = Member()
    assert member.ended_in == []
    assert thread_end._ends.pop() is None


def test_the_child_of_a_fork_leaves_the_threads_of_its_parent_alone() -> None:
    made: list[Member] = []
    ready, go, ended = _lock(), _lock(), _lock()
    for each in (ready, go, ended):
        each.acquire()

    def use() -> None:
        made.append(Member())
        ready.release()
        go.acquire()
        ended.release()

    _start(use, ())
    assert ready.acquire(timeout=30)
    pid = os.fork()
    if not pid:
        os._exit(len(made[0].ended_in))  # the child has no other threads: their values are dropped
    assert os.waitpid(pid, 0)[1] == 0
    go.release()
    assert ended.acquire(timeout=30)
