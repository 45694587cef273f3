"""What is large, many or endless: bodies, tags, channels, names; and a broker that stops us."""

from __future__ import annotations

import gc
import logging
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from struct import pack
from time import monotonic
from typing import Any, ClassVar

import gevent
import pytest
from amqp import spec

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import (
    BodyTooLarge,
    ConnectionBlocked,
    ContentTooLarge,
    DecodeError,
    FrameError,
    PublishRefused,
    RemoteError,
)
from greenconn.messaging import Consumer, Producer
from greenconn.mixins import ConsumerMixin
from greenconn.publishing import publish
from greenconn.service.rpc import call, spawn_server
from greenconn.transport.amqp.link import AmqpLink
from greenconn.worker import spawn_consumer
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_amqp import AmqpPeer, AmqpPeers, BrokerEnd, Links, drain, method_frame
from tests.fix_relay import Relay
from tests.fix_wires import until
from tests.integration.processes import run
from tests.receiving import consuming

pytestmark = pytest.mark.full

SOON = 30.0
MIB = 1 << 20


# Large bodies.


def test_heartbeats_while_a_large_body_is_under_way(relay: Relay, unique: str, long: bool) -> None:
    # It takes longer than the two heartbeats after which either side gives up.
    size = (100 if long else 8) * MIB
    relay.rate = relay.back_rate = size / 3.0
    body = bytes(size)
    took = []
    with Connection(
        relay.url,
        heartbeat=1,
        transport_options={"confirm_publish": True, "blocked_timeout": 60, "confirm_timeout": 60},
    ) as connection:
        queue = Queue(unique, expires=600_000)
        producer = Producer(connection)
        began = monotonic()
        producer.publish(body, unique, declare=[queue], content_type="application/data")
        took.append(monotonic() - began)
        got: list[Any] = []

        def receive(message: Any) -> None:
            got.append(message.body)
            message.ack()

        began = monotonic()
        with Consumer(connection, queue, on_message=receive):
            while not got:
                connection.drain_events(timeout=120)
        took.append(monotonic() - began)
        assert got[0] == body
        assert connection.session.generation == 1
        assert min(took) > 2.0
        queue(connection.default_channel).delete()


def test_a_body_that_is_too_large_is_refused_before_a_byte_is_sent(
    amqp_url: str, unique: str
) -> None:
    with Connection(amqp_url) as connection:
        connection.connect()
        assert connection.session.life.link.options.max_message_size == 128 * MIB
        sent = connection.session.life.link.writer.sends
        with pytest.raises(ContentTooLarge, match=r"134217729 bytes is above .*134217728"):
            Producer(connection).publish(bytes(128 * MIB + 1), unique)
        # The channel was opened; nothing else went out.
        assert connection.session.life.link.writer.sends - sent <= 2
        assert connection.session.life.link.writer.pending == 0
    options = {"max_message_size": 1000}
    with Connection(amqp_url, transport_options=options) as connection:
        queue = Queue(unique, exclusive=True)
        producer = Producer(connection)
        producer.publish("x" * 1000, unique, declare=[queue])
        for retry in (False, True):  # a retry would fail again until the deadline
            with pytest.raises(ContentTooLarge, match="1001 bytes"):
                producer.publish("x" * 1001, unique, retry=retry, timeout=60)
        assert connection.default_channel.is_open
        with pytest.raises(PublishRefused, match="max_message_size"):
            publish(unique, "x" * 1001, connection=connection, declare=True)


LARGE_ERROR = r"body of 200000 bytes is above max_message_size \(1000 bytes\)"


@pytest.fixture
def limited(amqp_url: str) -> Iterator[Connection]:
    """A connection that takes bodies of up to 1,000 bytes."""
    with Connection(amqp_url, transport_options={"max_message_size": 1000}) as connection:
        yield connection
        assert connection.session.generation <= 1  # it was never lost


