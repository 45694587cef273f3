"""Publishers and consumers that go on while Redis servers fail."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from typing import Any

import gevent

import greenconn
from greenconn import Connection, Queue
from greenconn.broker.deliveries import Leases
from tests.fix_wires import until

SOON = 60.0
#: With a short lease, so that what is lost comes back while a test lasts.
OPTIONS = {"lease": 2.0}


class Load:
    """Publishers and consumers of many queues, and what became of each message.

    Arguments:
        url: of the servers.
        names: of the queues.
        options: of the transport.

    Attributes:
        confirmed: numbers of the messages that were published.
        got: how often each was handled.
        longest: seconds that a publish took, with all repetitions.
        lost: the losses of connections.
    """

    def __init__(self, url: str, names: list[str], **options: Any) -> None:
        self._names = names
        self._publishing = Connection(url, transport_options={**OPTIONS, **options})
        self._consuming = Connection(url, transport_options={**OPTIONS, **options})
        self.confirmed: set[int] = set()
        self.got: Counter[int] = Counter()
        self.longest = 0.0
        self._number = 0
        self._is_over = False
        self.lost: list[BaseException] = []

    def __enter__(self) -> Load:
        for connection in (self._publishing, self._consuming):
            connection.connect()
            connection.session.on_connection_lost.append(self.lost.append)
        self._consumers = [
            greenconn.spawn_consumer(Queue(name), self._take, connection=self._consuming)
            for name in self._names
        ]
        assert all(each.wait_ready(SOON) for each in self._consumers)
        self._publishers = [gevent.spawn(self._publish, name) for name in self._names]
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over = True
        gevent.joinall(self._publishers)
        for each in self._consumers:
            each.stop(SOON)
        self._publishing.close()
        self._consuming.close()

    @property
    def late(self) -> int:
        """Messages whose leases are said to have ended."""
        leases: Leases = self._consuming.connection.leases
        return leases.lost

    def _publish(self, name: str) -> None:
        while not self._is_over:
            self._number += 1
            number = self._number
            began = monotonic()
            greenconn.publish(Queue(name), number, connection=self._publishing, timeout=SOON)
            self.longest = max(self.longest, monotonic() - began)
            self.confirmed.add(number)

    def _take(self, body: int, message: object) -> None:
        self.got[body] += 1

    def go_on(self, count: int) -> None:
        """Wait until so many more messages were confirmed, of each queue some."""
        wanted = len(self.confirmed) + count
        until(lambda: len(self.confirmed) >= wanted, SOON)

    def finish(self) -> None:
        """Stop publishing, and wait until all that was confirmed has come."""
        self._is_over = True
        gevent.joinall(self._publishers, raise_error=True)
        until(lambda: self.confirmed <= set(self.got), SOON, "all that was confirmed")
        print(self.figures)  # shown with -rP

    @property
    def figures(self) -> str:
        """What came out of it."""
        lost = len(self.confirmed - self.got.keys())
        again = self.got.total() - len(self.got)
        return (
            f"{len(self.confirmed)} confirmed, {lost} lost, {again} duplicated, longest publish "
            f"{self.longest:.2f} s"
        )
