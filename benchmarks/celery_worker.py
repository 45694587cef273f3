"""``python -m benchmarks.celery_worker``: a gevent worker of Celery's over kombu and over greenconn.

Same process layout, broker, task, prefetch (100) and message size; the queue is filled beforehand.  CPU
time, user and system, of the worker from its first task to its last; the rounds are interleaved.

With its default settings Celery spends 0.1 s of each turn of a gevent worker's loop on the heartbeats of
kombu's connections, which bounds it to some 20 tasks a second.  That is shown in a line of its own, with
fewer tasks; the others are without heartbeats.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from statistics import median
from typing import Final, NamedTuple

from benchmarks.boards import RABBITMQ
from benchmarks.servers import broker

GREENCONN: Final = "greenconn.contrib.celery:AmqpTransport"


class Worker(NamedTuple):
    """How a worker is started."""

    transport: str
    heartbeat: int
    #: How many times fewer tasks it gets.
    divisor: int = 1


WORKERS: Final = {
    "kombu": Worker("", 0),
    "greenconn": Worker(GREENCONN, 0),
    "kombu, heartbeats": Worker("", 120, 10),
    "greenconn, heartbeats": Worker(GREENCONN, 120),
}

COMMAND: Final = [
    *(sys.executable, "-W", "ignore", "-m", "celery", "-A", "benchmarks.celery_app:app", "worker"),
    *("-P", "gevent", "-c", "100", "-l", "error", "--without-mingle", "--without-gossip"),
]
FILL: Final = (
    "from benchmarks.celery_app import *\n"
    "with app.producer_or_acquire() as producer:\n"
    "    for number in range(COUNT): work.apply_async((number, 'x' * 100), producer=producer)\n"
)


def main() -> int:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=5000)
    options = parser.parse_args()
    costs: dict[str, list[float]] = {name: [] for name in WORKERS}
    rates: dict[str, list[float]] = {name: [] for name in WORKERS}
    with broker(RABBITMQ.name, options.url) as url:
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for name, worker in WORKERS.items():
                figures = _measure(url, worker, options.tasks // worker.divisor)
                costs[name].append(figures["cpu"])
                rates[name].append(figures["rate"])
    print(f"{'worker':24}{'CPU us a task':>28}{'tasks a second':>18}")
    for name in WORKERS:
        low, high = min(costs[name]), max(costs[name])
        cost = f"{median(costs[name]):.0f} ({low:.0f} to {high:.0f})"
        print(f"{name:24}{cost:>28}{median(rates[name]):>18.0f}")
    return 0


def _measure(url: str, how: Worker, tasks: int) -> dict[str, float]:
    """Fill the queue, and let a worker empty it."""
    env = {**os.environ, "BROKER": url, "TASKS": str(tasks)}
    subprocess.run([sys.executable, "-c", FILL], env=env, check=True)
    env.update(TRANSPORT=how.transport, HEARTBEAT=str(how.heartbeat))
    worker = subprocess.Popen(COMMAND, env=env, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    try:
        for line in worker.stdout:
            if line.startswith("{"):
                figures: dict[str, float] = json.loads(line)
                return figures
        raise RuntimeError(f"the worker ended with code {worker.wait()}")
    finally:
        worker.terminate()
        worker.stdout.close()
        worker.wait()


if __name__ == "__main__":
    sys.exit(main())
