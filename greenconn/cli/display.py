"""Live progress in a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from greenconn.cli.workload import Plan, Snapshot, Summary

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Display", "summary_table"]

#: Seconds between plain lines.
PLAIN_INTERVAL = 1.0


class Display:
    """Shows snapshots as they come.

    Arguments:
        plain: a line each second instead of a bar that moves.
    """

    def __init__(self, console: Console, plan: Plan, *, plain: bool) -> None:
        self._console = console
        self._plan = plan
        self._next_line = 0.0
        self._progress: Progress | None = None
        if not plain:
            # Without auto-refresh rich needs no thread: each snapshot draws.
            self._progress = Progress(
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=console,
                auto_refresh=False,
            )
            self._task = self._progress.add_task("demo", total=plan.messages, figures="")

    def show(self, snapshot: Snapshot) -> None:
        """Draw *snapshot*."""
        if self._progress is not None:
            self._progress.update(
                self._task, completed=snapshot.handled, figures=_figures(snapshot), refresh=True
            )
        elif snapshot.elapsed >= self._next_line or snapshot.handled >= self._plan.messages:
            self._next_line = snapshot.elapsed + PLAIN_INTERVAL
            share = 100 * snapshot.handled / self._plan.messages
            self._console.print(f"{snapshot.elapsed:6.1f} s  {share:3.0f}%  {_figures(snapshot)}")

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def _figures(snapshot: Snapshot) -> str:
    in_flight = max(0, snapshot.published - snapshot.handled)
    count = "?" if snapshot.sockets is None else str(snapshot.sockets)
    return (
        f"{snapshot.rate:>9,.0f} msg/s  {in_flight:>6,} in flight  "
        f"{snapshot.latency * 1e3:>7.1f} ms  {count} sockets  {snapshot.threads} thread(s)"
    )


def summary_table(summary: Summary) -> Table:
    """What came of it, as a table."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    median, worst = summary.latencies
    open_sockets = "unknown" if summary.sockets is None else f"{summary.sockets:,}"
    for name, value in (
        ("published", f"{summary.published:,}"),
        ("handled", f"{summary.handled:,}"),
        ("lost", f"{summary.lost:,}"),
        ("duplicates", f"{summary.duplicates:,}"),
        ("time", f"{summary.elapsed:.2f} s"),
        ("rate", f"{summary.handled / summary.elapsed:,.0f} messages/s"),
        ("CPU time", f"{summary.cpu / max(1, summary.handled) * 1e6:.1f} us a message"),
        ("latency", f"{median * 1e3:.1f} ms median, {worst * 1e3:.1f} ms at the 99th percentile"),
        ("sockets", open_sockets),
        ("threads", f"{summary.threads:,}"),
        ("peak memory", f"{summary.peak_memory / 2**20:.0f} MiB"),
    ):
        table.add_row(name, value)
    return table
