"""The layout of a message for readers: a title, fields, and the body."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Final

import click

from greenconn.cli.terminal import ACCENT, visible

__all__ = ["count_line", "message_lines"]

#: Before each line below the title.
MARGIN: Final = "  "
#: Columns that the text of a field has at least.
LEAST: Final = 20
#: Characters of a body that are printed.
BODY: Final = 4000


def message_lines(title: str, fields: Mapping[str, object], body: object) -> Iterator[str]:
    """Yield the lines of a message; the last one is empty.

    Arguments:
        fields: name -> value; one that is no text is printed as JSON.  In a terminal a long one is
            broken between words.
        body: as a record of ``consume --json`` has it.
    """
    yield click.style(visible(title), bold=True)
    names = max(map(len, map(visible, fields)), default=0)
    rest = " " * (len(MARGIN) + names + 1)
    room = None
    if sys.stdout.isatty():
        room = max(LEAST, shutil.get_terminal_size().columns - len(rest))
    for name, value in fields.items():
        text = visible(value) if isinstance(value, str) else json.dumps(value, default=repr)
        head = f"{MARGIN}{click.style(f'{visible(name):{names}}', fg=ACCENT)} "
        for part in _parts(text, room):
            yield f"{head}{part}"
            head = rest
    if isinstance(body, bytes):
        text = visible(body.decode("utf-8", "backslashreplace"))
    elif isinstance(body, str):
        text = visible(body)
    else:
        text = json.dumps(body, indent=2, default=repr, ensure_ascii=False)
    if len(text) > BODY:
        text = f"{text[:BODY]}... ({len(text):,} characters)"
    yield from (f"{MARGIN}{line}" for line in text.splitlines() or [""])
    yield ""


def count_line(queue: str, shown: int, waiting: int) -> str:
    """Return the line that follows the messages of *queue*."""
    if not shown:
        return f"{queue}: no message waits"
    return f"{queue}: {shown:,} of {waiting:,} message{'s' * (waiting != 1)}"


def _parts(text: str, room: int | None) -> list[str]:
    if room is None or len(text) <= room:
        return [text]
    return wrap(text, room, break_long_words=False, break_on_hyphens=False)
