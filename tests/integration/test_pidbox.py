"""Mailboxes: commands to nodes and their replies."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn import Connection
from greenconn.clocks import LamportClock
from greenconn.exceptions import InconsistencyError
from greenconn.green.hub import yield_to_hub
from greenconn.pidbox import Mailbox, Node
from greenconn.transport import memory

MakeNode = Callable[..., Node]


@pytest.fixture(params=["memory", "amqp", "redis"])
def connection(request: pytest.FixtureRequest, unique: str) -> Iterator[Connection]:
    """A connection to each broker in turn."""
    if request.param == "memory":
        with Connection(f"memory:///{unique}") as connection:
            yield connection
        memory.reset(unique)
    else:
        with Connection(request.getfixturevalue(f"{request.param}_url")) as connection:
            yield connection


@pytest.fixture
def mailbox(connection: Connection, unique: str) -> Mailbox:
    """A mailbox that reaches all nodes."""
    return Mailbox(unique, type="fanout", connection=connection)


@pytest.fixture
def node(mailbox: Mailbox) -> Iterator[MakeNode]:
    """Starts nodes, each with a connection that a greenlet drains."""
    connections: list[Connection] = []
    drainers: list[gevent.Greenlet[..., Any]] = []

    def start(name: str, **handlers: Callable[..., Any]) -> Node:
        connection = mailbox.connection.clone()
        connections.append(connection)
        listening = mailbox(connection).Node(name, state={"name": name}, handlers=handlers)
        listening.channel = connection.channel()
        listening.listen()

        def drain() -> None:
            while True:
                connection.drain_events()

        drainers.append(gevent.spawn(drain))
        return listening

    yield start
    gevent.killall(drainers)
    for connection in connections:
        connection.close()


def add(state: dict[str, Any], x: int, y: int) -> int:
    return x + y


def test_all_nodes_reply(mailbox: Mailbox, node: MakeNode) -> None:
    node("a", add=add)
    node("b", add=add)
    seen: list[Any] = []
    replies = mailbox.multi_call("add", {"x": 1, "y": 2}, timeout=20, limit=2, callback=seen.append)
    assert sorted(replies, key=str) == [{"a": 3}, {"b": 3}]
    assert seen == replies


def test_a_call_is_for_some_nodes(mailbox: Mailbox, node: MakeNode) -> None:
    node("a", add=add)
    node("b", add=add)
    assert mailbox.call(["b"], "add", {"x": 2, "y": 2}, timeout=20) == [{"b": 4}]
    with pytest.raises(ValueError, match="must be a list of node names, got 'b'"):
        mailbox.call("b", "add")


def test_a_pattern_chooses_nodes(mailbox: Mailbox, node: MakeNode) -> None:
    node("web1", add=add)
    node("db1", add=add)
    replies = mailbox._broadcast(
        "add", {"x": 1, "y": 1}, reply=True, timeout=20, limit=1, pattern="web*", matcher="glob"
    )
    assert replies == [{"web1": 2}]
    with pytest.raises(ValueError, match="pattern must be text or None, got 7"):
        mailbox._broadcast("add", pattern=7, matcher="glob")  # type: ignore[arg-type]


def test_what_no_node_answers_ends_in_time(mailbox: Mailbox) -> None:
    assert mailbox.multi_call("add", timeout=0.05) == []


def test_an_error_is_a_reply(
    mailbox: Mailbox, node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(state: Any) -> None:
        raise RuntimeError("not today")

    node("a", fail=fail)
    (reply,) = mailbox.call(["a"], "fail", timeout=20)
    assert reply == {"a": {"error": repr(RuntimeError("not today"))}}
    (unknown,) = mailbox.call(["a"], "unknown", timeout=20)
    assert "KeyError" in unknown["a"]["error"]
    errors = [record.name for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["greenconn.pidbox"] * 2


def test_a_cast_has_no_reply(mailbox: Mailbox, node: MakeNode) -> None:
    done = Event()
    got: list[tuple[Any, int]] = []

    def note(state: dict[str, Any], number: int) -> None:
        got.append((state["name"], number))
        if len(got) == 3:
            done.set()

    node("a", note=note)
    node("b", note=note)
    assert mailbox.abcast("note", {"number": 1}) is None
    assert mailbox.cast(["a"], "note", {"number": 2}) is None
    assert done.wait(20)
    assert sorted(got) == [("a", 1), ("a", 2), ("b", 1)]


def test_greenlets_that_call_at_once_get_their_own_replies(
    mailbox: Mailbox, node: MakeNode, long: bool
) -> None:
    node("a", add=add)
    node("b", add=add)
    count = 200 if long else 20

    def one(number: int) -> Any:
        return mailbox.multi_call("add", {"x": number, "y": 0}, timeout=30, limit=2)

    calls = [gevent.spawn(one, number) for number in range(count)]
    gevent.joinall(calls, raise_error=True)
    for number, call in enumerate(calls):
        assert sorted(call.get(), key=str) == [{"a": number}, {"b": number}]
    assert mailbox._replies.is_idle


class _BusyMailbox(Mailbox):
    """A mailbox that is used by another greenlet between a command and the collecting of its replies."""

    interlude: Callable[[], object] | None = None

    def _publish(self, *args: Any, **kwargs: Any) -> None:
        super()._publish(*args, **kwargs)
        interlude, self.interlude = self.interlude, None
        if interlude is not None:
            interlude()


def test_replies_come_when_another_call_ends_meanwhile(
    connection: Connection, unique: str, node: MakeNode, mailbox: Mailbox
) -> None:
    """The reply queue is deleted with its last consumer."""
    gate = Event()

    def held(state: dict[str, Any]) -> str:
        assert gate.wait(20)
        return "late"

    node("quick", add=add)
    node("slow", held=held)
    busy = _BusyMailbox(unique, type="fanout", connection=connection)

    def other_call() -> None:
        calling = gevent.spawn(busy.call, ["quick"], "add", {"x": 1, "y": 1}, timeout=20)
        assert calling.get(timeout=20) == [{"quick": 2}]
        gate.set()

    busy.interlude = other_call
    assert busy.call(["slow"], "held", timeout=20) == [{"slow": "late"}]
    assert busy._replies.is_idle


def test_a_caller_that_is_killed_leaves_nothing(mailbox: Mailbox, node: MakeNode) -> None:
    node("a", add=add)
    waiting = gevent.spawn(mailbox.multi_call, "nothing", timeout=None, limit=2)
    with gevent.Timeout(20):
        while mailbox._replies.is_idle:
            yield_to_hub()
    waiting.kill()
    assert not mailbox._replies._collecting
    assert mailbox.call(["a"], "add", {"x": 1, "y": 1}, timeout=20) == [{"a": 2}]


def test_clocks_go_along(mailbox: Mailbox, node: MakeNode) -> None:
    mailbox.clock = LamportClock(40)
    listening = node("a", add=add)
    listening.adjust_clock = (clock := LamportClock()).adjust
    mailbox.call(["a"], "add", {"x": 1, "y": 1}, timeout=20)
    assert clock.value > 41
    assert mailbox.clock.value > 42


def test_a_command_that_cannot_be_decoded_is_logged(
    mailbox: Mailbox, node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    node("a", add=add)
    with mailbox.connection.Producer() as producer:
        producer.publish(b"\xff", exchange=mailbox.exchange, content_type="application/json")
        producer.publish({"method": "add"}, exchange=mailbox.exchange, serializer="pickle")
    assert mailbox.call(["a"], "add", {"x": 1, "y": 1}, timeout=20) == [{"a": 2}]
    errors = [record.name for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["greenconn.pidbox"] * 2


def test_handlers_are_named_by_their_functions(unique: str) -> None:
    node = Mailbox(unique).Node("a", state="state")

    @node.handler
    def ping(state: str) -> str:
        return f"{state} pong"

    assert node.handle("ping") == "state pong"
    assert node.dispatch("ping") == "state pong"
    assert node.handle_message({"method": "ping", "destination": ["b"]}) is None
    assert node.handle_message({"method": "ping", "destination": ["a"]}) == "state pong"
    assert node.handle_message({"method": "ping", "destination": "a"}) == "state pong"
    assert node.handle_message({"method": "ping", "destination": "ab"}) is None


def test_a_second_node_of_the_same_name_is_reported(amqp_url: str, unique: str) -> None:
    with Connection(amqp_url) as one, Connection(amqp_url) as other:
        mailbox = Mailbox(unique)
        first = mailbox(one).Node("a", channel=one.channel())
        first.listen()
        second = mailbox(other).Node("a", channel=other.channel())
        with pytest.raises(InconsistencyError, match="already using this process mailbox"):
            second.listen()
        # On the same connection the queue can be shared; a warning says so.
        third = mailbox(one).Node("a", channel=one.channel())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            third.listen()
        assert "already using" in str(caught[0].message)


def test_queues_cannot_be_exclusive_and_durable(unique: str) -> None:
    with pytest.raises(ValueError, match="cannot both be True"):
        Mailbox(unique, queue_durable=True)
    durable = Mailbox(unique, queue_durable=True, queue_exclusive=False, queue_expires=5.0)
    queue = durable.get_queue("a")
    assert (queue.durable, queue.exclusive, queue.auto_delete) == (True, False, False)
    assert queue.expires == 5.0
    assert durable.get_reply_queue().expires == 10.0
