"""Token buckets."""

from __future__ import annotations

import pytest

from greenconn import mixins
from greenconn.mixins import TokenBucket


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test moves."""
    now = [1000.0]
    monkeypatch.setattr(mixins, "monotonic", lambda: now[0])
    return now


def test_a_bucket_allows_a_burst_and_then_its_rate(clock: list[float]) -> None:
    bucket = TokenBucket(2, capacity=3)
    assert [bucket.can_consume() for _ in range(4)] == [True, True, True, False]
    assert bucket.expected_time() == 0.5
    clock[0] += 0.5
    assert bucket.expected_time() == 0.0
    assert bucket.can_consume()
    assert not bucket.can_consume()


def test_it_takes_all_or_nothing(clock: list[float]) -> None:
    bucket = TokenBucket(1, capacity=2)
    assert not bucket.can_consume(3)
    assert bucket.expected_time(3) == 1.0
    assert bucket.can_consume(2)


def test_a_full_bucket_does_not_save_the_time(clock: list[float]) -> None:
    bucket = TokenBucket(1, capacity=1)
    clock[0] += 100.0
    assert bucket.can_consume()
    assert not bucket.can_consume()


def test_what_waits_is_kept_in_order() -> None:
    bucket = TokenBucket(1)
    bucket.add("a")
    bucket.add("b")
    assert bucket.pop() == "a"
    bucket.clear_pending()
    with pytest.raises(IndexError):
        bucket.pop()
