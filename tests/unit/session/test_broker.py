"""Which broker comes next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenconn.session.broker import Failover

THREE = ["amqp://a", "amqp://b", "amqp://c"]


def taken(failover: Failover, number: int) -> list[str | None]:
    return [failover.next() for _ in range(number)]


def test_round_robin_begins_behind_the_first() -> None:
    assert taken(Failover(THREE), 4) == ["amqp://b", "amqp://c", "amqp://a", "amqp://b"]


def test_rounds_are_counted_by_the_list() -> None:
    failover = Failover(THREE)
    assert [failover.completes_cycle(retries) for retries in range(6)] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]


def test_a_function_gives_the_order() -> None:
    seen: list[list[str]] = []

    def backwards(urls: list[str]) -> Iterator[str]:
        seen.append(urls)
        while True:
            yield from reversed(urls)

    failover = Failover(THREE, backwards)
    assert taken(failover, 3) == ["amqp://b", "amqp://a", "amqp://c"]
    assert seen == [THREE]
    assert failover.strategy is backwards


def test_an_iterator_may_be_given() -> None:
    assert taken(Failover(THREE, iter(["amqp://a", "amqp://x", "amqp://y"])), 2) == [
        "amqp://x",
        "amqp://y",
    ]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"round-robin, shuffle.*'rondo'"):
        Failover(THREE, "rondo")
