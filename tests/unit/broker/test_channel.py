"""The channel over a store: what it hands to its parts, and its end."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.exceptions import (
    AMQPNotImplementedError,
    ContentTooLarge,
    NotFound,
    PublishTimeout,
    RecoverableChannelError,
)
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, channel_to_q, publish


@pytest.fixture
def channel(connect: Opener) -> StoreChannel[StoreLink]:
    """A channel with the queue ``q``."""
    return channel_to_q(connect, max_message_size=1000)


def get(channel: StoreChannel[StoreLink], **options: Any) -> Any:
    message = channel.basic_get("q", **options)
    assert message is not None
    return message


@pytest.mark.parametrize(
    "timeouts",
    [
        {"timeout": 0.01},
        {"confirm_timeout": 0.01},
        {"timeout": 20, "confirm_timeout": 0.01},
        {"timeout": 0.01, "confirm_timeout": 20},
    ],
)
@pytest.mark.parametrize("method", ["basic_publish", "basic_publish_confirm"])
def test_both_timeouts_bound_a_publish(
    channel: StoreChannel[StoreLink],
    fake_broker: FakeBroker,
    method: str,
    timeouts: dict[str, float],
) -> None:
    may_go = fake_broker.hold("put")
    message = channel.prepare_message("x")
    with pytest.raises(PublishTimeout, match=r"within 0\.01 s: it may have the message"):
        getattr(channel, method)(message, "", "q", **timeouts)
    may_go.set()
    channel.basic_publish(message, "", "q", confirm_timeout=20)
    # On a busy machine the first one's time may be up before the store was asked to take it.
    assert fake_broker.bodies("q") in ([b"x"], [b"x", b"x"])


def test_what_cannot_be_published(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    with pytest.raises(AMQPNotImplementedError):
        channel.basic_publish(channel.prepare_message("x"), "", "q", immediate=True)
    publish(channel, "x" * 1000)
    with pytest.raises(ContentTooLarge):
        publish(channel, "x" * 1001)
    assert len(fake_broker.bodies("q")) == 1


def test_what_is_got_while_the_channel_closes_goes_back(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    publish(channel, "x")

    def close(method: str, argument: Any) -> None:
        if method == "claim":
            channel.close()

    fake_broker.after = close
    with pytest.raises(RecoverableChannelError):
        channel.basic_get("q")
    fake_broker.after = lambda method, argument: None
    channel.connection.catch_up()
    assert [(item.claim, item.deliveries) for item in fake_broker.items["q"]] == [(0, 0)]


def test_a_consumer_whose_queue_others_delete(
    channel: StoreChannel[StoreLink], connect: Opener
) -> None:
    sink = Sink()
    channel.basic_consume("q", sink=sink)
    channel_to(connect).queue_delete("q")
    sink.wait_lost()
    assert channel.consumers == {}
    with pytest.raises(NotFound):
        channel.basic_consume("q", sink=sink)
