"""The terminal, if there is one: colours, lines that are drawn anew, its width, and progress."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import wrap
from time import monotonic
from typing import Final, TextIO

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
