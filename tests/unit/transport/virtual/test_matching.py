"""Topic patterns and headers."""

from __future__ import annotations

from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenconn.transport.virtual.matching import Trie, headers_match, topic_matches, words_of

WORDS = st.lists(st.sampled_from(["a", "b", "", "*", "#"]), max_size=6)
PATTERNS = WORDS.map(".".join)
KEYS = st.lists(st.sampled_from(["a", "b", ""]), max_size=6).map(".".join)


def fits(pattern: list[str], key: list[str]) -> bool:
    """The rule, word by word."""
    if not pattern:
        return not key
    head, *rest = pattern
    if head == "#":
        return fits(rest, key) or (bool(key) and fits(pattern, key[1:]))
    return bool(key) and head in ("*", key[0]) and fits(rest, key[1:])


@given(PATTERNS, KEYS)
def test_pattern_matches_by_the_rule(pattern: str, key: str) -> None:
    assert topic_matches(pattern, key) == fits(words_of(pattern), words_of(key))


@given(st.lists(PATTERNS, max_size=12), st.lists(st.integers(0, 11), max_size=6), KEYS)
def test_trie_holds_many_patterns(patterns: list[str], removed: list[int], key: str) -> None:
    trie: Trie[int] = Trie()
    kept = dict(enumerate(patterns))
    for number, pattern in kept.items():
        trie.add(pattern, number)
    for number in removed:
        if number in kept:
            trie.discard(kept.pop(number), number)
        trie.discard("no.such.pattern", number)
    expected = {n for n, pattern in kept.items() if fits(words_of(pattern), words_of(key))}
    found = list(trie.match(key))
    assert len(found) == len(set(found))
    assert set(found) == expected


@given(st.lists(PATTERNS, max_size=12))
def test_trie_is_empty_when_all_is_removed(patterns: list[str]) -> None:
    trie: Trie[int] = Trie()
    for number, pattern in enumerate(patterns):
        trie.add(pattern, number)
    for number, pattern in enumerate(patterns):
        trie.discard(pattern, number)
    assert not trie._root.children
    assert not trie._root.values


def test_many_hashes_take_no_time() -> None:
    """A walk that tried every way would not end before the sun goes out."""
    pattern = ".".join(["#", "a"] * 30) + ".b"
    began = monotonic()
    assert not topic_matches(pattern, ".".join(["a"] * 120))
    assert topic_matches(pattern, ".".join(["a"] * 120) + ".b")
    assert monotonic() - began < 20.0


@pytest.mark.parametrize(
    ("wanted", "headers", "expected"),
    [
        ({}, {}, True),
        ({"x-match": "any"}, {"a": 1}, False),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": True}, {"a": True}, True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": None}, {"a": None}, True),
        ({"a": None}, {}, False),
        ({"x-match": "any", "a": 1, "b": 2}, {"b": 2}, True),
        ({"x-match": "any", "a": 1, "x-b": 2}, {"x-b": 2}, False),
        ({"x-match": "any-with-x", "a": 1, "x-b": 2}, {"x-b": 2}, True),
        ({"x-match": "all-with-x", "x-b": 2}, {}, False),
        ({"x-match": "all", "x-b": 2}, {}, True),
    ],
)
def test_headers(wanted: dict[str, Any], headers: dict[str, Any], expected: bool) -> None:
    assert headers_match(wanted, headers) is expected
