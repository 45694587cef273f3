"""Which broker comes next."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from greenconn.session.broker import Failover, shufflecycle

THREE = ["amqp://a", "amqp://b", "amqp://c"]


def taken(failover: Failover, number: int) -> list[str | None]:
    return [failover.next() for _ in range(number)]


def test_one_broker_has_no_next() -> None:
    failover = Failover([])
    assert failover.next() is None
    assert failover.hosts == 1
    assert failover.cycle is None
    assert failover.completes_cycle(0)


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


def test_shuffle_takes_each_once_in_a_round() -> None:
    members = list(islice(shufflecycle(THREE), 9))
    assert [sorted(members[n : n + 3]) for n in (0, 3, 6)] == [THREE] * 3
    assert list(shufflecycle([])) == []


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


def test_a_strategy_that_ends_begins_again() -> None:
    failover = Failover(THREE, lambda urls: iter(urls))
    assert taken(failover, 4) == ["amqp://b", "amqp://c", "amqp://a", "amqp://b"]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"round-robin, shuffle.*'rondo'"):
        Failover(THREE, "rondo")


def test_text_masks_passwords() -> None:
    assert "secret" not in repr(Failover(["amqp://u:secret@a", "amqp://u:secret@b"]))
