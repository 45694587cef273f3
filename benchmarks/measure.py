"""One measurement in a process of its own: ``python -m benchmarks.measure RIVAL WORK COUNT URL``.

Prints the figures as JSON.
"""

from __future__ import annotations

import sys

from benchmarks.rivals import RIVALS

if __name__ == "__main__" and RIVALS[sys.argv[1]].patched and sys.argv[2] != "import":
    from gevent import monkey

    monkey.patch_all()

import argparse
import importlib
import json

from benchmarks.clock import Figures
from benchmarks.imports import import_time
from benchmarks.line import Address
from benchmarks.profiling import Sampler
from benchmarks.stage import Stage
from benchmarks.works import WORKS


def measure(rival: str, work: str, count: int, url: str, sampler: Sampler | None = None) -> Figures:
    """The figures of *work* done by *rival*."""
    if work == "import":
        return import_time(rival, count)
    url = Address.of(url).url
    module = importlib.import_module(f"benchmarks.rivals.{RIVALS[rival].module}")
    with Stage(url) as stage:
        works = module.Works(url, stage)
        try:
            function = getattr(works, work)
            warm_up = int(count * WORKS[work].warm_up)
            if warm_up:
                function(warm_up)
                stage.clear()
            if sampler is not None:
                sampler.start()
            figures: Figures = function(count)
            if sampler is not None:
                sampler.stop()
        finally:
            works.close()
    return figures


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure")
    parser.add_argument("rival", choices=RIVALS)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("count", type=int)
    parser.add_argument("url")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    sampler = Sampler() if options.profile else None
    figures = measure(options.rival, options.work, options.count, options.url, sampler)
    if sampler is not None:
        print(sampler.report())
    else:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
