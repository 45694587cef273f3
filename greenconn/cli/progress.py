"""The progress of a command that takes long: a line in the terminal, which is erased at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

from greenconn.cli.terminal import is_screen

__all__ = ["progress"]

#: Seconds until it is shown first, and between two looks.
PATIENCE: Final = 1.0
INTERVAL: Final = 0.2
#: Erases the line of a terminal from its beginning.
ERASE: Final = "\r\x1b[K"


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
