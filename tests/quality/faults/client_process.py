"""Publishers and consumers in a process that may be killed.

What it shall do comes pickled on its standard input.  All that it does goes to its standard output, a
JSON list a line: a message is noted there before its publish begins, and when it was handled before it
is acknowledged, so that whoever reads knows what a killed process has done.  A line on its input ends
the publishers, the end of it the process.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
from dataclasses import dataclass
from typing import Any

from gevent.fileobject import FileObject

from tests.quality.faults.client import Greenconn
from tests.quality.faults.ledger import Ledger, Stream, key_of
from tests.quality.faults.targets.base import Place
from tests.quality.faults.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Orders:
    """The work of a client process; and of its target what clients must know.

    Attributes:
        client: ``greenconn`` or ``kombu``.
        places: the queues.
        streams: the numbers of the streams, one for each publisher.
    """

    client: str
    name: str
    transport: str
    url: str
    options: dict[str, Any]
    heartbeat: float | None
    places: list[Place]
    streams: list[int]
    rate: float
    seed: int


class Report(Ledger):
    """A ledger that only tells the one that keeps it."""

    def __init__(self, streams: list[int]) -> None:
        super().__init__(is_ordered=False)
        self._numbers = iter(streams)

    def stream(self, queue: str, is_acked: bool = True) -> Stream:
        """The next of the streams that this process was given."""
        return ReportedStream(next(self._numbers), queue, is_acked)

    def published(self, stream: Stream, number: int) -> None:
        report("published", stream.number, number)

    def failed(self, stream: Stream, number: int, error: str) -> None:
        report("failed", stream.number, number, error)

    def handle(self, queue: str, body: object, is_redelivered: bool) -> None:
        report("handled", queue, key_of(body), is_redelivered)


class ReportedStream(Stream):
    """A stream that reports each message that it begins with."""

    def begin(self) -> int:
        number = self.next
        self.next += 1
        report("begun", self.number, number)
        return number


def report(*words: object) -> None:
    """Write a line at once: it stays written whatever becomes of this process."""
    try:
        os.write(1, json.dumps(words).encode() + b"\n")
    except BrokenPipeError:  # nobody is there for whom this could be
        os._exit(1)


def main() -> None:
    """Obey."""
    orders: Orders = pickle.load(sys.stdin.buffer)
    logging.getLogger("greenconn").setLevel(logging.CRITICAL)
    if orders.client == "kombu":
        from tests.quality.faults.kombu_client import Kombu  # it need not be installed otherwise

        client: Any = Kombu(orders, False)  # type: ignore[arg-type]  # all of a target that it needs
    else:
        client = Greenconn(orders, False)  # type: ignore[arg-type]
    workload = Workload(
        client,
        Report(orders.streams),
        orders.places,
        greenlets=len(orders.streams),
        rate=orders.rate,
        seed=orders.seed,
        is_calm=False,
    )
    workload.begin()
    report("ready")
    orders_to_come = FileObject(0, "rb", 0, closefd=False)
    orders_to_come.readline()
    for text in [*workload.stop_publishing(), *workload.troubles()]:
        report("trouble", text)
    report("quiet")
    orders_to_come.readline()
    for text in workload.end():
        report("trouble", text)
    client.close()
    report("ended")


if __name__ == "__main__":
    main()
