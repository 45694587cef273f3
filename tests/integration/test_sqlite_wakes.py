"""One SQLite file and several links that wait for one queue: a message wakes one of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection
from greenconn.transport.sqlite import SqliteStore
from tests.fix_wires import until
from tests.integration.contract import SOON


@pytest.fixture
def url(sqlite_url: str) -> str:
    """A file of which nothing is found by polling."""
    return f"{sqlite_url}?look_interval=600"


@pytest.fixture
def path(url: str) -> str:
    """The file."""
    return url.partition("?")[0].removeprefix("sqlite:///")


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The links that were woken."""
    woken: list[str] = []
    on_words = SqliteStore._on_words

    def note(self: SqliteStore, words: list[bytes]) -> None:
        woken.append(self.owner)
        on_words(self, words)

    monkeypatch.setattr(SqliteStore, "_on_words", note)
    return woken


@pytest.fixture
def handled() -> list[Any]:
    """Bodies that were handled."""
    return []


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """That of the publisher, with a queue."""
    with Connection(url) as connection:
        greenconn.publish("q", "first", connection=connection, declare=True)
        yield connection


def links(path: str, where: str = "armed = 1") -> list[str]:
    """Return the links that consume, in the order in which they began: those that wait to be woken."""
    with closing(sqlite3.connect(path)) as database:
        found = database.execute(f"SELECT owner FROM consumers WHERE {where} ORDER BY id")
        return [owner for (owner,) in found]


@pytest.fixture
def consumers(url: str, path: str, connection: Connection) -> Iterator[Any]:
    """Start so many consumers, each on a link of its own, that wait for a message."""
    with ExitStack() as stack:

        def consume(count: int, handler: Any, **options: Any) -> list[Any]:
            made = []
            for _ in range(count):
                own = stack.enter_context(Connection(url))
                made.append(greenconn.spawn_consumer("q", handler, connection=own, **options))
            until(lambda: len(links(path)) == count, SOON)
            return made

        yield consume


def test_a_message_wakes_one_of_many(
    path: str, connection: Connection, consumers: Any, words: list[str], handled: list[Any]
) -> None:
    consumers(5, lambda body, message: handled.append(body))
    until(lambda: handled == ["first"], SOON)
    words.clear()
    for number in range(50):
        greenconn.publish("q", number, connection=connection)
        until(lambda: handled[-1] == number and len(links(path)) == 5, SOON)  # noqa: B023 - at once
    assert len(words) <= 100  # and not 250: one each, and one more where that one was slow
    assert len(set(words)) > 1


def test_what_one_has_no_room_for_wakes_the_next(
    connection: Connection, consumers: Any, handled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher would look again in a while only."""
    monkeypatch.setattr("greenconn.transport.sqlite.CLAIM_TIME", 600)
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

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.links: list[str] = []
        on_words = SqliteStore._on_words

        def stick(store: SqliteStore, words: list[bytes]) -> None:
            if store.owner not in self.links and len(self.links) < self.count:
                self.links.append(store.owner)
            if store.owner not in self.links:
                on_words(store, words)

        monkeypatch.setattr(SqliteStore, "_on_words", stick)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Stuck:
    """No link, at first."""
    return Stuck(monkeypatch)


def test_one_that_does_not_claim_is_followed_by_another(
    stuck: Stuck, connection: Connection, consumers: Any, handled: list[Any]
) -> None:
    consumers(3, lambda body, message: handled.append(body))
    stuck.count = 2
    greenconn.publish("q", "second", connection=connection)
    until(lambda: "second" in handled, SOON)
    assert len(set(stuck.links)) <= 2


def test_a_publisher_that_leaves_wakes_all(
    url: str,
    stuck: Stuck,
    connection: Connection,
    consumers: Any,
    handled: list[Any],
) -> None:
    """Where the one that was woken is stuck, nothing else would wake the others."""
    consumers(3, lambda body, message: handled.append(body))
    stuck.count = 1
    with Connection(url) as leaving:
        greenconn.publish("q", "second", connection=leaving)
    until(lambda: "second" in handled, SOON)


def test_a_consumer_that_was_woken_and_ends_wakes_the_others(
    path: str,
    stuck: Stuck,
    connection: Connection,
    consumers: Any,
    handled: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("greenconn.transport.sqlite.CLAIM_TIME", 600)
    made = consumers(2, lambda body, message: handled.append(body))
    stuck.count = 1
    greenconn.publish("q", "second", connection=connection)
    until(lambda: stuck.links, SOON)
    made[links(path, "true").index(stuck.links[0])].stop(SOON)
    until(lambda: "second" in handled, SOON)
