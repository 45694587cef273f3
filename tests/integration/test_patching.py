"""Programs that were monkey-patched first, later, partly or not at all: all work the same."""

from __future__ import annotations

import pytest

from tests.integration.processes import run

pytestmark = pytest.mark.programs

HOWS = ("never", "first", "later")
PARTLY = ("midway", "no-ssl", "no-thread", "no-socket")
FURTHER = ("imported", "only-socket", "only-time", "only-thread")


@pytest.mark.parametrize(
    "how",
    [
        *HOWS,
        *(pytest.param(how, marks=pytest.mark.full) for how in PARTLY),
        *(pytest.param(how, marks=[pytest.mark.full, pytest.mark.long]) for how in FURTHER),
    ],
)
def test_a_program(how: str, amqp_url: str, unique: str) -> None:
    arguments = ("-m", "tests.integration.patching", how, amqp_url, unique)
    outcome = run(*arguments)
    assert outcome.output == "done\n", outcome.errors
    assert outcome.errors == ""
    assert outcome.code == 0


@pytest.mark.full
def test_a_program_over_redis(redis_url: str, unique: str, long: bool) -> None:
    for how in (*HOWS, *PARTLY, *FURTHER) if long else ("never", "later", "no-socket"):
        outcome = run("-m", "tests.integration.patching", how, redis_url, f"{unique}-{how}")
        assert outcome.output == "done\n", f"{how}: {outcome.errors}"
        assert outcome.errors == "", how
