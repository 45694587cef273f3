"""What a measurement over a store finds: queues, and messages in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import count as numbers
from typing import TYPE_CHECKING, Any

import gevent

from benchmarks.clock import Figures
from benchmarks.company import Company
from benchmarks.stage import BODY

if TYPE_CHECKING:
    from typing_extensions import Self


class Counting:
    """The statements that a server executes inside ``with``.

    Arguments:
        read: returns the number since the server began; None: it cannot tell.
    """

    def __init__(self, read: Callable[[], float] | None) -> None:
        self._read = read
        self._count = 0.0

    def __enter__(self) -> Self:
        if self._read is not None:
            self._count = -self._read()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._read is not None:
            self._count += self._read()

    def per(self, count: float) -> Figures:
        """Return the number for each of *count*, if it is known."""
        return {} if self._read is None else {"statements": self._count / count}


class StoreStage(Company):
    """The queues of one measurement.

    Arguments:
        url: of the server.

    Attributes:
        api: the library that is measured.
    """

    api: Any = None
    peers = "benchmarks.stores.peers"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._names = (f"greenconn-benchmark-{os.getpid()}-{number}" for number in numbers())

    def name(self) -> str:
        """A queue that nobody has used yet."""
        return next(self._names)

    def source(self, count: int) -> str:
        """A queue with *count* messages of 256 bytes."""
        raise NotImplementedError

    def counting(self) -> Counting:
        """Count the statements of others, where the server can tell."""
        return Counting(None)

    def wait_empty(self, queue: str) -> None:
        """Return when nothing is left of the messages of *queue*, held ones included."""
        raise NotImplementedError


class TableStage(StoreStage):
    """Queues that each library keeps in its own way, and fills itself."""

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
