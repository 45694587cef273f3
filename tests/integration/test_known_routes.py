"""Publishing to an exchange of a store with transactions: by what is known, where it is so still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from greenconn import Connection
from greenconn.broker import link as link_module
from greenconn.broker.publishing import StorePublisher
from greenconn.exceptions import NotFound, PublishNacked, RecoverableConnectionError, Unroutable
from greenconn.green.hub import PerHub
from greenconn.transport.postgresql.queues import SharedTopology
from greenconn.transport.sqlite.queues import FileTopology
from tests.fix_interrupts import Signal
from tests.integration.contract import SOON
from tests.integration.news import Program

pytestmark = pytest.mark.halved

TOPOLOGIES = {"sqlite_url": FileTopology, "postgresql_url": SharedTopology}


def alone(url: str, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A program that shares nothing with others, as in a process of its own."""
    connection = Connection(url)
    monkeypatch.setattr(link_module, "_shared", PerHub(dict))
    connection.connect()
    return Program(connection)


@pytest.fixture(params=TOPOLOGIES)
def program(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Program]]:
    """Starts programs, each with a connection of its own."""
    url: str = request.getfixturevalue(request.param)
    programs: list[Program] = []

    def begin() -> Program:
        programs.append(alone(url, monkeypatch))
        return programs[-1]

    yield begin
    for each in programs:
        each.connection.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The exchanges whose bindings were asked for, in order."""
    found: list[str] = []

    def watch(topology: type[Any]) -> None:
        rows = topology.rows

        def read(self: Any, name: str) -> Any:
            found.append(name)
            return rows(self, name)

        monkeypatch.setattr(topology, "rows", read)

    for each in TOPOLOGIES.values():
        watch(each)
    return found


def test_bindings_are_asked_for_once(program: Callable[[], Program], reads: list[str]) -> None:
    sender = program()
    sender.queue("one")
    for number in range(5):
        sender.publish(number)
    gevent.joinall([gevent.spawn(sender.publish, number) for number in range(5, 50)])
    assert reads == ["news"]
    assert sorted(sender.bodies("one")) == list(range(50))


def test_connections_of_a_program_know_the_same(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    """Each reads once, and none makes another one forget."""
    for name in TOPOLOGIES:
        sender = alone(request.getfixturevalue(name), monkeypatch)
        with sender.connection.clone() as other:
            sender.queue("one")
            for number in range(3):
                sender.publish(number)
                other.Producer().publish(number, exchange="news", routing_key="a.b")
            assert reads == ["news"] * 2
            assert sender.bodies("one") == [0, 0, 1, 1, 2, 2]
        sender.connection.close()
        reads.clear()


def test_what_changes_amid_publishes_is_found(
    program: Callable[[], Program], reads: list[str]
) -> None:
    sender, other = program(), program()
    sender.queue("one")
    sender.publish("first")
    other.queue("two", "b")
    # Several in one batch, of which some need not be looked up.
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"exchange": "", "routing_key": "one"},
        {"routing_key": "b"},
    )
    calls = [gevent.spawn(sender.publish, number, **kinds[number % 3]) for number in range(30)]
    gevent.joinall(calls, raise_error=True)
    assert sender.bodies("one")[0] == "first"
    assert sorted(sender.bodies("two")) == list(range(2, 30, 3))
    other.channel.queue_unbind("two", "news", "b")
    other.queue("one", "b")
    sender.publish("late", routing_key="b")
    assert (sender.bodies("one"), sender.bodies("two")) == (["late"], [])


def test_what_changes_amid_publishes_is_found_for_queues_with_a_limit(
    program: Callable[[], Program],
) -> None:
    sender, other = program(), program()
    for name in ("one", "two"):
        options = {"max_length": 2, "queue_arguments": {"x-overflow": "reject-publish"}}
        sender.queue(name, name, **options)
    for number in range(2):
        sender.publish(number, routing_key="one")
    other.channel.queue_bind("two", "news", "one")
    other.channel.queue_unbind("one", "news", "one")
    calls = [gevent.spawn(sender.publish, number, routing_key="one") for number in (2, 3)]
    gevent.joinall(calls, raise_error=True)
    assert sender.bodies("one") == [0, 1]
    assert sorted(sender.bodies("two")) == [2, 3]


@pytest.mark.parametrize("key", ["a.b", "other"], ids=["the same key", "another key"])
def test_pipelined_messages_keep_their_order_while_queues_are_bound(
    program: Callable[[], Program], key: str
) -> None:
    sender, other = program(), program()
    sender.queue("first", "a.b")
    later = [f"later{number}" for number in range(3)]
    for name in later:
        other.queue(name, "b")
    published = sender.publish_amid_bindings(
        lambda part: other.channel.queue_bind(later[part], "news", key), 0.001
    )
    assert sender.bodies("first") == published
    sender.check_order(published, later if key == "a.b" else ())


def test_what_is_gone_is_found_gone(program: Callable[[], Program]) -> None:
    sender, other = program(), program()
    sender.queue("one")
    sender.publish("first", mandatory=True)
    other.channel.queue_delete("one")
    sender.publish("dropped")
    sender.queue("one")
    sender.publish("second", mandatory=True)
    other.channel.queue_delete("one")
    returned: list[Any] = []
    sender.channel.events["basic_return"].add(lambda *arguments: returned.append(arguments))
    sender.publish("returned", mandatory=True)
    while not returned:
        sender.connection.drain_events(timeout=SOON)
    assert isinstance(returned[0][0], Unroutable)
    sender.queue("one")
    sender.publish("third")
    other.channel.exchange_delete("news")
    with pytest.raises(NotFound, match="no exchange 'news'"):
        sender.publish("refused")


@pytest.mark.parametrize(
    ("problem", "outcome"),
    [
        (RecoverableConnectionError("lost"), RecoverableConnectionError),
        (Signal(), PublishNacked),
    ],
    ids=["lost", "interrupted"],
)
def test_publishing_again_that_fails_is_an_outcome(
    program: Callable[[], Program],
    monkeypatch: pytest.MonkeyPatch,
    hub_errors: Any,
    problem: BaseException,
    outcome: type[Exception],
) -> None:
    sender, other = program(), program()
    sender.queue("one")
    sender.publish("first")
    other.queue("two", "b")

    def look(*arguments: Any, **options: Any) -> None:
        raise problem

    monkeypatch.setattr(StorePublisher, "_routed", look)
    with pytest.raises(outcome):
        sender.publish("x")
    monkeypatch.undo()
    hub_errors.clear()
    assert other.bodies("one") == ["first"]
