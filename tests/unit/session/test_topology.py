"""The record of what a connection has declared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from amqp.protocol import queue_declare_ok_t

from greenconn.exceptions import (
    ConnectionError,
    IrrecoverableConnectionError,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
    ResourceLocked,
)
from greenconn.session import topology as module
from greenconn.session.topology import Topology
from tests.fix_wires import until


class Link:
    """A link with channels that write down what is declared on them."""

    def __init__(self, records: bool = True) -> None:
        self.records_topology = records
        self.topology: Any = None
        self.done: list[tuple[Any, ...]] = []
        self.channels: list[Channel] = []
        #: What declaring this name raises, each once.
        self.errors: dict[str, list[Exception]] = {}
        self.names = 0
        self.consumers = 0
        self.is_dropped = False
        #: The largest number of requests without a reply.
        self.most_sent = 0

    def channel(self) -> Channel:
        self.channels.append(Channel(self))
        return self.channels[-1]

    def collect(self) -> None:
        self.is_dropped = True


class Pipeline:
    """Requests of which the broker handles none behind one that it refuses."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.outcomes: list[Any] = []

    def send(self, method: Callable[..., Any], **arguments: Any) -> None:
        if not self.channel.is_open:
            self.outcomes.append(RecoverableChannelError("closed because of another call"))
            return
        try:
            self.outcomes.append(method(**arguments) or ())
        except Exception as exc:
            self.outcomes.append(exc)
        self.channel.link.most_sent = max(self.channel.link.most_sent, len(self.outcomes))

    def receive(self) -> list[Any]:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return list(outcome)


class Channel:
    def __init__(self, link: Link) -> None:
        self.link = link
        self.is_open = True

    @contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        yield Pipeline(self)

    def _do(self, name: str, *what: Any) -> None:
        assert self.is_open
        for key in (name, f"{what[0]} {name}"):
            if self.link.errors.get(key):
                self.is_open = False
                raise self.link.errors[key].pop(0)
        self.link.done.append((*what, name))

    def exchange_declare(self, exchange: str, **how: Any) -> None:
        self._do(exchange, "exchange", how["type"])

    def queue_declare(self, queue: str, **how: Any) -> Any:
        if not queue:
            self.link.names += 1
            queue = f"amq.gen-{id(self.link)}-{self.link.names}"
        self._do(queue, "queue")
        return queue_declare_ok_t(queue, 0, self.link.consumers)

    def queue_bind(self, queue: str, exchange: str, routing_key: str, arguments: Any) -> None:
        self._do(queue, "bind", exchange, routing_key)

    def exchange_bind(
        self, destination: str, source: str, routing_key: str, arguments: Any
    ) -> None:
        self._do(destination, "bind-exchange", source, routing_key)

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def topology() -> Topology:
    return Topology(lambda: "broker")


def exchange(topology: Topology, name: str, auto_delete: bool = False) -> None:
    topology.exchange_declared(name, "direct", True, auto_delete, None)


def queue(
    topology: Topology, name: str, auto_delete: bool = False, is_server_named: bool = False
) -> None:
    topology.queue_declared(name, True, False, auto_delete, {"x-max-length": 3}, is_server_named)


def bind(topology: Topology, name: str, source: str, key: str = "", arguments: Any = None) -> None:
    topology.bound(True, name, source, key, arguments)


def restored(topology: Topology) -> list[tuple[Any, ...]]:
    link = Link()
    topology.restore(link, link.channel)
    assert not any(each.is_open for each in link.channels)
    return link.done


def test_exchanges_come_first_and_bindings_last(topology: Topology) -> None:
    queue(topology, "q")
    exchange(topology, "x")
    bind(topology, "q", "x", "key")
    exchange(topology, "y")
    topology.bound(False, "x", "y", "k", None)
    exchange(topology, "x")  # again: changes nothing
    assert restored(topology) == [
        ("exchange", "direct", "x"),
        ("exchange", "direct", "y"),
        ("queue", "q"),
        ("bind", "x", "key", "q"),
        ("bind-exchange", "y", "k", "x"),
    ]
    assert len(topology) == 5


