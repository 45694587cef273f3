"""One measurement in a process of its own.

``python -m benchmarks.measure BROKER RIVAL WORK COUNT URL``

Prints the figures as JSON.
"""

from __future__ import annotations

import sys

from benchmarks.boards import BOARDS, Board

if (
    __name__ == "__main__"
    and BOARDS[sys.argv[1]].rivals[sys.argv[2]].patched
    and sys.argv[3] != "import"
):
    from gevent import monkey

    monkey.patch_all()

import argparse
import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.clock import Clock, Figures
from benchmarks.imports import import_time, imports
from benchmarks.profiling import Sampler


def measure(board: Board, rival: str, work: str, count: int, url: str) -> Figures:
    """The figures of *work* done by *rival*."""
    if work == "import":
        return import_time(rival, count)
    with _prepared(board, rival, work, url) as function:
        warm_up = int(count * board.works[work].warm_up)
        if warm_up:
            function(warm_up)
        return function(count)


def profile(board: Board, rival: str, work: str, count: int, url: str) -> str:
    """Where the CPU time of *work* goes; repeats it until there are enough samples."""
    if work == "import":
        return imports(rival)
    sampler = Sampler()
    with _prepared(board, rival, work, url) as function:
        function(count)
        Clock.watcher = sampler
        while not sampler.is_content:
            function(count)
    return sampler.report()


@contextmanager
def _prepared(board: Board, rival: str, work: str, url: str) -> Iterator[Callable[[int], Figures]]:
    """The work as a function that may be called again."""
    module = importlib.import_module(board.rivals[rival].module)
    with importlib.import_module(board.stage).Stage(url) as stage:
        works = getattr(module, board.rivals[rival].works)(stage.url, stage)

        def function(count: int) -> Figures:
            figures: Figures = getattr(works, work)(count)
            stage.clear()
            return figures

        try:
            yield function
        finally:
            works.close()


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure")
    parser.add_argument("broker", choices=BOARDS)
    parser.add_argument("rival")
    parser.add_argument("work")
    parser.add_argument("count", type=int)
    parser.add_argument("url")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    what = (BOARDS[options.broker], options.rival, options.work, options.count, options.url)
    print(profile(*what) if options.profile else json.dumps(measure(*what)))


if __name__ == "__main__":
    main()
