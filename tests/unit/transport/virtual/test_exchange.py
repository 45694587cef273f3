"""Kombu's interface of exchange types."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from kombu.transport.virtual.exchange import TopicExchange as KombuTopicExchange

from greenconn.transport.virtual.exchange import (
    STANDARD_EXCHANGE_TYPES,
    DirectExchange,
    ExchangeType,
    FanoutExchange,
    HeadersExchange,
    TopicExchange,
)
from greenconn.transport.virtual.state import Binding, Exchange

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
