"""What is shown of a run: a line that lives while it runs, and a table at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import gevent
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.quality.faults.storm import Outcome, Storm

#: Seconds between two looks; on what is no terminal a line of its own each time.
INTERVAL, SELDOM = 0.5, 10.0

#: What is always shown.
ROWS = (
    ("greenlets", "greenlets that publish"),
    ("count", "faults"),
    ("sent", "messages sent"),
    ("lost", "lost"),
    ("dropped", "lost without acks, by a fault"),
    ("again", "handled again, by a fault"),
    ("unexplained", "handled again for no reason"),
    ("hung", "hung or ended"),
    ("recovery", "longest recovery, s"),
    ("leaked", "leaked"),
)
#: What is shown when it was asked for, or when it is not as it must be.
DETAILS = (
    ("unconfirmed", "publishes that raised"),
    ("handled", "messages handled"),
    ("redelivered", "handled again, so marked"),
    ("repeated", "handled again, not marked"),
    ("recovery_after", "longest recovery after"),
    ("disordered", "out of order"),
    ("spoiled", "bodies spoiled"),
    ("left", "left in queues"),
    ("slots", "slots leaked"),
    ("descriptors", "descriptors leaked"),
    ("greenlets_left", "greenlets leaked"),
)


def line_of(storm: Storm, began_at: float) -> str:
    """What a storm is at."""
    ledger, faults = storm.ledger, sum(storm.injected.values())
    return (
        f"{storm.target.name} {monotonic() - began_at:6.1f} s  {faults} faults  "
        f"{ledger.sent} sent  {ledger.handled} handled  {len(ledger.missing())} under way  "
        f"{storm.stage}"
    )


@contextmanager
def shown(storm: Storm, console: Console) -> Iterator[None]:
    """Show how a storm goes while the block runs."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        watching = gevent.spawn(_watch, storm, console, live)
        try:
            yield
        finally:
            watching.kill()


def _watch(storm: Storm, console: Console, live: Live) -> None:
    began_at = monotonic()
    while True:
        if console.is_terminal:
            live.update(line_of(storm, began_at), refresh=True)
            gevent.sleep(INTERVAL)
        else:
            console.print(line_of(storm, began_at), soft_wrap=True, highlight=False)
            gevent.sleep(SELDOM)


def tables_of(outcomes: list[Outcome], has_details: bool) -> list[Table]:
    """All figures side by side; with details also those of each kind of fault."""
    table = _table(outcomes)
    for name, text in ROWS:
        table.add_row(text, *(_cell(outcome, name) for outcome in outcomes))
    for name, text in DETAILS:
        is_bad = any(name in each.MUST_BE_0 and getattr(each, name) for each in outcomes)
        if has_details or is_bad:
            table.add_row(text, *(_cell(outcome, name) for outcome in outcomes))
    return [table, _faults(outcomes)] if has_details else [table]


def _table(outcomes: list[Outcome]) -> Table:
    table = Table()
    table.add_column("")
    for outcome in outcomes:
        patched = ", patched" if outcome.is_patched else ""
        table.add_column(f"{outcome.broker}\n{outcome.client}{patched}", justify="right")
    return table


def _faults(outcomes: list[Outcome]) -> Table:
    """How often each fault came, and the longest recovery from it where it came alone, in seconds."""
    table = _table(outcomes)
    for kind in sorted({kind for outcome in outcomes for kind in outcome.faults}):
        cells: list[str] = []
        for each in outcomes:
            took = f", {each.recoveries[kind]:.1f} s" if kind in each.recoveries else ""
            cells.append(f"{each.faults[kind]}{took}" if kind in each.faults else "-")
        table.add_row(kind, *cells)
    return table


def _cell(outcome: Outcome, name: str) -> str:
    value = getattr(outcome, name)
    is_bad = name in ("leaked", *outcome.MUST_BE_0) and value
    return f"[bold red]{value}[/]" if is_bad else str(value)
