"""Whatever comes in, each parser gives what it promises or raises what it says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.targets import TARGETS, Target

each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


@each_target
def test_corpus(target: Target) -> None:
    for case in target.corpus:
        target.check(case)


@pytest.mark.full
@each_target
def test_fuzz(target: Target) -> None:
    @settings(
        max_examples=settings().max_examples // target.cost,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(target.cases)
    def check(case: Any) -> None:
        target.check(case)

    check()
