"""The methods of the channel over a store: what they do by default, and what they return."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.channel import StoreChannel
from greenconn.broker.entities import SupportedArguments
from greenconn.broker.link import StoreLink
from greenconn.broker.queues import Declaration
from greenconn.exceptions import (
    AccessRefused,
    AMQPNotImplementedError,
    MessageStateError,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from tests.fix_wires import until
from tests.unit.broker.conftest import Opener, refused_elsewhere
from tests.unit.broker.fake_store import FakeBroker, FakeStore
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, publish

Channel = StoreChannel[StoreLink]


class Name(str, Enum):
    """Names as programs hold them."""

    QUEUE = "q"
    EXCHANGE = "x"


@pytest.fixture
def channel(connect: Opener) -> Channel:
    """A channel with the queue ``q``."""
    made = channel_to(connect)
    made.queue_declare("q")
    return made


def anew(channel: Channel) -> Channel:
    """Return another channel of the same connection."""
    return channel.connection.transport.create_channel(channel.connection)


def get(channel: Channel, queue: str = "q") -> Any:
    message = channel.basic_get(queue)
    assert message is not None
    return message


def deaf(message: Any) -> None:
    """Take a message, and do nothing."""


# -- exchanges and queues


def test_an_exchange_as_it_is_by_default(channel: Channel, fake_broker: FakeBroker) -> None:
    channel.exchange_declare("x")
    facts = {"type": "direct", "durable": False, "auto_delete": False, "arguments": {}}
    assert fake_broker.exchanges == {"x": facts}
    channel.queue_bind("q", "x", "key")
    channel.exchange_delete("x")  # although it is used
    assert fake_broker.exchanges == {}


def test_an_exchange_in_use_stays_on_request(channel: Channel, fake_broker: FakeBroker) -> None:
    channel.exchange_declare("x")
    channel.queue_bind("q", "x", "key")
    with pytest.raises(PreconditionFailed):
        channel.exchange_delete("x", if_unused=True)
    assert channel.closed
    assert set(fake_broker.exchanges) == {"x"}


def test_exchanges_that_are_bound(channel: Channel, fake_broker: FakeBroker) -> None:
    channel.exchange_declare("x")
    channel.queue_bind("q", "x", "key")
    channel.exchange_bind("x", "amq.direct", "key")
    message = channel.prepare_message("m")
    channel.basic_publish(message, "amq.direct", "key")
    assert fake_broker.bodies("q") == [b"m"]
    channel.exchange_unbind("x", "amq.direct", "key")
    channel.basic_publish(message, "amq.direct", "key")
    assert fake_broker.bodies("q") == [b"m"]


def test_bindings_are_listed(channel: Channel) -> None:
    channel.exchange_declare("x")
    channel.queue_bind("q", "x", "key")
    assert list(channel.list_bindings()) == [("q", "x", "key")]
    assert channel.get_bindings() == [{"destination": "q", "source": "x", "routing_key": "key"}]
    channel.queue_unbind("q", "x", "key")
    assert channel.get_bindings() == []


def test_a_queue_as_it_is_by_default(channel: Channel, fake_broker: FakeBroker) -> None:
    assert fake_broker.queues == {"q": Declaration()}
    assert tuple(channel.queue_declare("q")) == ("q", 0, 0)


def test_what_is_deleted_is_counted(channel: Channel, fake_broker: FakeBroker) -> None:
    for number in range(3):
        publish(channel, f"{number}")
    assert channel.queue_purge("q") == 3
    publish(channel, "x")
    channel.basic_consume("q", sink=(sink := Sink()))
    sink.wait_for(1)
    publish(channel, "y")
    sink.wait_for(2)
    channel.basic_reject(sink[0].delivery_tag, requeue=True)
    channel.flush_acks()
    channel.queue_delete("q")  # neither empty nor unused
    assert fake_broker.queues == {}
    channel.queue_declare("p")
    publish(channel, "x", "p")
    assert channel.queue_delete("p") == 1


@pytest.mark.parametrize("condition", ["if_unused", "if_empty"])
def test_a_queue_in_use_stays_on_request(
    channel: Channel, fake_broker: FakeBroker, condition: str
) -> None:
    if condition == "if_empty":
        publish(channel, "x")
    else:
        channel.basic_consume("q", sink=Sink())
    with pytest.raises(PreconditionFailed):
        channel.queue_delete("q", **{condition: True})
    assert set(fake_broker.queues) == {"q"}


def test_names_may_be_members_of_an_enum(channel: Channel, fake_broker: FakeBroker) -> None:
    channel.exchange_declare(Name.EXCHANGE)
    channel.queue_bind(Name.QUEUE, Name.EXCHANGE, Name.QUEUE)
    message = channel.prepare_message("m")
    channel.basic_publish(message, Name.EXCHANGE, Name.QUEUE)
    channel.begin_publish(message, Name.EXCHANGE, Name.QUEUE).wait()
    for item in fake_broker.items["q"]:
        info = item.entry.envelope["properties"]["delivery_info"]
        names = [info["exchange"], info["routing_key"]]
        assert [(each, type(each)) for each in names] == [("x", str), ("q", str)]
    first = get(channel, Name.QUEUE)
    assert type(first.delivery_info["routing_key"]) is str
    channel.basic_get(Name.QUEUE, no_ack=True)
    tag = channel.basic_consume(Name.QUEUE, Name.EXCHANGE, sink=Sink())
    assert type(tag) is str
    assert type(channel.consumers["x"].queue) is str
    assert type(channel.basic_cancel(Name.EXCHANGE)) is str
    assert channel.consumers == {}


# -- prefetch


def test_the_prefetch_as_programs_read_it(channel: Channel) -> None:
    assert (channel.qos.prefetch_count, channel.qos.can_consume_max_estimate()) == (0, None)
    channel.basic_qos(prefetch_count=3)
    assert (channel.prefetch.count, channel.prefetch.limit) == (3, 0)
    channel.basic_consume("q", sink=(sink := Sink()))
    publish(channel, "x")
    sink.wait_for(1)
    assert (channel.qos.prefetch_count, channel.qos.can_consume_max_estimate()) == (3, 2)
    channel.basic_qos(prefetch_count=5, apply_global=True)
    assert (channel.prefetch.count, channel.prefetch.limit) == (3, 5)
    channel.basic_qos()
    assert (channel.prefetch.count, channel.prefetch.limit) == (0, 5)


def test_a_prefetch_in_bytes_is_refused(channel: Channel) -> None:
    with pytest.raises(AMQPNotImplementedError) as caught:
        channel.basic_qos(1, 10)
    assert caught.value.method_sig == (60, 10)  # basic.qos
    assert channel.prefetch.count == 0


def test_each_consumer_has_the_prefetch_of_its_start(channel: Channel) -> None:
    channel.basic_qos(0, 2)
    channel.basic_consume("q", sink=(sink := Sink()))
    channel.basic_qos(0, 1)
    for number in range(3):
        publish(channel, f"{number}")
    sink.wait_for(2)
    channel.connection.catch_up()
    assert sink.bodies == ["0", "1"]
    channel.basic_ack(sink[1].delivery_tag)
    sink.wait_for(3)


def test_a_higher_limit_lets_its_consumers_go_on(channel: Channel) -> None:
    channel.basic_qos(0, 1, apply_global=True)
    sinks = [Sink(), Sink()]
    for number in range(3):
        publish(channel, f"{number}")
    for sink in sinks:
        channel.basic_consume("q", sink=sink)
    until(lambda: sum(map(len, sinks)) == 1)
    channel.basic_qos(0, 0, apply_global=True)
    until(lambda: sum(map(len, sinks)) == 3)


def test_deliveries_are_stopped_and_go_on(channel: Channel) -> None:
    assert channel.flow(False) is False
    channel.basic_consume("q", sink=(sink := Sink()))
    publish(channel, "x")
    channel.connection.catch_up()
    assert sink == []
    assert channel.flow() is True
    sink.wait_for(1)


# -- consumers


def test_a_tag_is_used_once(channel: Channel) -> None:
    assert channel.basic_consume("q", "mine", sink=Sink()) == "mine"
    with pytest.raises(ValueError, match="consumer tag 'mine' is in use on this channel"):
        channel.basic_consume("q", "mine", sink=Sink())
    assert channel.is_open
    made = [channel.basic_consume("q", sink=Sink()) for _ in range(2)]
    assert made[0] != made[1]
    assert all(each.startswith("amq.ctag-") for each in made)
    for tag in ("mine", *made):
        assert channel.basic_cancel(tag) == tag
    assert channel.basic_cancel("absent") == "absent"
    assert channel.connection.feeds == {}


def test_messages_that_need_no_ack(channel: Channel, fake_broker: FakeBroker) -> None:
    tag = channel.basic_consume("q", no_ack=True, callback=deaf)
    other = channel.basic_consume("q", callback=deaf)
    assert channel.no_ack_consumers == {tag}
    channel.basic_cancel(other)
    publish(channel, "x")
    channel.connection.drain(10)
    channel.flush_acks()
    assert (fake_broker.bodies("q"), channel.deliveries.unacked) == ([], {})
    channel.close()
    assert channel.no_ack_consumers == set()


def test_a_consumer_that_may_not_start_leaves_nothing(channel: Channel) -> None:
    holder = anew(channel)
    holder.basic_consume("q", exclusive=True, no_ack=True, sink=Sink())
    with pytest.raises(AccessRefused):
        channel.basic_consume("q", no_ack=True, sink=Sink())
    assert (channel.consumers, channel.no_ack_consumers) == ({}, set())
    assert channel.closed
    channel = anew(channel)
    holder.close()
    channel.basic_consume("q", sink=Sink())
    with pytest.raises(AccessRefused):
        anew(channel).basic_consume("q", exclusive=True, sink=Sink())


def test_a_consumer_whose_start_is_interrupted_leaves_nothing(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, may_go = Event(), Event()

    def set_consumers(*args: Any, **options: Any) -> bool:
        asked.set()
        return may_go.wait(30)

    with monkeypatch.context() as patched:
        patched.setattr(channel.connection.store, "set_consumers", set_consumers)
        caller = gevent.spawn(channel.basic_consume, "q", "mine", no_ack=True, sink=Sink())
        assert asked.wait(30)
        caller.kill()
        may_go.set()
    assert (channel.is_open, channel.consumers, channel.no_ack_consumers) == (True, {}, set())
    channel.basic_consume("q", "mine", sink=(sink := Sink()))
    publish(channel, "x")
    sink.wait_for(1)


def test_several_consumers_share_a_queue_by_default(channel: Channel) -> None:
    for each in (channel, anew(channel)):
        each.basic_consume("q", sink=Sink())
    assert channel.queue_declare("q", passive=True).consumer_count == 2


def test_what_nobody_has_seen_goes_back_with_its_consumer(
    channel: Channel, fake_broker: FakeBroker
) -> None:
    seen: list[Any] = []
    tag = channel.basic_consume("q", callback=seen.append)
    for number in range(3):
        publish(channel, f"{number}")
    channel.connection.drain(10)
    until(lambda: len(channel.deliveries.unacked) == 3)
    channel.basic_cancel(tag)
    assert list(channel.deliveries.unacked) == [seen[0].delivery_tag]
    channel.flush_acks()
    assert [bool(item.claim) for item in fake_broker.items["q"]] == [True, False, False]


def test_a_deleted_queue_takes_along_what_nobody_has_seen(channel: Channel) -> None:
    seen: list[Any] = []
    channel.basic_consume("q", callback=seen.append, on_cancel=deaf)
    for number in range(2):
        publish(channel, f"{number}")
    channel.connection.drain(10)
    until(lambda: len(channel.deliveries.unacked) == 2)
    channel.queue_delete("q")
    assert list(channel.deliveries.unacked) == [seen[0].delivery_tag]
    assert channel.prefetch.in_flight == 1


def test_the_log_warns_of_arguments_that_do_nothing(
    channel: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        channel.basic_consume("q", arguments={"x-stream-offset": 1, "x-priority": 2}, sink=Sink())
    (record,) = (each for each in caplog.records if "x-stream-offset" in each.getMessage())
    assert "consumer of queue 'q'" in record.getMessage()
    assert "x-priority" not in record.getMessage()


def test_a_channel_works_as_the_one_before_it(channel: Channel) -> None:
    channel.basic_qos(0, 4)
    channel.basic_qos(0, 6, apply_global=True)
    channel.events["basic_return"].add(deaf)
    successor = anew(channel)
    successor.events["basic_return"].add(print)
    successor.take_over(channel)
    assert (successor.prefetch.count, successor.prefetch.limit) == (4, 6)
    assert successor.events == {"basic_return": {deaf, print}}
    assert channel.events == {"basic_return": {deaf}}


# -- the end


def test_a_refusal_reaches_who_drains(channel: Channel) -> None:
    channel.basic_consume("q", callback=deaf)
    cause = NotFound("gone")
    channel.fail(cause)
    channel.fail(NotFound("again"))
    with pytest.raises(RecoverableChannelError, match=r"channel \d+ is closed \(.*gone") as caught:
        channel.connection.drain(10)
    assert caught.value.__cause__ is cause
    with pytest.raises(TimeoutError):
        channel.connection.drain(0)
    with pytest.raises(RecoverableChannelError, match=r"gone") as caught:
        channel.queue_purge("q")
    assert caught.value.__cause__ is cause


def test_a_refusal_is_passed_to_a_sink_alone(channel: Channel) -> None:
    channel.basic_consume("q", sink=(sink := Sink()))
    cause = NotFound("gone")
    channel.fail(cause)
    assert sink.lost == [cause]
    with pytest.raises(TimeoutError):
        channel.connection.drain(0)


def test_the_child_of_a_fork_forgets_it(channel: Channel, fake_broker: FakeBroker) -> None:
    tag = channel.basic_consume("q", sink=(sink := Sink()))
    consumer = channel.consumers[tag]
    publish(channel, "x")
    sink.wait_for(1)
    link = channel.connection
    feeds = dict(link.feeds)
    channel.forget(cause := RecoverableConnectionError("the parent has it"))
    assert (channel.closed, channel.cause, channel.consumers) == (True, cause, {})
    assert (sink.lost, link.feeds, consumer.has_room()) == ([], feeds, False)
    channel.close()  # does nothing
    assert [bool(item.claim) for item in fake_broker.items["q"]] == [True]


def test_a_closed_channel_leaves_its_deliveries_to_others(channel: Channel) -> None:
    tag = channel.basic_consume("q", sink=(sink := Sink()))
    consumer = channel.consumers[tag]
    publish(channel, "x")
    sink.wait_for(1)
    channel.close()
    assert not consumer.is_active
    assert get(anew(channel)).body == "x"


def test_other_threads_are_refused(channel: Channel) -> None:
    calls: list[Callable[[], object]] = [
        channel.check_hub,
        channel.check_open,
        channel.close,
        channel.flush_acks,
        lambda: channel.queue_declare("q"),
    ]

    assert refused_elsewhere(calls) == [True] * len(calls)
    assert channel.is_open


def test_its_virtual_host_is_the_connections(connect: Opener, unique: str) -> None:
    channel = channel_to(connect)
    assert channel.virtual_host == unique
    channel.connection.client.virtual_host = ""
    assert channel.virtual_host == "/"


def test_what_it_holds_is_counted(channel: Channel) -> None:
    assert channel.unacked_count == 0
    publish(channel, "a")
    message = get(channel)
    assert channel.unacked_count == 1
    message.ack()
    assert channel.unacked_count == 0


def test_a_delay_is_a_header_where_the_store_obeys_it(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"a": 1}
    route = channel.delayed_route("x", "key", 1.5, headers, {})
    assert route == ("x", "key", {"a": 1, "x-delay": 1500})
    assert headers == {"a": 1}
    monkeypatch.setattr(StoreChannel, "supported_arguments", SupportedArguments())
    with pytest.raises(ValueError, match=r"cannot delay messages .*, got 1\.5"):
        channel.delayed_route("x", "key", 1.5, headers, {})


# -- a message in the place of another one


def delayed(channel: Channel, body: str = "new", **headers: Any) -> Any:
    """Return a message that is delayed for long."""
    return channel.prepare_message(body, headers={"x-delay": 600_000, **headers})


@pytest.fixture
def held(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A message that *channel* holds, of a store that can put another one in its place."""
    monkeypatch.setattr(FakeStore, "replaces_at_once", True)
    publish(channel, "old")
    return get(channel)


