"""The stream between the programs, which keeps its messages for a week."""

from __future__ import annotations

from greenconn import Queue

MEASUREMENTS = Queue("measurements", queue_arguments={"x-queue-type": "stream", "x-max-age": "7D"})
