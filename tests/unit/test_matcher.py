"""Patterns by the names of their rules."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import pytest

from greenconn import matcher
from greenconn.matcher import MatcherNotInstalled, MatcherRegistry


@pytest.mark.parametrize(
    ("data", "pattern", "rule", "matches"),
    [
        ("worker1@a", "worker*", None, True),
        (b"worker1@a", b"*@b", "glob", False),
        ("worker1@a", r"worker\d@", "pcre", True),
        (b"worker1@a", rb"\d@", "pcre", False),
    ],
)
def test_a_text_matches(data: bytes, pattern: bytes, rule: str | None, matches: bool) -> None:
    assert bool(matcher.match(data, pattern, rule)) is matches


def test_rules_can_be_added_and_removed() -> None:
    registry = MatcherRegistry()
    registry.register("same", lambda data, pattern, fold=False: (data, pattern, fold))
    assert registry.match("a", "b", "same", {"fold": True}) == ("a", "b", True)
    registry.unregister("same")
    with pytest.raises(MatcherNotInstalled, match="'same'"):
        registry.match("a", "a", "same")
    with pytest.raises(MatcherNotInstalled, match="'same'"):
        registry.unregister("same")


def test_another_rule_can_be_meant_by_default() -> None:
    registry = MatcherRegistry()
    registry.register("glob", fnmatch)
    registry.register("pcre", re.match)
    assert registry.match("ab", "a*")
    registry._set_default_matcher("pcre")
    assert registry._default_matcher is re.match
    assert registry.match("ab", "a.")
    with pytest.raises(MatcherNotInstalled, match="'sql'"):
        registry._set_default_matcher("sql")
    assert registry._default_matcher is re.match


def test_an_unknown_rule_is_named_with_the_known_ones() -> None:
    with pytest.raises(MatcherNotInstalled, match=r"'sql'.*glob, pcre"):
        matcher.match("a", "b", "sql")
