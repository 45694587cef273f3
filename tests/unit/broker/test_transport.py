"""The transport over a store: its options, and what its connections share."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.green.deadline import Deadline
from tests.tiny_client import TinyClient
from tests.unit.broker.fake_store import FakeBroker, FakeTransport


def transport(
    fake_broker: FakeBroker, url: str = "fake://host:1/place", **options: Any
) -> FakeTransport:
    return FakeTransport(TinyClient(url, **options), fake_broker)


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
