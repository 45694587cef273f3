"""Live progress in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from greenconn.cli.measurements import STEPS, histogram_lines, percentile
from greenconn.cli.plan import Plan, Snapshot, Summary
from greenconn.cli.table import sparkline, writable_bars
from greenconn.cli.terminal import ACCENT

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds between plain lines.
PLAIN_INTERVAL: Final = 1.0
#: Columns of a terminal from which on there are pictures beside the figures.
WIDE: Final = 78
#: The style of bars and graphs.
GRAPH: Final = f"color({ACCENT})"
#: Lines and longest bar of the histogram of latencies.
HISTOGRAM: Final = (8, 12)


class Display:
    """Shows snapshots as they come.

    Arguments:
        plain: a line each second instead of a picture that moves.
    """

    def __init__(self, console: Console, plan: Plan, *, plain: bool) -> None:
        self._console = console
        self._plan = plan
        self._next_line = 0.0
        # Before rich takes the place of the standard output.
        self._bars = writable_bars()
        # Without auto-refresh rich needs no thread: each snapshot draws.
        self._live = None if plain else Live(console=console, auto_refresh=False, transient=True)

    def show(self, snapshot: Snapshot) -> None:
        """Draw *snapshot*."""
        if self._live is not None:
            bars = self._bars if self._console.width >= WIDE else None
            self._live.update(_picture(self._plan, snapshot, bars), refresh=True)
        elif snapshot.elapsed >= self._next_line or self._is_at_end(snapshot):
            self._next_line = snapshot.elapsed + PLAIN_INTERVAL
            self._console.print(_line(self._plan, snapshot), soft_wrap=True)
        if snapshot.ready == self._plan.consumers and not snapshot.published:
            self._next_line = 0.0  # the clock begins anew with the first publish

    def _is_at_end(self, snapshot: Snapshot) -> bool:
        return snapshot.handled >= self._plan.messages

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live is not None:
            self._live.stop()


def _figures(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Return each figure and its label, as text."""
    in_flight = max(0, snapshot.published - snapshot.handled)
    count = "?" if snapshot.sockets is None else f"{snapshot.sockets:,}"
    return [
        (f"{snapshot.rate:,.0f}", "messages/s"),
        (f"{in_flight:,}", "in flight"),
        (f"{snapshot.latency * 1e3:,.1f}", "ms latency"),
        (f"{snapshot.ready:,}", "consumers"),
        (count, "sockets"),
        (f"{snapshot.threads:,}", "thread" if snapshot.threads == 1 else "threads"),
    ]


def _line(plan: Plan, snapshot: Snapshot) -> str:
    if not snapshot.published:
        return (
            f"{snapshot.elapsed:6.1f} s  {snapshot.ready:,} of {plan.consumers:,} consumers ready"
        )
    share = 100 * snapshot.handled // plan.messages
    figures = (
        f"{value:>{width}} {name}"
        for (value, name), width in zip(_figures(snapshot), (7, 6, 7, 5, 3, 2), strict=True)
    )
    return f"{snapshot.elapsed:6.1f} s  {share:3d}%  {'  '.join(figures)}"


def _picture(plan: Plan, snapshot: Snapshot, bars: str | None) -> Table:
    """Return a bar, the figures below it, and, with *bars*, rates and latencies beside them."""
    starting = not snapshot.published
    done, total = (
        (snapshot.ready, plan.consumers) if starting else (snapshot.handled, plan.messages)
    )
    what = "consumers start" if starting else "messages handled"
    table = Table.grid(padding=(0, 1))
    head = Table.grid(padding=(0, 1))
    head.add_row(
        ProgressBar(
            total=total,
            completed=done,
            width=32,
            # The colours of rich are for dark grounds only.
            style="bright_black",
            complete_style=GRAPH,
            finished_style=GRAPH,
        ),
        f"{100 * done // total:3d}%",
        f"{snapshot.elapsed:.1f} s",
    )
    table.add_row(head)
    figures = Table.grid(padding=(0, 1))
    figures.add_column(justify="right", min_width=9)
    figures.add_column()
    rows = [(f"{done:,}", f"of {total:,} {what}"), *_figures(snapshot)]
    rows.append((f"{snapshot.memory / 2**20:,.0f}", "MiB of memory"))
    if plan.cut_interval is not None:
        rows.append((f"[red]{snapshot.outages:,}[/red]", "connections cut"))
        rows.append((f"{snapshot.duplicates:,}", "handled twice"))
    for value, name in rows:
        figures.add_row(f"[bold]{value}[/bold]", name)
    if bars is None or starting:
        table.add_row(figures)
    else:
        both = Table.grid(padding=(0, 2))
        both.add_row(figures, _graphs(snapshot, bars))
        table.add_row(both)
    return table


def _graphs(snapshot: Snapshot, bars: str) -> Table:
    """Return the latest rates and latencies as pictures."""
    graphs = Table.grid()
    graphs.add_column(no_wrap=True)
    graphs.add_row(f"[dim]messages/s[/dim]  [{GRAPH}]{sparkline(snapshot.rates, bars)}[/]")
    graphs.add_row("[dim]latency of 99 % of the latest messages[/dim]")
    for line in histogram_lines(_range(snapshot.latencies), bars[-1], *HISTOGRAM):
        graphs.add_row(f"[{GRAPH}]{line}[/]")
    return graphs


def _range(latencies: Sequence[float]) -> list[float]:
    """Return what a histogram has room for: not the slowest, and the fastest in its first line."""
    slowest = percentile(latencies, 0.99)
    fastest = slowest / 2 ** ((HISTOGRAM[0] - 1) / STEPS)
    return [max(each, fastest) for each in latencies if each <= slowest]


def summary_table(plan: Plan, summary: Summary) -> Table:
    """Return the summary as a table."""
    table = Table(show_header=False, box=None, padding=(0, 2), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    median, worst = summary.latencies
    rate = summary.handled / summary.elapsed if summary.elapsed else 0.0
    rows = [
        ("published", f"{summary.published:,} of {plan.messages:,}"),
        ("handled", f"{summary.handled:,}"),
        ("lost", f"{summary.lost:,}"),
        ("duplicates", f"{summary.duplicates:,}"),
        ("time", f"{summary.elapsed:.2f} s"),
        ("rate", f"{rate:,.0f} messages/s"),
        ("CPU time", f"{summary.cpu / max(1, summary.handled) * 1e6:.1f} us a message"),
        ("latency", f"{median * 1e3:,.1f} ms median, {worst * 1e3:,.1f} ms 99th percentile"),
        ("sockets", "unknown" if summary.sockets is None else f"{summary.sockets:,}"),
        ("threads", f"{summary.threads:,}"),
        ("peak memory", f"{summary.peak_memory / 2**20:.0f} MiB"),
    ]
    if plan.cut_interval is not None:
        rows.insert(4, ("cut", f"{summary.outages:,} connections"))
    if summary.in_flight:
        rows.insert(3, ("in flight", f"{summary.in_flight:,} when it ended"))
    for name, value in rows:
        table.add_row(name, value)
    return table
