"""``python -m tests.quality.fuzz``: what untrusted peers may send, many times over; does each rule hold?

Each target gets its corpus, then as many cases as --cases says.  Ends with 1 when a rule was broken, and
prints the smallest case that hypothesis found for it.  The same --seed tries the same cases, as far as
the --minutes suffice.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import traceback
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.console import Console
from rich.table import Table

from tests.quality.fuzz.targets import TARGETS, Target

#: Hypothesis remembers all cases of a go, so that it takes ever longer, and more memory.
GO = 2000


@dataclass
class Outcome:
    """What came of one target, and how many cases that took."""

    name: str
    cases: int
    seconds: float
    error: str = ""


def main() -> int:
    """Fuzz the targets that the command line names."""
    options = arguments()
    logging.getLogger("greenconn").setLevel(logging.CRITICAL)
    console = Console(stderr=True)
    console.print(f"--seed {options.seed}", highlight=False)
    outcomes = []
    for name in options.targets or TARGETS:
        outcomes.append(run(TARGETS[name], options))
        console.print(f"{name}: {outcomes[-1].cases:,} cases", highlight=False)
    tell(outcomes)
    return 1 if any(each.error for each in outcomes) else 0


def run(target: Target, options: argparse.Namespace) -> Outcome:
    """Try one target, with a new seed for each go."""
    outcome = Outcome(target.name, 0, 0.0)
    began = monotonic()

    def check(case: Any) -> None:
        outcome.cases += 1
        target.check(case)

    try:
        for case in target.corpus:
            check(case)
        left, number = max(1, options.cases // target.cost), 0
        while left > 0 and monotonic() - began < 60 * options.minutes:
            invented = settings(
                max_examples=min(left, GO),
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.generate, Phase.shrink),
            )(given(target.cases)(check))
            seed(f"{options.seed} {number}" if number else options.seed)(invented)()
            left, number = left - GO, number + 1
    except Exception:
        outcome.error = traceback.format_exc()
    outcome.seconds = monotonic() - began
    return outcome


def tell(outcomes: list[Outcome]) -> None:
    """Print the table, and what went wrong."""
    console = Console()
    table = Table("target", "cases", "seconds", "")
    for each in outcomes:
        state = "broken" if each.error else "good"
        table.add_row(each.name, f"{each.cases:,}", f"{each.seconds:.1f}", state)
    table.add_row("all", f"{sum(each.cases for each in outcomes):,}")
    console.print(table)
    for each in outcomes:
        if each.error:
            console.print(f"{each.name}:\n{each.error}", markup=False)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.quality.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    add("--cases", type=int, default=2000, help="for each target (2000); fewer of connections")
    add("--long", dest="cases", action="store_const", const=50_000, help="50,000 for each target")
    add("--minutes", type=float, default=inf, help="for each target at most (as many as it takes)")
    add("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the cases")
    options = parser.parse_args()
    for name in options.targets:
        if name not in TARGETS:
            parser.error(f"no target {name!r}: there are {', '.join(TARGETS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
