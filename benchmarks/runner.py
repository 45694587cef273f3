"""Runs the measurements, each in a process of its own, rivals in turn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.clock import Figures
from benchmarks.rivals import RIVALS
from benchmarks.works import WORKS
from tests.brokers.descriptors import raise_limit
from tests.brokers.keeper import Keeper
from tests.brokers.rabbitmq import RabbitMQ

__all__ = ["Results", "broker", "measured", "profiled"]

TIMEOUT = 300


@dataclass
class Results:
    """Figures by work and rival, one a round, and what went wrong."""

    figures: dict[tuple[str, str], list[Figures]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def values(self, work: str, rival: str, key: str) -> list[float]:
        """One figure, of all rounds."""
        rounds = self.figures.get((work, rival), [])
        return [figures[key] for figures in rounds if key in figures]


@contextmanager
def broker(url: str | None) -> Iterator[str]:
    """The broker at *url*, or a private one."""
    if url:
        yield url
        return
    raise_limit()
    with Keeper() as keeper:
        rabbitmq = RabbitMQ(keeper)
        rabbitmq.start()
        yield rabbitmq.url


def measured(
    results: Results, pairs: list[tuple[str, str]], *, rounds: int, messages: int, url: str
) -> Iterator[tuple[str, str]]:
    """Measure each pair of work and rival once a round; yields each before it is measured.

    A pair that failed is not tried again.
    """
    for _ in range(rounds):
        for work, rival in pairs:
            yield work, rival
            if (work, rival) in results.failures:
                continue
            done = _run(rival, work, messages, url)
            if isinstance(done, str):
                results.failures[work, rival] = done
            else:
                results.figures.setdefault((work, rival), []).append(done)


def profiled(work: str, rival: str, *, messages: int, url: str) -> int:
    """Print where the time goes; returns the exit code."""
    return subprocess.run(
        [*_command(rival, work, messages, url), "--profile"], check=False
    ).returncode


def _command(rival: str, work: str, messages: int, url: str) -> list[str]:
    messages //= RIVALS[rival].sleeps.get(work, 1)
    count = str(WORKS[work].count(messages))
    return [sys.executable, "-m", "benchmarks.measure", rival, work, count, url]


def _run(rival: str, work: str, messages: int, url: str) -> Figures | str:
    """The figures, or why there are none."""
    try:
        done = subprocess.run(
            _command(rival, work, messages, url),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done within {TIMEOUT} s"
    if done.returncode:
        return done.stderr.strip() or f"exit code {done.returncode}"
    figures: Figures = json.loads(done.stdout)
    return figures
