"""Iteration over the messages of a queue, fetched one by one."""

from __future__ import annotations

from itertools import islice

from greenconn.compat import FetchIterator


class Numbers(FetchIterator):
    """Gives numbers, then None."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = list(numbers)

    def fetch(self) -> int | None:
        return self._numbers.pop(0) if self._numbers else None


def test_until_the_queue_is_empty() -> None:
    assert list(Numbers(1, 2, 3).iterqueue()) == [1, 2, 3]
    assert list(Numbers(1, 2, 3).iterqueue(limit=2)) == [1, 2]


def test_on_and_on() -> None:
    assert list(islice(Numbers(1, 2), 4)) == [1, 2, None, None]
    assert list(Numbers(1).iterqueue(limit=3, infinite=True)) == [1, None, None]
