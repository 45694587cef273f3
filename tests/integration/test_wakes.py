"""Several links that wait for one queue of SQLite or PostgreSQL: a message wakes one of them."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import gevent
import psycopg
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, Queue
from greenconn.exceptions import Unroutable
from greenconn.transport.postgresql import PostgresStore
from greenconn.transport.sqlite import SqliteStore
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.integration.processes import start


class Place(NamedTuple):
    """A broker of which nothing is found by polling.

    Attributes:
        name: of its module.
        sweeping_url: the address with a lease that is short.
        store: its class.
        method: its method that is called when the link was woken.
        rows: returns the rows of a statement.
    """

    name: str
    url: str
    sweeping_url: str
    store: Any
    method: str
    rows: Callable[[str], list[tuple[Any, ...]]]

    def links(self, where: str = "armed = 1") -> list[str]:
        """Return the links that consume, in the order in which they began: those that wait."""
        order = "id" if self.name == "sqlite" else "since"
        found = self.rows(f"SELECT owner FROM consumers WHERE {where} ORDER BY {order}")
        return [owner for (owner,) in found]

    def wait_for(self, count: int) -> None:
        """Wait until so many links wait to be woken."""
        until(lambda: len(self.links()) == count, SOON)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> Place:
    """A broker without messages."""
    if request.param == "sqlite":
        url = request.getfixturevalue("sqlite_url")
        path = url.removeprefix("sqlite:///")

        def rows(statement: str) -> list[tuple[Any, ...]]:
            with closing(sqlite3.connect(path)) as database:
                return database.execute(statement).fetchall()

        urls = (f"{url}?look_interval=600", f"{url}?lease=4")
        return Place("sqlite", *urls, SqliteStore, "_on_words", rows)
    database: psycopg.Connection[Any] = request.getfixturevalue("postgresql")
    schema = request.getfixturevalue("unique")

    def found(statement: str) -> list[tuple[Any, ...]]:
        return database.execute(statement.replace("FROM ", f'FROM "{schema}".')).fetchall()

    url = request.getfixturevalue("postgresql_url")
    urls = (f"{url}&lease=3600", f"{url}&lease=2")
    return Place("postgresql", *urls, PostgresStore, "_notified", found)


@pytest.fixture
def words(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The links that were woken."""
    woken: list[str] = []
    original = getattr(place.store, place.method)

    def note(store: Any, *args: Any) -> None:
        woken.append(store.owner)
        original(store, *args)

    monkeypatch.setattr(place.store, place.method, note)
    return woken


@pytest.fixture
def looks_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no link look again whether those that it has woken have claimed."""
    monkeypatch.setattr(f"greenconn.transport.{place.name}.CLAIM_TIME", 600)


@pytest.fixture
def handled() -> list[Any]:
    """Bodies that were handled."""
    return []


@pytest.fixture
def connection(place: Place) -> Iterator[Connection]:
    """That of the publisher, with a queue."""
    with Connection(place.url) as connection:
        greenconn.publish("q", "first", connection=connection, declare=True)
        yield connection


@pytest.fixture
def consumers(place: Place, connection: Connection) -> Iterator[Any]:
    """Start so many consumers, each on a link of its own, that wait for a message."""
    with ExitStack() as stack:

        def consume(count: int, handler: Any, **options: Any) -> list[Any]:
            made = []
            for started in range(1, count + 1):
                own = stack.enter_context(Connection(place.url))
                made.append(greenconn.spawn_consumer("q", handler, connection=own, **options))
                place.wait_for(started)
            return made

        yield consume


def test_a_message_wakes_one_of_many(
    place: Place, connection: Connection, consumers: Any, words: list[str], handled: list[Any]
) -> None:
    consumers(5, lambda body, message: handled.append(body))
    until(lambda: handled == ["first"], SOON)
    words.clear()
    for number in range(50):
        greenconn.publish("q", number, connection=connection)
        until(lambda: handled[-1] == number, SOON)  # noqa: B023 - at once
        place.wait_for(5)
    assert len(words) <= 100  # and not 250: one each, and one more where that one was slow
    assert len(set(words)) > 1


def test_what_one_has_no_room_for_wakes_the_next(
    request: pytest.FixtureRequest,
    place: Place,
    connection: Connection,
    consumers: Any,
    handled: list[Any],
) -> None:
    # On PostgreSQL, what another session has locked is left to the next look.
    if place.name == "sqlite":
        request.getfixturevalue("looks_once")
    may_end = Event()

    def hold(body: Any, message: Any) -> None:
        handled.append(body)
        if body != "first":
            may_end.wait(SOON)

    consumers(5, hold, prefetch_count=1)
    for number in range(5):
        greenconn.publish("q", number, connection=connection)
    until(lambda: sorted(handled[1:]) == list(range(5)), SOON)
    may_end.set()


class Stuck:
    """Has links ignore that they were woken: the first *count* that are, once it has begun."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.links: list[str] = []
        original = getattr(place.store, place.method)

        def stick(store: Any, *args: Any) -> None:
            if store.owner not in self.links and len(self.links) < self.count:
                self.links.append(store.owner)
            if store.owner not in self.links:
                original(store, *args)

        monkeypatch.setattr(place.store, place.method, stick)


