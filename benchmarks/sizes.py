"""``python -m benchmarks.sizes``: what a message costs by the size of its body, and whether it is even.

For each size, greenlets publish messages to one queue and wait for the confirms; then one
``spawn_consumer`` handles and acknowledges them.  Bodies are bytes without a serializer.  A cost that is
even is one for each message and one for each byte.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import process_time
from typing import Any, Final

import gevent
from gevent.event import Event

import greenconn
from benchmarks.boards import RABBITMQ
from benchmarks.scale import aligned
from benchmarks.servers import BROKERS, broker
from greenconn import Connection, Queue, spawn_consumer

#: Bytes: 64, and then 16 times as many up to 1 MiB, and 16 MiB.
SIZES: Final = (64, 1024, 16 * 1024, 256 * 1024, 1024 * 1024, 16 * 1024 * 1024)
#: Messages of a measurement: as many as have so many bytes together, within these limits.
BYTES: Final = 64 * 1024 * 1024
LEAST, MOST = 6, 2000
GREENLETS: Final = 10
PREFETCH: Final = 10
#: Seconds that each step may take.
TIMEOUT: Final = 300.0
QUEUE: Final = "greenconn-benchmark-sizes"
#: What is shown of each row, and how.
HEADINGS: Final = {
    "size": ("bytes", ",.0f"),
    "messages": ("messages", ",.0f"),
    "publish": ("publish: us", ",.1f"),
    "consume": ("consume: us", ",.1f"),
}


def main() -> int:
    """Measure what the command line names, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__)
    parser.add_argument("--broker", choices=BROKERS, default=RABBITMQ.name)
    parser.add_argument("--url", help="a broker to use; without it a private one is started")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="bytes of a body")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    rows = []
    with broker(options.broker, options.url) as url, Connection(url) as connection:
        for size in options.sizes:
            try:
                rows.append(_row(connection, size, options.rounds))
            except (greenconn.OperationalError, gevent.Timeout) as exc:
                print(f"{size} bytes: {exc}", file=sys.stderr)
                continue
            print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps(rows) if options.json else "\n".join(aligned(rows, HEADINGS)))
    return 0


def _row(connection: Connection, size: int, rounds: int) -> dict[str, float]:
    """Return the medians of one size, in microseconds of CPU time.  May switch."""
    count = max(LEAST, min(MOST, BYTES // size))
    body = os.urandom(size)
    with _queue(connection) as queue:
        _publish(connection, queue, body, GREENLETS)
        _consume(connection, queue, GREENLETS)  # declarations and caches are there
        pairs = [
            (_publish(connection, queue, body, count), _consume(connection, queue, count))
            for _ in range(rounds)
        ]
    publish, consume = (median(each) / count * 1e6 for each in zip(*pairs, strict=True))
    return {"size": size, "messages": count, "publish": publish, "consume": consume}


@contextmanager
def _queue(connection: Connection) -> Iterator[Queue]:
    queue = Queue(QUEUE)
    bound = queue(connection.default_channel)
    bound.declare()
    bound.purge()
    try:
        yield queue
    finally:
        bound.delete()


def _publish(connection: Connection, queue: Queue, body: bytes, count: int) -> float:
    """Publish, and return the seconds of CPU time.  May switch."""
    left = iter(range(count))

    def publish() -> None:
        for _ in left:
            greenconn.publish(queue, body, connection=connection, timeout=TIMEOUT)

    began = process_time()
    gevent.joinall([gevent.spawn(publish) for _ in range(GREENLETS)], raise_error=True)
    return process_time() - began


def _consume(connection: Connection, queue: Queue, count: int) -> float:
    """Handle and acknowledge the messages, and return the seconds of CPU time.  May switch."""
    done, left = Event(), count

    def handle(body: Any, message: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    began = process_time()
    consumer = spawn_consumer(queue, handle, connection=connection, prefetch_count=PREFETCH)
    with gevent.Timeout(TIMEOUT):
        done.wait()
    consumer.stop(TIMEOUT)
    return process_time() - began


if __name__ == "__main__":
    sys.exit(main())
