"""Simple queues, on a scripted channel and on the memory broker."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import (
    ConsumerCancelled,
    DecodeError,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.messaging import Consumer, Producer
from greenconn.simple import SimpleBase, SimpleBuffer, SimpleQueue
from greenconn.transport import memory
from tests.fix_wires import until
from tests.unit.fake_channel import FakeChannel, FakeClient, outcome


@pytest.fixture
def connection() -> Iterator[Connection]:
    virtual_host = uuid.uuid4().hex
    with Connection(f"memory://localhost/{virtual_host}") as made:
        yield made
    memory.reset(virtual_host)


def assert_empty(simple: SimpleBase, timeout: float = 0.01) -> None:
    with pytest.raises(simple.Empty):
        simple.get(timeout=timeout)


# What is asked of the channel


def test_a_simple_queue_declares_its_queue_and_exchange(client: FakeClient) -> None:
    simple = SimpleQueue(
        client,
        "q",
        queue_opts={"max_length": 3},
        queue_args={"x-a": 1},
        exchange_opts={"delivery_mode": 1},
        serializer="yaml",
        compression="zlib",
    )
    channel = client.default_channel
    assert channel.methods == ["exchange_declare", "queue_declare", "queue_bind"]
    declared = channel.calls[1].arguments
    assert (declared["queue"], declared["durable"], declared["exclusive"]) == ("q", True, False)
    assert declared["arguments"] == {"x-a": 1, "x-max-length": 3}
    assert channel.calls[2].arguments["routing_key"] == "q"
    assert not simple.no_ack
    simple.put({"a": 1}, headers={"h": 1}, priority=2)
    message = channel.of("basic_publish")[0].arguments["message"]
    assert message["content_type"] == "application/x-yaml"
    assert message["headers"] == {"h": 1, "compression": "application/x-gzip"}
    assert (message["priority"], message["properties"]["delivery_mode"]) == (2, 1)


def test_it_consumes_when_something_is_wanted(client: FakeClient) -> None:
    simple = SimpleQueue(client, "q")
    assert client.default_channel.consumers == {}
    assert_empty(simple)
    assert_empty(simple, 0)
    assert len(client.default_channel.of("basic_consume")) == 1


def test_short_timeouts_get_there_too(client: FakeClient) -> None:
    simple = SimpleQueue(client, "q")
    channel = client.default_channel
    channel.script["basic_consume"] = lambda: gevent.sleep(0.05)
    channel.script["queue_declare"] = lambda: None

    def poll() -> Any:
        while True:
            try:
                return simple.get(timeout=0.001)
            except simple.Empty:
                if channel.consumers and not sent:
                    sent.append(channel.message())
                    channel.deliver(sent[0])

    sent: list[Any] = []
    with gevent.Timeout(5.0):
        assert poll() is sent[0]
    assert len(channel.of("basic_consume")) == 1


# Getting


def test_who_gets_one_message_has_no_other_one_delivered(connection: Connection) -> None:
    with SimpleQueue(connection, "q") as simple:
        for number in range(3):
            simple.put(number)
        channel = simple.channel
        message = simple.get(timeout=5)
        assert (message.payload, message.delivery_info["redelivered"]) == (0, False)
        assert (simple.qsize(), channel.queue_declare("q", passive=True).consumer_count) == (2, 0)
        assert simple.get(timeout=5).payload == 1  # consumes
        assert channel.queue_declare("q", passive=True).consumer_count == 1


@pytest.mark.parametrize("arguments", [{"x-single-active-consumer": True}, None])
def test_what_may_only_be_consumed_is_not_asked_for(
    connection: Connection, arguments: dict[str, Any] | None
) -> None:
    queue = Queue("q", queue_arguments=arguments)
    queue(connection.default_channel).declare()
    connection.Producer().publish("x", routing_key="q")
    given = queue if arguments else Queue("q", no_declare=True)  # with any arguments
    with SimpleQueue(connection, given) as simple:
        assert simple.get(timeout=5).payload == "x"
        assert simple.channel.queue_declare("q", passive=True).consumer_count == 1


class SlowReply:
    """A ``basic_get`` whose reply comes when it is told to."""

    def __init__(self, channel: Any, error: Exception | None = None) -> None:
        self.may_come, self.has_begun, self.has_come = Event(), Event(), Event()
        self._get, self._error = channel.basic_get, error

    def __call__(self, *arguments: Any) -> Any:
        message = None if self._error is not None else self._get(*arguments)
        self.has_begun.set()
        assert self.may_come.wait(5)
        self.has_come.set()
        if self._error is not None:
            raise self._error
        return message


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_message_whose_getter_left_is_the_next_ones(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    with SimpleQueue(connection, "q") as simple:
        for number in range(2):
            simple.put(number)
        reply = SlowReply(simple.channel)
        monkeypatch.setattr(simple.channel, "basic_get", reply)
        getting = gevent.spawn(simple.get, timeout=5 if is_killed else 0.01)
        assert reply.has_begun.wait(5)
        if is_killed:
            getting.kill()
        else:
            with pytest.raises(simple.Empty):
                getting.get(timeout=5)
        other = gevent.spawn(simple.get, timeout=5)  # consumes
        until(lambda: bool(simple.consumer._subscriptions.placed))
        counted: list[Any] = []
        arrivals = simple.consumer.sink
        monkeypatch.setattr(arrivals, "taken", counted.append)
        reply.may_come.set()
        got = [other.get(timeout=5), simple.get(timeout=5)]
        assert {each.payload for each in got} == {0, 1}
        assert 0 not in [each.payload for each in counted]  # it came without a consumer
        assert_empty(simple)


def test_a_message_that_comes_behind_the_end_goes_back(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    simple = SimpleQueue(connection, "q")
    simple.put("x")
    reply = SlowReply(simple.channel)
    monkeypatch.setattr(simple.channel, "basic_get", reply)
    assert_empty(simple)
    simple.close()
    reply.may_come.set()
    until(lambda: simple.qsize() == 1)
    assert simple.get(timeout=5).payload == "x"


def test_what_is_asked_for_over_a_lost_connection_is_consumed(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SimpleQueue(connection, "q") as simple:
        simple.put("x")
        reply = SlowReply(simple.channel, RecoverableConnectionError("lost"))
        reply.may_come.set()
        monkeypatch.setattr(simple.channel, "basic_get", reply)
        assert simple.get(timeout=5).payload == "x"
        assert reply.has_come.is_set()


def test_get_without_waiting(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q")
    with pytest.raises(simple.Empty):
        simple.get(block=False)
    simple.put("1")
    simple.put("2")
    simple.put("3")
    for expected in ("1", "2"):
        message = simple.get_nowait()
        assert message.payload == expected
        message.ack()
    assert simple.get(timeout=30.0).payload == "3"
    simple.put("4")  # delivered, since by now it consumes
    assert simple.get_nowait().payload == "4"
    simple.close()


def test_what_polls_lets_others_run(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q", no_ack=True)
    putting = gevent.spawn(simple.put, "1")
    message = None
    with gevent.Timeout(5.0):
        while message is None:
            try:
                message = simple.get_nowait()
            except simple.Empty:
                continue
    assert message.payload == "1"
    putting.get(timeout=30.0)


def test_on_decode_error_and_callbacks_of_its_consumer(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q", no_ack=True)
    failed: list[Exception] = []
    got: list[Any] = []
    simple.consumer.on_decode_error = lambda message, exc: failed.append(exc)
    simple.consumer.register_callback(lambda body, message: got.append(body))
    simple.put("{", content_type="application/json")
    simple.put({"a": 1})
    assert simple.get(timeout=30.0).payload == {"a": 1}
    assert [type(each) for each in failed] == [DecodeError]
    assert got == [{"a": 1}]
    simple.close()


def test_every_message_goes_to_one_of_many_greenlets(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q")
    count = 200

    def take() -> list[int]:
        taken: list[int] = []
        while True:
            try:
                message = simple.get(timeout=1.0)
            except simple.Empty:
                return taken
            taken.append(message.payload)
            message.ack()

    takers = [gevent.spawn(take) for _ in range(20)]
    for number in range(count):
        simple.put(number)
    gevent.joinall(takers, timeout=10.0, raise_error=True)
    taken = [number for taker in takers for number in taker.get()]
    assert sorted(taken) == list(range(count))
    assert simple.qsize() == 0
    simple.close()


def test_two_simple_queues_of_one_connection(connection: Connection) -> None:
    one, two = (
        SimpleQueue(connection, "one", no_ack=True),
        SimpleQueue(connection, "two", no_ack=True),
    )
    first, second = gevent.spawn(one.get, timeout=5.0), gevent.spawn(two.get, timeout=5.0)
    gevent.idle()
    two.put("2")
    assert second.get(timeout=30.0).payload == "2"
    one.put("1")
    assert first.get(timeout=30.0).payload == "1"


def test_a_greenlet_that_drains_takes_no_message_away(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q", no_ack=True)
    draining = gevent.spawn(outcome, connection.drain_events, timeout=5.0)
    getting = gevent.spawn(simple.get, timeout=5.0)
    gevent.idle()
    simple.put("1")
    assert getting.get(timeout=30.0).payload == "1"
    assert not draining.ready()
    draining.kill()


def test_callbacks_of_other_consumers_run_while_one_gets(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q", no_ack=True)
    got: list[Any] = []
    consumer = Consumer(
        connection, Queue("other"), no_ack=True, callbacks=[lambda body, message: got.append(body)]
    )
    consumer.consume()
    getting = gevent.spawn(simple.get, timeout=5.0)
    gevent.idle()
    Producer(connection).publish("to the other", "other")
    gevent.idle()
    assert got == ["to the other"]
    simple.put("1")
    assert getting.get(timeout=30.0).payload == "1"
    consumer.cancel()


def test_a_killed_getter_takes_nothing_along(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q", no_ack=True)
    simple.put("0")  # from now on put() does not switch
    assert simple.get(timeout=30.0).payload == "0"
    killed = gevent.spawn(simple.get)
    gevent.idle()
    killed.kill(block=False)
    simple.put("1")  # comes to a greenlet that is about to die
    killed.join(timeout=30.0)
    assert isinstance(killed.value, gevent.GreenletExit)
    assert simple.get(timeout=30.0).payload == "1"


def test_the_callers_own_timeout_passes_through(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q", no_ack=True)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
        simple.get()
    simple.put("1")
    assert simple.get(timeout=30.0).payload == "1"


# Ending


def test_close_gives_back_what_nobody_took(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q")
    with simple as entered:
        assert entered is simple
        for number in range(3):
            simple.put(number)
        message = simple.get(timeout=30.0)
        message.ack()
    assert not simple.consumer.consuming_from("q")
    assert simple.qsize() == 2
    again = SimpleQueue(connection, "q")
    assert [again.get(timeout=30.0).payload for _ in range(2)] == [1, 2]
    again.close()


def test_a_lost_connection_is_raised_in_all_that_wait(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q")
    getting = [gevent.spawn(outcome, simple.get, timeout=5.0) for _ in range(3)]
    gevent.idle()
    memory.restart(connection.virtual_host)
    gevent.joinall(getting, timeout=30.0)
    assert all(isinstance(each.value, RecoverableConnectionError) for each in getting)
    simple.put("1")
    message = simple.get(timeout=30.0)
    assert message.payload == "1"
    message.ack()
    simple.close()


def test_what_was_delivered_in_a_former_life_comes_again(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q")
    assert_empty(simple, 0)
    simple.put("1")
    memory.restart(connection.virtual_host)
    message = simple.get(timeout=30.0)
    assert message.payload == "1"
    message.ack()
    assert_empty(simple)
    simple.close()


def test_a_buffer_comes_back_after_a_restart(connection: Connection) -> None:
    simple = SimpleBuffer(connection, "q")
    simple.put("1")
    assert simple.get(timeout=30.0).payload == "1"
    memory.restart(connection.virtual_host)
    assert_empty(simple)
    simple.put("2")
    assert simple.get(timeout=30.0).payload == "2"
    simple.close()


def test_the_brokers_cancel_is_raised_in_get(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q")
    getting = gevent.spawn(outcome, simple.get, timeout=5.0)
    gevent.idle()
    simple.queue.delete()
    assert isinstance(getting.get(timeout=30.0), ConsumerCancelled)
    simple.queue.declare()
    simple.put("1")
    assert simple.get(timeout=30.0).payload == "1"
    simple.close()


def test_an_end_that_nobody_waited_for_is_raised_once(client: FakeClient) -> None:
    simple = SimpleQueue(client, "q")
    assert_empty(simple)
    channel = client.default_channel
    [tag] = channel.consumers
    channel.cancel_by_broker(tag, ConsumerCancelled("deleted"))
    with pytest.raises(ConsumerCancelled):
        simple.get(timeout=0.01)
    assert_empty(simple)
    assert list(channel.consumers) == [tag]


def test_messages_before_the_brokers_cancel_are_still_given(client: FakeClient) -> None:
    simple = SimpleQueue(client, "q")
    assert_empty(simple)
    channel = client.default_channel
    [tag] = channel.consumers
    message = channel.message()
    channel.deliver(message)
    channel.cancel_by_broker(tag, ConsumerCancelled("deleted"))
    assert simple.get(timeout=0.01) is message
    with pytest.raises(ConsumerCancelled):
        simple.get(timeout=0.01)


@pytest.mark.parametrize("no_ack", [True, False])
def test_a_channel_that_is_closed_requeues_what_is_unacked(
    client: FakeClient, no_ack: bool
) -> None:
    simple = SimpleQueue(client, "q", no_ack=no_ack)
    assert_empty(simple)
    channel = client.default_channel
    message = channel.message()
    channel.deliver(message)
    channel.end(RecoverableChannelError("404 of somebody"))
    if no_ack:
        assert simple.get(timeout=0.01) is message
    with pytest.raises(RecoverableChannelError):
        simple.get(timeout=0.01)
    assert_empty(simple)
    assert len(client.default_channel.consumers) == 1


def test_taken_is_reported_for_counted_messages(client: FakeClient) -> None:
    simple = SimpleQueue(client, "q")
    assert_empty(simple)
    channel = client.default_channel
    [consumer] = channel.consumers.values()
    taken: list[Any] = []
    consumer.arguments["sink"].taken = taken.append
    messages = [channel.message() for _ in range(3)]
    for message in messages:
        channel.deliver(message)
    assert [simple.get(timeout=30.0) for _ in range(2)] == messages[:2]
    assert taken == messages[:2]
    simple.close()
    assert taken == messages
    assert channel.methods[-2:] == ["basic_cancel", "basic_reject"]


# Other parts


class ForeignLink:
    """A link that is not ours: kombu's, say."""

    is_open = True

    def __init__(self, client: FakeClient) -> None:
        self.client = client
        self.events = client.reconnect().events


