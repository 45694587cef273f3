"""The other side of a measurement over a store: ``python -m benchmarks.stores.peers ROLE URL API ...``.

It publishes by the library that is measured, as only that one knows its tables.  It writes ``ready``
when it is, and begins when it reads a line.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from time import monotonic_ns, sleep

from benchmarks.peers import wait_go
from benchmarks.stage import BODY


def tick(url: str, api: str, count: str, pause: str, queue: str) -> None:
    """Send *count* messages that say when they left, with *pause* seconds between two."""
    with importlib.import_module(api).Connection(url) as connection:
        producer = connection.Producer()
        connection.connect()
        wait_go()
        for _ in range(int(count)):
            sleep(float(pause))
            producer.publish({"sent": monotonic_ns()}, routing_key=queue)


def feed(url: str, api: str, each: str, *queues: str) -> None:
    """Send *each* messages to each queue, in turn."""
    with importlib.import_module(api).Connection(url) as connection:
        producer = connection.Producer()
        connection.connect()
        wait_go()
        for _ in range(int(each)):
            for queue in queues:
                producer.publish(BODY, routing_key=queue)


ROLES: dict[str, Callable[..., None]] = {"feed": feed, "tick": tick}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
