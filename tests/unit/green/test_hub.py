"""The hub: a real turn of it, the end of a turn, and the thread that an object belongs to."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import get_hub
from gevent.threadpool import ThreadPool

from greenconn.exceptions import WrongHub
from greenconn.green import hub as module
from greenconn.green.deadline import is_thrown
from greenconn.green.hub import (
    HubAffinity,
    PerHub,
    TurnEnd,
    call_in_hub,
    wake_hub,
    weakly,
    yield_to_hub,
)
from tests.loops import needs_turn_end


def test_a_turn_lets_all_others_run() -> None:
    ran: list[int] = []
    greenlets = [gevent.spawn(ran.append, number) for number in range(3)]
    yield_to_hub()
    assert ran == [0, 1, 2]
    gevent.joinall(greenlets)


def test_a_turn_polls() -> None:
    ran: list[str] = []
    timer = get_hub().loop.timer(0)
    timer.start(ran.append, "timer")
    yield_to_hub()
    assert ran == ["timer"]
    timer.close()


def test_a_turn_takes_no_time_of_its_own() -> None:
    with gevent.Timeout(30.0):
        for _ in range(100):
            yield_to_hub()


def test_a_turn_that_is_interrupted_leaves_nothing() -> None:
    greenlet = gevent.spawn(yield_to_hub)
    gevent.sleep(0)
    greenlet.kill()
    assert greenlet.dead


def test_what_is_thrown_in_is_known_as_such() -> None:
    error = TimeoutError("the program's own")

    def yields() -> None:
        with pytest.raises(TimeoutError) as caught:
            yield_to_hub()
        assert caught.value is error

    greenlet = gevent.spawn(yields)
    gevent.sleep(0)
    greenlet.kill(error)
    greenlet.get(timeout=30)
    assert is_thrown(error)


def test_to_stay_awake_is_a_timer_that_ends_by_itself() -> None:
    loop = get_hub().loop
    gevent.sleep(0.001)  # timers of others that were due
    before = loop.activecnt
    wake_hub()
    assert loop.activecnt == before + 1
    yield_to_hub()
    assert loop.activecnt == before


@needs_turn_end
def test_the_end_of_a_turn_comes_after_what_is_due() -> None:
    ran: list[str] = []
    end = TurnEnd(get_hub().loop, lambda: ran.append("end"))

    def work() -> None:
        end.call()
        end.call()  # once for each turn
        get_hub().loop.run_callback(ran.append, "callback")
        gevent.spawn(ran.append, "greenlet")

    gevent.spawn(work)
    yield_to_hub()
    assert ran == ["callback", "greenlet", "end"]
    end.call()
    yield_to_hub()
    assert ran[3:] == ["end"]
    end.call()
    end.close()
    end.call()
    yield_to_hub()
    assert len(ran) == 4


def test_the_end_of_a_turn_of_another_loop() -> None:
    ran: list[str] = []
    loop = SimpleNamespace(run_callback=lambda callback: callback())
    end = TurnEnd(loop, lambda: ran.append("end"))
    end.call()
    assert ran == ["end"]
    end.close()
    end.call()
    assert ran == ["end"]


def test_a_hub_that_stays_awake_does_not_wait() -> None:
    ran: list[str] = []

    def put() -> None:
        get_hub().loop.run_callback(ran.append, "late")
        wake_hub()

    # The loop has looked for the last time at what is in line when the end of the turn comes.
    end = TurnEnd(get_hub().loop, put)
    end.call()
    gevent.sleep(0.001)
    yield_to_hub()
    assert ran == ["late"]
    end.close()


def test_an_object_belongs_to_the_thread_of_its_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    affinity = HubAffinity()
    assert affinity.hub is get_hub()
    affinity.check("x")
    pool = ThreadPool(1)
    try:
        with pytest.raises(WrongHub) as caught:
            pool.spawn(affinity.check, "this one").get()
        text = str(caught.value)
        assert text.startswith(
            "'this one' belongs to thread 'MainThread' and was used from thread "
        )
        assert text.endswith(": give each thread a connection of its own (Connection.clone())")
        with pytest.raises(WrongHub, match=r": try again$"):
            pool.spawn(affinity.check, 1, "try again").get()
        other: Any = pool.spawn(HubAffinity).get()
        with pytest.raises(WrongHub, match="and was used from thread 'MainThread'"):
            other.check("x")
        named = SimpleNamespace(ident=other.hub.thread_ident, name="worker")
        monkeypatch.setattr(module, "enumerate_threads", lambda: [named])
        with pytest.raises(WrongHub, match="belongs to thread 'worker' and"):
            other.check("x")
        monkeypatch.setattr(module, "enumerate_threads", list)
        with pytest.raises(WrongHub, match=f"belongs to thread {other.hub.thread_ident} and"):
            other.check("x")
    finally:
        pool.kill()


def in_thread(function: Callable[[], object]) -> None:
    """Call *function* in another thread, and wait."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_it_is_made_once_in_a_hub() -> None:
    lists: PerHub[list[int]] = PerHub(list)
    lists.get().append(1)
    assert lists.get() == [1]
    seen = gevent.spawn(lists.get).get()
    assert seen is lists.get()


def test_another_thread_has_its_own(patched: bool) -> None:
    lists: PerHub[list[int]] = PerHub(list)
    lists.get().append(1)
    seen: list[list[int]] = []
    in_thread(lambda: seen.append(lists.get()))
    # A thread of a patched process is a greenlet of the same hub.
    assert (seen[0] is lists.get()) is patched
    assert lists.get() == [1]


def test_another_hub_of_the_same_thread_has_its_own(patched: bool) -> None:
    lists: PerHub[list[int]] = PerHub(list)
    seen: list[bool] = []

    def two_hubs() -> None:
        first = lists.get()
        gevent.get_hub().destroy(destroy_loop=True)
        seen.append(lists.get() is first)
        lists.get()
        gevent.get_hub().destroy(destroy_loop=True)
        seen.append(lists.pop() is None)

    if not patched:  # there it would be the hub of the test
        in_thread(two_hubs)
        assert seen == [False, True]


class Owner:
    """Has a method to be called."""

    def add(self, left: int, right: int) -> int:
        return left + right


def test_a_method_is_called_while_its_object_lives() -> None:
    owner = Owner()
    called = weakly(owner.add)
    assert called(2, 3) == 5
    reference = weakref.ref(owner)
    del owner
    gc.collect()
    assert reference() is None
    assert called(2, 3) is None


def test_a_call_in_the_hub() -> None:
    called: list[tuple[int, ...]] = []
    assert call_in_hub(get_hub(), lambda *numbers: called.append(numbers), 1, 2)
    assert called == []
    yield_to_hub()
    assert called == [(1, 2)]


@pytest.mark.parametrize("why", ["no loop", "dead", "the end of the interpreter"])
def test_no_call_where_no_hub_is(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    loop = None if why == "no loop" else SimpleNamespace(run_callback_threadsafe=called.append)
    hub: Any = SimpleNamespace(loop=loop, dead=why == "dead")
    if why == "the end of the interpreter":
        monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    assert not call_in_hub(hub, called.append)
    assert called == []
