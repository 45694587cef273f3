"""A delivery out of a store: what it says of itself."""

from __future__ import annotations

from typing import Any

from greenconn.broker.delivery import StoreDelivery
from greenconn.broker.port import Claimed
from tests.unit.broker.conftest import Opener
from tests.unit.broker.test_publishing import channel_to


def envelope() -> dict[str, Any]:
    return {
        "body": b"text",
        "content-type": "text/plain",
        "content-encoding": "utf-8",
        "headers": {"own": 1},
        "properties": {"delivery_info": {"exchange": "x", "routing_key": "key"}},
    }


def test_a_first_delivery(connect: Opener) -> None:
    channel = channel_to(connect)
    delivery = StoreDelivery(channel, "t", 1, Claimed("q", envelope(), "handle"))
    assert (delivery.handle, delivery.deliveries, delivery.redelivered) == ("handle", 0, False)
    assert (delivery.body, delivery.headers) == ("text", {"own": 1})
    assert delivery.delivery_info == {
        "delivery_tag": "t",
        "redelivered": False,
        "exchange": "x",
        "routing_key": "key",
    }


def test_it_counts_its_deliveries(connect: Opener) -> None:
    channel, stored = channel_to(connect), envelope()
    delivery = StoreDelivery(channel, "t", 1, Claimed("q", stored, "handle", 2, waiting=0))
    assert (delivery.deliveries, delivery.redelivered) == (2, True)
    assert delivery.headers == {"own": 1, "x-delivery-count": 2}
    assert delivery.delivery_info["message_count"] == 0
    assert stored == envelope()


def test_what_cannot_be_read_is_raw(connect: Opener) -> None:
    channel = channel_to(connect)
    delivery = StoreDelivery(channel, "t", 1, Claimed("q", None, "handle", raw=b"\0"))
    assert delivery.body == b"\0"
    assert delivery.errors


def test_a_message_without_a_body_need_not_be_decompressed(connect: Opener) -> None:
    stored = {**envelope(), "body": None, "headers": {"compression": "application/x-gzip"}}
    delivery = StoreDelivery(channel_to(connect), "t", 1, Claimed("q", stored, "handle"))
    assert (delivery.body, delivery.errors) == (None, [])
