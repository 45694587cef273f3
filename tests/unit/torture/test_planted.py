"""Each planted bug is found from a fixed seed, by a short history."""

from __future__ import annotations

import pytest

from greenconn import App
from greenconn.torture import TortureFailure, torture
from tests.planted_handlers import PROGRAMS
from tests.worlds import World

#: The most steps of a history that shows a bug.
MOST_STEPS = 6


@pytest.mark.parametrize("name", PROGRAMS)
def test_bug_is_found(name: str) -> None:
    app, world = App(), World()
    program = PROGRAMS[name](app, world)
    run = torture(app, seed=1, faults=program.faults, reset=world.clear, forget=program.forget)
    for queue, body in program.messages:
        run.publish(queue, body)
    run.check(lambda: program.check(world))
    with pytest.raises(TortureFailure) as caught:
        run.explore()
    found = caught.value
    print(found)
    assert ": " in found.history or "at the same time" in str(found)
    assert found.steps <= MOST_STEPS

    again = torture(app, replay=found.history, reset=world.clear, forget=program.forget)
    for queue, body in program.messages:
        again.publish(queue, body)
    again.check(lambda: program.check(world))
    with pytest.raises(TortureFailure) as repeated:
        again.explore()
    assert repeated.value.story == found.story


def test_number_of_bugs() -> None:
    assert len(PROGRAMS) == 25
