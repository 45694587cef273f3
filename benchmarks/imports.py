"""The time of imports."""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.clock import Figures

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
ROWS = 40
CLOCK = "from time import process_time as c; a = c(); {program}; print(c() - a)"


def import_time(rival: str, count: int) -> Figures:
    """The median CPU time of *count* fresh interpreters, in milliseconds, without their start."""
    program = CLOCK.format(program=PROGRAMS[rival])
    took = []
    with TemporaryDirectory() as cache:
        # The first one compiles, here of all libraries alike: what is installed is compiled.
        env = {**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
        for _ in range(count + 1):
            done = subprocess.run(
                [sys.executable, "-c", program],
                capture_output=True,
                text=True,
                check=True,
                env=env,
            )
            took.append(float(done.stdout))
    return {"cpu": median(took[1:]) * 1e3}


def imports(rival: str) -> str:
    """The modules that take the most time of their own, in the interpreter's words."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", PROGRAMS[rival]],
        capture_output=True,
        text=True,
        check=True,
    )
    heading, *lines = done.stderr.splitlines()
    slowest = sorted(lines, key=_own_time, reverse=True)[:ROWS]
    return "\n".join([heading, *slowest])


def _own_time(line: str) -> int:
    """The microseconds in ``import time: OWN | TOTAL | MODULE``."""
    own = line.partition(":")[2].partition("|")[0].strip()
    return int(own) if own.isdigit() else 0
