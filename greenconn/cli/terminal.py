"""The terminal, if there is one: colours, lines drawn anew, questions, progress, tables and graphs."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import floor, log2
from textwrap import wrap
from time import monotonic
from typing import Final, NamedTuple, TextIO

import click

#: The colour of what is to be looked at.  It reads on dark and on light grounds, as yellow does not.
ATTENTION: Final = "magenta"
#: The colour of names, graphs, and of what is right: a number of the table of 256 colours.  Its contrast
#: to black and to white is 4.5; the green and the cyan of most terminals are too light on white.
ACCENT: Final = 29
#: Control characters that text may have.
_LAYOUT: Final = "\n\t"
#: Seconds until progress is shown first, and between two looks.
PATIENCE: Final = 1.0
INTERVAL: Final = 0.2
#: Erases the line of a terminal from its beginning.
ERASE: Final = "\r\x1b[K"


def is_screen(stream: TextIO | None) -> bool:
    """Return whether *stream* is a terminal on which lines can be drawn anew."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def is_colourless() -> bool:
    """Return whether the user wants no colours (https://no-color.org), or the terminal has none."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def folded(text: str, stream: TextIO | None) -> str:
    """Return *text* in lines as wide as the terminal, broken between words; in a pipe in one line."""
    if stream is None or not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(wrap(text, width, break_long_words=False, break_on_hyphens=False))


def visible(text: str) -> str:
    """Return *text* with its control characters spelled out, which a terminal might obey.

    The same for halves of characters, which cannot be printed.
    """
    if text.isprintable():
        return text
    return "".join(
        each.encode("unicode_escape").decode("ascii")
        if unicodedata.category(each) in ("Cc", "Cs") and each not in _LAYOUT
        else each
        for each in text
    )


@contextmanager
def progress(verb: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """Give a function that is called with the number of those that are done.

    It shows them on the standard error if that is a terminal and the command takes longer than a second.

    Arguments:
        verb: what is done with a message, such as ``moved``.
        total: how many there are; None: unknown.
    """
    if not is_screen(sys.stderr):
        yield lambda done: None
        return
    began = monotonic()
    due = began + PATIENCE
    is_shown = False

    def show(done: int) -> None:
        nonlocal due, is_shown
        now = monotonic()
        if now < due:
            return
        due, is_shown = now + INTERVAL, True
        of = "" if not total else f" of {total:,} ({100 * done // total} %)"
        sys.stderr.write(f"{ERASE}{verb} {done:,}{of}, {done / (now - began):,.0f} a second")
        sys.stderr.flush()

    try:
        yield show
    finally:
        if is_shown:
            sys.stderr.write(ERASE)
            sys.stderr.flush()


def is_sure(question: str) -> bool:
    """Ask the user.

    Raises:
        click.UsageError: there is no terminal to ask at.
    """
    try:
        return click.confirm(question)
    except click.Abort:
        if sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError("not confirmed: use --yes to do it without a prompt") from None
        raise


#: Stands for what is not known.
UNKNOWN: Final = "-"
#: Between two columns.
GAP: Final = "  "
#: Characters that a shortened name keeps at least.
LEAST: Final = 8

BARS: Final = "▁▂▃▄▅▆▇█"
#: The same for terminals without these characters.
ASCII_BARS: Final = "_.:-=+*#"
#: Columns of the histogram for each doubling of the latency.
STEPS: Final = 2
#: Lines of a histogram.
MOST_LINES: Final = 20
#: Characters of the longest bar.
LONGEST: Final = 40


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


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that *share* of all are below; 0.0 without values.

    Arguments:
        values: in any order.
        share: from 0 to 1.
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def histogram_lines(
    seconds: Sequence[float], bar: str, most: int = MOST_LINES, longest: int = LONGEST
) -> list[str]:
    """Return a histogram of latencies, a line each: from how many milliseconds on, a bar, how many.

    Arguments:
        bar: the character of the bars.
        most: lines at most; the last one counts what was slower, too.
        longest: characters of the longest bar.
    """
    if not seconds:
        return []
    counts: dict[int, int] = {}
    for each in seconds:
        step = floor(log2(max(each, 1e-6)) * STEPS)
        counts[step] = counts.get(step, 0) + 1
    first = min(counts)
    last = min(max(counts), first + most - 1)
    slower = sum(count for step, count in counts.items() if step > last)
    counts[last] = counts.get(last, 0) + slower
    highest = max(counts[step] for step in counts if step <= last)
    return [
        f"{_milliseconds(2 ** (step / STEPS))}  "
        f"{bar * -(-counts.get(step, 0) * longest // highest):{longest}}  "
        f"{counts.get(step, 0):,}{' (and slower)' * (step == last and bool(slower))}"
        for step in range(first, last + 1)
    ]


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:8.3f} ms" if value < 1 else f"{value:8,.1f} ms"


def writable_bars() -> str:
    """Return the bars that the standard output has, from the lowest to the highest."""
    try:
        BARS.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_BARS
    return BARS
