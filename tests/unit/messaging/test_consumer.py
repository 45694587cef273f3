"""Consumers: what they ask of a channel, how they hand out messages, how they come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.entity import Exchange, Queue
from greenconn.exceptions import (
    ConsumerCancelled,
    ContentDisallowed,
    DecodeError,
    RecoverableChannelError,
)
from greenconn.green.deadline import Deadline
from greenconn.messaging import Consumer
from tests.unit.fake_channel import FakeChannel, FakeClient


def queues(*names: str) -> list[Queue]:
    """Queues of these names."""
    return [Queue(name) for name in names]


def tags(channel: FakeChannel) -> dict[str, str]:
    """Consumer tag by queue of what *channel* consumes."""
    return {call.arguments["queue"]: tag for tag, call in channel.consumers.items()}


# Beginning


@pytest.mark.parametrize(
    ("consumers", "call", "queue", "expected"),
    [
        (None, None, False, False),
        (None, None, True, True),
        (True, None, False, True),
        (False, None, True, False),
        (True, False, True, False),
    ],
)
def test_no_ack_of_call_consumer_and_queue(
    channel: FakeChannel, consumers: bool | None, call: bool | None, queue: bool, expected: bool
) -> None:
    consumer = Consumer(channel, Queue("q", no_ack=queue), no_ack=consumers)
    consumer.consume(no_ack=call)
    assert channel.of("basic_consume")[0].arguments["no_ack"] is expected


def test_prefetch_is_sent_before_each_consume(channel: FakeChannel) -> None:
    consumer = Consumer(channel, queues("a"), prefetch_count=7)
    assert channel.methods == ["queue_declare", "basic_qos"]
    consumer.consume()
    consumer.add_queue(Queue("b"))
    consumer.consume()
    assert channel.methods[2:] == [
        "basic_qos",
        "basic_consume",
        "queue_declare",
        "basic_qos",
        "basic_consume",
    ]
    assert {call.arguments["qos"] for call in channel.of("basic_qos")} == {(0, 7, False)}


def test_prefetch_of_one_consumer_is_not_taken_by_another(channel: FakeChannel) -> None:
    channel.script["basic_qos"] = lambda: gevent.sleep(0)
    made = [
        Consumer(channel, queues(f"q{count}"), prefetch_count=count, auto_declare=False)
        for count in range(1, 20)
    ]
    channel.calls.clear()
    gevent.joinall([gevent.spawn(each.consume) for each in made], timeout=5.0, raise_error=True)
    prefetch = 0
    for call in channel.calls:
        if call.method == "basic_qos":
            prefetch = call.arguments["qos"][1]
        else:
            assert call.arguments["queue"] == f"q{prefetch}"


def test_two_greenlets_consume_once(channel: FakeChannel) -> None:
    consumer = Consumer(channel, queues("a", "b"))
    channel.script["basic_consume"] = lambda: gevent.sleep(0)
    both = [gevent.spawn(consumer.consume) for _ in range(2)]
    gevent.joinall(both, timeout=5.0, raise_error=True)
    assert len(channel.of("basic_consume")) == 2


def test_a_killed_consume_can_be_repeated(client: FakeClient, channel: FakeChannel) -> None:
    go = Event()
    consumer = Consumer(channel, queues("a", "b"), prefetch_count=1)
    channel.script["basic_consume"] = lambda: go.wait(30.0)
    killed = gevent.spawn(consumer.consume)
    gevent.idle()
    killed.kill()
    assert not consumer.consuming_from("a")
    assert client.session.members == []
    del channel.script["basic_consume"]
    consumer.consume()
    assert sorted(tags(channel)) == ["a", "b"]


# Messages


def drain(client: FakeClient) -> None:
    """Handle the next event."""
    client.drain_events(timeout=30.0)


@pytest.mark.parametrize(
    ("details", "error"),
    [
        ({"body": b"{"}, DecodeError),
        ({"content_type": "application/x-yaml"}, ContentDisallowed),
        ({"headers": {"compression": "application/x-gzip"}}, DecodeError),
    ],
)
def test_a_body_that_cannot_be_decoded(
    client: FakeClient, channel: FakeChannel, details: dict[str, Any], error: type[Exception]
) -> None:
    failed: list[tuple[Any, Exception]] = []
    got: list[Any] = []
    consumer = Consumer(channel, queues("q"), accept=["json"], callbacks=[lambda *a: got.append(a)])
    consumer.consume()
    channel.deliver(channel.message(**details))
    with pytest.raises(error):
        drain(client)
    consumer.on_decode_error = lambda message, exc: failed.append((message, exc))
    message = channel.message(**details)
    channel.deliver(message)
    drain(client)
    assert [(each, type(exc)) for each, exc in failed] == [(message, error)]
    assert got == []


def test_errors_of_on_decode_error_and_callbacks_are_raised_once(
    client: FakeClient, channel: FakeChannel
) -> None:
    calls: list[Any] = []

    def fail(*args: Any) -> None:
        calls.append(args)
        raise LookupError

    consumer = Consumer(channel, queues("q"), on_decode_error=fail, callbacks=[fail])
    consumer.consume()
    channel.deliver(channel.message(b"x", headers={"compression": "application/x-gzip"}))
    with pytest.raises(LookupError):
        drain(client)
    channel.deliver(channel.message())
    with pytest.raises(LookupError):
        drain(client)
    assert len(calls) == 2


def test_a_sink_takes_the_messages(client: FakeClient, channel: FakeChannel) -> None:
    got: list[Any] = []

    class Sink:
        taken: Callable[[Any], None] | None = None

        def deliver(self, message: Any) -> None:
            got.append(message)

        def cancelled(self, exc: BaseException) -> None: ...

        def requeue_unseen(self) -> None: ...

    consumer = Consumer(channel, queues("q"))
    consumer.sink = Sink()
    consumer.consume()
    message = channel.message()
    channel.deliver(message)
    assert got == [message]
    assert not len(client.reconnect().events)


# Ending


def test_cancel_while_consume_is_on_its_way(channel: FakeChannel) -> None:
    go = Event()
    consumer = Consumer(channel, queues("q"))
    channel.script["basic_consume"] = lambda: go.wait(30.0)
    consuming = gevent.spawn(consumer.consume)
    gevent.idle()
    consumer.cancel()
    go.set()
    consuming.get(timeout=30.0)
    assert channel.consumers == {}


def test_a_killed_cancel_reports_all_to_the_broker(channel: FakeChannel) -> None:
    go = Event()
    consumer = Consumer(channel, queues("a", "b", "c"))
    consumer.consume()

    def wait() -> None:
        del channel.script["basic_cancel"]
        go.wait(30.0)

    channel.script["basic_cancel"] = wait
    killed = gevent.spawn(consumer.cancel)
    gevent.idle()
    killed.kill()
    assert [call.arguments["nowait"] for call in channel.of("basic_cancel")] == [False, True, True]


def test_the_brokers_cancel_is_raised_in_who_drains(
    client: FakeClient, channel: FakeChannel
) -> None:
    consumer = Consumer(channel, queues("a", "b"))
    consumer.consume()
    tag = tags(channel)["a"]
    channel.cancel_by_broker(tag, ConsumerCancelled("gone"))
    with pytest.raises(ConsumerCancelled, match=tag):
        drain(client)
    consumer.consume()
    assert tags(channel)["a"] == tag
    assert len(channel.of("basic_consume")) == 3


# Requests


# Coming back


@pytest.mark.parametrize("kind", ["connection", "channel"])
def test_recovery_declares_limits_and_consumes_with_the_same_tags(
    client: FakeClient, kind: str
) -> None:
    old = client.default_channel if kind == "connection" else client.channel()
    consumer = Consumer(
        client if kind == "connection" else old,
        [Queue("q", Exchange("e"), "k"), Queue("r", no_ack=True)],
        prefetch_count=3,
    )
    consumer.consume()
    queue, before = consumer.queues[0], tags(old)
    old.connection.lose()
    client.session.recover()
    new = consumer.channel
    assert new is not old
    assert (new is client.default_channel) is (kind == "connection")
    assert tags(new) == before
    assert [call.arguments["no_ack"] for call in new.of("basic_consume")] == [False, True]
    # What may be refused runs where it costs nobody else a channel.
    assert client.session.utility.channel.methods == [
        "exchange_declare",
        "queue_declare",
        "queue_bind",
        "queue_declare",
    ]
    assert new.methods == [
        "basic_qos",
        "basic_qos",
        "basic_consume",
        "basic_consume",
    ]
    assert consumer.queues[0] is queue
    assert queue.channel is new


def test_revive_during_recovery_ends_with_one_consumer(
    client: FakeClient, channel: FakeChannel
) -> None:
    go = Event()
    consumer = Consumer(channel, queues("a", "b"))
    consumer.consume()
    before = tags(channel)
    channel.connection.lose()
    client.reconnect()
    successor = client.session.successor(channel)
    successor.script["basic_consume"] = lambda: go.wait(30.0)
    recovering = gevent.spawn(client.session.recover)
    gevent.idle()
    assert successor.methods[-1] == "basic_consume"
    other = client.channel()
    consumer.revive(other)
    go.set()
    recovering.get(timeout=30.0)
    assert successor.consumers == {}
    assert tags(other) == before
    assert consumer.channel is other


def test_revive_waits_until_the_former_life_takes_its_queue_along(
    client: FakeClient, channel: FakeChannel
) -> None:
    consumer = Consumer(channel, Queue("q", auto_delete=True))
    consumer.consume()
    channel.connection.lose()
    client.reconnect()
    new = client.channel()
    new.consumer_counts += [1, 1, 0]
    consumer.revive(new)
    # The first three look; what the last one of them saw has no consumer any more, or is new.
    assert new.methods == [*["queue_declare"] * 4, "basic_consume"]
    other = client.channel()
    consumer.revive(other)  # nobody died since
    assert other.methods == ["queue_declare", "basic_consume"]


def test_revive_during_revive(client: FakeClient, channel: FakeChannel) -> None:
    go = Event()
    consumer = Consumer(channel, queues("q"))
    consumer.consume()
    before = tags(channel)
    first, second = client.channel(), client.channel()
    first.script["queue_declare"] = lambda: go.wait(30.0)
    reviving = gevent.spawn(consumer.revive, first)
    gevent.idle()
    consumer.revive(second)
    go.set()
    reviving.get(timeout=30.0)
    assert consumer.channel is second
    assert tags(second) == before
    assert first.consumers == {}
    assert channel.consumers == {}


def test_revive_that_fails_can_be_repeated(client: FakeClient, channel: FakeChannel) -> None:
    def fail() -> None:
        raise RecoverableChannelError("busy")

    consumer = Consumer(channel, queues("q"))
    consumer.consume()
    before = tags(channel)
    channel.connection.lose()
    first, second = client.channel(), client.channel()
    first.script["queue_declare"] = fail
    with pytest.raises(RecoverableChannelError):
        consumer.revive(first)
    consumer.revive(second)
    assert tags(second) == before


def test_cancelled_while_it_is_restored(client: FakeClient, channel: FakeChannel) -> None:
    go = Event()
    consumer = Consumer(channel, queues("q"))
    consumer.consume()
    channel.connection.lose()
    client.reconnect()
    successor = client.session.successor(channel)
    client.session.utility.channel.script["queue_declare"] = lambda: go.wait(30.0)
    recovering = gevent.spawn(client.session.recover)
    gevent.idle()
    consumer.cancel()
    go.set()
    recovering.get(timeout=30.0)
    assert successor.of("basic_consume") == []
    assert client.session.members == []


@pytest.mark.parametrize("refused", ["queue_declare", "basic_consume"])
def test_recovery_is_tried_again_on_another_channel(
    client: FakeClient, channel: FakeChannel, refused: str
) -> None:
    consumer = Consumer(channel, queues("q"))
    consumer.consume()
    before = tags(channel)
    channel.connection.lose()
    client.reconnect()
    successor = client.session.successor(channel)
    hit = client.session.utility.channel if refused == "queue_declare" else successor

    def lock() -> None:
        hit.end(RecoverableChannelError("405 locked"))
        raise RecoverableChannelError("405 locked")

    hit.script[refused] = lock
    with pytest.raises(RecoverableChannelError):
        client.session.recover()
    client.session.recover()
    assert tags(consumer.channel) == before
    assert (consumer.channel is successor) is (refused == "queue_declare")


def test_recovery_keeps_to_its_deadline(client: FakeClient, channel: FakeChannel) -> None:
    go = Event()
    consumer = Consumer(channel, queues("q"))
    consumer.consume()
    channel.connection.lose()
    client.reconnect()
    successor = client.session.successor(channel)
    client.session.utility.channel.script["queue_declare"] = lambda: go.wait(30.0)
    [member] = client.session.members
    with pytest.raises(TimeoutError, match="recovering"):
        member.recover(Deadline(0.02))
    go.set()
    member.recover(Deadline(5.0))
    assert list(tags(successor)) == ["q"]


def test_a_consumer_of_a_connection_goes_on_after_a_channel_error(client: FakeClient) -> None:
    consumer = Consumer(client, queues("q"))
    consumer.consume()
    before = tags(client.default_channel)
    client.default_channel.end(RecoverableChannelError("404 of somebody"))
    consumer.consume()
    assert tags(client.default_channel) == before
    assert consumer.channel is client.default_channel


@pytest.mark.parametrize("queues", ["mail", ["mail"]])
def test_names_are_no_queues(queues: Any) -> None:
    with pytest.raises(
        TypeError, match=r"queues must be Queue objects, got 'mail': use Queue\('mail'\)"
    ):
        Consumer(None, queues)
