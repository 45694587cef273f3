"""Back-off series, with and without jitter."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenconn.wire.backoff import Backoff


def test_linear() -> None:
    assert list(islice(Backoff(1.0, step=2.0, max=6.0), 5)) == [1.0, 3.0, 5.0, 6.0, 6.0]


def test_constant() -> None:
    assert list(islice(Backoff(1.0, step=1.0, max=1.0), 3)) == [1.0, 1.0, 1.0]


def test_exponential() -> None:
    assert list(islice(Backoff(0.5, factor=2.0, max=3.0), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_full_jitter_draws_from_nothing_to_the_whole_interval() -> None:
    backoff = Backoff.exponential(start=1.0, max=4.0, rng=random.Random(1).random)
    drawn = [next(backoff) for _ in range(2000)]
    assert 0.0 < drawn[0] <= 1.0
    assert 0.0 < drawn[1] <= 2.0
    assert min(drawn) < 0.1
    assert 3.9 < max(drawn) <= 4.0


@pytest.mark.parametrize(("rng", "interval"), [(lambda: 0.0, 8.0), (lambda: 0.999999, 4.0)])
def test_half_jitter(rng: Callable[[], float], interval: float) -> None:
    assert next(Backoff(8.0, jitter=0.5, rng=rng)) == pytest.approx(interval, rel=1e-3)


def test_reset_begins_again() -> None:
    backoff = Backoff(1.0, step=1.0, max=9.0)
    assert list(islice(backoff, 3)) == [1.0, 2.0, 3.0]
    assert backoff.attempts == 3
    backoff.reset()
    assert backoff.attempts == 0
    assert next(backoff) == 1.0


@given(
    start=st.floats(0, 100),
    step=st.floats(0, 100),
    factor=st.floats(1, 100),
    highest=st.floats(0, 100),
    jitter=st.floats(0, 1),
)
def test_no_interval_is_negative_or_above_the_maximum(
    start: float, step: float, factor: float, highest: float, jitter: float
) -> None:
    for interval in islice(Backoff(start, step, factor, highest, jitter), 200):
        assert 0.0 <= interval <= highest


@pytest.mark.parametrize(
    "wrong", [{"start": -1}, {"step": -1}, {"max": -1}, {"factor": 0.5}, {"jitter": 1.5}]
)
def test_wrong_arguments(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="back-off"):
        Backoff(**wrong)  # type: ignore[arg-type]
