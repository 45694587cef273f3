"""Whatever is thrown into a caller, at each of its switches: the link is whole, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest

from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.green.hub import yield_to_hub
from tests.fix_interrupts import interruptions
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker, FakeStore
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, channel_to_q, publish


@pytest.fixture
def fake_broker(fake_broker: FakeBroker) -> FakeBroker:
    """Each call to the store switches, before and after it does anything."""
    fake_broker.before = fake_broker.after = lambda method, argument: yield_to_hub()
    return fake_broker


def settle(channel: StoreChannel[StoreLink], fake_broker: FakeBroker) -> None:
    """Let all that is on its way come to its end."""
    link = channel.connection
    with gevent.Timeout(10):
        while any(
            (
                link.put_batcher.is_busy,
                link._calls,
                link.settlements.is_routing,
                link.settlements.is_busy,
            )
        ):
            yield_to_hub()
    link.catch_up()


def check_whole(channel: StoreChannel[StoreLink], fake_broker: FakeBroker) -> None:
    """The link is open and works, and holds nothing."""
    assert channel.connection.lost is None
    settle(channel, fake_broker)
    assert channel.deliveries.unacked == {}
    other = channel.connection.transport.create_channel(channel.connection)
    other.queue_declare("whole")
    publish(other, "works", "whole")
    message = other.basic_get("whole", no_ack=True)
    assert message is not None
    assert message.body == "works"
    other.close()
    assert channel.is_open


def test_publish(connect: Opener, fake_broker: FakeBroker, kind: type[FakeStore]) -> None:
    channel = channel_to_q(connect, kind)
    published = 0
    for run in interruptions(lambda: publish(channel, "x", mandatory=True)):
        settle(channel, fake_broker)
        count = len(fake_broker.bodies("q"))
        if run.raised is None:
            assert count == published + 1
        else:
            assert run.raised is run.error
            assert count in (published, published + 1)
        published = count
    check_whole(channel, fake_broker)


def test_get_loses_nothing(connect: Opener, fake_broker: FakeBroker, kind: type[FakeStore]) -> None:
    channel = channel_to_q(connect, kind)
    publish(channel, "x")

    def get() -> Any:
        message = channel.basic_get("q")
        assert message is not None
        return message

    for run in interruptions(get):
        if run.raised is None:
            run.result.requeue()
        else:
            assert run.raised is run.error
        settle(channel, fake_broker)
        assert channel.deliveries.unacked == {}
        assert [item.claim for item in fake_broker.items["q"]] == [0]
    check_whole(channel, fake_broker)


@pytest.mark.parametrize(
    "call",
    [
        lambda channel: channel.queue_declare("new", arguments={"x-message-ttl": 5}),
        lambda channel: channel.queue_declare("q", passive=True),
        lambda channel: channel.queue_purge("empty"),
        lambda channel: channel.queue_delete("spare"),
        lambda channel: channel.exchange_declare("x", "topic"),
        lambda channel: channel.queue_bind("q", "bound", "#"),
        lambda channel: channel.queue_unbind("q", "bound", "key"),
        lambda channel: channel.exchange_bind("bound", "amq.topic", "#"),
        lambda channel: channel.exchange_delete("spare"),
    ],
    ids=[
        *("declare", "passive", "purge", "delete", "exchange", "bind", "unbind", "exchange_bind"),
        "exchange_delete",
    ],
)
def test_entities(
    connect: Opener, fake_broker: FakeBroker, call: Callable[[StoreChannel[StoreLink]], Any]
) -> None:
    channel = channel_to(connect)
    for name in ("q", "empty", "spare"):
        channel.queue_declare(name)
    channel.exchange_declare("bound", "direct")
    channel.exchange_declare("spare", "direct")
    channel.queue_bind("q", "bound", "key")
    for run in interruptions(lambda: call(channel)):
        assert run.raised in (None, run.error)
        settle(channel, fake_broker)
    check_whole(channel, fake_broker)
    call(channel)  # to the end


def test_consume_and_cancel(
    connect: Opener, fake_broker: FakeBroker, kind: type[FakeStore]
) -> None:
    channel = channel_to_q(connect, kind)
    for n in range(3):
        publish(channel, str(n))

    def consume() -> None:
        sink = Sink()
        tag = channel.basic_consume("q", sink=sink)
        try:
            sink.wait_for(1)
        finally:
            channel.basic_cancel(tag)

    for run in interruptions(consume):
        assert run.raised in (None, run.error)
        # What a cancelled consumer has is its channel's, as in AMQP.
        channel.basic_recover(requeue=True)
        settle(channel, fake_broker)
        assert channel.consumers == {}
        with gevent.Timeout(10):
            while any(item.claim for item in fake_broker.items["q"]):
                yield_to_hub()
                channel.connection.catch_up()
        assert channel.connection.feeds == {}
        assert channel.connection.store.other_consumers("q") == 0
    check_whole(channel, fake_broker)
    other = channel_to(connect, kind)
    bodies = [message.body for message in iter(lambda: other.basic_get("q", no_ack=True), None)]
    assert bodies == ["0", "1", "2"]


def test_close_of_a_link(connect: Opener, fake_broker: FakeBroker, kind: type[FakeStore]) -> None:
    def use() -> None:
        channel = channel_to(connect, kind)
        channel.queue_declare("q")
        publish(channel, "x")
        message = channel.basic_get("q")
        assert message is not None
        message.ack()
        channel.connection.close()

    for run in interruptions(use, delays=(0, 1)):
        assert run.raised in (None, run.error)
    for store in list(fake_broker.stores):
        # Those whose user was killed before he closed them.
        assert store.is_open
    channel = channel_to(connect, kind)
    fake_broker.expire_leases()
    check_whole(channel, fake_broker)
