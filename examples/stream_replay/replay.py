"""A further reader, from any time on: ``python replay.py``, ``python replay.py 1h``.  Ctrl-C ends it."""

from __future__ import annotations

import signal
import sys
from typing import Any

import gevent
from measurements import MEASUREMENTS

import greenconn

numbers: set[int] = set()
highest = float("-inf")


def look(measurement: dict[str, Any], message: greenconn.Message) -> None:
    global highest
    numbers.add(measurement["number"])
    highest = max(highest, measurement["celsius"])
    if len(numbers) % 100 == 0:
        print(f"replayed {len(numbers)} measurements, highest {highest}", flush=True)


def main() -> None:
    """Read the stream from its beginning, or from the time in the first argument."""
    consumer = greenconn.spawn_consumer(
        MEASUREMENTS, look, offset=sys.argv[1] if sys.argv[1:] else "first"
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, consumer.stop, 10)
    consumer.get()


if __name__ == "__main__":
    main()
