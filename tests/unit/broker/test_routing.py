"""Where a message goes, over exchanges and bindings that several processes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from greenconn.broker.exchanges import Binding, BrokerState, Routing
from tests.unit.broker.fake_store import FakeBroker, FakeTopology


class Process:
    """What a link of a process of its own has of these."""

    client = None

    def __init__(self, fake_broker: FakeBroker, **options: bool) -> None:
        self.gone: set[str] = set()
        self.state = BrokerState()
        self.topology = FakeTopology(fake_broker, lambda method, argument: None)
        link: Any = self
        self.routing = Routing(link, **options)

    def ask(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    def router_of(self, exchange: str, type: str) -> None:
        return None

    def existing(self, queues: Sequence[str]) -> list[str]:
        """Find out which of *queues* exist, and remove the bindings of the others."""
        for each in self.gone.intersection(queues):
            self.routing.forget_queue(each)
        return [each for each in queues if each not in self.gone]

    def declare(self, name: str, kind: str = "direct", **options: Any) -> None:
        self.routing.learn(name)
        if name not in self.state.exchanges:
            self.state.declare(name, kind, **options)
        self.routing.note(self.state.exchanges[name])

    def bind(self, source: str, destination: str, **options: Any) -> None:
        self.routing.learn(source)
        self.routing.bind(Binding(source, destination, "key", **options))

    def unbind(self, source: str, destination: str, **options: Any) -> None:
        self.routing.unbind(Binding(source, destination, "key", **options))

    def routes(self, exchange: str, **headers: Any) -> list[str]:
        return sorted(self.routing.routes(exchange, "key", headers))


@pytest.fixture
def one(fake_broker: FakeBroker) -> Process:
    """A process that has declared an exchange and bound a queue."""
    process = Process(fake_broker)
    process.declare("x")
    process.bind("x", "q")
    return process


@pytest.fixture
def other(fake_broker: FakeBroker) -> Process:
    """Another process."""
    return Process(fake_broker)


def test_what_another_has_unbound_before_the_first_message(one: Process, other: Process) -> None:
    other.unbind("x", "q")
    assert one.routes("x") == []
    assert other.routes("x") == []


def test_exchange_that_another_has_made_anew(one: Process, other: Process) -> None:
    assert one.routes("x") == ["q"]
    other.routing.drop("x")
    other.declare("x", "headers")
    other.bind("x", "q", arguments={"a": 1})
    assert one.routes("x", a=1) == ["q"]
    assert one.routes("x", a=2) == []
    assert one.state.exchanges["x"].type == "headers"


@pytest.mark.parametrize("is_checked", [False, True])
@pytest.mark.parametrize("mandatory", [False, True])
def test_binding_that_has_outlived_its_queue(
    one: Process, fake_broker: FakeBroker, is_checked: bool, mandatory: bool
) -> None:
    one.declare("top", arguments={"alternate-exchange": "x"})
    one.bind("top", "p")
    process = Process(fake_broker, checks_queues=is_checked)
    process.gone = {"p"}
    found = process.routing.routes("top", "key", {}, mandatory)
    assert found == (["q"] if is_checked or mandatory else ["p"])


def test_exchange_of_a_foreign_program(
    one: Process, other: Process, fake_broker: FakeBroker
) -> None:
    fake_broker.exchanges["x"] = {"type": "direct", "is_guess": True}
    assert other.routes("x") == ["q"]
    assert other.state.exchanges["x"].is_guess
    fake_broker.exchanges["x"] = {"type": "topic"}
    assert other.routes("x") == ["q"]
    found = other.state.exchanges["x"]
    assert (found.type, found.is_guess) == ("topic", False)


def test_queue_behind_two_other_exchanges(one: Process, other: Process) -> None:
    for name in ("y", "z"):
        other.declare(name, "fanout")
    other.bind("x", "y", to_exchange=True)
    other.bind("y", "z", to_exchange=True)
    other.bind("z", "far")
    other.bind("z", "x", to_exchange=True)  # a circle
    assert one.routes("x") == ["far", "q"]


def test_of_several_queues_only_those_that_are_gone_are_left_out(
    one: Process, fake_broker: FakeBroker
) -> None:
    one.bind("x", "p")
    process = Process(fake_broker, checks_queues=True)
    asked: list[list[str]] = []

    def existing(queues: Sequence[str]) -> list[str]:
        asked.append(sorted(queues))
        return [each for each in queues if each != "p"]  # and its binding stays

    process.existing = existing  # type: ignore[method-assign]
    assert process.routes("x") == ["q"]
    assert asked == [["p", "q"], ["q"]]