def test_the_brokers_own_is_not_recorded(topology: Topology) -> None:
    exchange(topology, "")
    exchange(topology, "amq.topic")
    bind(topology, "q", "")
    assert len(topology) == 0


def test_what_is_deleted_takes_its_bindings_along(topology: Topology) -> None:
    for name in ("x", "y"):
        exchange(topology, name)
        for key in ("1", "2"):
            bind(topology, "q", name, key)
    queue(topology, "q")
    topology.exchange_deleted("x")
    assert len(topology) == 4
    topology.queue_deleted("q")
    assert restored(topology) == [("exchange", "direct", "y")]
    topology.exchange_deleted("y")
    topology.exchange_deleted("y")
    topology.queue_deleted("other")
    assert len(topology) == 0


def test_bindings_differ_by_key_and_arguments(topology: Topology) -> None:
    bind(topology, "q", "x", "1", {"a": 1, "b": [2]})
    bind(topology, "q", "x", "1", {"b": [2], "a": 1})
    bind(topology, "q", "x", "1")
    assert len(topology) == 2
    topology.unbound(True, "q", "x", "1", {})
    topology.unbound(True, "q", "x", "2", None)
    assert len(topology) == 1
    topology.unbound(True, "q", "x", "1", {"a": 1, "b": [2]})
    assert len(topology) == 0


@pytest.mark.parametrize("how", ["unbind", "delete queue", "delete exchange"])
def test_an_auto_delete_exchange_goes_with_its_last_binding(topology: Topology, how: str) -> None:
    exchange(topology, "a", auto_delete=True)
    exchange(topology, "b", auto_delete=True)
    queue(topology, "q")
    topology.bound(False, "b", "a", "", None)
    bind(topology, "q", "b", "1")
    bind(topology, "q", "b", "2")
    topology.unbound(True, "q", "b", "2", None)
    assert len(topology) == 5
    if how == "unbind":
        topology.unbound(True, "q", "b", "1", None)
    elif how == "delete queue":
        topology.queue_deleted("q")
    else:
        topology.exchange_deleted("b")
    assert restored(topology) == ([] if how == "delete queue" else [("queue", "q")])


def test_a_queue_that_the_broker_names_gets_another_name_in_each_life(topology: Topology) -> None:
    first = "amq.gen-first"
    queue(topology, first, is_server_named=True)
    queue(topology, "other")
    queue(topology, first)  # declared again by its name
    bind(topology, first, "x", first)
    bind(topology, "other", "x")
    names = [first]
    for _ in range(3):
        done = restored(topology)
        names.append(done[0][-1])
        assert done == [
            ("queue", names[-1]),
            ("queue", "other"),
            ("bind", "x", "", "other"),
            ("bind", "x", first, names[-1]),
        ] or done[2:] == [("bind", "x", first, names[-1]), ("bind", "x", "", "other")]
    assert len(set(names)) == 4
    assert {topology.current_name(each) for each in names[:-1]} == {names[-1]}
    assert topology.current_name("other") == ""
    topology.queue_deleted(names[-1])
    assert topology.current_name(first) == ""
    assert restored(topology) == [("queue", "other"), ("bind", "x", "", "other")]


