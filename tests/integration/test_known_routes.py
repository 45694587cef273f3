"""Publishing to an exchange of a store with transactions: by what is known, where it is so still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from greenconn import Connection, Exchange, Queue
from greenconn.broker import link as link_module
from greenconn.broker.publishing import StorePublisher
from greenconn.exceptions import NotFound, PublishNacked, RecoverableConnectionError, Unroutable
from greenconn.green.deadline import Deadline
from greenconn.green.hub import PerHub
from greenconn.transport.postgresql.queues import SharedTopology
from greenconn.transport.sqlite.queues import FileTopology
from tests.fix_interrupts import Signal
from tests.integration.contract import SOON

pytestmark = pytest.mark.halved

TOPOLOGIES = {"sqlite_url": FileTopology, "postgresql_url": SharedTopology}


class Program:
    """A connection of one program to the broker, and an exchange.

    It shares nothing with others, as in a process of its own.
    """

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connection = Connection(url)
        monkeypatch.setattr(link_module, "_shared", PerHub(dict))
        self.connection.connect()
        self.channel = self.connection.default_channel
        self.channel.exchange_declare("news", "topic", durable=True)
        self.producer = self.connection.Producer()

    def queue(self, name: str, key: str = "#", **options: Any) -> None:
        """Declare a queue and bind it."""
        Queue(name, Exchange("news", "topic"), key, **options)(self.channel).declare()

    def publish(self, body: Any, **options: Any) -> None:
        """Publish to the exchange."""
        with gevent.Timeout(SOON):
            self.producer.publish(body, **{"exchange": "news", "routing_key": "a", **options})


@pytest.fixture(params=TOPOLOGIES)
def program(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Program]]:
    """Starts programs, each with a connection of its own."""
    url: str = request.getfixturevalue(request.param)
    programs: list[Program] = []

    def begin() -> Program:
        programs.append(Program(url, monkeypatch))
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


def bodies(program: Program, queue: str) -> list[Any]:
    """The bodies that wait in a queue, which is empty then."""
    found: list[Any] = []
    while (message := program.channel.basic_get(queue, no_ack=True)) is not None:
        found.append(message.payload)
    return found


def test_bindings_are_asked_for_once(program: Callable[[], Program], reads: list[str]) -> None:
    sender = program()
    sender.queue("one")
    for number in range(5):
        sender.publish(number)
    gevent.joinall([gevent.spawn(sender.publish, number) for number in range(5, 50)])
    assert reads == ["news"]
    assert sorted(bodies(sender, "one")) == list(range(50))


def test_connections_of_a_program_know_the_same(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    """Each reads once, and none makes another one forget."""
    for name in TOPOLOGIES:
        sender = Program(request.getfixturevalue(name), monkeypatch)
        with sender.connection.clone() as other:
            sender.queue("one")
            for number in range(3):
                sender.publish(number)
                other.Producer().publish(number, exchange="news", routing_key="a")
            assert reads == ["news"] * 2
            assert bodies(sender, "one") == [0, 0, 1, 1, 2, 2]
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
    assert bodies(sender, "one")[0] == "first"
    assert sorted(bodies(sender, "two")) == list(range(2, 30, 3))
    other.channel.queue_unbind("two", "news", "b")
    other.queue("one", "b")
    sender.publish("late", routing_key="b")
    assert (bodies(sender, "one"), bodies(sender, "two")) == (["late"], [])


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
    assert bodies(sender, "one") == [0, 1]
    assert sorted(bodies(sender, "two")) == [2, 3]


@pytest.mark.parametrize("key", ["a", "other"], ids=["the same key", "another key"])
def test_pipelined_messages_keep_their_order_while_queues_are_bound(
    program: Callable[[], Program], key: str
) -> None:
    sender, other = program(), program()
    sender.queue("first", "a")
    later = [f"later{number}" for number in range(3)]
    for name in later:
        other.queue(name, "b")
    begin = sender.channel.begin_publish
    results = []
    for number in range(600):
        if number % 200 == 50:
            other.channel.queue_bind(later[number // 200], "news", key)
        if number % 10 == 0:
            gevent.sleep(0.001)  # and some are known to be late
        message = sender.channel.prepare_message(str(number))
        results.append(begin(message, "news", "a", False, False, None))
    for each in results:
        each.wait(Deadline(SOON))
    numbers = [str(number) for number in range(600)]
    assert bodies(sender, "first") == numbers
    for place, name in enumerate(later if key == "a" else ()):
        got = bodies(sender, name)
        # What was under way when it was bound may be there, too.
        assert got == numbers[-len(got) :]
        assert len(got) >= 600 - 200 * place - 50


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
    assert bodies(other, "one") == ["first"]
