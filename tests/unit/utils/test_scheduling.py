"""kombu's orders of queues."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.utils.scheduling import cycle_by_name


@pytest.mark.parametrize(
    ("name", "first", "after"),
    [
        ("round_robin", ["b", "c"], ["c", "a", "b"]),
        ("priority", ["b", "c"], ["b", "c", "a"]),
        ("sorted", ["b", "c"], ["a", "b", "c"]),
    ],
)
def test_orders(name: str, first: list[str], after: list[str]) -> None:
    cycle: Any = cycle_by_name(name)()
    cycle.update(["b", "c", "a"])
    assert cycle.consume(2) == first
    cycle.rotate("b")
    cycle.rotate("not there")
    assert cycle.consume(3) == after
