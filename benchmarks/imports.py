"""The time of imports."""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from benchmarks.clock import Figures

__all__ = ["import_time"]

#: What a program does before it can connect.
PROGRAMS = {
    "greenconn": "from greenconn import Connection; Connection('amqp://').transport",
    "kombu": (
        "from gevent import monkey; monkey.patch_all();"
        "from kombu import Connection; Connection('amqp://').transport"
    ),
    "pika": "import pika; pika.BlockingConnection, pika.URLParameters('amqp://localhost/')",
    "amqpstorm": "import amqpstorm; amqpstorm.UriConnection",
    "aio-pika": "import asyncio, aio_pika; aio_pika.connect",
    "raw": "import socket, struct",
}
CLOCK = "from time import perf_counter as c; a = c(); {program}; print(c() - a)"


def import_time(rival: str, count: int) -> Figures:
    """The median of *count* fresh interpreters, in milliseconds, without their start."""
    program = CLOCK.format(program=PROGRAMS[rival])
    took = []
    for _ in range(count + 1):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        took.append(float(done.stdout))
    return {"wall": median(took[1:]) * 1e3}  # the first one may compile
