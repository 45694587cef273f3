"""The birth and the end of the library's greenlets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
import gevent.util
import pytest
from gevent.event import Event

from greenconn.green import supervisor
from greenconn.green.supervisor import Gathered, OnDemand, current, end, end_all, shielded, spawn
from tests.fix_interrupts import SignalInLibrary
from tests.fix_leaks import HubErrors
from tests.fix_wires import until
from tests.forked import holds_in_child


def test_a_greenlet_has_a_name_and_its_function_gets_the_arguments() -> None:
    greenlet = spawn("adder", lambda a, *, b: a + b, 2, b=3)
    assert greenlet.name == "greenconn:adder"
    assert greenlet.get(timeout=30) == 5


def test_an_error_is_logged_once_and_ends_the_greenlet(
    caplog: pytest.LogCaptureFixture, hub_errors: HubErrors, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise LookupError("nothing there")

    with caplog.at_level(logging.DEBUG):
        greenlet = spawn("failer", fail)
        greenlet.join(30)
    assert greenlet.dead
    assert [record.name for record in caplog.records] == ["greenconn.green"]
    assert caplog.records[0].levelno == logging.ERROR
    assert "failer" in caplog.text
    assert "nothing there" in caplog.text
    assert not hub_errors
    assert not capsys.readouterr().err


def test_being_killed_is_an_ordinary_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        before = spawn("before", gevent.sleep, 10)
        before.kill()
        during = spawn("during", gevent.sleep, 10)
        gevent.sleep(0)
        during.kill()
    assert before.dead
    assert during.dead
    assert not caplog.records


def test_what_is_no_error_reaches_the_hub(hub_errors: HubErrors) -> None:
    timeout = gevent.Timeout(None)

    def expire() -> None:
        raise timeout

    greenlet = spawn("expired", expire)
    greenlet.join(30)
    assert greenlet.exception is timeout
    assert [error.value for error in hub_errors] == [timeout]
    hub_errors.clear()


class Call:
    """A call that takes until it is told to return."""

    def __init__(self) -> None:
        self.has_begun = Event()
        self.may_return = Event()
        self.has_returned = False
        self.has_gone_on = False

    def __call__(self) -> str:
        self.has_begun.set()
        assert self.may_return.wait(30)
        self.has_returned = True
        return "done"

    def run(self) -> str:
        """What a greenlet does that makes it."""
        result = shielded(self)
        self.has_gone_on = True
        return result


def test_end_waits_for_a_shielded_call() -> None:
    call = Call()
    greenlet = spawn("caller", call.run)
    assert call.has_begun.wait(30)
    end(greenlet)
    end(greenlet)
    gevent.idle()
    has_waited = not greenlet.dead
    call.may_return.set()
    greenlet.join(30)
    assert has_waited
    assert greenlet.dead
    assert (call.has_returned, call.has_gone_on) == (True, False)
    assert isinstance(greenlet.value, gevent.GreenletExit)


def test_shielded_call_that_fails() -> None:
    def fail() -> bool:
        with pytest.raises(ZeroDivisionError):
            shielded(divmod, 1, 0)
        return True

    assert spawn("caller", fail).get(timeout=30)
    assert not supervisor._shield.inside


def test_end_of_one_that_is_not_shielded() -> None:
    before = spawn("before", gevent.sleep, 1000)
    end(before)
    call = Call()
    call.may_return.set()

    def go_on() -> None:
        call.run()
        gevent.sleep(1000)

    behind = spawn("behind", go_on)
    assert call.has_begun.wait(30)
    gevent.idle()
    end(behind)
    gevent.joinall([before, behind], timeout=30)
    assert before.dead
    assert behind.dead


def test_end_does_not_wait_for_the_end() -> None:
    has_begun, may_end = Event(), Event()

    def clean_up() -> None:
        try:
            has_begun.set()
            gevent.sleep(1000)
        finally:
            may_end.wait(30)

    greenlet = spawn("slow to end", clean_up)
    assert has_begun.wait(30)
    end(greenlet)
    was_dead = greenlet.dead
    may_end.set()
    greenlet.join(30)
    assert (was_dead, greenlet.dead) == (False, True)


def test_end_of_all_spares_the_one_that_runs() -> None:
    others = [spawn("other", gevent.sleep, 30) for _ in range(2)]

    def run() -> str:
        end_all([*others, current()])
        gevent.sleep(0)
        return "went on"

    running = spawn("running", run)
    assert running.get(timeout=30) == "went on"
    assert all(each.dead for each in others)


def test_a_child_of_a_fork_waits_for_nobody_of_the_parent() -> None:
    go_on = Event()
    inside = spawn("inside", shielded, go_on.wait)
    gevent.sleep(0)
    assert inside in supervisor._shield.inside
    assert holds_in_child(lambda: not supervisor._shield.inside)
    assert inside in supervisor._shield.inside
    go_on.set()
    inside.join(30)
    assert not supervisor._shield.inside


def test_a_call_that_forks_returns_in_the_child_too() -> None:
    def fork() -> str:
        supervisor._shield.forget()  # as in the child
        return "forked"

    assert shielded(fork) == "forked"


class Work:
    """Work that comes by and by, and a function that does what there is of it."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.done: list[str] = []
        self.running = 0
        self.most_running = 0
        self.has_begun = Event()
        self.may_go_on = Event()
        self.task = OnDemand("work", self.do_all)

    def add(self, item: str) -> None:
        self.waiting.append(item)
        self.task.start()

    def do_all(self) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.has_begun.set()
        try:
            while self.waiting:
                assert self.may_go_on.wait(30)
                item = self.waiting.pop(0)
                if item == "fail":
                    raise LookupError(item)
                self.done.append(item)
        finally:
            self.running -= 1

    def join(self) -> None:
        """Wait until the greenlet has ended."""
        greenlet = self.task.greenlet
        assert greenlet is not None
        greenlet.join(30)
        assert greenlet.dead


