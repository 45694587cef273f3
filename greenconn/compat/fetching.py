"""Iteration over the messages of a queue, fetched one by one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any


class FetchIterator:
    """Iterates over what ``fetch()`` gives."""

    def fetch(self) -> Any:
        """Return the next message, or None if the queue is empty.  May switch."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return self.iterqueue(infinite=True)

    def iterqueue(self, limit: int | None = None, infinite: bool = False) -> Iterator[Any]:
        """Yield messages as :meth:`fetch` gives them.  May switch.

        Arguments:
            limit: messages at most; None is without limit.
            infinite: go on when the queue is empty, with None.
        """
        for _ in islice(count(), limit or None):
            message = self.fetch()
            if message is None and not infinite:
                return
            yield message