@pytest.fixture
def sending(amqp_url: str, unique: str) -> Iterator[Producer]:
    with Connection(amqp_url) as connection:
        yield Producer(connection, routing_key=unique)
        connection.default_channel.queue_delete(unique)
        connection.default_channel.queue_delete(f"{unique}.dead")


def got_from(queue: str, channel: Any) -> Any:
    """Get a message from a queue, which may arrive there only now."""
    found: list[Any] = []

    def has_come() -> bool:
        found.append(channel.basic_get(queue))
        return found[-1] is not None

    until(has_come, SOON)
    return found[-1]


def test_a_message_that_is_too_large_cannot_be_decoded(
    limited: Connection, sending: Producer, unique: str
) -> None:
    queue = Queue(unique, durable=True)
    sending.publish("x" * 200_000, declare=[queue])
    sending.publish("small")
    got: list[Any] = []
    consumer = Consumer(limited, [queue], callbacks=[lambda body, message: got.append(message)])
    with consumer:
        with pytest.raises(BodyTooLarge, match=LARGE_ERROR):
            limited.drain_events(timeout=SOON)
        while not got:
            limited.drain_events(timeout=SOON)
        assert got[0].payload == "small"
        got[0].ack()
    limited.default_channel.basic_recover(requeue=True)
    with pytest.raises(DecodeError), Consumer(limited, [queue], on_message=got.append):
        limited.drain_events(timeout=SOON)
    limited.default_channel.basic_recover(requeue=True)
    refused: list[Any] = []
    with Consumer(
        limited,
        [queue],
        on_message=got.append,
        on_decode_error=lambda message, exc: refused.append((message, exc)),
    ):
        while not refused:
            limited.drain_events(timeout=SOON)
        message, error = refused[0]
        assert isinstance(error, BodyTooLarge)
        assert "'body_length': 200000" in repr(message)
        with pytest.raises(BodyTooLarge):
            bytes(message.body)
        message.requeue()
    assert len(got) == 1
    message = got_from(unique, limited.default_channel)
    assert message.headers == {}
    with pytest.raises(BodyTooLarge, match=LARGE_ERROR):
        bytes(message.payload)
    message.requeue()
    again = got_from(unique, sending.channel)
    assert len(again.payload) == 200_000
    again.ack()


