"""Processes that are killed while they publish and consume, and sessions and servers that end."""

from __future__ import annotations

import json

import pytest

from tests.integration.processes import run

pytestmark = pytest.mark.programs


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("faults", "few", "many"),
    [
        ((), 8, 2000),
        pytest.param(
            ("--terminations", "10", "--restarts", "1", "--longest", "1"),
            *(8, 300),
            marks=pytest.mark.full,
        ),
    ],
    ids=["killed processes", "terminated sessions and restarts"],
)
def test_nothing_is_lost_invented_or_done_twice(
    faults: tuple[str, ...], few: int, many: int, long: bool
) -> None:
    lives = many if long else few
    done = run("-m", "tests.quality.kills", "--lives", str(lives), *faults, timeout=1700)
    assert done.code == 0, f"{done.output}\n{done.errors}"
    found = json.loads(done.output)
    assert found["killed"] == lives
    assert found["begun"] + found["committed"] > 0  # it has done something at all
