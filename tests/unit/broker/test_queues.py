"""The queues of a store, as the directory of a link asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from greenconn.broker.port import Entry
from greenconn.broker.queue_port import KnownQueues
from greenconn.broker.queues import StoredQueues
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.names import new_owner, note_lost
from greenconn.transport.virtual.state import Binding, BrokerState
from tests.unit.broker.fake_store import FakeBroker, FakeStore

DURABLE = Declaration(durable=True)


class Feed:
    """A feed with so many consumers."""

    def __init__(self, count: int) -> None:
        self.consumers: list[Any] = [None] * count


class Link:
    """A link that asks a store at once."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.state = BrokerState()
        self.feeds: dict[str, Feed] = {}
        self.asked: list[str] = []
        self.caught_up = 0

    def ask(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        self.asked.append(what)
        return function(*args)

    def catch_up(self) -> None:
        self.caught_up += 1


@pytest.fixture
def link(fake_broker: FakeBroker) -> Link:
    """A link whose store is open."""
    store = FakeStore(None, lambda queue: None, fake_broker)
    fake_broker.stores.append(store)
    return Link(store)


@pytest.fixture
def known() -> KnownQueues:
    """What the link remembers."""
    return KnownQueues()


@pytest.fixture
def queues(link: Link, known: KnownQueues) -> StoredQueues:
    """The queues of the store."""
    return StoredQueues(link, known)


def test_what_is_made_is_remembered(
    queues: StoredQueues, known: KnownQueues, fake_broker: FakeBroker, link: Link
) -> None:
    assert queues.make("q", DURABLE) is DURABLE
    assert fake_broker.queues == known.declared == {"q": DURABLE}
    assert queues.make("q", Declaration()) is DURABLE  # somebody was quicker
    assert known.declared == {"q": DURABLE}
    assert link.asked == ["declaring a queue"] * 2


def test_what_is_found_is_remembered_and_what_is_not_there_forgotten(
    queues: StoredQueues, known: KnownQueues, fake_broker: FakeBroker
) -> None:
    assert queues.find("q") is None
    fake_broker.queues["q"] = DURABLE
    assert queues.find("q") is DURABLE
    assert known.declared == {"q": DURABLE}
    del fake_broker.queues["q"]
    assert queues.find("q") is None
    assert known.declared == {}


def test_a_queue_whose_owner_is_gone_is_dropped(
    queues: StoredQueues, known: KnownQueues, fake_broker: FakeBroker, link: Link
) -> None:
    owner = new_owner()
    mine = queues.make("mine", Declaration(owner=owner))
    assert queues.find("mine") is mine
    note_lost(owner)
    assert queues.find("mine") is None
    assert (fake_broker.queues, known.declared) == ({}, {})
    assert link.asked[-1] == "deleting a queue"


def test_a_queue_that_is_remembered_is_not_asked_for(
    queues: StoredQueues, known: KnownQueues, fake_broker: FakeBroker
) -> None:
    assert not queues.is_there("q")
    fake_broker.queues["q"] = DURABLE
    assert queues.is_there("q")
    del fake_broker.queues["q"]  # by somebody else
    assert queues.is_there("q")
    known.forget("q")
    assert not queues.is_there("q")


def test_messages_and_consumers_are_counted(
    queues: StoredQueues, fake_broker: FakeBroker, link: Link
) -> None:
    queues.make("q", DURABLE)
    link.store.put([Entry("q", {"body": b"x"})] * 3)
    link.store.registry.set_consumers("q", "another", 2, False)
    assert queues.counts("q") == (3, 2)
    link.feeds["q"] = Feed(4)
    assert queues.counts("q") == (3, 6)
    assert queues.purge("q") == 3
    assert queues.counts("q") == (0, 6)


def test_a_queue_goes_with_its_bindings(
    queues: StoredQueues, fake_broker: FakeBroker, link: Link
) -> None:
    queues.make("q", DURABLE)
    link.state.declare("x", "direct")
    link.state.bind(Binding("x", "q", "key"))
    link.store.put([Entry("q", {"body": b"x"})])
    assert queues.drop("q") == 1
    assert (fake_broker.queues, list(link.state.exchanges["x"].bindings)) == ({}, [])


def test_what_was_settled_counts_for_the_next_call(queues: StoredQueues, link: Link) -> None:
    queues.settle()
    assert link.caught_up == 1
