"""The birth and the end of the library's greenlets."""

from __future__ import annotations

import logging
from typing import Any

import gevent
import gevent.util
import pytest
from gevent.event import Event

from greenconn.green import supervisor
from greenconn.green.supervisor import current, end, end_all, shielded, spawn
from tests.fix_leaks import HubErrors
from tests.forked import holds_in_child


def test_a_greenlet_has_a_name_and_its_function_gets_the_arguments() -> None:
    greenlet = spawn("adder", lambda a, *, b: a + b, 2, b=3)
    assert greenlet.name == "greenconn:adder"
    assert greenlet.get(timeout=30) == 5


def test_a_greenlet_is_one_of_gevent_that_records_no_stack() -> None:
    format_run_info: Any = gevent.util.format_run_info  # which has no types
    greenlet = spawn("waiter", gevent.sleep, 60)
    try:
        assert isinstance(greenlet, gevent.Greenlet)
        assert repr(greenlet).startswith('<Greenlet "greenconn:waiter"')
        assert not greenlet.spawning_stack
        report = "\n".join(format_run_info())
        assert "greenconn:waiter" in report
    finally:
        greenlet.kill()


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


def test_end_of_all_spares_the_one_that_runs() -> None:
    others = [spawn("other", gevent.sleep, 30) for _ in range(2)]

    def run() -> str:
        end_all([*others, current()])
        gevent.sleep(0)
        return "went on"

    running = spawn("running", run)
    assert running.get(timeout=30) == "went on"
    assert all(each.dead for each in others)


def test_child_of_a_fork_ends_them_at_once() -> None:
    call = Call()
    greenlet = spawn("caller", call.run)
    assert call.has_begun.wait(30)
    supervisor._shield.forget()
    end(greenlet)
    greenlet.join(30)
    assert greenlet.dead
    assert not call.has_returned


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


def test_a_shielded_call_is_as_any_other() -> None:
    assert shielded(int, "11", base=2) == 3
    with pytest.raises(ZeroDivisionError):
        shielded(divmod, 1, 0)
    assert not supervisor._shield.inside
