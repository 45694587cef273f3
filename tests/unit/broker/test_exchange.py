"""Exchange types, and matching of routing keys and headers against bindings."""

from __future__ import annotations

from collections.abc import Collection
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.virtual.exchange import TopicExchange as KombuTopicExchange

from greenconn.broker.exchanges import (
    STANDARD_EXCHANGE_TYPES,
    Binding,
    DirectExchange,
    Exchange,
    ExchangeType,
    FanoutExchange,
    HeadersExchange,
    TopicExchange,
    Trie,
    headers_match,
    topic_matches,
    words_of,
)

TABLE = [("a.b", None, "one"), ("a.#", None, "two"), ("z.#", None, "three")]


def test_lookup_in_a_table() -> None:
    assert DirectExchange(None).lookup(TABLE, "x", "a.b", None) == {"one"}
    assert TopicExchange(None).lookup(TABLE, "x", "a.b", None) == {"one", "two"}
    assert TopicExchange(None).lookup(TABLE, "x", "z", None) == {"three"}
    assert FanoutExchange(None).lookup(TABLE, "x", "", None) == {"one", "two", "three"}
    with pytest.raises(NotImplementedError):
        HeadersExchange(None).lookup(TABLE, "x", "", None)
    with pytest.raises(NotImplementedError):
        ExchangeType(None).lookup(TABLE, "x", "", None)


@pytest.mark.parametrize(
    "key", ["a.b", "a.*.#", "#", "", "a-b.c_d.*", "*x.y#", "..", "a\x00b", "caf\u00e9.$"]
)
def test_stored_pattern_is_that_of_kombu(key: str) -> None:
    ours = TopicExchange(None).prepare_bind("q", "x", key, None)
    kombu: Any = KombuTopicExchange
    assert ours == kombu(None).prepare_bind("q", "x", key, None)


def test_equivalence() -> None:
    exchange = Exchange("x", "direct", DirectExchange(None).router("x"), durable=True)
    kind = DirectExchange(None)
    assert kind.equivalent(exchange, "x", "direct", True, False, None)
    assert kind.equivalent(exchange, "x", "direct", True, False, {})
    assert not kind.equivalent(exchange, "x", "topic", True, False, {})
    assert not kind.equivalent(exchange, "x", "direct", False, False, {})
    assert not kind.equivalent(exchange, "x", "direct", True, False, {"a": 1})


def test_standard_types() -> None:
    assert set(STANDARD_EXCHANGE_TYPES) == {"direct", "topic", "fanout", "headers"}
    assert all(cls.type == name for name, cls in STANDARD_EXCHANGE_TYPES.items())


class SuffixExchange(ExchangeType):
    """A type that only has a lookup."""

    type = "x-suffix"

    def lookup(
        self, table: Collection[Any], exchange: str, routing_key: str, default: str | None
    ) -> Collection[str]:
        return {queue for key, _, queue in table if routing_key.endswith(key)}


def test_router_of_a_type_of_ones_own() -> None:
    router = SuffixExchange(None).router("x")
    one, two = Binding("x", "one", ".txt"), Binding("x", "two", "")
    router.add(one)
    router.add(two)
    assert list(router.match("a.txt", {})) == [one, two]
    assert list(router.match("a.doc", {})) == [two]
    router.discard(two)
    assert list(router.match("a.doc", {})) == []


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
