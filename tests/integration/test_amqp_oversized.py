"""Messages above ``max_message_size``: they cost their consumer, and no other user of the connection."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from amqp import spec
from gevent.event import Event

from greenconn import rpc
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import MessageTooLarge
from greenconn.messaging import Consumer, Producer
from greenconn.mixins import ConsumerMixin
from greenconn.publishing import publish
from greenconn.transport.amqp.link import AmqpLink
from greenconn.worker import ConsumerGreenlet, spawn_consumer
from tests.fix_amqp import AmqpPeer, BrokerEnd, content, method_frame
from tests.fix_wires import until

SOON = 60.0
LIMIT = 1000
#: Its frames are received in more than one piece.
SIZE = 300_000
LARGE = "x" * SIZE
ABOVE = bytes(LIMIT + 1)


@pytest.fixture
def sender(amqp_url: str) -> Iterator[Connection]:
    """A connection without such a limit."""
    with Connection(amqp_url, transport_options={"confirm_publish": True}) as connection:
        yield connection


@pytest.fixture
def limited(amqp_url: str) -> Iterator[Connection]:
    """A connection with a limit of 1,000 bytes, which must outlive what happens on it."""
    options = {"max_message_size": LIMIT}
    with Connection(amqp_url, transport_options=options) as connection:
        connection.connect()
        yield connection
        assert connection.session.generation == 1
        assert connection.connected


@pytest.fixture
def declare(sender: Connection, unique: str) -> Iterator[Callable[..., Queue]]:
    """``declare(name='', **arguments)`` declares a queue until the end of the test."""
    names: list[str] = []

    def make(name: str = "", **arguments: Any) -> Queue:
        queue = Queue(unique + name, queue_arguments=arguments or None)
        queue(sender.default_channel).declare()
        names.append(queue.name)
        return queue

    yield make
    for name in names:
        sender.default_channel.queue_delete(name)


def send(sender: Connection, queue: Queue, *bodies: Any) -> None:
    producer = Producer(sender)
    for body in bodies:
        producer.publish(body, queue.name)


def waiting(sender: Connection, name: str) -> int:
    return int(sender.default_channel.queue_declare(name, passive=True).message_count)


class Reader:
    """A consumer, and the bodies that it has handled."""

    def __init__(self, queue: Any, connection: Connection, **options: Any) -> None:
        self.handled: list[Any] = []
        self.consumer: ConsumerGreenlet = spawn_consumer(
            queue, self.handle, connection=connection, **options
        )

    def handle(self, body: Any, message: Any) -> None:
        self.handled.append(body)

    def wait_error(self) -> MessageTooLarge:
        with pytest.raises(MessageTooLarge) as caught:
            self.consumer.get(timeout=SOON)
        return caught.value


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_it_stays_in_its_queue_and_ends_its_consumer(
    sender: Connection, limited: Connection, declare: Callable[..., Queue], kind: str
) -> None:
    queue, other = declare(**{"x-queue-type": kind}), declare(".other")
    send(sender, queue, "first", LARGE, "behind")
    beside = Reader(other.name, limited)
    reader = Reader(queue.name, limited)
    error = reader.wait_error()
    assert (error.queue, error.size, error.limit, error.offset) == (queue.name, SIZE, LIMIT, None)
    for part in (repr(queue.name), "300000 bytes", "(1000 bytes)", "x-dead-letter-exchange"):
        assert part in str(error)
    assert reader.consumer.state.value == "failed"
    assert LARGE not in reader.handled
    # The others: a consumer that most likely shares the channel, and a publisher.
    publish(other.name, "still there", connection=limited)
    until(lambda: beside.handled == ["still there"], SOON)
    assert beside.consumer.stop(SOON)
    # What was not handled is there, and in one piece.
    left = 3 - len(reader.handled)
    until(lambda: waiting(sender, queue.name) == left, SOON)
    unlimited = Reader(queue.name, sender)
    until(lambda: len(unlimited.handled) == left, SOON)
    assert sorted(reader.handled + unlimited.handled) == ["behind", "first", LARGE]
    assert unlimited.consumer.stop(SOON)


def test_the_connection_goes_on_however_often_it_is_consumed(
    sender: Connection, limited: Connection, declare: Callable[..., Queue]
) -> None:
    queue = declare()
    send(sender, queue, LARGE)
    for _ in range(5):
        Reader(queue.name, limited).wait_error()
        until(lambda: waiting(sender, queue.name) == 1, SOON)


def test_with_a_dead_letter_exchange_the_consumer_goes_on(
    sender: Connection,
    limited: Connection,
    declare: Callable[..., Queue],
    caplog: pytest.LogCaptureFixture,
) -> None:
    dead = declare(".dead")
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name}
    queue = declare(**arguments)
    reader = Reader(queue, limited)  # declares it, so that its arguments are known
    assert reader.consumer.wait_ready(SOON)
    send(sender, queue, "first", LARGE, "second", LARGE, "third")
    until(lambda: reader.handled == ["first", "second", "third"], SOON)
    until(lambda: waiting(sender, dead.name) == 2, SOON)
    message = dead(sender.default_channel).get()
    assert message is not None
    assert message.payload == LARGE
    message.ack()
    until(lambda: caplog.text.count("rejected as a dead letter") == 2, SOON)
    assert "a message of 300000 bytes in queue" in caplog.text
    assert reader.consumer.stop(SOON)
    assert waiting(sender, queue.name) == 0


def test_without_acks_it_is_logged_and_the_consumer_goes_on(
    sender: Connection,
    limited: Connection,
    declare: Callable[..., Queue],
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = declare()
    got: list[Any] = []
    with Consumer(limited, [queue], callbacks=[lambda body, _: got.append(body)], no_ack=True):
        send(sender, queue, "first", LARGE, "second")
        while len(got) < 2:
            limited.drain_events(timeout=SOON)
    assert got == ["first", "second"]
    until(lambda: "it is lost, as it needed no ack" in caplog.text, SOON)
    records = [each for each in caplog.records if "it is lost" in each.getMessage()]
    assert [each.levelno for each in records] == [logging.ERROR]
    assert queue.name in records[0].getMessage()


def test_drain_events_raises_once(
    sender: Connection, limited: Connection, declare: Callable[..., Queue]
) -> None:
    queue, other = declare(), declare(".other")
    send(sender, queue, "first", LARGE)
    got: list[Any] = []

    def receive(body: Any, message: Any) -> None:
        got.append(body)
        message.ack()

    with Consumer(limited, [other], callbacks=[receive]):
        consumer = Consumer(limited, [queue], callbacks=[receive])
        consumer.consume()
        for _ in range(2):
            with pytest.raises(MessageTooLarge, match="300000 bytes"):
                while True:
                    limited.drain_events(timeout=SOON)
            assert got[:1] == ["first"]
            # Its queue is not consumed any more, the other one is.
            until(lambda: waiting(sender, queue.name) == 1, SOON)
            send(sender, other, "beside")
            limited.drain_events(timeout=SOON)
            assert got[-1] == "beside"
            consumer.consume()
        with pytest.raises(MessageTooLarge):
            limited.drain_events(timeout=SOON)


def test_pika_style_callbacks_get_the_error_from_drain_events(
    sender: Connection, limited: Connection, declare: Callable[..., Queue]
) -> None:
    queue = declare()
    send(sender, queue, LARGE)
    channel = limited.channel()
    channel.basic_consume(queue.name, "tag", callback=print)
    with pytest.raises(MessageTooLarge):
        limited.drain_events(timeout=SOON)
    assert channel.is_open
    assert channel.unacked_count == 0
    channel.basic_cancel("tag")  # does nothing: it has ended
    until(lambda: waiting(sender, queue.name) == 1, SOON)


def test_a_mixin_ends_rather_than_reconnect(
    sender: Connection, limited: Connection, declare: Callable[..., Queue]
) -> None:
    queue = declare()
    send(sender, queue, LARGE)

    class Program(ConsumerMixin):
        connection = limited

        def get_consumers(self, consumer_class: Any, channel: Any) -> list[Any]:
            return [consumer_class([queue], callbacks=[print])]

    running = gevent.spawn(Program().run)
    with pytest.raises(MessageTooLarge):
        running.get(timeout=SOON)
    until(lambda: waiting(sender, queue.name) == 1, SOON)


def test_a_simple_queue_raises_each_time(
    sender: Connection, limited: Connection, declare: Callable[..., Queue]
) -> None:
    queue = declare()
    send(sender, queue, LARGE)
    with limited.SimpleQueue(queue) as simple:
        for _ in range(2):
            with pytest.raises(MessageTooLarge):
                simple.get(timeout=SOON)
            until(lambda: waiting(sender, queue.name) == 1, SOON)
        assert sender.default_channel.basic_get(queue.name, no_ack=True).body == LARGE
        send(sender, queue, "small")
        assert simple.get(timeout=SOON).payload == "small"


def test_a_get_raises_and_requeues(
    sender: Connection, limited: Connection, declare: Callable[..., Queue]
) -> None:
    queue = declare()
    send(sender, queue, LARGE)
    channel = limited.channel()
    for _ in range(3):
        with pytest.raises(MessageTooLarge, match="it stays in the queue") as caught:
            channel.basic_get(queue.name)
        assert caught.value.queue == queue.name
        assert channel.unacked_count == 0
        until(lambda: waiting(sender, queue.name) == 1, SOON)
    with pytest.raises(MessageTooLarge, match="it is lost"):
        channel.basic_get(queue.name, no_ack=True)
    assert channel.basic_get(queue.name) is None
    assert channel.is_open


def test_only_the_call_with_a_large_reply_fails(
    sender: Connection, limited: Connection, declare: Callable[..., Queue]
) -> None:
    queue = declare()
    release = Event()

    def answer(body: str) -> str:
        if body == "wait":
            release.wait()
        return LARGE if body == "large" else body

    server = rpc.spawn_server(queue, answer, connection=sender, concurrency=10)
    assert server.wait_ready(SOON)
    slow = gevent.spawn(rpc.call, queue.name, "wait", connection=limited, timeout=SOON)
    for _ in range(2):
        with pytest.raises(MessageTooLarge, match="reply of 300000 bytes is above") as caught:
            rpc.call(queue.name, "large", connection=limited, timeout=None)
        assert caught.value.size == SIZE
        assert rpc.call(queue.name, "small", connection=limited, timeout=SOON) == "small"
    release.set()
    assert slow.get(timeout=SOON) == "wait"
    assert server.stop(SOON)


def test_a_stream_can_be_read_on_behind_it(
    sender: Connection, limited: Connection, declare: Callable[..., Queue]
) -> None:
    queue = declare(**{"x-queue-type": "stream"})
    send(sender, queue, "first", LARGE, "behind")
    error = Reader(queue.name, limited, offset="first").wait_error()
    assert error.offset == 1
    assert "consume from offset 2 on" in str(error)
    reader = Reader(queue.name, limited, offset=error.offset + 1)
    until(lambda: reader.handled == ["behind"], SOON)
    assert reader.consumer.stop(SOON)


# What is sent.


@pytest.fixture
def link(scripted_link: AmqpLink) -> AmqpLink:
    scripted_link.parser.body_limit = LIMIT
    return scripted_link


@pytest.fixture
def end(amqp_peer: AmqpPeer, link: AmqpLink) -> BrokerEnd:
    """The server's end of ``link``."""
    end = amqp_peer.end
    end.answers[spec.Basic.Consume] = (spec.Basic.ConsumeOk, "s", "tag")
    return end


