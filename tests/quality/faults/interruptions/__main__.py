"""Each public call, interrupted at each of its switches.

Each call is run again and again, and killed, timed out or thrown an error of the program's own at its
first switch, at its second, ... until it comes to its end; at each turn of the hub while it waits there.
Behind each run the connection, its channels, pools, consumers and locks must be whole, and a hundred
operations of others right.  Nothing is left to chance, so there is no seed.  Ends with 1 when
something was not whole; it says at which moment.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
from itertools import groupby

from rich.console import Console
from rich.table import Table

from tests.brokers.packages import NoBroker
from tests.fix_leaks import Traces
from tests.quality.faults.interruptions.calls import CALLS
from tests.quality.faults.interruptions.sweep import Sweep, Tally
from tests.quality.faults.interruptions.targets import TARGETS, Target

#: Those that need no broker.
ALONE = ("amqp", "memory")


def main() -> int:
    """Run what the command line names."""
    options = arguments()
    logging.getLogger("greenconn").setLevel(logging.CRITICAL)  # what goes wrong does so on purpose
    console = Console(stderr=True)
    tallies: list[Tally] = []
    failures: list[str] = []
    gc.collect()
    gc.freeze()  # what is here now is not looked through for each call
    for name in TARGETS if options.target == ["all"] else options.target:
        try:
            with TARGETS[name]() as target:
                run(options, target, console, tallies, failures)
        except NoBroker as error:
            failures.append(f"{name}: {error}")
    if options.json:
        calls = [tally.as_dict() for tally in tallies]
        print(json.dumps({"calls": calls, "failures": failures}))
    else:
        tell(tallies, options.verbose)
    for failure in failures:
        console.print(failure, markup=False, highlight=False)
    return 1 if failures or not tallies else 0


def run(
    options: argparse.Namespace,
    target: Target,
    console: Console,
    tallies: list[Tally],
    failures: list[str],
) -> None:
    """Sweep over the calls in one target.  May switch."""
    traces = Traces()
    for call in CALLS:
        if not call.fits(target) or not any(part in call.name for part in options.call):
            continue
        if options.group and call.group not in options.group:
            continue
        try:
            tallies.append(Sweep(call, target, not options.short).run())
        except AssertionError as error:
            failures.append(str(error))
            continue
        if options.verbose:
            console.print(f"{target}: {call}", markup=False, highlight=False)
    if not failures:
        failures += [f"{target}: left behind: {text}" for text in traces.settle().values()]


def tell(tallies: list[Tally], is_verbose: bool) -> None:
    """Print the table: a row for each call, or for each group of them."""
    columns = ("calls", "switch points", "moments", "interruptions", "runs", "seconds")
    table = Table("target", "group")
    if is_verbose:
        table.add_column("call")
    for column in columns:
        table.add_column(column, justify="right")
    for (target, group), found in groupby(tallies, lambda tally: (tally.target, tally.group)):
        rows = list(found)
        for tally in rows if is_verbose else []:
            table.add_row(target, group, tally.call, *figures([tally]))
        if not is_verbose:
            table.add_row(target, group, *figures(rows))
    table.add_section()
    table.add_row("all", "", *([""] if is_verbose else []), *figures(tallies))
    Console().print(table)


def figures(tallies: list[Tally]) -> list[str]:
    """The sums of some calls."""
    sums = [
        len(tallies),
        sum(tally.points for tally in tallies),
        sum(tally.moments for tally in tallies),
        sum(tally.injections for tally in tallies),
        sum(tally.runs for tally in tallies),
    ]
    return [*(f"{each:,}" for each in sums), f"{sum(tally.seconds for tally in tallies):.1f}"]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.quality.faults.interruptions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    groups = list(dict.fromkeys(call.group for call in CALLS))
    add(
        "--target",
        nargs="+",
        choices=["all", *TARGETS],
        default=ALONE,
        help="amqp is a scripted peer in this process, rabbitmq a real one (amqp memory)",
    )
    add("--group", nargs="+", choices=groups, help="some of the calls")
    add("--call", nargs="+", default=[""], metavar="TEXT", help="those whose name has it")
    add("--short", action="store_true", help="one moment at each switch, as the suite has it")
    add("--verbose", action="store_true", help="a row for each call")
    add("--json", action="store_true", help="print all figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
