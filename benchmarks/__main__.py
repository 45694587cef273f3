"""``python -m benchmarks``: what greenconn costs, beside other Python clients.

The broker bounds how many messages a second pass; CPU time is what a gevent process has least of.
Each round measures every library once, in turn, each in a process of its own; the table has the median
of the rounds, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import Progress

from benchmarks.boards import BOARDS, Board
from benchmarks.chart import add_option, draw
from benchmarks.native import FOLDER, NATIVE, CannotBuild
from benchmarks.runner import Results, measured, profiled
from benchmarks.servers import broker
from benchmarks.table import Report

#: Rounds and messages of ``--quick``.
QUICK = (1, 2000)


def main() -> int:
    """Run the benchmarks that the command line names."""
    options = _arguments()
    console = Console(stderr=True)
    board = BOARDS[options.broker]
    if options.figures:
        try:
            report = Report.read(options.figures.read_text(), board)
        except (OSError, ValueError) as exc:
            sys.exit(f"{options.figures}: {exc}")
    else:
        with broker(board.name, options.url) as url:
            if options.profile:
                rival = (options.rival or ["greenconn"])[0]
                return profiled(board, options.profile, rival, messages=options.count, url=url)
            report = _measure(options, board, url, console)
    if options.json:
        print(report.json())
    elif options.rst:
        print(report.rst())
    else:
        Console(width=None if sys.stdout.isatty() else 200).print(report.text())
    for note in report.notes():
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if options.chart:
        try:
            draw(report, options.chart)
        except (OSError, ValueError) as exc:
            sys.exit(f"{options.chart}: {exc}")
    return 1 if report.results.failures else 0


def _measure(options: argparse.Namespace, board: Board, url: str, console: Console) -> Report:
    works = [work for work in board.works if not options.work or work in options.work]
    with _present(board, works, options.rival, console) as rivals:
        return _rounds(options, board, works, rivals, url, console)


def _rounds(
    options: argparse.Namespace,
    board: Board,
    works: list[str],
    rivals: list[str],
    url: str,
    console: Console,
) -> Report:
    pairs = [(w, r) for w in works for r in rivals if w not in board.rivals[r].cannot]
    results = Results()
    with Progress(console=console) as progress:
        task = progress.add_task("", total=options.rounds * len(pairs))
        turns = measured(
            results, board, pairs, rounds=options.rounds, messages=options.count, url=url
        )
        for done, (work, rival) in enumerate(turns):
            if not console.is_terminal and done % len(pairs) == 0:
                console.print(f"round {done // len(pairs) + 1} of {options.rounds}")
            progress.update(task, completed=done, description=f"{work}, {rival}")
        progress.update(task, completed=options.rounds * len(pairs), description="done")
    return Report(results, works, rivals, options.rounds, options.budget, board)


@contextmanager
def _present(
    board: Board, works: list[str], wanted: list[str] | None, console: Console
) -> Iterator[list[str]]:
    """Yield the rivals that are installed, or can be built."""
    with TemporaryDirectory(prefix="greenconn-benchmark-") as folder:
        os.environ[FOLDER] = folder
        rivals = []
        for rival in board.rivals:
            if wanted and rival not in wanted:
                continue
            if board.rivals[rival].version is None:
                console.print(f"{rival} is not installed: skipped")
                continue
            if rival in NATIVE:
                if all(work in board.rivals[rival].cannot for work in works):
                    continue  # building takes time
                try:
                    NATIVE[rival].build(Path(folder), rival)
                except CannotBuild as exc:
                    console.print(f"{rival} is skipped: {exc}", soft_wrap=True, markup=False)
                    continue
            rivals.append(rival)
        yield rivals


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    works = list(dict.fromkeys(work for board in BOARDS.values() for work in board.works))
    rivals = list(dict.fromkeys(rival for board in BOARDS.values() for rival in board.rivals))
    add("--broker", choices=BOARDS, default="rabbitmq", help="what is measured on (rabbitmq)")
    add("--url", help="a broker to use; without it a private one is started")
    add("--rounds", type=int, help="how often each is measured (5)")
    add("--count", type=int, help="messages of a measurement; slow works take fewer (10,000)")
    add("--quick", action="store_true", help="one round of 2,000 messages: a first impression")
    add("--work", action="append", choices=works, help="only this one; may be repeated")
    add("--rival", action="append", choices=rivals, help="only this one; may be repeated")
    add("--budget", action="store_true", help="show what greenconn may cost at most")
    add("--rst", action="store_true", help="print the table as reStructuredText")
    add("--json", action="store_true", help="print all figures as JSON")
    add_option(parser, "all figures")
    add("--figures", type=Path, metavar="FILE", help="measure nothing: show what --json printed")
    add("--profile", choices=works, metavar="WORK", help="print where its CPU time goes")
    options = parser.parse_args()
    rounds, count = QUICK if options.quick else (5, 10_000)
    options.rounds = options.rounds or rounds
    options.count = options.count or count
    return options


if __name__ == "__main__":
    sys.exit(main())
