"""Correct handlers raise no alarm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from greenconn import App
from greenconn.torture import History, Outcome, Torture, torture
from tests.correct_handlers import PROGRAMS
from tests.worlds import World

#: Those that use threads, or begin each history with a new broker: about 100 histories a second.
SLOW = {"row_and_outbox", "each_minute"}


@contextmanager
def tortured(name: str, histories: int, replay: str | None = None) -> Iterator[Torture]:
    """Give a torture test of a program."""
    app, world = App(), World()
    program = PROGRAMS[name](app, world)
    run = torture(
        app,
        seed=2,
        histories=histories,
        faults=program.faults,
        reset=program.reset,
        replay=replay,
    )
    for queue, body in program.messages:
        run.publish(queue, body)
    if program.seconds:
        run.advance(program.seconds)
    run.check(program.check)
    yield run
    program.close()


@pytest.mark.timeout(3600)  # 100,000 histories of the longest program, on a busy machine
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.sampled(3)
def test_no_alarm(name: str, long: bool) -> None:
    few, many = (100, 3000) if name in SLOW else (300, 100_000)
    histories = many if long else few
    with tortured(name, histories) as run:
        report = run.explore()
    print(report, f"{report.histories / report.seconds:.0f}/s")
    assert report.histories == histories or report.is_complete


@pytest.mark.parametrize(
    ("name", "history"),
    [
        # A schedule had no token for five minutes, when the one whose call was killed was delivered
        # again and dropped meanwhile.
        ("each_minute", "1: reconnect 2.2, kill 2.5"),
        ("each_minute", "1: restart 2.4, reconnect 3.1"),
    ],
)
def test_what_was_found(name: str, history: str) -> None:
    with tortured(name, 1, history) as run:
        assert run.explore().calls > 1


def test_a_history_is_the_same_whatever_was_run_before() -> None:
    draw = Random(3)
    stories: dict[History, list[str]] = {}

    def told(history: History) -> Outcome:
        run._story = stories[history] = []
        return run._run(history)

    with tortured("in_order_by_key", 1) as run, run._quiet():
        first = History((1, 2, 3))
        found = [(first, told(first))]
        while len(found) < 40:
            run._close()  # the next one has a new broker
            history, outcome = draw.choice(found)
            faults = list(run._extensions(history, outcome))
            if faults and len(history.faults) < 3:
                longer = History(history.steps, (*history.faults, draw.choice(faults)))
                found.append((longer, told(longer)))
        alone = dict(stories)
        histories = list(alone)
        draw.shuffle(histories)
        for history in histories:
            told(history)
            assert stories[history] == alone[history], str(history)
        run._close()


def test_number_of_programs() -> None:
    assert len(PROGRAMS) == 14
