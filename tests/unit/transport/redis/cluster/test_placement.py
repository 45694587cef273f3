"""The partitions of a Redis Cluster: evenly spread, the same in every program."""

from __future__ import annotations

from collections import Counter

import pytest
from redis.crc import key_slot

from greenconn.transport.redis.cluster.placement import PARTITIONS, _tags, tag_of


def test_each_partition_has_a_part_of_the_slots_of_its_own() -> None:
    parts = [key_slot(tag.encode()) * PARTITIONS // 16384 for tag in _tags()]
    assert parts == list(range(PARTITIONS))


def test_a_tag_leads_a_key_into_its_slot() -> None:
    tag = tag_of("orders")
    assert key_slot(b"{%b}:queue.orders" % tag.encode()) == key_slot(tag.encode())


def test_names_are_spread_over_the_partitions() -> None:
    counts = Counter(tag_of(f"queue-{number}") for number in range(100 * PARTITIONS))
    assert len(counts) == PARTITIONS
    assert max(counts.values()) < 3 * min(counts.values())


@pytest.mark.parametrize(("one", "other"), [("{orders}.new", "{orders}.done"), ("{a}", "a")])
def test_names_with_the_same_hash_tag_are_together(one: str, other: str) -> None:
    assert tag_of(one) == tag_of(other)


def test_programs_of_all_versions_agree() -> None:
    """Another result would divide what is in a cluster already."""
    assert (tag_of("orders"), tag_of("mail"), tag_of("")) == (
        tag_of("orders"),
        _tags()[key_slot(b"mail", PARTITIONS)],
        _tags()[0],
    )
