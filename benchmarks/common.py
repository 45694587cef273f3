"""What all measurements share: the message, the queue, the clock."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

__all__ = ["BODY", "QUEUE", "Measured", "clean", "measured"]

QUEUE = "greenconn-benchmark"
#: 256 bytes as JSON.
BODY = {"number": 1, "name": "benchmark", "tags": ["a", "b", "c"], "padding": "x" * 184}


@dataclass
class Measured:
    """Seconds that a work took."""

    cpu: float = 0.0  #: user and system time of this process
    wall: float = 0.0


@contextmanager
def measured() -> Iterator[Measured]:
    """Measure what happens inside."""
    figures = Measured()
    began, cpu = perf_counter(), _cpu()
    try:
        yield figures
    finally:
        figures.cpu = _cpu() - cpu
        figures.wall = perf_counter() - began


def clean(connection: Any) -> None:
    """See that the queue exists and is empty."""
    channel = connection.default_channel
    channel.queue_declare(QUEUE, durable=True, auto_delete=False)
    channel.queue_purge(QUEUE)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
