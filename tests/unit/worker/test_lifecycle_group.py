"""Background tasks of the consumers of one connection."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.worker.group import (
    TASK_MOVES,
    TASKS_AT_ONCE,
    BackgroundTask,
    BackgroundTasks,
    TaskState,
)
from tests.fix_wires import until


class Log(list[str]):
    """A record of what tasks did."""

    def note(self, text: str) -> Any:
        """A function that notes *text*."""
        return lambda: self.append(text)


def test_tasks_run_in_their_order_a_few_at_a_time() -> None:
    tasks, log, gate = BackgroundTasks(), Log(), Event()
    running = peak = 0

    def task(number: int) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        gate.wait()
        running -= 1
        log.append(str(number))

    for number in range(3 * TASKS_AT_ONCE):
        tasks.submit(lambda number=number: task(number), log.note("over"))  # type: ignore[misc]
    until(lambda: running == TASKS_AT_ONCE)
    gate.set()
    until(lambda: len(log) == 6 * TASKS_AT_ONCE)
    assert peak == TASKS_AT_ONCE
    assert [each for each in log if each != "over"] == [
        str(each) for each in range(3 * TASKS_AT_ONCE)
    ]


def blocked(tasks: BackgroundTasks, gate: Event) -> list[BackgroundTask]:
    """Tasks that take all places until *gate* is set."""
    made = [tasks.submit(gate.wait, lambda: None) for _ in range(TASKS_AT_ONCE)]
    until(lambda: all(each.greenlet for each in made))
    return made


def test_a_task_that_waits_is_cancelled_at_once() -> None:
    tasks, log, gate = BackgroundTasks(), Log(), Event()
    blocked(tasks, gate)
    task = tasks.submit(log.note("done"), log.note("over"))
    task.cancel()
    assert task.has_ended
    assert log == ["over"]
    task.cancel()
    gate.set()
    gevent.sleep(0.01)
    assert log == ["over"]


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


def test_the_table_of_moves_of_a_task_is_whole() -> None:
    assert set(TASK_MOVES) == set(TaskState)
    assert not TASK_MOVES[TaskState.ENDED]
    task = BackgroundTask(lambda: None, lambda: None)
    task.end()
    assert repr(task).endswith(": ended>")
    with pytest.raises(RuntimeError, match="from ended to running"):
        task.start(gevent.Greenlet())
