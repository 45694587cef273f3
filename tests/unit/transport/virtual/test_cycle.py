"""Round robin over resources, as kombu's."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.transport.virtual.cycle import FairCycle


class Nothing(Exception):
    """A resource has nothing."""


def take(resource: list[Any], callback: Any) -> Any:
    if not resource:
        raise Nothing
    return resource.pop(0)


def test_resources_are_asked_in_turn() -> None:
    cycle = FairCycle(take, [[1, 2], [3], [4, 5]], Nothing)
    assert [cycle.get(print) for _ in range(5)] == [1, 3, 4, 2, 5]


def test_nothing_anywhere() -> None:
    cycle: FairCycle[Any] = FairCycle(take, [[], []], Nothing)
    with pytest.raises(Nothing):
        cycle.get(print)
    empty: FairCycle[Any] = FairCycle(take, [], Nothing)
    with pytest.raises(Nothing):
        empty.get(print)


def test_resources_may_go_meanwhile() -> None:
    resources = [[1], [2, 3]]
    cycle = FairCycle(take, resources, Nothing)
    assert [cycle.get(print), cycle.get(print)] == [1, 2]
    del resources[0]
    assert cycle.get(print) == 3
    cycle.close()
    assert repr(cycle) == "<FairCycle: 1/1 [[]]>"
