"""``greenconn top``: the queues of a broker, live."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from time import strftime, time
from typing import TYPE_CHECKING, Final

import click

from greenconn.cli import json_option, queue_argument, timeout_option, url_option
from greenconn.cli.queues import check_names
from greenconn.cli.terminal import ATTENTION, is_screen

if TYPE_CHECKING:
    from greenconn.service.records import QueueTrend

#: Lines of a terminal that are not for queues.
MARGIN: Final = 5


@click.command("top")
@queue_argument("names", nargs=-1, metavar="[QUEUE]...")
@url_option
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after this many looks.")
@click.option(
    "--sort",
    type=click.Choice(["ready", "name"]),
    default="ready",
    show_default=True,
    help="By waiting messages, the most first, or by name.",
)
@json_option
@timeout_option
def top(
    names: tuple[str, ...],
    url: str,
    interval: float,
    count: int | None,
    sort: str,
    is_json: bool,
    timeout: float,
) -> None:
    """Show queues live: messages, consumers, rates, lag, and the trend of the last ten looks.

    QUEUE is a name, or a pattern such as 'mail.*'.  RabbitMQ tells rates and unacknowledged messages by
    its management API; without the plugin queues must be named, and as elsewhere CHANGE/S tells by how
    many messages a queue grows each second.  LAG is the time in which all of them leave at the present
    rate.  In a pipe a table is printed at each look.

    \b
    Example:
      greenconn top
      greenconn top 'mail.*' --interval 5 -u amqp://guest:guest@localhost:5672//
      greenconn top mail --json --count 10
    """
    import gevent

    from greenconn.cli.broker import connection_to, error_line, interruptible
    from greenconn.exceptions import AMQPError, KombuError
    from greenconn.service.records import Monitor, QueueReader

    check_names(names)
    connection = connection_to(url, timeout)
    try:
        with interruptible():
            connection.connect()
            reader = QueueReader(connection, names, timeout)
            monitor = Monitor()
            trends = monitor.trends(reader.read(must_exist=True))
            screen = _screen(connection.as_uri(), sort, is_json)
            session = connection.session
            session.on_connection_lost.append(
                lambda exc: screen.warn(f"connection lost, reconnecting: {error_line(exc)[0]}")
            )
            try:
                screen.show(trends)
                looks = 1
                while looks != count:
                    gevent.sleep(interval)
                    try:
                        screen.show(monitor.trends(reader.read()))
                    except (OSError, AMQPError, KombuError) as exc:
                        screen.warn(error_line(exc)[0])
                    looks += 1
            finally:
                screen.close()
    finally:
        connection.close()


def _screen(where: str, sort: str, is_json: bool) -> _JsonLines | _Tables | _Terminal:
    if is_json:
        return _JsonLines()
    if is_screen(sys.stdout):
        return _Terminal(where, sort)
    return _Tables(where, sort)


class _Pipe:
    """A pipe or a file; warnings go to the standard error, each once."""

    def __init__(self) -> None:
        self._warning = ""

    def warn(self, text: str) -> None:
        if text != self._warning:
            click.echo(f"greenconn: {text}", err=True)
        self._warning = text

    def close(self) -> None:
        """Nothing has to be put in order."""


class _JsonLines(_Pipe):
    """An object for each queue at each look."""

    def show(self, trends: Sequence[QueueTrend]) -> None:
        now = round(time(), 3)
        for trend in trends:
            figures = trend.figures
            row = {
                "time": now,
                "queue": figures.name,
                "ready": figures.ready,
                "unacked": figures.unacked,
                "consumers": figures.consumers,
                "in_rate": figures.in_rate,
                "out_rate": figures.out_rate,
                "change_rate": trend.change,
                "lag": trend.lag,
            }
            click.echo(json.dumps(row, ensure_ascii=False))


class _Tables(_Pipe):
    """A table at each look."""

    def __init__(self, where: str, sort: str) -> None:
        from greenconn.cli.terminal import writable_bars

        super().__init__()
        self._where = where
        self._sort = sort
        self._bars = writable_bars()

    def show(self, trends: Sequence[QueueTrend]) -> None:
        click.echo(_head(self._where, trends))
        for line in _lines(_sorted(trends, self._sort), self._bars):
            click.echo(line)
        click.echo()


class _Terminal:
    """A terminal, in which the latest table stands in the place of the one before."""

    def __init__(self, where: str, sort: str) -> None:
        from rich.console import Console
        from rich.live import Live

        from greenconn.cli.terminal import writable_bars

        self._where = where
        self._sort = sort
        self._bars = writable_bars()  # rich puts something else in the place of the standard output
        self._trends: Sequence[QueueTrend] = ()
        self._console = Console(highlight=False)
        # Without auto-refresh rich needs no thread.
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        self._live.start()

    def show(self, trends: Sequence[QueueTrend]) -> None:
        self._trends = _sorted(trends, self._sort)
        self._draw("")

    def warn(self, text: str) -> None:
        self._draw(text)

    def close(self) -> None:
        self._live.stop()

    def _draw(self, warning: str) -> None:
        from rich.text import Text

        width, height = self._console.size
        trends = self._trends[: max(1, height - MARGIN)]
        hidden = len(self._trends) - len(trends)
        titles, *rows = _lines(trends, self._bars, width)
        picture = Text(no_wrap=True, overflow="ellipsis")
        picture.append(_head(self._where, self._trends) + "\n")
        picture.append(titles, "bold")
        for trend, row in zip(trends, rows, strict=True):
            is_stuck = trend.figures.ready and trend.figures.consumers == 0
            picture.append(f"\n{row}", ATTENTION if is_stuck else "")
        if hidden:
            picture.append(f"\nand {hidden:,} more", "dim")
        if warning:
            picture.append(f"\n{warning}", "red")
        self._live.update(picture, refresh=True)


def _sorted(trends: Sequence[QueueTrend], sort: str) -> list[QueueTrend]:
    if sort == "name":
        return sorted(trends, key=lambda each: each.figures.name)
    return sorted(trends, key=lambda each: (-(each.figures.ready or 0), each.figures.name))


def _head(where: str, trends: Sequence[QueueTrend]) -> str:
    ready = sum(each.figures.ready or 0 for each in trends)
    count = f"{len(trends):,} queue{'s' * (len(trends) != 1)}"
    return f"{strftime('%H:%M:%S')}  {count}, {ready:,} ready  {where}"


def _lines(trends: Sequence[QueueTrend], bars: str, width: int | None = None) -> list[str]:
    from greenconn.cli.terminal import Column, number, rate, span, sparkline, table_lines
    from greenconn.service.records import TREND

    columns = [
        Column("QUEUE", is_right=False),
        Column("READY"),
        Column("UNACKED", is_optional=True),
        Column("CONSUMERS"),
        Column("IN/S", is_optional=True),
        Column("OUT/S", is_optional=True),
        Column("CHANGE/S", is_optional=True),
        Column("LAG"),
        Column("TREND", is_right=False),
    ]
    rows = []
    trend_width = 0 if width is None else TREND  # in a terminal no column moves as the trend grows
    for each in trends:
        figures = each.figures
        # The rates tell more.
        change = each.change if figures.out_rate is None else None
        counts = (figures.ready, figures.unacked, figures.consumers)
        rates = (figures.in_rate, figures.out_rate, change)
        rows.append(
            [
                figures.name,
                *map(number, counts),
                *map(rate, rates),
                span(each.lag),
                sparkline(each.totals, bars).ljust(trend_width),
            ]
        )
    return table_lines(columns, rows, width)
