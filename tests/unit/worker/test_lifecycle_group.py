"""Background tasks of the consumers of one connection."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.worker.group import (
    TASKS_AT_ONCE,
    BackgroundTask,
    BackgroundTasks,
)
from tests.fix_wires import until


class Log(list[str]):
    """A record of what tasks did."""

    def note(self, text: str) -> Any:
        """A function that notes *text*."""
        return lambda: self.append(text)


def blocked(tasks: BackgroundTasks, gate: Event) -> list[BackgroundTask]:
    """Tasks that take all places until *gate* is set."""
    made = [tasks.submit(gate.wait, lambda: None) for _ in range(TASKS_AT_ONCE)]
    until(lambda: all(each.greenlet for each in made))
    return made


def test_a_task_under_way_is_interrupted_and_its_place_is_taken() -> None:
    tasks, log, gate = BackgroundTasks(), Log(), Event()
    running = blocked(tasks, gate)
    tasks.submit(log.note("next"), log.note("next over"))
    running[0].cancel()
    running[0].cancel()
    until(lambda: log == ["next", "next over"])
    assert running[0].has_ended
    assert not running[1].has_ended
    gate.set()
    until(lambda: all(each.has_ended for each in running))


def test_cancelling_never_hits_the_next_task() -> None:
    tasks, log = BackgroundTasks(), Log()
    first_gate, second_gate = Event(), Event()
    first = tasks.submit(first_gate.wait, log.note("first over"))
    second = tasks.submit(second_gate.wait, log.note("second over"))
    until(lambda: first.greenlet and second.greenlet)
    first_gate.set()  # it is about to end by itself
    first.cancel()
    third = tasks.submit(second_gate.wait, log.note("third over"))
    gevent.sleep(0.01)
    assert not third.has_ended
    second_gate.set()
    until(lambda: sorted(log) == ["first over", "second over", "third over"])


def test_a_task_that_fails_is_over_too(caplog: pytest.LogCaptureFixture) -> None:
    tasks, log = BackgroundTasks(), Log()

    def fail() -> None:
        raise ValueError("no")

    tasks.submit(fail, log.note("over"))
    tasks.submit(log.note("next"), log.note("next over"))
    until(lambda: len(log) == 3)
    assert "failed" in caplog.text