def test_a_function_on_demand_runs_in_one_greenlet_until_there_is_no_work() -> None:
    work = Work()
    work.add("a")
    first = work.task.greenlet
    assert first is not None
    assert first.name == "greenconn:work"
    work.add("b")
    assert not work.has_begun.is_set()  # it runs behind all that can run now
    assert work.has_begun.wait(30)
    work.add("c")
    assert work.task.greenlet is first
    work.may_go_on.set()
    work.join()
    assert work.done == ["a", "b", "c"]
    work.add("d")
    second = work.task.greenlet
    assert second not in (None, first)
    work.join()
    assert (work.done, work.most_running) == (["a", "b", "c", "d"], 1)


def test_a_function_on_demand_starts_again_after_it_has_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Work()
    work.may_go_on.set()
    work.add("fail")
    work.join()
    assert work.task.greenlet is None
    assert "LookupError: fail" in caplog.text
    work.add("a")
    work.join()
    assert work.done == ["a"]


def test_a_function_on_demand_that_is_killed_before_it_begins_starts_again() -> None:
    work = Work()
    work.add("a")
    first = work.task.greenlet
    assert first is not None
    first.kill()
    assert work.task.greenlet is None
    work.may_go_on.set()
    work.add("b")
    work.join()
    assert work.done == ["a", "b"]


