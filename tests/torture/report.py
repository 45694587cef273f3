"""What is shown of a run: a line that lives while it runs, and a table at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import gevent
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.torture.storm import Outcome, Storm

__all__ = ["shown", "table_of"]

#: Seconds between two looks; on what is no terminal a line of its own each time.
INTERVAL, SELDOM = 0.5, 10.0

ROWS = (
    ("sent", "messages sent"),
    ("doubtful", "publishes that raised"),
    ("handled", "messages handled"),
    ("redelivered", "handled again, so marked"),
    ("repeated", "handled again, by a fault"),
    ("recovery", "longest recovery, s"),
    ("recovery_after", "... after"),
    ("lost", "lost"),
    ("unexplained", "duplicated for no reason"),
    ("disordered", "out of order"),
    ("spoiled", "bodies spoiled"),
    ("left", "left in queues"),
    ("hung", "hung or ended"),
    ("slots", "slots leaked"),
    ("descriptors", "descriptors leaked"),
    ("greenlets_left", "greenlets leaked"),
)


def line_of(storm: Storm, began_at: float) -> str:
    """What a storm is at."""
    ledger, faults = storm.ledger, sum(storm.injected.values())
    return (
        f"{storm.world.name} {monotonic() - began_at:6.1f} s  {faults} faults  "
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


def table_of(outcomes: list[Outcome]) -> Table:
    """All figures side by side."""
    table = Table()
    table.add_column("")
    for outcome in outcomes:
        patched = ", patched" if outcome.is_patched else ""
        table.add_column(f"{outcome.broker}\n{outcome.client}{patched}", justify="right")
    kinds = sorted({kind for outcome in outcomes for kind in outcome.faults})
    table.add_row("greenlets", *(str(each.greenlets) for each in outcomes))
    table.add_row("faults", *(str(sum(each.faults.values())) for each in outcomes))
    for kind in kinds:
        table.add_row(f"  {kind}", *(str(each.faults.get(kind, "-")) for each in outcomes))
    for name, text in ROWS:
        table.add_row(text, *(_cell(outcome, name) for outcome in outcomes))
    return table


def _cell(outcome: Outcome, name: str) -> str:
    value = getattr(outcome, name)
    is_bad = name in outcome.MUST_BE_0 and value
    return f"[bold red]{value}[/]" if is_bad else str(value)
