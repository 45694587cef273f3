"""``python -m benchmarks``: client CPU time a message, greenconn and kombu on gevent, in one run.

The broker bounds how many messages a second pass; CPU time is what a gevent process has least of.
Each round measures every library once, in turn, each in a process of its own; the table has the median
of the rounds, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.brokers.descriptors import raise_limit
from tests.brokers.keeper import Keeper
from tests.brokers.rabbitmq import RabbitMQ

LIBRARIES = ("greenconn", "kombu")
WORKS = {
    "publish": "publish, one greenlet",
    "publish_pool": "publish, 1,000 greenlets through a pool of 10",
    "confirmed": "confirmed publish, 100 greenlets",
    "consume": "consume, prefetch 100, ack each",
    "consume_no_ack": "consume, no ack",
    "spawned": "spawn_consumer, concurrency 100",
}
#: Works that a library has no counterpart of.
MISSING = {("kombu", "spawned")}


def main() -> int:
    """Run the benchmarks that the command line names."""
    options = _arguments()
    console = Console()
    works = [work for work in WORKS if not options.work or work in options.work]
    figures: dict[tuple[str, str], list[float]] = {}
    with _broker(options.url) as url, Progress(console=console) as progress:
        task = progress.add_task("measuring", total=options.rounds * len(works) * len(LIBRARIES))
        for _ in range(options.rounds):
            for work in works:
                for library in LIBRARIES:
                    if (library, work) not in MISSING:
                        cpu = _measure(library, work, options.count, url)
                        figures.setdefault((library, work), []).append(cpu)
                    progress.advance(task)
    console.print(_table(works, figures, options))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--url", help="a RabbitMQ to use; without it a private one is started")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=20_000, help="messages of a measurement")
    parser.add_argument("--work", action="append", choices=WORKS, help="only this one; repeatable")
    return parser.parse_args()


@contextmanager
def _broker(url: str | None) -> Iterator[str]:
    url = url or os.environ.get("GREENCONN_TEST_AMQP_URL")
    if url:
        yield url
        return
    raise_limit()
    with Keeper() as keeper:
        rabbitmq = RabbitMQ(keeper)
        rabbitmq.start()
        yield rabbitmq.url


def _measure(library: str, work: str, count: int, url: str) -> float:
    """Microseconds of CPU time a message."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", library, work, str(count), url],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{library} {work} failed:\n{done.stderr}")
    return float(json.loads(done.stdout)["cpu"]) / count * 1e6


def _table(
    works: list[str], figures: dict[tuple[str, str], list[float]], options: argparse.Namespace
) -> Table:
    table = Table(
        title=f"client CPU time in us a message: median of {options.rounds} rounds (lowest to highest)"
    )
    for heading in ("work", *LIBRARIES, "ratio"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for work in works:
        ours, theirs = (figures.get((library, work)) for library in LIBRARIES)
        ratio = f"{median(theirs) / median(ours):.1f}" if ours and theirs else ""
        table.add_row(WORKS[work], _cell(ours), _cell(theirs), ratio)
    return table


def _cell(values: list[float] | None) -> str:
    if not values:
        return "-"
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    sys.exit(main())