def test_a_foreign_connection_is_drained(client: FakeClient) -> None:
    channel = FakeChannel(ForeignLink(client))
    simple = SimpleQueue(channel, "q")
    assert_empty(simple)
    message = channel.message()
    channel.deliver(message)
    assert simple.get(timeout=30.0) is message
    with pytest.raises(simple.Empty):
        simple.get_nowait()


def test_any_producer_and_consumer_will_do() -> None:
    done: list[str] = []

    class AnyConsumer:
        accept = None
        channel = FakeClient().channel()
        queues = ("the queue",)

        def register_callback(self, callback: Any) -> None:
            self.callback = callback

        def consume(self, no_ack: bool) -> None:
            self.callback("body", "message")

        def cancel(self) -> None:
            done.append("cancel")

    consumer = AnyConsumer()
    simple = SimpleBase(None, Producer(None), consumer)
    assert simple.queue == "the queue"
    consumer.channel.connection.events.put((done.append, "drained"))
    assert simple.get(timeout=30.0) == "message"
    simple.close()
    assert done == ["drained", "cancel"]


def test_a_consumer_that_waits_is_served_first_come_first_served(connection: Connection) -> None:
    simple = SimpleQueue(connection, "q", no_ack=True)
    order: list[int] = []
    go = Event()

    def take(number: int) -> None:
        simple.get(timeout=30.0)
        order.append(number)
        if len(order) == 5:
            go.set()

    takers = []
    for number in range(5):
        takers.append(gevent.spawn(take, number))
        gevent.idle()
    for number in range(5):
        simple.put(number)
    assert go.wait(30.0)
    assert order == list(range(5))
    gevent.joinall(takers, timeout=30.0, raise_error=True)
