"""What a measurement on Redis finds: lists, messages in them, and the other side."""

from __future__ import annotations

import os
from itertools import count as numbers
from typing import Any

import redis

from benchmarks.company import Company
from benchmarks.redis.envelopes import envelope
from benchmarks.stage import BODY

#: Messages that are sent at once to fill a list.
BATCH = 1000


class Stage(Company):
    """The queues of one measurement.

    Arguments:
        url: of the server.
    """

    peers = "benchmarks.redis.peers"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.client: Any = self._connect(url)
        self._names = (f"greenconn-benchmark-{os.getpid()}-{number}" for number in numbers())

    def _connect(self, url: str) -> Any:
        return redis.Redis.from_url(url)

    def key(self, queue: str) -> str:
        """The list of a queue."""
        return queue

    def close(self) -> None:
        """End the connection."""
        self.client.close()

    def clear(self) -> None:
        """End the other sides and delete the queues, and what was noted of them."""
        self.end_peers()
        for key in list(self.client.scan_iter("*greenconn-benchmark-*", count=10_000)):
            self.client.delete(key)

    def sink(self) -> str:
        """A queue to publish to."""
        return next(self._names)

    def sources(self, number: int) -> list[str]:
        """Empty queues."""
        return [next(self._names) for _ in range(number)]

    def source(self, count: int) -> str:
        """A queue with *count* messages of 256 bytes."""
        name = next(self._names)
        for begin in range(0, count, BATCH):
            raws = [envelope(BODY, name) for _ in range(min(BATCH, count - begin))]
            self.client.lpush(self.key(name), *raws)
        return name
