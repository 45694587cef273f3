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
    Store,
)
from greenconn.exceptions import RecoverableConnectionError
from tests.tiny_client import TinyClient
from tests.unit.broker.fake_store import FakeBroker, FakeStore

ENTRY = Entry("dead", {"body": b"x"})


@pytest.fixture
def store(fake_broker: FakeBroker) -> FakeStore:
    """A store that is not open."""
    return FakeStore(TinyClient("fake:///port"), lambda queue: None, fake_broker)


@pytest.mark.parametrize("outcome", [None, NoQueue("dead")])
def test_a_request_whose_copies_are_stored_stays(
    store: FakeStore, outcome: Exception | None
) -> None:
    answer = SettleRequest("handle", Settlement.ACK, entries=[ENTRY])
    assert store.unless_refused(answer, [outcome]) is answer


@pytest.mark.parametrize(
    ("outcome", "why"), [(QueueFull("dead"), "the queue is full"), (OSError("no disk"), "no disk")]
)
def test_a_message_whose_copy_is_refused_comes_again_later(
    store: FakeStore, outcome: Exception, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = SettleRequest("handle", Settlement.ACK, entries=[ENTRY, ENTRY])
    with caplog.at_level(logging.ERROR, "greenconn.broker"):
        given = store.unless_refused(answer, [None, outcome])
    assert given == SettleRequest("handle", Settlement.REQUEUE, delay=30.0)
    (record,) = caplog.records
    assert "a dead letter for queue 'dead' could not be stored" in record.getMessage()
    assert f"is tried again in 30 s: {why}" in record.getMessage()


def test_without_leases_it_comes_again_at_once(store: FakeStore) -> None:
    store.lease = None
    answer = SettleRequest("handle", Settlement.ACK, entries=[ENTRY])
    assert store.unless_refused(answer, [QueueFull("dead")]).delay == 0.0


def test_each_entry_has_an_outcome(store: FakeStore) -> None:
    with pytest.raises(ValueError):
        store.unless_refused(SettleRequest("handle", Settlement.ACK, entries=[ENTRY]), [])


def test_by_default_nothing_is_lost_and_no_claim_is_unconfirmed(store: FakeStore) -> None:
    assert list(Store.renew(store, ["handle"])) == []
    assert list(store.unconfirmed_claims()) == []
    store.gone("q")
    store.lost(OSError())
    store.died([Claimed("q", None, "handle")])


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


class SmallStore(FakeStore):
    """A store that leaves all as it is by default."""

    body_encoding = Store.body_encoding  # type: ignore[assignment]
    topology = Store.topology  # type: ignore[assignment]

    def __init__(self) -> None:
        Store.__init__(self, None, lambda queue: None)


def test_limits_that_a_store_has_by_default() -> None:
    store = SmallStore()
    assert (store.lease, store.outlives_link, store.claim_wait) == (30.0, True, 0.0)
    assert (store.claim_limit, store.settle_limit) == (100, 100)
    assert (store.put_limit, store.put_bytes, store.put_calls) == (100, 262_144, 1)
    assert (store.body_encoding, store.claims_each_queue, store.topology) == ("base64", False, None)
    assert store.owner == ""


def test_a_plain_message_and_a_plain_request() -> None:
    assert (ENTRY.priority, ENTRY.delay, ENTRY.lifetime) == (0, 0.0, None)
    claimed = Claimed("q", None, "handle")
    assert (claimed.deliveries, claimed.raw, claimed.dead, claimed.waiting) == (0, b"", None, None)
    answer = SettleRequest("handle", Settlement.ACK)
    assert (answer.delay, answer.entries, answer.is_unseen) == (0.0, (), False)


def test_without_leases_a_refused_copy_is_tried_again_at_once(
    store: FakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.lease = None
    store.log_refusal("dead", QueueFull("dead"))
    assert "is tried again in 0 s: the queue is full" in caplog.text
