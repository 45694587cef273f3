"""The channel over a store: what it hands to its parts, and its end."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
from gevent.event import Event

from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.exceptions import (
    AMQPNotImplementedError,
    ConsumerCancelled,
    ContentTooLarge,
    NotFound,
    PreconditionFailed,
    PublishTimeout,
    RecoverableChannelError,
    RecoverableConnectionError,
    Unroutable,
)
from greenconn.green.deadline import NEVER, Deadline
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, publish


@pytest.fixture
def channel(connect: Opener) -> StoreChannel[StoreLink]:
    """A channel with the queue ``q``."""
    made = channel_to(connect, max_message_size=1000)
    made.queue_declare("q")
    return made


def get(channel: StoreChannel[StoreLink], **options: Any) -> Any:
    message = channel.basic_get("q", **options)
    assert message is not None
    return message


def test_a_message_as_it_was_published(channel: StoreChannel[StoreLink]) -> None:
    headers, properties = {"h": 1}, {"correlation_id": "c"}
    message = channel.prepare_message(
        "text", 3, "text/plain", "utf-8", headers=headers, properties=properties
    )
    headers["h"] = 2
    properties.clear()
    channel.basic_publish(message, "", "q")
    got = get(channel)
    assert (got.body, got.headers, got.properties["correlation_id"]) == ("text", {"h": 1}, "c")
    assert (got.content_type, got.content_encoding) == ("text/plain", "utf-8")
    assert got.properties["priority"] == 3
    assert channel.message_to_python(got) is got


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
    may_go = Event()
    fake_broker.before = lambda method, argument: method == "put" and may_go.wait()
    message = channel.prepare_message("x")
    with pytest.raises(PublishTimeout, match=r"within 0\.01 s: it may have the message"):
        getattr(channel, method)(message, "", "q", **timeouts)
    may_go.set()
    channel.basic_publish(message, "", "q", confirm_timeout=20)
    # On a busy machine the first one's time may be up before the store was asked to take it.
    assert fake_broker.bodies("q") in ([b"x"], [b"x", b"x"])


@pytest.mark.parametrize("method", ["basic_publish", "basic_publish_confirm"])
def test_the_option_bounds_a_publish_without_a_time(
    connect: Opener, fake_broker: FakeBroker, method: str
) -> None:
    may_go = Event()
    fake_broker.before = lambda method, argument: method == "put" and may_go.wait()
    channel = channel_to(connect, confirm_timeout=0.01)
    message = channel.prepare_message("x")
    publish = getattr(channel, method)
    with pytest.raises(PublishTimeout, match=r"within 0\.01 s: it may have the message"):
        publish(message, "", "q")
    with pytest.raises(PublishTimeout, match=r"within 0\.02 s"):
        publish(message, "", "q", timeout=0.02)
    with pytest.raises(PublishTimeout, match=r"within 0\.01 s"):
        channel.begin_publish(message, "", "q").wait(NEVER)
    may_go.set()
    publish(message, "", "q", timeout=20)


def test_a_publish_that_is_waited_for_later(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    message = channel.prepare_message("x")
    begun = channel.begin_publish(message, "", "q", deadline=Deadline(10))
    assert fake_broker.bodies("q") == []
    begun.wait(Deadline(10))
    assert fake_broker.bodies("q") == [b"x"]
    with pytest.raises(Unroutable):
        channel.begin_publish(message, "", "absent", mandatory=True).wait()
    channel.begin_publish(message, "", "absent").wait()
    channel.confirm_select()


def test_a_routing_key_may_be_an_enum(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    class Key(str, Enum):
        QUEUE = "q"

    message = channel.prepare_message("x")
    channel.begin_publish(message, "", Key.QUEUE).wait(Deadline(10))
    (item,) = fake_broker.items["q"]
    stored = item.entry.envelope["properties"]["delivery_info"]["routing_key"]
    assert (stored, type(stored)) == ("q", str)
    channel.basic_publish(message, "", Key.QUEUE)
    channel.basic_publish_confirm(message, "", Key.QUEUE)
    assert fake_broker.bodies("q") == [b"x"] * 3


def test_a_mandatory_message_comes_back(channel: StoreChannel[StoreLink]) -> None:
    returned: list[Any] = []
    channel.events["basic_return"].add(lambda *args: returned.append(args))
    channel.basic_publish(channel.prepare_message("x"), "", "absent", mandatory=True)
    channel.connection.drain(10)
    ((exc, exchange, routing_key, _),) = returned
    assert isinstance(exc, Unroutable)
    assert (exchange, routing_key) == ("", "absent")


def test_what_cannot_be_published(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    with pytest.raises(AMQPNotImplementedError):
        channel.basic_publish(channel.prepare_message("x"), "", "q", immediate=True)
    publish(channel, "x" * 1000)
    with pytest.raises(ContentTooLarge):
        publish(channel, "x" * 1001)
    assert len(fake_broker.bodies("q")) == 1


def test_get_with_and_without_ack(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    publish(channel, "0")
    publish(channel, "1")
    assert get(channel, no_ack=True).body == "0"
    channel.connection.catch_up()
    assert fake_broker.bodies("q") == [b"1"]
    message = get(channel)
    assert list(channel.deliveries.unacked) == [message.delivery_tag]
    channel.basic_ack(message.delivery_tag)
    channel.flush(10)
    assert fake_broker.bodies("q") == []


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


def test_settlements(channel: StoreChannel[StoreLink], fake_broker: FakeBroker) -> None:
    for number in range(6):
        publish(channel, f"{number}")
    tags = [get(channel).delivery_tag for _ in range(6)]
    channel.basic_ack(tags[1], multiple=True)
    channel.basic_reject(tags[2])
    channel.basic_reject(tags[3], requeue=True)
    channel.basic_nack(tags[5], multiple=True)
    channel.flush_acks()
    assert [item.claim for item in fake_broker.items["q"]] == [0, 0, 0]
    assert fake_broker.bodies("q") == [b"3", b"4", b"5"]
    channel.basic_nack(get(channel).delivery_tag, requeue=False)
    get(channel)
    channel.basic_recover(requeue=True)
    channel.flush_acks()
    assert fake_broker.bodies("q") == [b"4", b"5"]
    assert not any(item.claim for item in fake_broker.items["q"])
    with pytest.raises(PreconditionFailed):
        channel.basic_ack("unknown")


def test_recover_in_place_is_refused(channel: StoreChannel[StoreLink]) -> None:
    with pytest.raises(AMQPNotImplementedError):
        channel.basic_recover()
    assert channel.is_open


def test_a_limit_of_the_channel_is_divided(channel: StoreChannel[StoreLink]) -> None:
    sinks = [Sink(), Sink()]
    for number in range(10):
        publish(channel, f"{number}")
    channel.basic_qos(0, 3, True)
    for sink in sinks:
        channel.basic_consume("q", sink=sink)
    sinks[0].wait_for(1)
    channel.connection.catch_up()
    assert len(sinks[0]) + len(sinks[1]) == 3
    channel.basic_qos(0, 5, True)
    until(lambda: sum(map(len, sinks)) == 5)
    assert channel.prefetch.in_flight == 5


def test_a_consumer_whose_queue_is_deleted(channel: StoreChannel[StoreLink]) -> None:
    sink = Sink()
    tags: list[str] = []
    channel.basic_consume("q", sink=sink)
    channel.basic_consume("q", callback=lambda message: None, on_cancel=tags.append)
    other = channel.connection.transport.create_channel(channel.connection)
    other.queue_delete("q")
    sink.wait_lost()
    assert isinstance(sink.lost[0], ConsumerCancelled)
    channel.connection.drain(10)
    assert len(tags) == 1
    assert (channel.consumers, channel.is_open) == ({}, True)
    assert channel.connection.feeds == {}


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


def test_a_closed_channel(channel: StoreChannel[StoreLink], fake_broker: FakeBroker) -> None:
    publish(channel, "x")
    get(channel)
    sink = Sink()
    channel.basic_consume("q", sink=sink)
    channel.close()
    channel.close()
    assert isinstance(sink.lost[0], RecoverableChannelError)
    channel.connection.catch_up()
    assert [item.claim for item in fake_broker.items["q"]] == [0]
    for call in (
        lambda: publish(channel, "x"),
        lambda: channel.basic_get("q"),
        lambda: channel.basic_consume("q", sink=sink),
        lambda: channel.basic_ack("tag"),
        channel.confirm_select,
        lambda: channel.flush(1),
    ):
        with pytest.raises(RecoverableChannelError, match="was closed"):
            call()
    channel.flush_acks()
    assert channel.connection.channels == {}
    assert repr(channel).startswith(f"<StoreChannel {channel.channel_id}: closed")


def test_a_channel_whose_link_is_lost(channel: StoreChannel[StoreLink]) -> None:
    channel.connection.end(RecoverableConnectionError("cut"))
    assert (channel.is_open, channel.closed) == (False, True)
    with pytest.raises(RecoverableConnectionError):
        channel.flush()
    with pytest.raises(RecoverableConnectionError):
        publish(channel, "x")
    channel.flush_acks()


def test_refusing_a_consumer_that_has_left_does_nothing(
    channel: StoreChannel[StoreLink],
) -> None:
    tag = channel.basic_consume("q", sink=Sink())
    consumer = channel.consumers[tag]
    channel.basic_cancel(tag)
    channel.refuse(consumer, NotFound("gone"))
    assert channel.is_open
    tag = channel.basic_consume("q", sink=(sink := Sink()))
    error = NotFound("gone")
    channel.refuse(channel.consumers[tag], error)
    assert channel.closed
    assert sink.lost == [error]


def test_by_default_a_message_need_not_arrive(channel: StoreChannel[StoreLink]) -> None:
    message = channel.prepare_message("x")
    returned: list[Any] = []
    channel.events["basic_return"].add(lambda *args: returned.append(args))
    channel.basic_publish(message, "", "absent")
    channel.basic_publish_confirm(message, "", "absent")
    channel.begin_publish(message, "", "absent").wait()
    with pytest.raises(TimeoutError):
        channel.connection.drain(0)
    assert returned == []


def test_by_default_a_consumer_acks(channel: StoreChannel[StoreLink]) -> None:
    channel.basic_publish(channel.prepare_message("x"), "", "q")
    channel.basic_consume("q", callback=lambda message: None, sink=(sink := Sink()))
    sink.wait_for(1)
    assert list(channel.deliveries.unacked) == [sink[0].delivery_tag]


def test_the_consumers_of_a_closed_channel_have_left(channel: StoreChannel[StoreLink]) -> None:
    link = channel.connection
    channel.basic_consume("q", sink=Sink())
    assert list(link.feeds) == ["q"]
    channel.close()
    assert link.feeds == {}
