"""Exchanges and bindings of a virtual host."""

from __future__ import annotations

import random

import pytest

from greenconn.broker.exchanges import CACHE_SIZE, Binding, BrokerState
from tests.fix_interrupts import Signal, signals


@pytest.fixture
def state() -> BrokerState:
    """With an exchange of each type, called by it."""
    state = BrokerState()
    for kind in ("direct", "fanout", "topic", "headers"):
        state.declare(kind, kind)
    return state


def bind(state: BrokerState, source: str, queue: str, key: str = "") -> Binding:
    binding = Binding(source, queue, key)
    state.bind(binding)
    return binding


def link(state: BrokerState, source: str, destination: str, key: str = "") -> Binding:
    binding = Binding(source, destination, key, to_exchange=True)
    state.bind(binding)
    return binding


def test_changes_are_seen_behind_other_exchanges(state: BrokerState) -> None:
    link(state, "direct", "topic", "a.b")
    assert state.route("direct", "a.b") == ()
    binding = bind(state, "topic", "q", "a.#")
    assert state.route("direct", "a.b") == ("q",)
    state.unbind(binding)
    assert state.route("direct", "a.b") == ()


def test_changes_are_seen_behind_an_alternate(state: BrokerState) -> None:
    state.declare("first", "direct", arguments={"alternate-exchange": "last"})
    assert state.route("first", "key") == ()
    state.declare("last", "fanout")
    bind(state, "last", "q")
    assert state.route("first", "key") == ("q",)
    bind(state, "first", "other", "key")
    assert state.route("first", "key") == ("other",)
    state.delete("last")
    assert state.route("first", "nowhere") == ()


def test_alternate_of_an_alternate_may_be_a_circle(state: BrokerState) -> None:
    state.declare("a", "direct", arguments={"alternate-exchange": "b"})
    state.declare("b", "direct", arguments={"alternate-exchange": "a"})
    assert state.route("a", "key") == ()


def test_cache_is_bounded(state: BrokerState) -> None:
    bind(state, "topic", "q", "#")
    for n in range(3 * CACHE_SIZE):
        assert state.route("topic", f"key.{n}") == ("q",)
        assert len(state.exchanges["topic"].cache) <= CACHE_SIZE


def test_names_of_kombu(state: BrokerState) -> None:
    state.binding_declare("q", "direct", "k", {"a": 1})
    assert state.has_binding("q", "direct", "k")
    assert not state.has_binding("q", "direct", "other")
    assert state.bindings == {("q", "direct", "k"): {"a": 1}}
    assert state.queue_index == {"q": {("q", "direct", "k")}}
    (binding,) = state.queue_bindings("q")
    assert (binding.exchange, binding.routing_key, binding.arguments) == ("direct", "k", {"a": 1})
    exchange = state.exchanges["direct"]
    assert exchange["type"] == "direct"
    assert exchange["table"] == [("k", None, "q")]
    with pytest.raises(KeyError):
        exchange["router"]
    state.binding_delete("q", "direct", "k")
    assert not state.bindings
    state.clear()
    assert not state.exchanges


def test_random_changes_agree_with_a_plain_search(long: bool) -> None:
    """A direct exchange before a topic one, against a search through a list of all bindings."""
    random_ = random.Random(20)
    state = BrokerState()
    state.declare("direct", "direct")
    state.declare("fanout", "fanout")
    plain: dict[tuple[str, str, str, bool], Binding] = {}
    for _ in range(20_000 if long else 2_000):
        source = random_.choice(["direct", "fanout"])
        to_exchange = random_.random() < 0.3
        destination = random_.choice(["direct", "fanout"] if to_exchange else ["q", "r", "s"])
        key = random_.choice("abc")
        binding = Binding(source, destination, key, to_exchange=to_exchange)
        name = (source, destination, key, to_exchange)
        if random_.random() < 0.5:
            assert state.bind(binding) == (name not in plain)
            plain[name] = binding
        else:
            assert state.unbind(binding) == (plain.pop(name, None) is not None)
        start, key = random_.choice(["direct", "fanout"]), random_.choice("abc")
        assert set(state.route(start, key)) == found(plain, start, key)


def found(plain: dict[tuple[str, str, str, bool], Binding], start: str, key: str) -> set[str]:
    seen, queues, todo = {start}, set(), [start]
    while todo:
        exchange = todo.pop()
        for source, destination, binding_key, to_exchange in plain:
            if source != exchange or (exchange == "direct" and binding_key != key):
                continue
            if not to_exchange:
                queues.add(destination)
            elif destination not in seen:
                seen.add(destination)
                todo.append(destination)
    return queues


@pytest.mark.parametrize("kind", ["direct", "fanout", "topic", "headers"])
def test_what_a_signal_keeps_from_being_bound_is_bound_again(state: BrokerState, kind: str) -> None:
    for raised in signals(lambda: state.bind(Binding(kind, "q", "key"))):
        assert raised is None or isinstance(raised, Signal)
        state.bind(Binding(kind, "q", "key"))
        assert state.route(kind, "key") == ("q",)
        state.unbind(Binding(kind, "q", "key"))
        assert state.route(kind, "key") == ()
