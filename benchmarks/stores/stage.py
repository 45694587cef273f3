"""What a measurement over a store finds: queues, and messages in them."""

from __future__ import annotations

import os
from itertools import count as numbers

from benchmarks.company import Company


class StoreStage(Company):
    """The queues of one measurement.

    Arguments:
        url: of the server.
    """

    peers = ""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._names = (f"greenconn-benchmark-{os.getpid()}-{number}" for number in numbers())

    def name(self) -> str:
        """A queue that nobody has used yet."""
        return next(self._names)

    def source(self, count: int) -> str:
        """A queue with *count* messages of 256 bytes."""
        raise NotImplementedError

    def wait_empty(self, queue: str) -> None:
        """Return when nothing is left of the messages of *queue*, held ones included."""
        raise NotImplementedError