def test_what_is_refused_costs_its_channel_only(
    topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        queue(topology, name)
    link = Link()
    link.errors["b"] = [PreconditionFailed("not so", (50, 10))]
    topology.restore(link, link.channel)
    assert link.done == [("queue", "a"), ("queue", "c")]
    assert len(link.channels) == 2
    assert "<queue 'b'> could not be declared again" in caplog.text
    assert len(restored(topology)) == 3  # perhaps the next link leads to another broker


def test_all_is_sent_without_a_wait_for_each_reply(topology: Topology) -> None:
    for number in range(200):
        queue(topology, f"q{number}")
        bind(topology, f"q{number}", "x")
    refused = ("q0", "q63", "q64", "q65", "q199", "bind q1", "bind q150")
    link = Link()
    for name in refused:
        link.errors[name] = [PreconditionFailed("not so", (50, 10))]
    topology.restore(link, link.channel)
    assert link.most_sent == module.IN_FLIGHT
    assert len(link.channels) == 1 + len(refused)
    queues, bindings = (
        [each for each in link.done if each[0] == kind] for kind in ("queue", "bind")
    )
    assert link.done == queues + bindings  # the names of the queues must be known
    names = [f"q{number}" for number in range(200)]
    assert [each[-1] for each in queues] == [each for each in names if each not in refused]
    assert [each[-1] for each in bindings] == [
        each for each in names if f"bind {each}" not in refused
    ]


def test_a_queue_that_is_still_locked_is_tried_again_with_its_bindings(topology: Topology) -> None:
    queue(topology, "mine")
    queue(topology, "free")
    bind(topology, "mine", "x")
    bind(topology, "free", "x")
    link = Link()
    link.errors["mine"] = [ResourceLocked("locked", (50, 10))] * 2
    topology.restore(link, link.channel)
    assert link.done == [("queue", "free"), ("bind", "x", "", "free")]
    topology.record(link, link.channel)
    assert link.topology is topology
    until(lambda: len(link.done) == 4)
    assert link.done[2:] == [("queue", "mine"), ("bind", "x", "", "mine")]
    topology.stop()


def test_what_goes_with_a_queue_that_is_still_locked_is_declared_again(topology: Topology) -> None:
    exchange(topology, "inner", auto_delete=True)
    exchange(topology, "outer", auto_delete=True)
    queue(topology, "mine")
    queue(topology, "amq.gen-1", is_server_named=True)
    bind(topology, "mine", "inner")
    topology.bound(False, "inner", "outer", "", None)
    link = Link()
    link.errors["mine"] = [ResourceLocked("locked", (50, 10))] * 2
    topology.restore(link, link.channel)
    topology.record(link, link.channel)
    exchanges = [("exchange", "direct", "inner"), ("exchange", "direct", "outer")]
    outer = ("bind-exchange", "outer", "", "inner")
    first = [*exchanges, link.done[2], outer]
    assert first[2][0] == "queue"  # whose name the broker gives, and does not give again
    until(lambda: len(link.done) == 12)
    assert link.done == [
        *first,
        *(*exchanges, outer),  # the broker has not let go of it yet
        *(*exchanges, ("queue", "mine"), ("bind", "inner", "", "mine"), outer),
    ]


def test_what_may_go_with_the_dead_connection_is_declared_once_more(topology: Topology) -> None:
    exchange(topology, "x", auto_delete=True)
    queue(topology, "q", auto_delete=True)
    queue(topology, "amq.gen-1", is_server_named=True)
    bind(topology, "q", "x")
    link = Link()
    link.consumers = 1  # of the dead connection: they will go, and the queue with them
    topology.restore(link, link.channel)
    first = list(link.done)
    assert len(first) == 4
    topology.record(link, link.channel)
    until(lambda: len(link.done) == 7)
    assert link.done[4:] == [first[0], first[1], first[3]]  # no second queue without a name


def test_an_exchange_that_goes_with_the_dead_connection_is_declared_before_its_binding(
    topology: Topology,
) -> None:
    exchange(topology, "x", auto_delete=True)
    queue(topology, "q")
    bind(topology, "q", "x")
    link = Link()
    link.errors["bind q"] = [NotFound("no exchange 'x'", (50, 20))] * 2
    topology.restore(link, link.channel)
    again = [("exchange", "direct", "x"), ("queue", "q")]
    assert link.done == [*again, *again, *again, ("bind", "x", "", "q")]
    exchange(topology, "x")
    link.done.clear()
    link.errors["bind q"] = [NotFound("no exchange 'x'", (50, 20))]
    topology.restore(link, link.channel)
    assert link.done == again  # somebody has deleted it


def test_what_was_deleted_meanwhile_is_not_tried_again(topology: Topology) -> None:
    queue(topology, "mine")
    queue(topology, "too")
    link = Link()
    link.errors["mine"] = link.errors["too"] = [ResourceLocked("locked", (50, 10))] * 2
    topology.restore(link, link.channel)
    topology.record(link, link.channel)
    topology.queue_deleted("mine")
    until(lambda: bool(link.done))
    assert link.done == [("queue", "too")]


@pytest.mark.parametrize("end", ["stop", "clear"])
def test_nothing_is_tried_again_when_the_link_is_gone(topology: Topology, end: str) -> None:
    queue(topology, "mine")
    link = Link()
    link.errors["mine"] = [ResourceLocked("locked", (50, 10))]
    topology.restore(link, link.channel)
    topology.record(link, link.channel)
    getattr(topology, end)()
    assert len(topology) == (1 if end == "stop" else 0)


def test_what_is_not_answered_in_time_and_all_behind_it_come_later(topology: Topology) -> None:
    for name in ("a", "slow", "b"):
        queue(topology, name)
    link = Link()
    link.errors["slow"] = [TimeoutError("no answer")]
    topology.restore(link, link.channel)
    assert link.done == [("queue", "a")]
    topology.record(link, link.channel)
    until(lambda: len(link.done) == 3)
    assert link.done[1:] == [("queue", "slow"), ("queue", "b")]
    assert not link.is_dropped


def test_a_link_that_is_lost_meanwhile_is_dropped(topology: Topology) -> None:
    queue(topology, "q", is_server_named=True)
    queue(topology, "r")
    link = Link()
    link.errors["r"] = [RecoverableConnectionError("gone")]
    with pytest.raises(ConnectionError, match="gone"):
        topology.restore(link, link.channel)
    assert link.is_dropped
    assert topology.current_name("q") == link.done[0][-1]  # as far as it came
    assert len(restored(topology)) == 2


def test_what_ends_the_whole_connection_again_is_given_up(topology: Topology) -> None:
    exchange(topology, "x")
    queue(topology, "q")
    for _ in range(2):
        link = Link()
        link.errors["x"] = [IrrecoverableConnectionError("unknown type")]
        with pytest.raises(IrrecoverableConnectionError):
            topology.restore(link, link.channel)
    assert restored(topology) == [("queue", "q")]


def test_after_the_end_of_a_connection_they_are_declared_one_by_one(topology: Topology) -> None:
    """Replies to what came before the culprit may have been lost with the connection."""
    for name in ("innocent", "culprit", "other"):
        queue(topology, name)
    link = Link()
    link.errors["innocent"] = [IrrecoverableConnectionError("of the culprit")]
    with pytest.raises(IrrecoverableConnectionError):
        topology.restore(link, link.channel)
    for _ in range(2):
        link = Link()
        link.errors["culprit"] = [IrrecoverableConnectionError("its own")]
        with pytest.raises(IrrecoverableConnectionError):
            topology.restore(link, link.channel)
        assert link.most_sent == 1
        assert link.done == [("queue", "innocent")]
    link = Link()
    topology.restore(link, link.channel)
    assert link.done == [("queue", "innocent"), ("queue", "other")]
    assert link.most_sent == 2


def test_a_link_that_records_nothing_gets_nothing(topology: Topology) -> None:
    queue(topology, "q")
    link = Link(records=False)
    topology.restore(link, link.channel)
    topology.record(link, link.channel)
    assert link.done == []
    assert link.topology is None


def test_it_is_bounded(
    topology: Topology, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LIMIT", 10)
    for number in range(8):
        queue(topology, f"q{number}")
        bind(topology, f"q{number}", "x")
        exchange(topology, f"e{number}")
    assert len(topology) == 10
    for number in range(20):
        bind(topology, f"b{number}", "x")
        exchange(topology, f"f{number}")
    assert len(topology) == 10
    until(lambda: "are not recovered" in caplog.text)
    assert caplog.text.count("are not recovered") == 1
