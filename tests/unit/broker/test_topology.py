"""Exchanges and bindings that programs share."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.broker.exchanges import ROUTERS, Exchange, Row, TopologyStore
from tests.unit.broker.fake_store import FakeBroker, FakeTopology


@pytest.fixture
def topology(fake_broker: FakeBroker) -> TopologyStore:
    """The exchanges and bindings of the fake broker."""
    return FakeTopology(fake_broker, lambda method, argument: None)


def declare(topology: TopologyStore, name: str, **options: Any) -> None:
    topology.declare(Exchange(name, "direct", ROUTERS["direct"](), **options))


def to_queue(name: str) -> Row:
    return Row("key", "", name)


def to_exchange(name: str) -> Row:
    return Row("key", "", name, None, True)


def test_what_was_declared_is_found(topology: TopologyStore) -> None:
    assert topology.find("x") is None
    assert topology.rows("x") is None
    declare(topology, "x", durable=True, arguments={"alternate-exchange": "y"})
    declare(topology, "x")  # somebody was quicker
    found = topology.find("x")
    assert found is not None
    assert (found.type, found.durable, found.auto_delete) == ("direct", True, False)
    assert found.alternate == "y"
    assert topology.rows("x") == ()


@pytest.mark.parametrize(
    "facts", [{}, {"type": "x-unknown"}, {"type": "direct", "arguments": "none"}], ids=repr
)
def test_record_of_another_program(
    topology: TopologyStore, fake_broker: FakeBroker, facts: dict[str, Any]
) -> None:
    fake_broker.exchanges["x"], fake_broker.rows["x"] = facts, ()
    found = topology.find("x")
    assert (None if found is None else found.arguments) == ({} if len(facts) == 2 else None)
    topology.drop("x")
    assert not fake_broker.exchanges


def test_exchange_goes_with_all_its_bindings(topology: TopologyStore) -> None:
    for name in ("x", "y", "z"):
        declare(topology, name)
    topology.add("x", to_exchange("y"))
    topology.add("x", to_queue("y"))
    topology.add("y", to_exchange("z"))
    topology.drop("y")
    assert topology.rows("x") == (to_queue("y"),)
    assert topology.rows("y") is None
    assert topology.find("z") is not None


def test_chain_of_auto_delete_exchanges_goes(
    topology: TopologyStore, fake_broker: FakeBroker
) -> None:
    for name in ("x", "y", "z"):
        declare(topology, name, auto_delete=True)
    topology.add("x", to_exchange("y"))
    topology.add("y", to_exchange("z"))
    topology.add("z", to_exchange("x"))
    topology.add("z", to_queue("q"))
    topology.forget_queue("q")
    assert set(fake_broker.exchanges) == {"x", "y", "z"}
    topology.unbind("z", to_exchange("x"))
    assert not fake_broker.exchanges
    assert not any(fake_broker.rows.values())


def test_circle_of_auto_delete_exchanges_goes(
    topology: TopologyStore, fake_broker: FakeBroker
) -> None:
    for name in ("x", "y"):
        declare(topology, name, auto_delete=True)
    topology.add("x", to_exchange("y"))
    topology.add("y", to_exchange("x"))
    topology.drop("x")
    assert not fake_broker.exchanges
