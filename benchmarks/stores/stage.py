"""What a measurement over a store finds: queues, and messages in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count as numbers
from typing import Any

import gevent

from benchmarks.company import Company
from benchmarks.stage import BODY


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


class TableStage(StoreStage):
    """Queues in tables, of which each library has its own.

    Attributes:
        api: the library that is measured, which fills its queues itself.
    """

    api: Any = None

    def source(self, count: int) -> str:
        name = self.name()
        with self.api.Connection(self.url) as connection:
            self.api.Queue(name)(connection.default_channel).declare()
            producer = connection.Producer()
            for _ in range(count):
                producer.publish(BODY, routing_key=name)
        return name

    def messages(self) -> Sequence[object]:
        """The first messages in greenconn's table."""
        raise NotImplementedError

    def wait_empty(self, queue: str) -> None:
        if self.api.__name__ != "greenconn":
            return  # kombu's is marked when it is taken, and stays
        while self.messages():
            gevent.sleep(0.02)
