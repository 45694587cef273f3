"""What every transport does, at the level of channels."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker import link as transport
from greenconn.exceptions import (
    AccessRefused,
    ConsumerCancelled,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
    ResourceLocked,
    Unroutable,
)
from greenconn.green.deadline import Deadline
from greenconn.green.hub import PerHub
from greenconn.message import Message
from tests.fix_wires import until
from tests.integration.capabilities import Can, needs
from tests.integration.contract import SOON, Side, Store

# -- messages


def test_message_arrives_as_it_was_sent(side: Side) -> None:
    channel, queue = side.open_queue()
    got: list[Message] = []
    channel.basic_consume(queue, "tag", callback=got.append)
    side.send(
        channel,
        "caf\u00e9",
        "",
        queue,
        headers={"n": 1, "table": {"list": [1, "two"]}},
        priority=3,
        correlation_id="cid",
        reply_to="me",
        delivery_mode=1,
    )
    side.drain(channel.connection, lambda: got)
    message = got[0]
    assert message.body == "caf\u00e9"
    assert message.payload == "caf\u00e9"
    assert (message.content_type, message.content_encoding) == ("text/plain", "utf-8")
    assert message.headers == {"n": 1, "table": {"list": [1, "two"]}}
    for name, value in {
        "priority": 3,
        "correlation_id": "cid",
        "reply_to": "me",
        "delivery_mode": 1,
    }.items():
        assert message.properties[name] == value
    assert message.delivery_info == {
        "consumer_tag": "tag",
        "delivery_tag": message.delivery_tag,
        "redelivered": False,
        "exchange": "",
        "routing_key": queue,
    }
    assert channel.message_to_python(message) is message
    message.ack()
    assert message.acknowledged


class Title(str, Enum):
    """Text that ``str()`` and ``format()`` turn into something else."""

    CREATED = "created"
    TEXT = "text/plain"
    UTF_8 = "utf-8"


def test_the_text_of_an_enum_is_what_goes_out(side: Side) -> None:
    channel = side.channel()
    kind: Any = Enum
    name = kind("Named", {"QUEUE": side.name()}, type=str).QUEUE
    queue = side.queue(channel, name)
    assert queue == name.value
    for _ in range(2):
        message = channel.prepare_message(
            "caf\u00e9",
            content_type=Title.TEXT,
            content_encoding=Title.UTF_8,
            headers={Title.CREATED: Title.CREATED, "list": [Title.CREATED]},
            properties={
                "delivery_mode": 1,
                "type": Title.CREATED,
                "correlation_id": Title.CREATED,
                "reply_to": Title.CREATED,
                "message_id": Title.CREATED,
                "app_id": Title.CREATED,
            },
        )
        channel.basic_publish_confirm(message, "", name, True, timeout=SOON)
    got: list[Message] = []

    def has_got() -> bool:
        message = channel.basic_get(name)
        if message is not None:
            got.append(message)
        return bool(got)

    until(has_got)
    channel.basic_consume(name, consumer_tag=Title.CREATED, callback=got.append)
    side.drain(channel.connection, lambda: len(got) == 2)
    channel.basic_cancel(Title.CREATED)
    assert str(got[1].delivery_info["consumer_tag"]) == "created"
    for each in got:
        assert each.payload == "caf\u00e9"
        texts = [
            each.content_type,
            each.content_encoding,
            each.delivery_info["routing_key"],
            *(each.properties[name] for name in ("type", "correlation_id", "reply_to")),
            *(each.properties[name] for name in ("message_id", "app_id")),
        ]
        assert texts[:3] == ["text/plain", "utf-8", queue]
        assert set(texts[3:]) == {"created"}
        assert {type(text) for text in texts} == {str}
        own = {name: value for name, value in each.headers.items() if not name.startswith("x-")}
        assert (own.pop("created"), own.pop("list")) == ("created", ["created"])
        assert all(type(name) is str for name in each.headers)
        each.ack()
    assert channel.queue_purge(name) == 0


@pytest.mark.parametrize(
    ("body", "encoding"),
    [("", "utf-8"), (b"", "binary"), (b"\x00\xff" * 300, "binary"), (b"x" * 300_000, "binary")],
)
def test_bodies_of_all_kinds(side: Side, body: Any, encoding: str) -> None:
    channel, queue = side.open_queue()
    message = channel.prepare_message(body, content_type="data", content_encoding=encoding)
    channel.basic_publish_confirm(message, "", queue)
    assert side.get(channel, queue).body == body


def test_bytes_that_are_text_come_as_text(side: Side) -> None:
    channel, queue = side.open_queue()
    for body in ("caf\u00e9".encode(), b"\xff"):
        channel.basic_publish_confirm(
            channel.prepare_message(body, content_type="text/plain", content_encoding="utf-8"),
            "",
            queue,
        )
    assert side.bodies(channel, queue) == ["caf\u00e9", b"\xff"]


def test_copies_of_a_fan_out_are_apart(side: Side) -> None:
    channel, exchange = side.open_exchange("fanout")
    queues = [side.queue(channel) for _ in range(2)]
    for queue in queues:
        channel.queue_bind(queue, exchange)
    headers = {"deep": {"n": 1}}
    side.send(channel, "x", exchange, "", headers=headers)
    headers["deep"]["n"] = 5
    first = side.get(channel, queues[0])
    first.headers["deep"]["n"] = 2
    first.properties["more"] = True
    second = side.get(channel, queues[1])
    assert second.headers == {"deep": {"n": 1}}
    assert "more" not in second.properties


def test_prepared_message_may_be_published_again(side: Side) -> None:
    channel, queue = side.open_queue()
    message = channel.prepare_message("x", headers={"a": 1})
    for _ in range(2):
        channel.basic_publish_confirm(message, "", queue)
    assert [side.get(channel, queue).headers for _ in range(2)] == [{"a": 1}, {"a": 1}]


def test_get_takes_one_message(side: Side) -> None:
    channel, queue = side.open_queue()
    for body in "abc":
        side.send(channel, body, "", queue)
    message = channel.basic_get(queue)
    assert message.body == "a"
    assert "consumer_tag" not in message.delivery_info
    message.ack()
    assert side.bodies(channel, queue) == ["b", "c"]
    assert channel.basic_get(queue) is None


@needs(Can.COUNT)
def test_get_says_how_many_are_left(side: Side) -> None:
    channel, queue = side.open_queue()
    for body in "abc":
        side.send(channel, body, "", queue)
    for left in (2, 1, 0):
        assert channel.basic_get(queue, no_ack=True).delivery_info["message_count"] == left


def test_no_ack_messages_need_no_ack(side: Side) -> None:
    channel, queue = side.open_queue()
    got: list[Message] = []
    channel.basic_consume(queue, no_ack=True, callback=got.append)
    side.send(channel, "x", "", queue)
    side.drain(channel.connection, lambda: got)
    got[0].ack()  # says nothing
    assert channel.is_open


# -- events


def test_acks_are_on_their_way_when_they_are_flushed(side: Side) -> None:
    channel = side.channel()
    link = channel.connection
    queue = side.queue(channel)
    for body in "abc":
        side.send(channel, body, "", queue)
    taken: list[Message] = []
    channel.basic_consume(queue, callback=taken.append)
    side.drain(link, lambda: len(taken) == 3)
    taken[0].ack(flush=True)
    taken[1].reject(flush=True)
    taken[2].ack(flush=False)
    channel.flush(SOON)
    link.flush(Deadline(SOON))
    assert all(each.acknowledged for each in taken)
    channel.close()
    with pytest.raises((RecoverableChannelError, RecoverableConnectionError)):
        channel.flush(SOON)
    assert side.bodies(side.channel(link), queue) == []
    link.close()
    with pytest.raises(RecoverableConnectionError):
        link.flush(Deadline(SOON))


def test_drain_ends_with_its_timeout(side: Side) -> None:
    link = side.link()
    with pytest.raises(TimeoutError):
        side.transport.drain_events(link, timeout=0.01)
    with pytest.raises(TimeoutError):
        side.transport.drain_events(link, timeout=0)


def test_each_drain_runs_one_event(side: Side) -> None:
    channel, queue = side.open_queue()
    got: list[Any] = []
    channel.basic_consume(queue, callback=lambda message: got.append(message.body))
    for n in range(3):
        side.send(channel, str(n), "", queue)
    for n in range(3):
        side.transport.drain_events(channel.connection, timeout=SOON)
        assert got == [str(each) for each in range(n + 1)]


def test_error_of_a_callback_goes_to_who_drains(side: Side) -> None:
    channel, queue = side.open_queue()

    def fail(message: Message) -> None:
        raise ZeroDivisionError(message.body)

    channel.basic_consume(queue, callback=fail)
    side.send(channel, "x", "", queue)
    with pytest.raises(ZeroDivisionError):
        side.transport.drain_events(channel.connection, timeout=SOON)
    assert channel.is_open


def test_callback_may_use_its_channel(side: Side) -> None:
    channel = side.channel()
    queue, other = side.queue(channel), side.queue(channel)
    channel.basic_qos(0, 1, False)
    got: list[Any] = []

    def work(message: Message) -> None:
        side.send(channel, message.body, "", other)
        side.queue(channel)
        got.append(side.get(channel, other).body)
        message.ack()

    channel.basic_consume(queue, callback=work)
    for n in range(5):
        side.send(channel, str(n), "", queue)
    side.drain(channel.connection, lambda: len(got) == 5)
    assert got == ["0", "1", "2", "3", "4"]


def test_several_greenlets_drain_one_link(side: Side) -> None:
    channel, queue = side.open_queue()
    got: list[Any] = []
    channel.basic_consume(queue, callback=lambda message: got.append(message.body))
    drainers = [
        gevent.spawn(side.transport.drain_events, channel.connection, timeout=SOON)
        for _ in range(3)
    ]
    drainers[0].join(0.01)
    drainers[0].kill()
    for n in range(2):
        side.send(channel, str(n), "", queue)
    gevent.joinall(drainers, raise_error=True)
    assert got == ["0", "1"]


def test_sink_takes_what_drain_never_sees(side: Side) -> None:
    channel, queue = side.open_queue()
    store = Store()
    channel.basic_consume(queue, "tag", sink=store)
    for n in range(3):
        side.send(channel, str(n), "", queue)
    until(lambda: len(store) == 3)
    with pytest.raises(TimeoutError):
        side.transport.drain_events(channel.connection, timeout=0.05)
    assert [store.take().body for _ in range(3)] == ["0", "1", "2"]
    channel.basic_cancel("tag")
    assert store.lost == []


# -- answers


def test_unacked_messages_are_requeued_in_order_when_the_channel_closes(side: Side) -> None:
    link = side.link()
    keeper, channel = side.channel(link), side.channel(link)
    queue = side.queue(keeper)
    for n in range(5):
        side.send(keeper, str(n), "", queue)
    got: list[Message] = []
    channel.basic_consume(queue, callback=got.append)
    # All of them: RabbitMQ 3.10 requeues a moment after close-ok, behind one that it had not sent yet.
    side.drain(link, lambda: len(got) == 5)
    got[1].ack()
    channel.close()
    channel.close()
    assert not channel.is_open
    again = [side.get(keeper, queue) for _ in range(4)]
    assert [each.body for each in again] == ["0", "2", "3", "4"]
    assert all(each.delivery_info["redelivered"] for each in again)


def test_unacked_messages_are_requeued_when_the_link_closes(side: Side) -> None:
    channel, keeper = side.channel(), side.channel()
    queue = side.queue(keeper)
    side.send(keeper, "x", "", queue)
    assert channel.basic_get(queue) is not None
    channel.connection.close()
    assert not channel.connection.is_open
    with pytest.raises(RecoverableConnectionError):
        channel.basic_get(queue)
    with pytest.raises(RecoverableConnectionError):
        side.transport.create_channel(channel.connection)
    again: list[Message] = []
    keeper.basic_consume(queue, callback=again.append)
    side.drain(keeper.connection, lambda: again)
    assert again[0].delivery_info["redelivered"]


def test_requeue_returns_to_the_place(side: Side) -> None:
    channel, queue = side.open_queue()
    for n in range(4):
        side.send(channel, str(n), "", queue)
    messages = [channel.basic_get(queue) for _ in range(3)]
    for n in (1, 0, 2):
        messages[n].requeue()
    assert side.bodies(channel, queue) == ["0", "1", "2", "3"]


def test_rejected_message_is_gone(side: Side) -> None:
    channel, queue = side.open_queue()
    side.send(channel, "x", "", queue)
    channel.basic_get(queue).reject()
    assert side.bodies(channel, queue) == []


def test_ack_of_many(side: Side) -> None:
    link = side.link()
    channel, keeper = side.channel(link), side.channel(link)
    queue = side.queue(keeper)
    for n in range(5):
        side.send(keeper, str(n), "", queue)
    got: list[Message] = []
    channel.basic_consume(queue, callback=got.append)
    side.drain(link, lambda: len(got) == 5)
    got[2].ack(multiple=True)
    channel.close()
    assert [side.get(keeper, queue).body for _ in range(2)] == ["3", "4"]
    assert side.bodies(keeper, queue) == []


def test_what_was_taken_without_acks_does_not_come_again(side: Side) -> None:
    """Also where it is taken only after its consumer was cancelled."""
    link = side.link()
    keeper, channel = side.channel(link), side.channel(link)
    queue = side.queue(keeper)
    for n in range(3):
        side.send(keeper, str(n), "", queue)
    store = Store()
    channel.basic_consume(queue, consumer_tag="tag", no_ack=True, sink=store)
    until(lambda: len(store) == 3)
    store.take()
    channel.basic_cancel("tag")
    assert [store.take().body, store.take().body] == ["1", "2"]
    channel.close()
    assert side.bodies(keeper, queue) == []


def test_second_settlement_is_refused(side: Side) -> None:
    channel, queue = side.open_queue()
    side.send(channel, "x", "", queue)
    message = channel.basic_get(queue)
    message.ack()
    with pytest.raises(message.MessageStateError):
        message.ack()
    with pytest.raises(PreconditionFailed):
        channel.basic_ack(message.delivery_tag)


def test_ack_after_the_link_is_gone_does_nothing(side: Side) -> None:
    channel, keeper = side.channel(), side.channel()
    queue = side.queue(keeper)
    side.send(keeper, "x", "", queue)
    message = channel.basic_get(queue)
    channel.connection.close()
    message.ack()
    with pytest.raises(RecoverableChannelError):
        keeper.close()
        keeper.basic_ack(1)


def test_recover_delivers_again(side: Side) -> None:
    channel, queue = side.open_queue()
    for n in range(2):
        side.send(channel, str(n), "", queue)
    got: list[Message] = []
    channel.basic_consume(queue, callback=got.append)
    side.drain(channel.connection, lambda: len(got) == 2)
    channel.basic_recover(requeue=True)
    side.drain(channel.connection, lambda: len(got) == 4)
    assert [each.body for each in got] == ["0", "1", "0", "1"]
    assert [each.delivery_info["redelivered"] for each in got] == [False, False, True, True]
    for message in got[2:]:
        message.ack()


def cancelled(channel: Any, queue: str) -> None:
    channel.basic_cancel("tag")
    channel.flush_acks()


def channel_closed(channel: Any, queue: str) -> None:
    channel.close()


def link_closed(channel: Any, queue: str) -> None:
    channel.connection.close()


def recovered(channel: Any, queue: str) -> None:
    """As it comes again to the same consumer, it is put back once more."""
    channel.basic_recover(requeue=True)
    channel.basic_cancel("tag")
    channel.connection.close()


@needs(Can.UNCOUNTED)
@pytest.mark.parametrize("leave", [cancelled, channel_closed, link_closed, recovered])
@pytest.mark.parametrize("has_sink", [False, True])
def test_what_no_handler_had_is_redelivered_and_does_not_count(
    side: Side, has_sink: bool, leave: Callable[[Any, str], None]
) -> None:
    keeper = side.channel()
    queue = side.queue(keeper, arguments={"x-delivery-limit": 2})
    side.send(keeper, "x", "", queue)
    for _ in range(3):
        channel, sink = side.channel(), Store()
        if has_sink:
            channel.basic_consume(queue, "tag", sink=sink)
            until(partial(len, sink))
            if leave in (cancelled, recovered):
                sink.requeue_unseen()
                sink.clear()
        else:
            channel.basic_consume(queue, "tag", callback=print)
            until(partial(len, channel.connection.events))
        leave(channel, queue)
    for count in (None, 1):
        until(lambda: keeper.queue_declare(queue, passive=True).message_count == 1)
        message = keeper.basic_get(queue)
        assert (message.body, message.headers.get("x-delivery-count")) == ("x", count)
        assert message.delivery_info["redelivered"]
        copy = keeper.prepare_message(message.body, properties=message.properties)
        message.requeue()  # a handler has had it
    assert keeper.basic_get(queue) is None
    keeper.basic_publish_confirm(copy, "", queue)
    assert not side.get(keeper, queue).delivery_info["redelivered"]


# -- prefetch


def test_prefetch_bounds_each_consumer(side: Side) -> None:
    channel, queue = side.open_queue()
    for n in range(10):
        side.send(channel, str(n), "", queue)
    channel.basic_qos(0, 2, False)
    stores = [Store(), Store()]
    got: list[Message] = []
    for store in stores:
        channel.basic_consume(queue, sink=store)
    channel.basic_qos(0, 0, False)  # for those that are started from now on
    until(lambda: [len(each) for each in stores] == [2, 2])
    side.drain_all(channel.connection, 0.2)
    assert [len(each) for each in stores] == [2, 2]
    stores[0].take().ack()
    until(lambda: [len(each) for each in stores] == [2, 2])
    side.drain_all(channel.connection, 0.2)
    assert [len(each) for each in stores] == [2, 2]
    channel.basic_consume(queue, callback=got.append)
    side.drain(channel.connection, lambda: len(got) == 5)


def test_global_prefetch_bounds_the_channel(side: Side) -> None:
    channel = side.channel()
    if side.is_rabbitmq(4, 3):
        pytest.skip("RabbitMQ 4.3 takes it for a prefetch of each consumer")
    queues = [side.queue(channel), side.queue(channel)]
    channel.basic_qos(0, 3, True)
    got: list[Message] = []
    for queue in queues:
        channel.basic_consume(queue, callback=got.append)
    keeper = side.channel(channel.connection)
    for n in range(8):
        side.send(keeper, str(n), "", queues[n % 2])
    side.drain(channel.connection, lambda: len(got) >= 3)
    side.drain_all(channel.connection, 0.2)
    assert len(got) == 3
    for answered in range(1, 9):
        got[answered - 1].ack()
        expected = min(answered + 3, 8)
        side.drain(channel.connection, lambda expected=expected: len(got) == expected)  # type: ignore[misc]
    assert sorted(each.body for each in got) == [str(n) for n in range(8)]


@pytest.mark.parametrize("count", [-1, 1.5, "5", None, True])
def test_a_prefetch_that_is_no_number_of_messages_is_refused(side: Side, count: Any) -> None:
    channel = side.channel()
    with pytest.raises(ValueError, match=f"prefetch_count must be an integer, .*got {count!r}"):
        channel.basic_qos(0, count, False)
    assert channel.basic_get(side.queue(channel)) is None


@pytest.mark.parametrize("name", ["exchange", "routing_key"])
def test_a_name_that_is_no_text_is_refused(side: Side, name: str) -> None:
    channel = side.channel()
    names: dict[str, Any] = {"exchange": "", "routing_key": side.queue(channel), name: 5}
    with pytest.raises(TypeError, match=f"{name} must be text, got 5"):
        channel.basic_publish(channel.prepare_message("x", properties={}), **names)
    assert channel.basic_get(side.queue(channel)) is None


@pytest.mark.parametrize("limit", [1, 2])
def test_queues_share_the_limit_of_a_channel(side: Side, limit: int) -> None:
    count = 30
    keeper = side.channel()
    queues = [side.queue(keeper) for _ in range(3)]
    for queue in queues:
        for n in range(count):
            side.send(keeper, str(n), "", queue)
    channel = side.channel(keeper.connection)
    channel.basic_qos(0, limit, True)
    got: list[str] = []

    def take(queue: str, message: Message) -> None:
        got.append(queue)
        message.ack()

    for queue in queues:
        channel.basic_consume(queue, callback=partial(take, queue))
    side.drain(channel.connection, lambda: len(got) >= count)
    assert set(got[:count]) == set(queues)  # none is empty yet; RabbitMQ chooses at random


def test_consumers_of_a_queue_take_turns(side: Side) -> None:
    link = side.link()
    keeper = side.channel(link)
    queue = side.queue(keeper)
    got: list[int] = []
    for number in range(3):
        channel = side.channel(link)
        channel.basic_consume(
            queue, no_ack=True, callback=lambda message, number=number: got.append(number)
        )
    for n in range(9):
        side.send(keeper, str(n), "", queue)
    side.drain(link, lambda: len(got) == 9)
    assert sorted(got) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_consumer_of_higher_priority_comes_first(side: Side) -> None:
    channel, queue = side.open_queue()
    low, high = Store(), Store()
    channel.basic_qos(0, 2, False)
    channel.basic_consume(queue, sink=low)
    channel.basic_consume(queue, arguments={"x-priority": 5}, sink=high)
    for n in range(3):
        side.send(channel, str(n), "", queue)
    until(lambda: len(high) + len(low) == 3)
    assert [each.body for each in high] == ["0", "1"]
    assert [each.body for each in low] == ["2"]


# -- refusals


def assert_closed(side: Side, channel: Any) -> None:
    """The channel is closed, and only the channel."""
    assert not channel.is_open
    assert channel.connection.is_open
    with pytest.raises(RecoverableChannelError) as caught:
        channel.basic_get("any")
    assert caught.value.__cause__ is not None
    assert side.transport.create_channel(channel.connection).is_open


ASKING: dict[str, Callable[[Any, str], Any]] = {
    "declare": lambda channel, name: channel.queue_declare(name, passive=True),
    "get": lambda channel, name: channel.basic_get(name),
    "consume": lambda channel, name: channel.basic_consume(name, callback=print),
    "purge": lambda channel, name: channel.queue_purge(name),
    "bind": lambda channel, name: channel.queue_bind(name, "amq.direct", "key"),
}


def test_queue_that_is_not_there(side: Side) -> None:
    for ask in ASKING.values():
        channel = side.channel()
        with pytest.raises(NotFound) as caught:
            ask(channel, side.name("absent"))
        assert caught.value.reply_code == 404
        assert caught.value.method_sig[0] in (50, 60)
        assert_closed(side, channel)


def test_exchange_that_is_not_there(side: Side) -> None:
    channel = side.channel()
    with pytest.raises(NotFound):
        channel.exchange_declare(side.name("absent"), "direct", passive=True)
    assert_closed(side, channel)
    channel, queue = side.open_queue()
    with pytest.raises(NotFound):
        channel.queue_bind(queue, side.name("absent"), "key")
    channel = side.channel()
    with pytest.raises(NotFound):
        side.send(channel, "x", side.name("absent"), "key")
    assert_closed(side, channel)


def test_plain_publish_to_no_exchange_closes_the_channel(side: Side) -> None:
    channel = side.channel()
    with pytest.raises((NotFound, RecoverableChannelError)):
        # Without confirms the broker's answer comes when it comes.
        channel.basic_publish(channel.prepare_message("x"), side.name("absent"), "key")
        side.queue(channel)
    assert_closed(side, channel)


def test_consumers_learn_that_their_channel_is_closed(side: Side) -> None:
    channel, queue = side.open_queue()
    store = Store()
    channel.basic_consume(queue, sink=store)
    channel.basic_consume(queue, callback=print)
    with pytest.raises(NotFound):
        channel.queue_declare(side.name("absent"), passive=True)
    assert [type(each) for each in store.lost] == [NotFound]
    with pytest.raises(RecoverableChannelError) as caught:
        side.transport.drain_events(channel.connection, timeout=SOON)
    assert isinstance(caught.value.__cause__, NotFound)


@pytest.mark.parametrize("no_ack", [False, True])
def test_consumers_learn_that_the_program_has_closed_their_channel(
    side: Side, no_ack: bool
) -> None:
    channel, queue = side.open_queue()
    store, ended = Store(), Store()
    channel.basic_consume(queue, no_ack=no_ack, sink=store)
    channel.basic_cancel(channel.basic_consume(queue, no_ack=no_ack, sink=ended))
    channel.close()
    assert [type(each) for each in store.lost] == [RecoverableChannelError]
    assert not ended.lost


@pytest.mark.parametrize("nowait", [False, True])
def test_a_consumer_without_acks_loses_nothing_when_it_is_cancelled(
    side: Side, nowait: bool
) -> None:
    channel, queue = side.open_queue()
    for number in range(20):
        side.send(channel, str(number), "", queue)
    handled: list[str] = []

    def cancel_after_three(message: Message) -> None:
        handled.append(str(message.body))
        if len(handled) == 3:
            channel.basic_cancel("tag", nowait=nowait)

    channel.basic_consume(queue, consumer_tag="tag", no_ack=True, callback=cancel_after_three)
    side.drain(channel.connection, lambda: len(handled) >= 3)
    side.drain_all(channel.connection)
    rest = [str(each) for each in side.bodies(side.channel(), queue)]
    assert handled[:3] == ["0", "1", "2"]
    assert sorted(handled + rest, key=int) == [str(number) for number in range(20)]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"durable": True}, "durable"),
        ({"auto_delete": True}, "auto_delete"),
        ({"arguments": {"x-message-ttl": 5}}, "x-message-ttl"),
        ({"arguments": {"x-max-length": 5}}, "x-max-length"),
    ],
)
def test_queue_cannot_be_declared_otherwise(side: Side, change: Any, what: str) -> None:
    channel, queue = side.open_queue()
    assert side.queue(channel, queue) == queue
    with pytest.raises(PreconditionFailed, match=what) as caught:
        side.queue(channel, queue, **change)
    assert caught.value.reply_code == 406
    assert_closed(side, channel)


@pytest.mark.parametrize(
    ("change", "what"), [({"type": "topic"}, "type"), ({"durable": True}, "durable")]
)
def test_exchange_cannot_be_declared_otherwise(side: Side, change: Any, what: str) -> None:
    channel, exchange = side.open_exchange("direct")
    declaration = {"type": "direct", "durable": False, "auto_delete": False}
    channel.exchange_declare(exchange, **declaration)
    with pytest.raises(PreconditionFailed, match=what):
        channel.exchange_declare(exchange, **{**declaration, **change})
    assert_closed(side, channel)


def test_arguments_that_cannot_be(side: Side) -> None:
    for arguments in ({"x-message-ttl": -1}, {"x-expires": 0}, {"x-max-length": "many"}):
        channel = side.channel()
        with pytest.raises(PreconditionFailed, match=min(arguments)):
            side.queue(channel, arguments=arguments)


def test_reserved_names(side: Side) -> None:
    channel = side.channel()
    with pytest.raises(AccessRefused):
        side.queue(channel, f"amq.{side.prefix}")
    assert_closed(side, channel)
    with pytest.raises(AccessRefused):
        side.channel().exchange_declare(f"amq.{side.prefix}", "direct")
    with pytest.raises(AccessRefused):
        side.channel().exchange_delete("amq.direct")
    channel, queue = side.open_queue()
    with pytest.raises(AccessRefused):
        channel.queue_bind(queue, "", "key")
    side.channel().exchange_declare("amq.topic", "topic", durable=True, auto_delete=False)


def test_exclusive_queue_is_for_its_link(side: Side) -> None:
    channel, other = side.channel(), side.channel()
    queue = side.queue(channel, exclusive=True)
    assert side.channel(channel.connection).queue_declare(queue, passive=True).queue == queue
    with pytest.raises(ResourceLocked) as caught:
        other.queue_declare(queue, passive=True)
    assert caught.value.reply_code == 405
    assert_closed(side, other)
    side.send(side.channel(), "x", "", queue)
    for method in ("basic_get", "queue_purge"):
        with pytest.raises(ResourceLocked):
            getattr(side.channel(), method)(queue)
    assert side.get(channel, queue).body == "x"
    channel.connection.close()
    with pytest.raises(NotFound):
        side.channel().queue_declare(queue, passive=True)


def test_exclusive_consumer_stays_alone(side: Side) -> None:
    channel, queue = side.open_queue()
    channel.basic_consume(queue, "first", exclusive=True, callback=print)
    other = side.channel()
    with pytest.raises(AccessRefused):
        other.basic_consume(queue, callback=print)
    channel.basic_cancel("first")
    channel.basic_consume(queue, "second", callback=print)
    with pytest.raises(AccessRefused):
        side.channel().basic_consume(queue, exclusive=True, callback=print)


@needs(Can.CROWD)
def test_consumers_of_other_processes_count(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    channel, queue = side.open_queue()
    channel.basic_consume(queue, exclusive=True, callback=print)
    # Another process knows nothing of what this one remembers.
    monkeypatch.setattr(transport, "_shared", PerHub(dict))
    assert side.channel().queue_declare(queue, passive=True).consumer_count == 1
    with pytest.raises(AccessRefused):
        side.channel().basic_consume(queue, callback=print)


def test_consumer_tag_is_used_once(side: Side) -> None:
    channel, queue = side.open_queue()
    assert channel.basic_consume(queue, "tag", callback=print) == "tag"
    with pytest.raises(ValueError, match="tag"):
        channel.basic_consume(queue, "tag", callback=print)
    chosen = {channel.basic_consume(queue, callback=print) for _ in range(3)}
    assert len(chosen) == 3
    assert channel.is_open


# -- queues


def test_server_named_queue(side: Side) -> None:
    channel, queue = side.open_queue("", exclusive=True)
    assert queue.startswith("amq.gen-")
    # An empty name means the queue that this channel declared last.
    channel.queue_bind("", "amq.topic", f"{side.prefix}.#")
    side.send(channel, "x", "amq.topic", side.prefix)
    assert side.get(channel, "").body == "x"


def test_purge_and_delete_count(side: Side) -> None:
    channel, queue = side.open_queue()
    for _ in range(3):
        side.send(channel, "x", "", queue)
    assert channel.queue_declare(queue, passive=True).message_count == 3
    assert channel.queue_purge(queue) == 3
    side.send(channel, "x", "", queue)
    assert channel.queue_delete(queue) == 1
    assert channel.queue_delete(queue) == 0


def test_delete_only_if(side: Side) -> None:
    channel, queue = side.open_queue()
    side.send(channel, "x", "", queue)
    with pytest.raises(PreconditionFailed):
        side.channel().queue_delete(queue, if_empty=True)
    channel.basic_consume(queue, "tag", callback=print)
    with pytest.raises(PreconditionFailed):
        side.channel().queue_delete(queue, if_unused=True)
    exchange = side.exchange(channel, "direct")
    channel.queue_bind(queue, exchange, "key")
    with pytest.raises(PreconditionFailed):
        side.channel().exchange_delete(exchange, if_unused=True)
    channel.queue_unbind(queue, exchange, "key")
    channel.queue_unbind(queue, exchange, "key")
    channel.exchange_delete(exchange, if_unused=True)
    channel.exchange_delete(exchange)
    channel.exchange_declare(exchange, "topic", auto_delete=False)


def test_auto_delete_queue_goes_with_its_last_consumer(side: Side) -> None:
    channel, queue = side.open_queue(auto_delete=True)
    for tag in ("one", "two"):
        channel.basic_consume(queue, tag, callback=print)
    channel.basic_cancel("one")
    channel.queue_declare(queue, passive=True)
    channel.basic_cancel("two")
    channel.basic_cancel("two")
    with pytest.raises(NotFound):
        channel.queue_declare(queue, passive=True)


def test_auto_delete_exchange_goes_with_its_last_binding(side: Side) -> None:
    channel, exchange = side.open_exchange("direct", auto_delete=True)
    queue = side.queue(channel)
    channel.queue_bind(queue, exchange, "key")
    channel.queue_delete(queue)
    with pytest.raises(NotFound):
        channel.exchange_declare(exchange, "direct", passive=True)


def test_auto_delete_queue_that_is_wanted_again_at_once_has_its_new_binding(side: Side) -> None:
    """What goes with the old one leaves the new one alone, and the exchange that is declared with it."""
    if side.kind == "beanstalk":
        pytest.skip("a tube that a link still waits for counts as a queue, declared in no way")
    channel = side.channel()
    if side.is_rabbitmq(4):
        pytest.skip("RabbitMQ 4 deletes the exchange some time after it has answered the cancel")
    exchange = side.exchange(channel, "direct", auto_delete=True)
    queue = side.queue(channel, auto_delete=True)
    for number in range(5):
        channel.exchange_declare(exchange, "direct", auto_delete=True)
        channel.queue_declare(queue, auto_delete=True)
        channel.queue_bind(queue, exchange, "key")
        got: list[Any] = []
        tag = channel.basic_consume(queue, no_ack=True, callback=got.append)
        side.send(channel, str(number), exchange, "key", mandatory=True)
        side.drain(channel.connection, lambda got=got: got)  # type: ignore[misc]
        assert [letter.body for letter in got] == [str(number)]
        channel.basic_cancel(tag)


def test_deleted_queue_cancels_its_consumers(side: Side) -> None:
    link = side.link()
    channel, keeper = side.channel(link), side.channel(link)
    queue = side.queue(channel)
    store = Store()
    notified: list[str] = []
    channel.basic_consume(queue, "a", callback=print, on_cancel=notified.append)
    channel.basic_consume(queue, "b", sink=store)
    keeper.queue_delete(queue)
    side.drain(link, lambda: notified)
    assert notified == ["a"]
    while not store.lost:
        with pytest.raises(TimeoutError):
            side.transport.drain_events(link, timeout=0.05)
    assert isinstance(store.lost[0], ConsumerCancelled)
    queue = side.queue(channel)
    channel.basic_consume(queue, "c", callback=print)
    keeper.queue_delete(queue)
    with pytest.raises(ConsumerCancelled, match="c"):
        side.transport.drain_events(link, timeout=SOON)
    assert channel.is_open


@needs(Can.SHARED)
@pytest.mark.sampled(4)  # some notice it by the next renewal of their leases
def test_queue_deleted_over_another_link_cancels_its_consumers(side: Side) -> None:
    link, other = side.link(), side.link()
    channel = side.channel(link)
    queue = side.queue(channel)
    notified: list[str] = []
    channel.basic_consume(queue, "a", callback=print, on_cancel=notified.append)
    side.channel(other).queue_delete(queue)
    side.drain(link, lambda: notified)
    assert notified == ["a"]


# -- confirms and returns


def test_mandatory_message_without_a_queue(side: Side) -> None:
    channel = side.channel()
    with pytest.raises(Unroutable) as caught:
        side.send(channel, "x", "amq.direct", side.name("nowhere"), mandatory=True)
    assert caught.value.reply_code == 312
    assert caught.value.exchange == "amq.direct"
    side.send(channel, "x", "amq.direct", side.name("nowhere"))
    queue = side.queue(channel)
    side.send(channel, "x", "", queue, mandatory=True)


def test_returned_message_becomes_an_event(side: Side) -> None:
    channel = side.channel()
    returned: list[tuple[Any, ...]] = []
    channel.events["basic_return"].add(lambda *args: returned.append(args))
    key = side.name("nowhere")
    message = channel.prepare_message("body", content_type="text/plain", headers={"a": 1})
    channel.basic_publish(message, "amq.direct", key, mandatory=True)
    side.drain(channel.connection, lambda: returned)
    exc, exchange, routing_key, back = returned[0]
    assert exc.reply_code == 312
    assert isinstance(exc, side.transport.channel_errors)
    assert (exchange, routing_key) == ("amq.direct", key)
    assert (back.payload, back.headers) == ("body", {"a": 1})
    assert channel.is_open


def test_many_greenlets_publish_on_one_channel(side: Side) -> None:
    channel, queue = side.open_queue()
    ready = Event()

    def publish(n: int) -> None:
        ready.wait()
        side.send(channel, str(n), "", queue)

    greenlets = [gevent.spawn(publish, n) for n in range(50)]
    ready.set()
    gevent.joinall(greenlets, raise_error=True)
    assert sorted(map(int, side.bodies(channel, queue))) == list(range(50))


def test_killed_publishers_affect_nobody_else(side: Side) -> None:
    channel, queue = side.open_queue()
    kept: list[int] = []
    # Killed before they begin, while they are on their way, and when they are done.
    for turn, delay in enumerate((0.0, 0.0005, 0.001, 0.002, 0.004)):
        sent = range(turn * 20, turn * 20 + 20)
        greenlets = [gevent.spawn(side.send, channel, str(n), "", queue) for n in sent]
        if delay:
            gevent.sleep(delay)
        for greenlet in greenlets[::2]:
            greenlet.kill(block=False)
        gevent.joinall(greenlets)
        for greenlet in greenlets[1::2]:
            greenlet.get()
        kept += sent[1::2]
    bodies = [int(each) for each in side.bodies(channel, queue)]
    assert set(kept) <= set(bodies)
    assert len(bodies) == len(set(bodies))
