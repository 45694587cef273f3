"""Rounds of the clients in turn, and a table: median, least and most."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict

from benchmarks.sqs.works import WORKS
from tests.brokers.keeper import Keeper
from tests.brokers.moto import MotoServer

TIMEOUT = 300.0


def measure(name: str, url: str, count: int) -> dict[str, float]:
    """One run of one client."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sqs.works", name, url, str(count)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "AWS_DEFAULT_REGION": "us-east-1"},
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sqs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=500)
    options = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with Keeper() as keeper:
        server = MotoServer(keeper)
        server.start()
        for _ in range(options.rounds):
            for name in WORKS:
                for work, figure in measure(name, server.url, options.messages).items():
                    found[name, work].append(figure)
    print(f"client CPU, us a message; median (least to most) of {options.rounds} rounds")
    for (name, work), figures in found.items():
        print(
            f"{name:16} {work:24} {statistics.median(figures):7.0f} "
            f"({min(figures):.0f} to {max(figures):.0f})"
        )


if __name__ == "__main__":
    main()
