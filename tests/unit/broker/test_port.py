"""What a store does without having written anything for it."""

from __future__ import annotations

import logging

import pytest

from greenconn.broker.port import (
    Claimed,
    Entry,
    LeaseExpired,
    NoQueue,
    QueueFull,
    Settlement,
    SettleRequest,
)
from greenconn.exceptions import RecoverableConnectionError
from tests.tiny_client import TinyClient
from tests.unit.broker.fake_store import FakeBroker, FakeStore

HELD = Claimed("q", None, "handle")
ENTRY = Entry("dead", {"body": b"x"})


@pytest.fixture
def store(fake_broker: FakeBroker) -> FakeStore:
    """A store that is not open."""
    return FakeStore(TinyClient("fake:///port"), lambda queue: None, fake_broker)


@pytest.mark.parametrize("outcome", [None, NoQueue("dead")])
def test_a_request_whose_copies_are_stored_stays(
    store: FakeStore, outcome: Exception | None
) -> None:
    answer = SettleRequest(HELD, Settlement.ACK, entries=[ENTRY])
    assert store.unless_refused(answer, [outcome]) is answer


@pytest.mark.parametrize(
    ("outcome", "why"), [(QueueFull("dead"), "the queue is full"), (OSError("no disk"), "no disk")]
)
def test_a_message_whose_copy_is_refused_comes_again_later(
    store: FakeStore, outcome: Exception, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = SettleRequest(HELD, Settlement.ACK, entries=[ENTRY, ENTRY])
    with caplog.at_level(logging.ERROR, "greenconn.broker"):
        given = store.unless_refused(answer, [None, outcome])
    assert given == SettleRequest(HELD, Settlement.REQUEUE, delay=30.0)
    (record,) = caplog.records
    assert "a dead letter for queue 'dead' could not be stored" in record.getMessage()
    assert f"is tried again in 30 s: {why}" in record.getMessage()


def test_consumers_are_known_for_the_links_of_this_process(
    store: FakeStore, fake_broker: FakeBroker
) -> None:
    other = FakeStore(store.client, store.wake, fake_broker)
    other.registry = store.registry
    store.owner, other.owner = "one", "other"
    assert store.set_consumers("q", 2)
    assert (store.other_consumers("q"), other.other_consumers("q")) == (0, 2)
    assert not other.set_consumers("q", 1, exclusive=True)
    assert other.set_consumers("q", 1)
    assert (store.other_consumers("q"), other.other_consumers("q")) == (1, 2)


def test_who_was_taken_for_dead_may_begin_anew() -> None:
    error = LeaseExpired()
    assert isinstance(error, RecoverableConnectionError)
    assert "no sign of life for longer than its lease" in str(error)
