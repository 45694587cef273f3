"""Tables and small graphs as plain text, for terminals and for pipes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

#: Stands for what is not known.
UNKNOWN: Final = "-"
#: Between two columns.
GAP: Final = "  "
#: Characters that a shortened name keeps at least.
LEAST: Final = 8

BARS: Final = "▁▂▃▄▅▆▇█"
#: The same for terminals without these characters.
ASCII_BARS: Final = "_.:-=+*#"


class Column(NamedTuple):
    """A column.

    Attributes:
        title: stands above it.
        is_right: texts stand at its right, as numbers do.
        is_optional: it is left out where nothing is known of it.
    """

    title: str
    is_right: bool = True
    is_optional: bool = False


def table_lines(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None
) -> list[str]:
    """Return a table as lines, the titles first.

    Arguments:
        rows: a text for each column.
        width: characters of a line, for which the first column is shortened; None: as wide as need be.
    """
    known = [
        n
        for n, column in enumerate(columns)
        if not column.is_optional or any(row[n] != UNKNOWN for row in rows)
    ]
    columns = [columns[n] for n in known]
    texts = [[column.title for column in columns], *([row[n] for n in known] for row in rows)]
    widths = [max(len(row[n]) for row in texts) for n in range(len(columns))]
    if width is not None:
        excess = sum(widths) + len(GAP) * (len(columns) - 1) - width
        widths[0] = min(widths[0], max(LEAST, widths[0] - excess))
    return [
        GAP.join(_cell(text, widths[n], columns[n].is_right) for n, text in enumerate(row)).rstrip()
        for row in texts
    ]


def _cell(text: str, width: int, is_right: bool) -> str:
    if len(text) > width:
        text = f"{text[: width - 3]}..."
    return text.rjust(width) if is_right else text.ljust(width)


def number(value: int | None) -> str:
    """Return a count as text."""
    return UNKNOWN if value is None else f"{value:,}"


def rate(value: float | None) -> str:
    """Return a number a second as text."""
    if value is None:
        return UNKNOWN
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def span(seconds: float | None) -> str:
    """Return a time as text."""
    if seconds is None:
        return UNKNOWN
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def sparkline(totals: Sequence[int], bars: str = BARS) -> str:
    """Return a small picture of numbers, the largest as high as can be.

    >>> sparkline([0, 1, 2, 8], ASCII_BARS)
    '_..#'
    """
    highest = max(totals, default=0) or 1
    return "".join(bars[each * (len(bars) - 1) // highest] for each in totals)


def writable_bars() -> str:
    """Return the bars that the standard output has, from the lowest to the highest."""
    try:
        BARS.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_BARS
    return BARS
