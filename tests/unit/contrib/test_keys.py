"""Handlers that run by keys."""

from __future__ import annotations

from collections import defaultdict
from time import monotonic
from typing import Any

import pytest

import greenconn
from greenconn import Message, Queue
from greenconn.contrib.keys import SWEEP, Buckets, rate_limited
from greenconn.testing import MemoryBroker
from tests.unit.contrib.idempotency.test_handled_once import settled

SOON = 60.0
JOBS = Queue("jobs")


def of_body(body: Any, message: Message) -> Any:
    return body["key"]


def publish(key: str, *numbers: int) -> None:
    greenconn.publish_many(JOBS, [{"key": key, "n": number} for number in numbers])


def test_a_bucket_fills_by_time() -> None:
    buckets = Buckets(0.5, 3)
    assert [buckets.take("a", 10.0) for _ in range(5)] == [0, 0, 0, 0.5, 1.0]
    assert buckets.take("b", 10.0) == 0  # of its own
    assert buckets.take("a", 10.5) == 1.0
    assert [buckets.take("a", 20.0) for _ in range(4)] == [0, 0, 0, 0.5]


def test_a_token_that_was_put_back_is_the_next_ones() -> None:
    buckets = Buckets(0.5, 1)
    assert [buckets.take("a", 10.0) for _ in range(4)] == [0, 0.5, 1.0, 1.5]
    for at in (11.0, 10.5):
        buckets.put_back("a", at)
    assert [buckets.take("a", 10.25) for _ in range(3)] == [0.25, 0.75, 1.75]
    buckets.put_back("a", 10.5)
    assert buckets.take("a", 12.0) == 0.5  # too late for it


def test_full_buckets_are_forgotten() -> None:
    buckets = Buckets(1.0, 1)
    for number in range(3 * SWEEP):
        buckets.take(number, float(number))
    assert len(buckets) <= SWEEP
    crowd = Buckets(1e9, 1)
    for number in range(3 * SWEEP):
        crowd.take(number, 0.0)
    assert len(crowd) == 3 * SWEEP  # none of them is full


def test_handlers_begin_no_faster(broker: MemoryBroker) -> None:
    begun: dict[str, list[float]] = defaultdict(list)

    @rate_limited(100, burst=5, key=of_body)
    def work(body: Any, message: Message) -> None:
        begun[body["key"]].append(monotonic())

    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=100)
    start = monotonic()
    publish("a", *range(25))
    publish("b", *range(25))
    settled(consumer, 50)
    for times in begun.values():
        assert all(each - start >= (n - 4) / 100 for n, each in enumerate(sorted(times)))


def test_one_limit_for_all(broker: MemoryBroker) -> None:
    begun: list[float] = []

    @rate_limited(200)
    def work(body: Any, message: Message) -> None:
        begun.append(monotonic())

    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=20)
    start = monotonic()
    publish("a", *range(10))
    publish("b", *range(10))
    settled(consumer, 20)
    assert all(each - start >= n / 200 for n, each in enumerate(sorted(begun)))


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match=r"rate_limited\.limit must be a number above 0, got 0"):
        rate_limited(0)
    with pytest.raises(ValueError, match=r"rate_limited\.per must be a number above 0, got -1"):
        rate_limited(1, per=-1)
    with pytest.raises(ValueError, match=r"rate_limited\.burst must be a positive integer, got 0"):
        rate_limited(1, burst=0)


@pytest.mark.parametrize("decorate", [rate_limited(1)])
def test_batches_are_refused(decorate: Any) -> None:
    with pytest.raises(TypeError, match="must not be used with batch_size"):
        decorate(of_body)([], [])
