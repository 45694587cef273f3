"""The transport over a store: its options, and what its connections share."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from greenconn.broker.leases import Handover
from greenconn.broker.transport import StoreTransport
from greenconn.green.deadline import Deadline
from tests.tiny_client import TinyClient
from tests.unit.broker.fake_store import FakeBroker, FakeTransport


def transport(
    fake_broker: FakeBroker, url: str = "fake://host:1/place", **options: Any
) -> FakeTransport:
    return FakeTransport(TinyClient(url, **options), fake_broker)


def test_options_are_read_once(fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    made = transport(fake_broker, lease=5, unknown=1, another=2, max_retries=3)
    assert made.options.lease == 5
    assert made.options is made.options
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "unknown transport options are ignored: ['another', 'unknown']" in record.getMessage()


def test_common_options_are_not_complained_about(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    made = transport(fake_broker, max_retries=3)
    assert made.options.lease == 30.0
    assert not [each for each in caplog.records if each.levelno == logging.WARNING]
    client: Any = TinyClient("fake://host:1/place")
    client.transport_options = None
    assert FakeTransport(client, fake_broker).options.lease == 30.0


def test_wrong_options_are_refused_before_anything_is_opened(fake_broker: FakeBroker) -> None:
    made = transport(fake_broker, lease=0)
    with pytest.raises(ValueError, match=r"StoreOptions\.lease must be"):
        made.establish_connection()
    assert made.made == []


def test_connections_to_one_place_share_what_is_known(fake_broker: FakeBroker) -> None:
    class Other(FakeTransport):
        pass

    one, same = transport(fake_broker), transport(fake_broker)
    elsewhere = [
        transport(fake_broker, "fake://host:1/other"),
        transport(fake_broker, "fake://host:2/place"),
        transport(fake_broker, "fake://other:1/place"),
        Other(one.client, fake_broker),
    ]
    assert one.place() == "host:1/place"
    assert one.state is same.state
    assert one.registry is same.registry
    for other in elsewhere:
        assert other.state is not one.state
        assert other.registry is not one.registry
    assert one.state.exchanges["amq.topic"].durable


def test_the_lives_of_one_connection_share_what_they_leave(fake_broker: FakeBroker) -> None:
    made = transport(fake_broker)
    assert made.handover is made.handover
    assert isinstance(made.handover, Handover)
    assert transport(fake_broker).handover is not made.handover
    kept = made.handover
    made.client.virtual_host = "other"
    assert made.handover is not kept


def test_both_timeouts_bound_an_opening(fake_broker: FakeBroker) -> None:
    seen: list[float | None] = []
    made = transport(fake_broker)
    made.client.connect_timeout = 3.0

    def open_store(deadline: Deadline) -> None:
        seen.append(deadline.left())

    make = made.make_store

    def make_store(wake: Any) -> Any:
        store = make(wake)
        store.open = open_store  # type: ignore[method-assign]
        return store

    made.make_store = make_store  # type: ignore[method-assign]
    for deadline in (None, Deadline(1.0), Deadline(9.0)):
        made.establish_connection(deadline).close()
    left = [round(each) for each in seen if each is not None]
    assert left == [3, 1, 3]


def test_what_it_says_of_itself(fake_broker: FakeBroker) -> None:
    made = transport(fake_broker)
    assert made.default_connection_params["hostname"] == "localhost"
    assert made.implements.asynchronous
    assert not made.implements.heartbeats
    link = made.establish_connection()
    assert made.qos_semantics_matches_spec(link) is False
    channel = made.create_channel(link)
    assert channel.connection is link
    assert issubclass(FakeTransport, StoreTransport)
    link.close()