@pytest.mark.parametrize("has_begun", [True, False])
def test_an_interrupted_start_does_not_let_a_function_run_twice(
    monkeypatch: pytest.MonkeyPatch, has_begun: bool
) -> None:
    """The interruption comes when the greenlet is spawned and not noted yet."""
    spawned: list[gevent.Greenlet[..., Any]] = []

    def interrupted(name: str, function: Callable[[], None]) -> None:
        spawned.append(spawn(name, function))
        raise KeyboardInterrupt

    work = Work()
    with monkeypatch.context() as patched:
        patched.setattr(supervisor, "spawn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            work.add("a")
    if has_begun:
        assert work.has_begun.wait(30)
        assert work.task.greenlet is spawned[0]
    work.add("b")
    assert work.has_begun.wait(30)
    for _ in range(3):
        gevent.sleep(0)
    assert work.running == 1
    running = work.task.greenlet
    assert (running is spawned[0]) is has_begun
    work.may_go_on.set()
    work.join()
    assert (work.done, work.most_running, work.task.greenlet) == (["a", "b"], 1, None)


@pytest.mark.parametrize("has_begun", [True, False])
def test_end_of_a_function_on_demand(has_begun: bool) -> None:
    work = Work()
    work.task.end()  # there is none
    work.add("a")
    first = work.task.greenlet
    assert first is not None
    if has_begun:
        assert work.has_begun.wait(30)
    work.task.end()
    work.add("b")
    second = work.task.greenlet
    assert second is not first
    first.join(30)
    assert first.dead
    assert work.task.greenlet is second  # the end of the first is not its own
    work.may_go_on.set()
    work.join()
    assert (work.done, work.most_running, work.task.greenlet) == (["a", "b"], 1, None)


def test_end_of_a_function_on_demand_waits_for_a_shielded_call() -> None:
    call = Call()
    task = OnDemand("caller", call.run)
    task.start()
    greenlet = task.greenlet
    assert greenlet is not None
    assert call.has_begun.wait(30)
    task.end()
    gevent.idle()
    assert not greenlet.dead
    call.may_return.set()
    greenlet.join(30)
    assert (greenlet.dead, call.has_returned, call.has_gone_on) == (True, True, False)


def test_a_function_on_demand_that_ends_itself_goes_on_to_its_end() -> None:
    ended: list[bool] = []

    def run() -> None:
        task.end()
        task.start()
        ended.append(task.greenlet is current())
        gevent.sleep(0)
        ended.append(task.greenlet is current())

    task = OnDemand("runner", run)
    task.start()
    greenlet = task.greenlet
    assert greenlet is not None
    greenlet.join(30)
    assert (ended, task.greenlet) == ([True, True], None)


def test_items_are_gathered_and_handed_over_together() -> None:
    calls, done = [], Event()

    def keep(items: set[int]) -> None:
        calls.append(items)
        done.set()

    gathered: Gathered[int] = Gathered(0.01, keep, "keeper")
    gathered.add([1, 2])
    gathered.add([2, 3])
    assert gathered.items == {1, 2, 3}
    assert done.wait(30)
    assert calls == [{1, 2, 3}]
    assert not gathered.items


def test_items_that_come_while_the_function_runs_are_handed_over_after_it() -> None:
    """Even if their time has come before it ends."""
    calls: list[set[int]] = []
    has_begun, may_end, done = Event(), Event(), Event()

    def keep(items: set[int]) -> None:
        calls.append(items)
        has_begun.set()
        may_end.wait(30)
        if len(calls) == 2:
            done.set()

    gathered: Gathered[int] = Gathered(0.001, keep, "keeper")
    gathered.add([1])
    assert has_begun.wait(30)
    gathered.add([2])
    over = Event()
    timer = gevent.get_hub().loop.timer(0.01)
    timer.start(over.set, update=True)
    assert over.wait(30)
    timer.close()
    may_end.set()
    assert done.wait(30)
    assert calls == [{1}, {2}]


def test_items_are_dropped_when_it_is_stopped() -> None:
    gathered: Gathered[int] = Gathered(600.0, print, "keeper")
    gathered.add([1])
    gathered.stop()
    assert not gathered.items


def test_a_signal_amid_a_function_on_demand_leaves_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *args: None)
    work, number, has_struck = Work(), 1, True
    work.may_go_on.set()
    while has_struck:
        signal = SignalInLibrary(number, between_calls=False)
        signal.begin()
        work.add(f"{number}")
        until(lambda: not work.waiting)
        signal.end()
        has_struck, number = signal.left <= 0, number + 1
        until(lambda: work.task.greenlet is None)
    assert work.done == [f"{each}" for each in range(1, number)]
