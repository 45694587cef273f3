"""The publisher of kombu.compat, whose class may name its exchange."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from greenconn.compat import Publisher
from greenconn.entity import Exchange
from tests.unit.fake_channel import FakeChannel, FakeClient


class Feed(Publisher):
    """Named by its class."""

    exchange: Any = "feed"
    exchange_type = "topic"
    routing_key = "news"


class Late(Publisher):
    """Named later than its class."""


@pytest.fixture
def channel() -> FakeChannel:
    """An open channel."""
    return FakeClient().default_channel


def exchanges(channel: FakeChannel) -> list[Any]:
    """The exchange of each publish."""
    return [call.arguments["exchange"] for call in channel.of("basic_publish")]


def test_the_class_has_a_name_and_the_instance_an_exchange(channel: FakeChannel) -> None:
    publisher = Feed(channel)  # type: ignore[arg-type]  # or a channel
    publisher.send({})
    assert Feed.exchange == "feed"
    assert (publisher.exchange.name, publisher.exchange.type) == ("feed", "topic")
    assert publisher.exchange.channel is channel
    [declared] = channel.of("exchange_declare")
    assert (declared.arguments["exchange"], declared.arguments["type"]) == ("feed", "topic")
    assert exchanges(channel) == ["feed"]


def test_another_exchange_than_that_of_the_class(channel: FakeChannel) -> None:
    publisher = Feed(channel, exchange="other")  # type: ignore[arg-type]  # or a channel
    publisher.send({})
    publisher.exchange = Exchange("third")
    publisher.send({})
    publisher.send({}, timeout=20.0)
    assert exchanges(channel) == ["other", "third", "third"]


def test_the_name_of_the_class_may_change(channel: FakeChannel) -> None:
    before = Late(channel)  # type: ignore[arg-type]  # or a channel
    Late.exchange = "late"
    try:
        after = Late(channel)  # type: ignore[arg-type]  # or a channel
        before.send({})
        after.send({})
        after.exchange = Exchange("later")
        after.send({})
    finally:
        del Late.exchange
    assert exchanges(channel) == ["", "late", "later"]


def test_pickling_keeps_the_exchange(channel: FakeChannel) -> None:
    again = pickle.loads(pickle.dumps(Feed(channel)))  # type: ignore[arg-type]  # or a channel
    assert again.exchange.name == "feed"
    again.revive(channel)
    again.send({})
    assert exchanges(channel) == ["feed"]