def test_a_message_that_is_too_large_disturbs_no_other_consumer(
    limited: Connection, sending: Producer, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[Any] = []

    def handle(body: Any, message: Any) -> None:
        got.append(body)

    consumers = [
        spawn_consumer(name, handle, connection=limited) for name in (unique, f"{unique}.dead")
    ]
    assert all(each.wait_ready(SOON) for each in consumers)
    for body in ("before", "x" * 200_000, "after"):
        sending.publish(body)
    sending.publish("elsewhere", routing_key=f"{unique}.dead")
    until(lambda: sorted(got) == ["after", "before", "elsewhere"], SOON)
    text = "cannot be decoded: BodyTooLarge"
    until(lambda: any(text in message for message in caplog.messages), SOON)
    assert all(each.stop(SOON) for each in consumers)
    # Its queue has no dead-letter exchange, and no other process has all of it.
    assert len(got_from(unique, sending.channel).payload) == 200_000


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_message_that_is_too_large_becomes_a_dead_letter_of_the_broker(
    limited: Connection, sending: Producer, unique: str, queue_type: str
) -> None:
    queue = Queue(
        unique, durable=True, dead_letter=True, queue_arguments={"x-queue-type": queue_type}
    )
    consumer = consuming(queue, print, connection=limited)
    sending.publish("x" * 200_000)
    letter = got_from(f"{unique}.dead", sending.channel)
    assert len(letter.payload) == 200_000
    letter.ack()
    assert consumer.stop(SOON)


def test_a_message_that_is_too_large_stays_if_only_its_consumer_makes_dead_letters(
    limited: Connection, sending: Producer, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = consuming(unique, print, connection=limited, dead_letter=True)
    sending.publish("x" * 200_000)
    text = f"cannot be stored in queue '{unique}.dead', and stays: body of 200000 bytes is above"
    until(lambda: any(text in each.getMessage() for each in caplog.records), SOON)
    assert consumer.stop(SOON)
    bound = Queue(unique)(sending.channel)
    until(lambda: bound.queue_declare(passive=True).message_count == 1, SOON)


def test_a_reply_that_is_too_large_fails_its_call_alone(
    limited: Connection, sending: Producer, unique: str
) -> None:
    server = spawn_server(unique, lambda size: "x" * size, connection=sending.connection)
    assert server.wait_ready(SOON)
    calls = [
        gevent.spawn(call, unique, size, connection=limited, timeout=SOON)
        for size in (10, 200_000, 20)
    ]
    gevent.joinall(calls, timeout=SOON)
    assert [len(calls[0].get()), len(calls[2].get())] == [10, 20]
    with pytest.raises(BodyTooLarge, match=LARGE_ERROR):
        calls[1].get()
    assert server.stop(SOON)


def test_a_request_that_is_too_large_is_answered(
    limited: Connection, sending: Producer, unique: str
) -> None:
    server = spawn_server(unique, len, connection=limited)
    assert server.wait_ready(SOON)
    for size in (200_000, 10):
        request = gevent.spawn(
            call, unique, "x" * size, connection=sending.connection, timeout=SOON
        )
        if size > 1000:
            with pytest.raises(RemoteError, match=LARGE_ERROR):
                request.get(timeout=SOON)
        else:
            assert request.get(timeout=SOON) == size
    assert server.stop(SOON)


def test_a_message_that_is_too_large_is_logged_where_it_needs_no_ack(
    limited: Connection, sending: Producer, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[Any] = []
    consumer = consuming(
        unique, lambda body, message: got.append(body), connection=limited, no_ack=True
    )
    for body in ("x" * 200_000, "after"):
        sending.publish(body)
    until(lambda: got == ["after"], SOON)
    assert consumer.stop(SOON)
    assert any("of 200000 bytes is above" in each.getMessage() for each in caplog.records)


def test_a_mixin_passes_over_a_message_that_is_too_large(
    limited: Connection, sending: Producer, unique: str
) -> None:
    class Worker(ConsumerMixin):
        connection = limited
        got: ClassVar[list[Any]] = []

        def get_consumers(self, new: Any, channel: Any) -> Any:
            return [new([Queue(unique, durable=True)], callbacks=[self.handle])]

        def handle(self, body: Any, message: Any) -> None:
            self.got.append(body)
            message.ack()
            self.should_stop = True

    for body in ("x" * 200_000, "after"):
        sending.publish(body, declare=[Queue(unique, durable=True)])
    gevent.spawn(Worker().run).get(timeout=SOON)
    assert Worker.got == ["after"]


#: A program of its own, as the import gives kombu the schemes.
_KOMBU_PROGRAM = """
import sys
import kombu
import greenconn.contrib.celery

url, name = sys.argv[1:]
refused = []

def refuse(message, exc):
    refused.append(exc)
    message.ack()

with (
    kombu.Connection(url, transport_options={"max_message_size": 1000}) as connection,
    kombu.Consumer(connection, [kombu.Queue(name)], on_message=print, on_decode_error=refuse),
):
    while not refused:
        connection.drain_events(timeout=30)
print(type(refused[0]).__name__)
"""


@pytest.mark.programs
def test_a_message_that_is_too_large_is_an_error_for_a_consumer_of_kombu(
    amqp_url: str, sending: Producer, unique: str
) -> None:
    pytest.importorskip("kombu")
    sending.publish("x" * 200_000, declare=[Queue(unique, durable=True)])
    url = amqp_url.replace("amqp://", "greenconn-amqp://")
    outcome = run("-W", "ignore", "-c", _KOMBU_PROGRAM, url, unique, timeout=60)
    assert (outcome.code, outcome.output) == (0, "BodyTooLarge\n"), outcome.errors


def test_a_message_of_a_stream_that_is_too_large_is_passed_over(
    limited: Connection, sending: Producer, unique: str
) -> None:
    queue = Queue(
        unique,
        durable=True,
        queue_arguments={"x-queue-type": "stream"},
        consumer_arguments={"x-stream-offset": "first"},
    )
    got: list[Any] = []
    for body in ("before", "x" * 200_000):
        sending.publish(body, declare=[queue])
    consumer = spawn_consumer(
        queue, lambda body, message: got.append(body), connection=limited, prefetch_count=1
    )
    until(lambda: consumer.stats()["failed"], SOON)
    sending.publish("after")  # apart from them, for which there is room only once both are settled
    until(lambda: got == ["before", "after"], SOON)
    assert consumer.stop(SOON)


# Large numbers.


def test_delivery_tags_past_32_bits(link: AmqpLink, end: BrokerEnd) -> None:
    channel = link.channel()
    got: list[Any] = []
    end.confirm_consumers()
    channel.basic_consume("q", "tag", callback=got.append)
    first = (1 << 32) - 2
    for tag in range(first, first + 5):
        end.deliver(1, "tag", tag)
    for tag in ((1 << 63) - 2, (1 << 63) - 1):
        end.deliver(1, "tag", tag)
    drain(link, lambda: len(got) == 7)
    assert [each.delivery_tag for each in got] == [
        *range(first, first + 5),
        (1 << 63) - 2,
        (1 << 63) - 1,
    ]
    # Out of order: only what has nothing unanswered before it is merged.
    for each in (got[1], got[3]):
        each.ack()
    acks = [end.expect(spec.Basic.Ack)[2] for _ in range(2)]
    assert acks == [pack(">QB", first + 1, False), pack(">QB", first + 3, False)]
    for each in (got[0], got[2]):
        each.ack()
    assert end.expect(spec.Basic.Ack)[2] == pack(">QB", first + 2, True)
    got[4].reject()
    assert end.expect(spec.Basic.Reject)[2] == pack(">QB", first + 4, False)
    for each in got[5:]:
        each.ack()
    assert end.expect(spec.Basic.Ack)[2] == pack(">QB", (1 << 63) - 1, True)
    assert link.is_open


# Many things, one after the other.


def grown(step: Callable[[int], object], count: int) -> float:
    """KiB that *count* further steps leave behind, once as many have filled the caches."""
    for number in range(count):
        step(number)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count, 2 * count):
            step(number)
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / 1024
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(900)
def test_a_float_that_the_broker_cannot_read_is_refused_before_a_byte_is_sent(
    amqp_link: AmqpLink, amqp_queue: str
) -> None:
    channel = amqp_link.channel()
    with pytest.raises(ValueError, match="must be finite"):
        channel.queue_declare(amqp_queue, arguments={"x-custom": {"in": [float("nan")]}})
    with pytest.raises(ValueError, match="must be finite"):
        channel.prepare_message("x", headers={"rate": float("inf")})
    assert channel.queue_declare(amqp_queue, passive=True).queue == amqp_queue


def test_channels_opened_and_closed_leave_nothing(
    amqp_url: str, unique: str, long: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)  # pytest keeps what is logged
    with Connection(amqp_url) as connection:
        connection.connect()

        def step(number: int) -> None:
            with connection.channel() as channel:
                kind = number % 3
                if kind == 1:  # one that stays would be declared again after a reconnection
                    channel.queue_delete(channel.queue_declare(exclusive=True).queue)
                elif kind == 2:
                    channel.confirm_select()
                    channel.basic_publish_confirm(channel.prepare_message("x"), "", "nobody")

        assert grown(step, 10_000 if long else 250) < (512 if long else 128)
        link = connection.session.life.link
        until(lambda: len(link.channels) <= 2)
        assert max(link.channels) <= 3  # numbers are used again


@pytest.mark.timeout(900)
def test_names_that_are_new_each_time_leave_nothing(
    amqp_url: str, unique: str, long: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    # Exchanges, routing keys, properties and headers are kept packed, but not all of them.
    with Connection(amqp_url) as connection:
        exchange = Exchange(unique, "topic", durable=False, auto_delete=False)
        producer = Producer(connection, exchange)

        def step(number: int) -> None:
            producer.publish(
                {"n": number},
                f"key.{number}",
                headers={f"h{number}": number},
                correlation_id=f"c{number}",
                message_id=f"m{number}",
                reply_to=f"r{number}",
                type=f"t{number}",
            )

        step(-1)
        count = 50_000 if long else 3000
        assert grown(step, count) < 512
        connection.default_channel.exchange_delete(unique)


# A broker that stops us.


def test_flow_is_obeyed_and_answered(link: AmqpLink, end: BrokerEnd) -> None:
    channel, other = link.channel(), link.channel()
    message = channel.prepare_message("x")
    end.method(1, spec.Channel.Flow, "b", False)
    assert end.expect(spec.Channel.FlowOk)[::2] == (1, b"\0")
    with pytest.raises(ConnectionBlocked, match=r"channel\.flow on channel 1"):
        channel.basic_publish(message, "", "never", timeout=0.05)
    waiting = [
        gevent.spawn(each.basic_publish, message, "", f"later-{number}", timeout=SOON)
        for number, each in enumerate((channel, other, channel))
    ]
    gevent.sleep(0.05)
    assert end.nothing_more()
    # Both reasons must be gone.
    end.method(0, spec.Connection.Blocked, "s", "low on disk")
    end.method(1, spec.Channel.Flow, "b", True)
    assert end.expect(spec.Channel.FlowOk)[::2] == (1, b"\1")
    gevent.sleep(0.05)
    assert end.nothing_more()
    assert link.flow_control.blocked == "low on disk"
    end.method(0, spec.Connection.Unblocked)
    sent = [end.expect(spec.Basic.Publish)[2] for _ in waiting]
    assert [f"later-{n}".encode() in each for n, each in enumerate(sent)] == [True] * 3
    gevent.joinall(waiting, timeout=SOON, raise_error=True)


def test_a_channel_that_is_closed_while_it_is_stopped_stops_nobody(
    link: AmqpLink, end: BrokerEnd
) -> None:
    channel, other = link.channel(), link.channel()
    end.method(1, spec.Channel.Flow, "b", False)
    end.expect(spec.Channel.FlowOk)
    waiting = gevent.spawn(other.basic_publish, channel.prepare_message("x"), "", "q", timeout=SOON)
    gevent.sleep(0)
    channel.close()
    waiting.get(timeout=SOON)
    end.expect(spec.Basic.Publish)


# Floods.


def deliveries(count: int, first: int = 1, header: int = 14, body: bytes = b"x") -> bytes:
    """Deliveries to consumer ``tag`` of channel 1, each with a header frame of so many bytes."""
    content = pack(">HHQH", 60, 0, len(body), 0).ljust(header, b"\0")
    frames = (
        pack(">BHI", 2, 1, len(content))
        + content
        + b"\xce"
        + pack(">BHI", 3, 1, len(body))
        + body
        + b"\xce"
    )
    return b"".join(
        method_frame(1, spec.Basic.Deliver, "sLbss", "tag", tag, False, "", "q") + frames
        for tag in range(first, first + count)
    )


def consume(link: AmqpLink, end: BrokerEnd, **options: Any) -> list[Any]:
    """Consume on a new channel; returns where messages are put when somebody drains."""
    end.confirm_consumers()
    got: list[Any] = []
    link.channel().basic_consume("q", "tag", callback=got.append, **options)
    return got


def test_headers_count_for_the_limit_of_inboxes(link: AmqpLink, end: BrokerEnd) -> None:
    got = consume(link, end, no_ack=True)
    # Beside: what comes after the limit need not have room in the socket's buffers.
    sending = gevent.spawn(end.send, deliveries(1200, header=60_000))
    until(lambda: link.budget.is_paused)
    assert link.budget.held > 64 * MIB
    drain(link, lambda: len(got) == 1200)
    sending.get(timeout=SOON)
    assert link.budget.held == 0


def test_each_message_counts_for_the_limit_of_inboxes(link: AmqpLink, end: BrokerEnd) -> None:
    got = consume(link, end, no_ack=True)
    end.send(deliveries(1000))
    until(lambda: len(link.events) == 1000)
    assert 500_000 < link.budget.held < 1_000_000
    drain(link, lambda: len(got) == 1000)
    assert link.budget.held == 0


@pytest.mark.parametrize("is_global", [True, False])
def test_a_limit_that_is_lifted_leaves_the_limit_of_inboxes(
    link: AmqpLink, end: BrokerEnd, is_global: bool
) -> None:
    end.confirm_consumers()
    channel, got = link.channel(), list[Any]()
    channel.basic_qos(0, 10, is_global)
    channel.basic_consume("q", "tag", callback=got.append)
    end.send(deliveries(10))
    until(lambda: len(link.events) == 10)
    assert link.budget.held == 0  # ten messages need no other limit
    channel.basic_qos(0, 0, is_global)
    end.send(deliveries(2000, first=11))
    until(lambda: len(link.events) == 2010)
    assert link.budget.held > 2000 * 500
    drain(link, lambda: len(got) == 2010)
    assert link.budget.held == 0


def test_a_broker_that_ignores_the_prefetch_is_stopped(link: AmqpLink, end: BrokerEnd) -> None:
    end.confirm_consumers()
    channel, got = link.channel(), list[Any]()
    channel.basic_qos(0, 10, False)
    channel.basic_consume("q", "tag", callback=got.append)
    # What was answered does not count.
    for first in range(1, 3001, 1000):
        end.send(deliveries(1000, first=first))
        drain(link, lambda first=first: len(got) == first + 999)  # type: ignore[misc]
        got[-1].ack(multiple=True)
    assert link.is_open
    end.send(deliveries(1100, first=3001))
    until(lambda: link.lost)
    assert "exceeded the prefetch of channel 1: 1021 deliveries" in str(link.lost)


@pytest.mark.parametrize("kind", ["blocked", "flow"])
def test_a_broker_that_blocks_again_and_again_does_not_fill_the_log(
    link: AmqpLink, end: BrokerEnd, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.INFO)
    link.channel()
    greenlets = len(list(running()))
    if kind == "blocked":
        pair = method_frame(0, spec.Connection.Blocked, "s", "mood")
        pair += method_frame(0, spec.Connection.Unblocked)
    else:
        pair = method_frame(1, spec.Channel.Flow, "b", False)
        pair += method_frame(1, spec.Channel.Flow, "b", True)
    end.send(pair * 5000)
    end.send(method_frame(0, spec.Connection.Blocked, "s", "for good"))
    until(lambda: link.flow_control.blocked == "for good")
    assert len(list(running())) < greenlets + 20
    gevent.sleep(0)
    assert len(caplog.records) <= 4
    # What became of it is told at the end of the interval.
    link.flow_control._end_interval()
    gevent.sleep(0)
    assert "blocked publishing: for good (9997 more changes in 10 s)" in caplog.text
    assert len(caplog.records) == 5


def test_hooks_of_a_broker_that_blocks_again_and_again_wait_in_bounded_numbers(
    amqp_peer: AmqpPeer,
) -> None:
    notified: list[str] = []
    links = Links(amqp_peer.url)
    link = links(on_blocked=notified.append, on_unblocked=lambda: notified.append("free"))
    try:
        pair = method_frame(0, spec.Connection.Blocked, "s", "mood")
        pair += method_frame(0, spec.Connection.Unblocked)
        amqp_peer.end.send(pair * 500)
        amqp_peer.end.method(0, spec.Connection.Blocked, "s", "last")
        until(lambda: link.flow_control.blocked == "last")
        assert len(link.events) <= 102
        drain(link, lambda: not len(link.events))
        assert notified[:4] == ["mood", "free"] * 2
        amqp_peer.end.method(0, spec.Connection.Unblocked)
        until(lambda: link.flow_control.blocked is None)
        amqp_peer.end.send(pair)
        drain(link, lambda: notified[-2:] == ["mood", "free"])
    finally:
        links.close()


def running() -> list[gevent.Greenlet[..., Any]]:
    """The greenlets that have not ended."""
    return [
        each
        for each in gc.get_objects()
        if issubclass(type(each), gevent.Greenlet) and not each.dead  # a proxy may be dead itself
    ]


@pytest.mark.parametrize("channel_id", [0, 1])
@pytest.mark.parametrize("method", [(60, 99), (77, 1), (10, 99)])
def test_a_method_that_nobody_knows_is_one_clean_error(
    link: AmqpLink, end: BrokerEnd, channel_id: int, method: tuple[int, int]
) -> None:
    channel = link.channel()
    waiting = gevent.spawn(channel.queue_declare, "q")
    end.expect(spec.Queue.Declare)
    end.method(channel_id, method, "s", "whatever")
    with pytest.raises(FrameError, match=f"{method[0]},{method[1]} on channel {channel_id}"):
        waiting.get(timeout=SOON)
    assert isinstance(link.lost, FrameError)
    assert not link.is_open


def test_heartbeats_go_on_while_the_broker_blocks_and_its_queue_is_emptied(
    own_rabbitmq: RabbitMQ, unique: str
) -> None:
    got: list[int] = []

    def handle(body: int, message: Any) -> None:
        got.append(body)

    with Connection(
        own_rabbitmq.url, heartbeat=1, transport_options={"blocked_timeout": 60}
    ) as connection:
        for number in range(200):
            publish(unique, number, connection=connection, declare=True)
        own_rabbitmq.set_memory_alarm(True)
        producer = Producer(connection)
        # Two sockets: this one is blocked...
        waiting = [
            gevent.spawn(publish, unique, number, connection=connection, timeout=60, declare=True)
            for number in range(200, 220)
        ]
        # ... and that of the consumer is not: it goes on until nothing is left.
        consumer = spawn_consumer(unique, handle, connection=connection, prefetch_count=5)
        until(lambda: sorted(got)[:200] == list(range(200)), SOON)
        gevent.sleep(3.0)  # three heartbeats
        assert not any(each.ready() for each in waiting)
        assert connection.session.generation == 1
        rows = own_rabbitmq.ctl("list_queues", "name", "messages")
        assert f"{unique}\t0" in rows
        assert "blocked" in own_rabbitmq.ctl("list_connections", "state")
        own_rabbitmq.set_memory_alarm(False)
        gevent.joinall(waiting, timeout=SOON, raise_error=True)
        until(lambda: len(got) == 220, SOON)
        assert got[200:] == list(range(200, 220))  # in the order in which they waited
        assert connection.session.generation == 1
        assert consumer.stop(SOON)
        producer.publish("last", unique)
        connection.default_channel.queue_delete(unique)


def test_a_peer_that_stops_reading_costs_bounded_memory(amqp_peers: AmqpPeers) -> None:
    peer = amqp_peers()
    links = Links(peer.url)
    link = links(blocked_timeout=0.2, confirm_publish=False)
    channel = link.channel()
    peer.end.is_reading.clear()
    message = channel.prepare_message(bytes(100_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def flood() -> None:
        with pytest.raises(ConnectionBlocked, match="does not read"):
            for _ in range(1000):
                channel.basic_publish(message, "", "q")

    gevent.joinall([gevent.spawn(flood) for _ in range(100)], timeout=SOON, raise_error=True)
    assert link.writer.pending < 2 * MIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32_000  # KiB
    assert link.is_open
    peer.end.is_reading.set()
    until(lambda: not link.writer.pending)
    links.close()
