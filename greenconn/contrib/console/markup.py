"""HTML text, made of templates in which each value is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timezone
from html import escape
from time import time
from typing import Any, Final

#: Characters that are shown by their numbers: controls, halves of characters, and marks that change the
#: direction of the text around them.
_INVISIBLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
#: Points of a sparkline: its width and height.
WIDTH: Final = 90
HEIGHT: Final = 20


class Html(str):
    """Text that is HTML, and is not escaped again."""

    __slots__ = ()


def html(template: str, **values: Any) -> Html:
    """Return *template* with its fields filled in; a value that is no :class:`Html` is escaped.

    Arguments:
        template: HTML with fields such as ``{name}``, each in the text or in a quoted attribute.
        values: None is shown as nothing; Html as it is; anything else as text.
    """
    return Html(template.format_map({name: as_html(value) for name, value in values.items()}))


def as_html(value: Any) -> Html:
    """Return a value as HTML."""
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("")
    return Html(escape(visible(str(value))))


def table(label: str, head: str, rows: Html, name: str | None = None) -> Html:
    """Return a table that scrolls by itself where the screen is narrow, also by the keyboard.

    Arguments:
        label: says what it shows, to those who do not see it.
        head: the cells of its head, which are HTML.
        name: its id in the page.
    """
    return html(
        '<div class="scroll" role="region" aria-label="{label}" tabindex="0"{name}>'
        "<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>",
        label=label,
        name=None if name is None else html(' id="{name}"', name=name),
        head=Html(head),
        rows=rows,
    )


def join(parts: Iterable[Html], between: str = "") -> Html:
    """Return HTML that was made in parts."""
    return Html(between.join(parts))


def visible(text: str) -> str:
    """Return *text* with the characters spelled out that are not seen, or that reorder their line."""
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def shortened(text: str, length: int) -> str:
    """Return the beginning of *text*, with a note of how long it is."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"


def number(value: int | None) -> str:
    """Return a count as text."""
    return "-" if value is None else f"{value:,}"


def rate(value: float | None) -> str:
    """Return a number a second as text."""
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def span(seconds: float | None) -> str:
    """Return a duration as text, in the unit that is read at a glance."""
    if seconds is None:
        return "-"
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            text = (
                f"{seconds / size:.1f}" if unit == "s" and seconds < 10 else f"{seconds / size:.0f}"
            )
            return f"{text} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def moment(at: float | None) -> Html:
    """Return a time: how long ago it was or how soon it is, and the exact one on hover.

    Arguments:
        at: seconds since 1970; None: unknown.
    """
    if at is None:
        return Html("-")
    try:
        exact = datetime.fromtimestamp(at, timezone.utc)
    except (OverflowError, OSError, ValueError):
        return as_html(at)
    passed = time() - at
    text = f"{span(passed)} ago" if passed >= 0 else f"in {span(-passed)}"
    return html(
        '<time datetime="{iso}" title="{title}">{text}</time>',
        iso=exact.isoformat(timespec="seconds"),
        title=f"{exact:%Y-%m-%d %H:%M:%S} UTC",
        text=text,
    )


def parsed_moment(text: object) -> Html:
    """Return a time that is given as ISO 8601; anything else as it is."""
    try:
        at = datetime.fromisoformat(str(text))
        return moment(at.replace(tzinfo=at.tzinfo or timezone.utc).timestamp())
    except (ValueError, OverflowError):
        return as_html(text)


def sparkline(totals: Iterable[int]) -> Html:
    """Return a small graph of numbers, the latest at its right; its text says them, too."""
    values = list(totals)
    if len(values) < 2:
        return Html("")
    highest = max(values) or 1
    step = WIDTH / (len(values) - 1)
    points = " ".join(
        f"{n * step:.0f},{HEIGHT - 1 - each * (HEIGHT - 2) / highest:.1f}"
        for n, each in enumerate(values)
    )
    return html(
        '<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        'aria-label="messages: {label}"><polyline points="{points}"/></svg>',
        width=WIDTH,
        height=HEIGHT,
        label=", ".join(map(str, values)),
        points=points,
    )
