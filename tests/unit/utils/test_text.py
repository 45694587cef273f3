"""Fuzzy matching, and versions."""

from __future__ import annotations

import re

import pytest

from greenconn.utils.text import escape_regex, fmatch_best, fmatch_iter, version_string_as_tuple


def test_the_nearest_text() -> None:
    assert fmatch_best("amqpp", ["redis", "amqp", "memory"]) == "amqp"
    assert fmatch_best("x", ["redis"]) is None
    assert list(fmatch_iter("amqp", ["amqp", "redis"])) == [(1.0, "amqp")]


@pytest.mark.parametrize("text", ["a.b", "[x]*", "a b", "\0", "ä(1)"])
def test_an_escaped_text_matches_itself(text: str) -> None:
    assert re.fullmatch(escape_regex(text), text)


def test_characters_that_stay() -> None:
    assert escape_regex("a*b.c", white="*") == r"a*b\.c"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("3", (3, 0, 0, "", "")),
        ("3.1", (3, 1, 0, "", "")),
        ("3.1.4", (3, 1, 4, "", "")),
        ("3.1.4a1", (3, 1, 4, "a1", "")),
        ("3.1.4rc2-7", (3, 1, 4, "rc2", "7")),
        ("3.1.4.beta.2", (3, 1, 4, "beta", "2")),
    ],
)
def test_versions(text: str, parts: tuple[object, ...]) -> None:
    assert tuple(version_string_as_tuple(text)) == parts
