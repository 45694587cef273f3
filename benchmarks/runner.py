"""Runs the measurements, each in a process of its own, rivals in turn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.boards import Board
from benchmarks.clock import Figures

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


def measured(
    results: Results,
    board: Board,
    pairs: list[tuple[str, str]],
    *,
    rounds: int,
    messages: int,
    url: str,
) -> Iterator[tuple[str, str]]:
    """Measure each pair of work and rival once a round; yields each before it is measured.

    A pair that failed is not tried again.
    """
    for _ in range(rounds):
        for work, rival in pairs:
            yield work, rival
            if (work, rival) in results.failures:
                continue
            done = run(board, rival, work, messages, url)
            if isinstance(done, str):
                results.failures[work, rival] = done
            else:
                results.figures.setdefault((work, rival), []).append(done)


def profiled(board: Board, work: str, rival: str, *, messages: int, url: str) -> int:
    """Print where the time goes; returns the exit code."""
    return subprocess.run(
        [*_command(board, rival, work, messages, url), "--profile"], check=False
    ).returncode


#: Measures with the package of another folder.
_ELSEWHERE: Final = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("benchmarks.measure", run_name="__main__", alter_sys=True)
"""


def _command(
    board: Board, rival: str, work: str, messages: int, url: str, source: Path | None = None
) -> list[str]:
    messages //= board.rivals[rival].sleeps.get(work, 1)
    count = str(board.works[work].count(messages))
    how = ["-m", "benchmarks.measure"] if source is None else ["-c", _ELSEWHERE, str(source)]
    return [sys.executable, *how, board.name, rival, work, count, url]


def run(
    board: Board, rival: str, work: str, messages: int, url: str, source: Path | None = None
) -> Figures | str:
    """Return the figures, or why there are none.

    Arguments:
        source: the folder that has the package ``greenconn`` to measure; None: this one.
    """
    try:
        done = subprocess.run(
            _command(board, rival, work, messages, url, source),
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
