"""``python -m benchmarks``: what greenconn costs, beside other Python clients.

The broker bounds how many messages a second pass; CPU time is what a gevent process has least of.
Each round measures every library once, in turn, each in a process of its own; the table has the median
of the rounds, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.boards import BOARDS, Board
from benchmarks.chart import draw
from benchmarks.runner import Results, broker, measured, profiled
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
        with broker(board, options.url) as url:
            if options.profile:
                rival = (options.rival or ["greenconn"])[0]
                return profiled(board, options.profile, rival, messages=options.count, url=url)
            report = _measure(options, board, url, console)
    if options.chart:
        draw(report, options.chart)
    if options.json:
        print(report.json())
    elif options.rst:
        print(report.rst())
    else:
        Console(width=None if sys.stdout.isatty() else 200).print(report.text())
    for note in report.notes():
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    return 1 if report.results.failures else 0


def _measure(options: argparse.Namespace, board: Board, url: str, console: Console) -> Report:
    works = [work for work in board.works if not options.work or work in options.work]
    rivals = _present(board, options.rival, console)
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


def _present(board: Board, wanted: list[str] | None, console: Console) -> list[str]:
    """The rivals that are installed."""
    rivals = [rival for rival in board.rivals if not wanted or rival in wanted]
    for rival in rivals:
        if board.rivals[rival].version is None:
            console.print(f"{rival} is not installed: skipped")
    return [rival for rival in rivals if board.rivals[rival].version is not None]


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
    add("--chart", type=Path, metavar="FILE", help="draw all figures into this SVG file, too")
    add("--figures", type=Path, metavar="FILE", help="measure nothing: show what --json printed")
    add("--profile", choices=works, metavar="WORK", help="print where its CPU time goes")
    options = parser.parse_args()
    rounds, count = QUICK if options.quick else (5, 10_000)
    options.rounds = options.rounds or rounds
    options.count = options.count or count
    return options


if __name__ == "__main__":
    sys.exit(main())