def sent(end: BrokerEnd, last: tuple[int, int]) -> list[tuple[int, int]]:
    """The methods that the client sends, up to *last*."""
    methods: list[tuple[int, int]] = []
    with gevent.Timeout(SOON, AssertionError(f"the client never sent {last}: {methods}")):
        while last not in methods:
            methods.append(end.got.get()[1])
    return methods


def test_the_consumer_is_cancelled_before_the_message_is_requeued(
    link: AmqpLink, end: BrokerEnd
) -> None:
    channel, got = link.channel(), list[Any]()
    channel.basic_consume("q", "tag", callback=got.append)
    end.expect(spec.Basic.Consume)
    end.deliver(1, "tag", 1, ABOVE)
    with pytest.raises(MessageTooLarge):
        link.drain(SOON)
    assert sent(end, spec.Basic.Nack) == [spec.Basic.Cancel, spec.Basic.Nack]
    end.deliver(1, "tag", 2, ABOVE)
    end.deliver(1, "tag", 3)
    until(lambda: not channel.unacked_count and not link.writer.pending)
    end.method(1, spec.Basic.CancelOk, "s", "tag")
    end.deliver(1, "tag", 4, ABOVE)  # no broker does
    methods = sent(end, spec.Basic.Nack)
    assert set(methods) == {spec.Basic.Nack}
    channel.basic_consume("q", "tag", callback=got.append)  # the tag is free
    assert not got
    assert not len(link.events)


