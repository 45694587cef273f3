"""The stage in memory, and a loop that does nothing else."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence

from benchmarks.clock import Clock, Figures
from benchmarks.stage import BODY
from benchmarks.stores.stage import TableStage


class Stage(TableStage):
    """Queues of this process, which end with it."""

    def clear(self) -> None:
        """Nothing is left but what was published for nobody."""

    def close(self) -> None:
        """Nothing is open."""

    def messages(self) -> Sequence[object]:
        return ()  # an ack has removed its message when it returns


class Works:
    """The standard library's ``json`` and a ``deque``."""

    def __init__(self, url: str, stage: Stage) -> None:
        self._queue: deque[str] = deque()

    def close(self) -> None:
        """Nothing is open."""

    def publish(self, count: int) -> Figures:
        """Encode, and append."""
        queue = self._queue
        with Clock() as clock:
            for _ in range(count):
                queue.append(json.dumps(BODY))
        return clock.per(count)

    def consume(self, count: int) -> Figures:
        """Take, and decode."""
        self.publish(count)
        queue = self._queue
        with Clock() as clock:
            for _ in range(count):
                json.loads(queue.popleft())
        return clock.per(count)
