"""Correct handlers raise no alarm."""

from __future__ import annotations

import pytest

from greenconn import App
from greenconn.torture import torture
from tests.correct_handlers import PROGRAMS
from tests.worlds import World


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_alarm(name: str, long: bool) -> None:
    app, world = App(), World()
    program = PROGRAMS[name](app, world)
    histories = 100_000 if long else 300
    run = torture(app, seed=2, histories=histories, faults=program.faults, reset=program.reset)
    for queue, body in program.messages:
        run.publish(queue, body)
    run.check(program.check)
    report = run.explore()
    print(report, f"{report.histories / report.seconds:.0f}/s")
    assert report.histories == histories or report.is_complete


def test_number_of_programs() -> None:
    assert len(PROGRAMS) == 12
