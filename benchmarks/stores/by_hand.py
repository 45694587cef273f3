"""What a driver does for a message if nobody asks for anything else."""

from __future__ import annotations

from benchmarks.clock import Clock, Figures
from benchmarks.rivals.shape import PREFETCH
from benchmarks.stores.stage import TableStage


class ByHand:
    """Publishing by one greenlet, and by many, whose messages are stored in hundreds."""

    def __init__(self, stage: TableStage) -> None:
        self.stage = stage

    def put(self, queue: str, count: int, at_once: int) -> Clock:
        """Store *count* messages, so many at once; return what measured it."""
        raise NotImplementedError

    def publish(self, count: int) -> Figures:
        """One at a time."""
        return self.put(self.stage.name(), count, 1).per(count)

    def publish_many(self, count: int) -> Figures:
        """A hundred at a time."""
        return self.put(self.stage.name(), count, PREFETCH).per(count)
