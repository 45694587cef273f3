"""Rate limits: events per second."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any


class TokenBucket:
    """Allows bursts up to *capacity*, and *fill_rate* a second in the long run.

    No step here switches greenlets; between threads it needs a lock.

    Arguments:
        fill_rate: tokens a second.
        capacity: tokens that are kept at most; it begins full.

    Attributes:
        contents: items that wait for tokens; the user's own (:meth:`add`, :meth:`pop`).
        timestamp: when the tokens were last counted (``time.monotonic``).
    """

    def __init__(self, fill_rate: float, capacity: float = 1) -> None:
        self.capacity = float(capacity)
        self.fill_rate: float = float(fill_rate)
        self.timestamp: float = self._now()
        self.contents: deque[Any] = deque()
        self._tokens = self.capacity

    def add(self, item: Any) -> None:
        """Append an item that waits."""
        self.contents.append(item)

    def pop(self) -> Any:
        """Remove and return the item that has waited longest.

        Raises:
            IndexError: nothing waits.
        """
        return self.contents.popleft()

    def clear_pending(self) -> None:
        """Remove all items that wait."""
        self.contents.clear()

    def can_consume(self, tokens: float = 1) -> bool:
        """Take *tokens* and return True; or take none and return False if there are fewer."""
        if tokens > self._count():
            return False
        self._tokens -= tokens
        return True

    def expected_time(self, tokens: float = 1) -> float:
        """Return the seconds until there will be *tokens*."""
        return max(0.0, tokens - self._count()) / self.fill_rate

    def _now(self) -> float:
        return monotonic()

    def _count(self) -> float:
        # Also for a full bucket, or the time while it was full would count once it is drained.
        now = self._now()
        filled = self._tokens + self.fill_rate * (now - self.timestamp)
        self._tokens = min(self.capacity, filled)
        self.timestamp = now
        return self._tokens
