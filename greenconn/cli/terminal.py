"""The abilities of the terminal, if there is one: colours, lines that are drawn anew, its width."""

from __future__ import annotations

import os
import shutil
import unicodedata
from textwrap import wrap
from typing import Final, TextIO

__all__ = ["ACCENT", "ATTENTION", "folded", "is_colourless", "is_screen", "visible"]

#: The colour of what is to be looked at.  It reads on dark and on light grounds, as yellow does not.
ATTENTION: Final = "magenta"
#: The colour of names, graphs, and of what is right: a number of the table of 256 colours.  Its contrast
#: to black and to white is 4.5; the green and the cyan of most terminals are too light on white.
ACCENT: Final = 29
#: Control characters that text may have.
_LAYOUT: Final = "\n\t"


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
    """Return *text* with its control characters spelled out, which a terminal might obey."""
    if text.isprintable():
        return text
    return "".join(
        each.encode("unicode_escape").decode("ascii")
        if unicodedata.category(each) == "Cc" and each not in _LAYOUT
        else each
        for each in text
    )
