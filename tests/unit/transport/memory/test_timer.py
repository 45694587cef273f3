"""Timers on the hub, and on a clock that a test moves."""

from __future__ import annotations

from time import monotonic

from gevent.event import Event

from greenconn.testing import ManualClock
from greenconn.transport.memory.broker import HubClock, Timer

SOON = 20.0


def test_a_timer_on_the_hub() -> None:
    clock, rung = HubClock(), Event()
    timer = Timer(clock, rung.set)
    at = clock.now() + 0.01
    timer.set(at)
    assert timer.at == at
    assert rung.wait(SOON)
    assert monotonic() >= at
    assert timer.at is None


def test_the_last_time_that_was_set_counts() -> None:
    calls: list[float] = []
    clock = ManualClock()
    timer = Timer(clock, lambda: calls.append(clock.now()))
    start = clock.now()
    timer.set(start + 5)
    timer.set(start + 10)
    clock.move(9)
    assert calls == []
    clock.move(1)
    assert calls == [start + 10]
    assert clock.armed == 0


def test_a_timer_that_is_stopped_holds_nothing() -> None:
    clock = ManualClock()
    timer = Timer(clock, lambda: None)
    timer.set(clock.now() + 1)
    timer.stop()
    timer.stop()
    assert (timer.at, clock.armed) == (None, 0)