@pytest.fixture
def stuck(place: Place, monkeypatch: pytest.MonkeyPatch) -> Stuck:
    """No link, at first."""
    return Stuck(place, monkeypatch)


def test_one_that_does_not_claim_is_followed_by_another(
    stuck: Stuck, connection: Connection, consumers: Any, handled: list[Any]
) -> None:
    consumers(3, lambda body, message: handled.append(body))
    stuck.count = 2
    greenconn.publish("q", "second", connection=connection)
    until(lambda: "second" in handled, SOON)


def test_a_publisher_that_leaves_wakes_all(
    place: Place, looks_once: None, stuck: Stuck, consumers: Any, handled: list[Any]
) -> None:
    """Where the one that was woken is stuck, nothing else would wake the others."""
    consumers(3, lambda body, message: handled.append(body))
    stuck.count = 1
    with Connection(place.url) as leaving:
        greenconn.publish("q", "second", connection=leaving)
    until(lambda: "second" in handled, SOON)


def test_a_consumer_that_was_woken_and_ends_wakes_the_others(
    place: Place,
    looks_once: None,
    stuck: Stuck,
    connection: Connection,
    consumers: Any,
    handled: list[Any],
) -> None:
    made = consumers(2, lambda body, message: handled.append(body))
    stuck.count = 1
    greenconn.publish("q", "second", connection=connection)
    until(lambda: stuck.links, SOON)
    made[place.links("true").index(stuck.links[0])].stop(SOON)
    until(lambda: "second" in handled, SOON)


def test_only_the_active_consumer_is_woken(
    place: Place, connection: Connection, words: list[str], handled: list[Any]
) -> None:
    """Of a queue with a single active consumer."""
    queue = Queue("single", queue_arguments={"x-single-active-consumer": True})
    with ExitStack() as stack:
        for count in range(1, 4):
            own = stack.enter_context(Connection(place.url))
            greenconn.spawn_consumer(
                queue, lambda body, message: handled.append(body), connection=own
            )
            place.wait_for(count)
        for number in range(20):
            greenconn.publish("single", number, connection=connection)
            until(lambda: handled == list(range(number + 1)), SOON)  # noqa: B023 - at once
            place.wait_for(3)
        if place.name == "postgresql":
            assert len(set(words)) == 1


@pytest.mark.programs
@pytest.mark.parametrize(
    "place", [pytest.param("sqlite", marks=pytest.mark.full), "postgresql"], indirect=True
)
def test_a_publisher_sweeps_what_the_last_consumer_has_left(place: Place) -> None:
    """Killed while it handles a message, so that it waited for no word about another one."""
    program = """
import sys
import gevent
import greenconn
from greenconn import Queue

def handle(body, message):
    print("begun", flush=True)
    gevent.sleep(1000)

queue = Queue("news", auto_delete=True)
greenconn.spawn_consumer(queue, handle, connection=sys.argv[1], prefetch_count=1).join()
"""
    target = start("-c", program, place.sweeping_url)
    try:
        with Connection(place.sweeping_url) as connection:
            until(lambda: "news" in connection.default_channel.list_queues(), 2 * SOON)
            for number in range(2):
                greenconn.publish("news", number, connection=connection)
            assert target.line() == "begun"
            target.signal(signal.SIGKILL)
            with gevent.Timeout(2 * SOON), pytest.raises(Unroutable):
                while True:
                    greenconn.publish("news", 2, connection=connection)
                    gevent.sleep(0.1)
    finally:
        target.end()