def test_a_consumer_that_is_not_confirmed_is_not_cancelled(link: AmqpLink, end: BrokerEnd) -> None:
    # RabbitMQ 3.10 would close the connection.
    channel, got = link.channel(), list[Any]()
    del end.answers[spec.Basic.Consume]
    starting = gevent.spawn(channel.basic_consume, "q", "tag", callback=got.append)
    end.expect(spec.Basic.Consume)
    end.deliver(1, "tag", 1, ABOVE)
    assert sent(end, spec.Basic.Nack) == [spec.Basic.Nack]
    end.method(1, spec.Basic.ConsumeOk, "s", "tag")
    assert starting.get(timeout=SOON) == "tag"
    end.deliver(1, "tag", 2)
    link.drain(SOON)
    assert len(got) == 1


def test_a_get_whose_caller_was_killed_is_requeued_once(link: AmqpLink, end: BrokerEnd) -> None:
    channel = link.channel()
    getting = gevent.spawn(channel.basic_get, "q")
    end.expect(spec.Basic.Get)
    getting.kill()
    end.send(method_frame(1, spec.Basic.GetOk, "Lbssl", 1, False, "", "q", 0) + content(1, ABOVE))
    assert sent(end, spec.Basic.Nack) == [spec.Basic.Nack]
    end.answers[spec.Basic.Get] = (spec.Basic.GetEmpty, "s", "")
    assert channel.basic_get("q") is None
    assert channel.unacked_count == 0