def test_a_delayed_message_in_the_place_of_a_held_one(
    channel: Channel, fake_broker: FakeBroker, held: Any
) -> None:
    publishes = fake_broker.count("put")
    assert held.replace(delayed(channel), "q")
    with pytest.raises(MessageStateError):
        held.ack()
    channel.flush()
    assert fake_broker.bodies("q") == [b"new"]
    assert fake_broker.count("put") == publishes
    channel.close()
    assert [bool(item.claim) for item in fake_broker.items["q"]] == [False]


def test_it_makes_room_for_the_next_one(channel: Channel, held: Any) -> None:
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume("q", sink=(sink := Sink()))
    publish(channel, "a")
    publish(channel, "b")
    sink.wait_for(1)
    assert sink[0].replace(delayed(channel), "q")
    sink.wait_for(2)


@pytest.mark.parametrize(
    "why", ["no such step", "no delay", "copies", "another queue", "closed", "lost", "settled"]
)
def test_a_message_that_is_not_replaced(
    channel: Channel,
    fake_broker: FakeBroker,
    held: Any,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later, queue = delayed(channel), "q"
    if why == "no such step":
        monkeypatch.setattr(FakeStore, "replaces_at_once", False)
    elif why == "no delay":
        later = channel.prepare_message("new")
    elif why == "copies":
        channel.queue_declare("other")
        later = delayed(channel, CC=["other"])
    elif why == "another queue":
        channel.queue_declare(queue := "other")
    elif why == "closed":
        channel.close()
    elif why == "lost":
        channel.connection.end(ConnectionResetError("cut"))
    else:
        channel.basic_ack(held.delivery_tag)
    assert not held.replace(later, queue)
    assert not held.acknowledged
    if why in ("closed", "lost"):
        return
    channel.flush()
    assert fake_broker.bodies("q") == ([] if why == "settled" else [b"old"])


def test_a_message_that_is_settled_while_it_is_replaced(
    channel: Channel, fake_broker: FakeBroker, held: Any
) -> None:
    """The store is asked for the queue, and meanwhile the channel is closed: the message is back."""
    channel.connection.directory.forget("q")
    later = delayed(channel)

    def close(method: str, argument: Any) -> None:
        if method == "find_queue":
            fake_broker.before = lambda method, argument: None
            channel.close()

    fake_broker.before = close
    with pytest.raises(RecoverableChannelError):
        held.replace(later, "q")
    assert not held.acknowledged
    assert get(anew(channel)).body == "old"
