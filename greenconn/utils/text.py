"""Fuzzy matching of texts, and versions (kombu.utils.text)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from greenconn._version import version_info_t

__all__ = ["escape_regex", "fmatch_best", "fmatch_iter", "version_string_as_tuple"]


def escape_regex(p: str, white: str = "") -> str:
    """Return a regular expression that matches the text *p*, with the characters *white* as they are."""
    return "".join(
        char if char.isalnum() or char in white else "\\000" if char == "\0" else f"\\{char}"
        for char in p
    )


def fmatch_iter(
    needle: str, haystack: Iterable[str], min_ratio: float = 0.6
) -> Iterator[tuple[float, str]]:
    """Yield how near each text is to *needle* (1.0 is the same), and the text, where that is enough."""
    for text in haystack:
        ratio = SequenceMatcher(None, needle, text).ratio()
        if ratio >= min_ratio:
            yield ratio, text


def fmatch_best(needle: str, haystack: Iterable[str], min_ratio: float = 0.6) -> str | None:
    """Return the text that is nearest to *needle*, or None if none is near enough."""
    return max(fmatch_iter(needle, haystack, min_ratio), default=(0.0, None))[1]


def version_string_as_tuple(s: str) -> version_info_t:
    """Return a version in parts.

    Raises:
        ValueError: it does not begin with a number.

    >>> version_string_as_tuple("3.1.4rc2-7")
    version_info_t(major=3, minor=1, micro=4, releaselevel='rc2', serial='7')
    """
    major, minor, micro, level, serial = (*s.split(".", 4), *[""] * 4)[:5]
    digits, rest = re.fullmatch(r"(\d*)(.*)", micro).groups()  # type: ignore[union-attr]  # it matches anything
    level = rest or level
    if not serial and "-" in level:
        level, serial = level.split("-", 1)
    return version_info_t(int(major), int(minor or 0), int(digits or 0), level, serial)
