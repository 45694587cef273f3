"""Whatever comes in, each parser gives what it promises or raises what it says."""

from __future__ import annotations

from typing import Any

import pytest
from gevent.pool import Pool
from hypothesis import HealthCheck, given, settings

from tests.quality.fuzz.targets import TARGETS, Target

each_target = pytest.mark.parametrize(
    "target",
    [
        # What needs no peer is the same in a patched process.
        pytest.param(target, id=name, marks=() if target.cost > 1 else pytest.mark.pure)
        for name, target in TARGETS.items()
    ],
)


@each_target
def test_corpus(target: Target) -> None:
    # Side by side: some wait for a peer that never answers.
    for _ in Pool(10).imap_unordered(target.check, target.corpus):
        pass


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
