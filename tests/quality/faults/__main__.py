"""Publishers and consumers in a storm of faults (``python -m tests.quality.faults``).

Ends with 1 when anything was lost, duplicated for no reason, hung or leaked.  The same --seed has the
same faults come in the same order.  ``python -m gevent.monkey --module tests.quality.faults`` is
the same in a patched process.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable

from rich.console import Console

from tests.brokers.descriptors import raise_limit
from tests.brokers.packages import NoBroker
from tests.quality.faults.client import Client, Greenconn
from tests.quality.faults.kinds import Kind, kinds_of
from tests.quality.faults.report import shown, tables_of
from tests.quality.faults.storm import Outcome, Plan, Storm
from tests.quality.faults.targets.base import Target
from tests.quality.faults.targets.registry import STEADY, TARGETS

#: The brokers that the rival knows, too.
RIVALED = frozenset({"classic", "quorum", "redis"})
PATCHED = (sys.executable, "-m", "gevent.monkey", "--module", "tests.quality.faults")


def main() -> int:
    """Run the storms that the command line names."""
    options = arguments()
    raise_limit()
    logging.getLogger("greenconn").setLevel(logging.CRITICAL)  # what goes wrong does so on purpose
    console = Console(stderr=True)
    console.print(f"--seed {options.seed}", highlight=False)
    outcomes: list[Outcome] = []
    for broker in STEADY if "all" in options.broker else options.broker:
        try:
            outcomes.append(run(options, broker, console))
        except NoBroker as error:
            console.print(f"{broker}: {error}", markup=False)
            return 1
        if options.rival and broker in RIVALED:
            outcomes += rival(options, broker)
    if options.json:
        print(json.dumps([outcome.as_dict() for outcome in outcomes]))
    else:
        tell(outcomes, options.verbose)
    return 0 if all(each.is_good for each in outcomes if each.client == "greenconn") else 1


def run(options: argparse.Namespace, broker: str, console: Console) -> Outcome:
    """One run in this process."""
    plan = Plan(
        seed=options.seed,
        seconds=options.seconds,
        greenlets=options.greenlets,
        rate=options.rate,
        kinds=options.faults,
        count=options.count,
    )

    def show(text: str) -> None:
        if options.verbose:
            console.print(text, highlight=False)

    with TARGETS[broker]() as target:
        storm = Storm(plan, target, maker_of(options.client), show)
        with shown(storm, console):
            return storm.run()


def maker_of(client: str) -> Callable[[Target, bool], Client]:
    """What makes the client of that name."""
    if client == "greenconn":
        return Greenconn
    from tests.quality.faults.kombu_client import (
        Kombu,
    )  # it need not be installed otherwise, and only works patched

    return Kombu


def rival(options: argparse.Namespace, broker: str) -> list[Outcome]:
    """The same run of the rival, in a process of its own.  May switch."""
    kinds = [kind.value for kind in options.faults] or ["none"]
    command = [*PATCHED, "--json", "--client", options.rival, "--broker", broker]
    for name in ("seed", "seconds", "count", "greenlets", "rate"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run([*command, "--faults", *kinds], stdout=subprocess.PIPE, check=False)
    if not done.stdout:
        Console(stderr=True).print(f"{broker}: {options.rival} ended with {done.returncode}")
    return [Outcome(**figures) for figures in json.loads(done.stdout or b"[]")]


def tell(outcomes: list[Outcome], is_verbose: bool) -> None:
    """Print the figures, and what there is to say of what went wrong."""
    console = Console()
    for table in tables_of(outcomes, is_verbose):
        console.print(table)
    for outcome in outcomes:
        for note in outcome.notes:
            console.print(f"{outcome.broker}, {outcome.client}: {note}", markup=False)
        raised = ", ".join(f"{name} {count}" for name, count in sorted(outcome.errors.items()))
        if raised:
            console.print(f"{outcome.broker}, {outcome.client}: raised: {raised}", markup=False)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.quality.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names = ["all", "none", *(kind.value for kind in Kind)]
    add(
        "--broker",
        nargs="+",
        choices=["all", *TARGETS],
        default=["all"],
        metavar="BROKER",
        help=f"all, {', '.join(TARGETS)}: private ones, which are started (all but couchdb)",
    )
    add("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the faults")
    add("--seconds", type=float, default=60.0, help="of faults for each broker (60)")
    add("--count", type=int, help="so many faults, if that takes less time (any number)")
    add("--greenlets", type=int, default=100, help="that publish: 1 to 1,000 and more (100)")
    add("--rate", type=float, default=300.0, help="messages a second, all together (300)")
    add(
        "--faults",
        nargs="+",
        choices=names,
        default=["all"],
        metavar="FAULT",
        help=", ".join(names),
    )
    add("--rival", choices=["kombu"], help="the same with it beside, in a patched process")
    add("--verbose", action="store_true", help="name each fault, and all figures")
    add("--json", action="store_true", help="print all figures as JSON")
    add("--client", choices=["greenconn", "kombu"], default="greenconn", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.faults = kinds_of(options.faults)
    return options


if __name__ == "__main__":
    sys.exit(main())
