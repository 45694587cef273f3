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
    NotFound,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from greenconn.messaging import Consumer
from tests.unit.fake_channel import FakeChannel, FakeClient, FakeSession, outcome


def queues(*names: str) -> list[Queue]:
    """Queues of these names."""
    return [Queue(name) for name in names]


def tags(channel: FakeChannel) -> dict[str, str]:
    """Consumer tag by queue of what *channel* consumes."""
    return {call.arguments["queue"]: tag for tag, call in channel.consumers.items()}


# Beginning


def test_consume_waits_for_the_last_reply_only(channel: FakeChannel) -> None:
    consumer = Consumer(channel, queues("a", "b", "c"), tag_prefix="me-")
    consumer.consume()
    calls = channel.of("basic_consume")
    assert [call.arguments["queue"] for call in calls] == ["a", "b", "c"]
    assert [call.arguments["nowait"] for call in calls] == [True, True, False]
    assert all(tag.startswith("me-") for tag in channel.consumers)
    assert len(channel.consumers) == 3
    consumer.consume()
    assert len(channel.of("basic_consume")) == 3


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


def test_a_consumer_of_a_connection_uses_its_default_channel(client: FakeClient) -> None:
    consumer = Consumer(client, queues("q"))
    assert consumer.channel is client.default_channel
    assert consumer.connection is client


def test_add_queue_declares_and_binds_it(channel: FakeChannel) -> None:
    consumer = Consumer(channel)
    queue = consumer.add_queue(Queue("q"))
    assert queue.channel is channel
    assert consumer.queues == [queue]
    assert consumer.add_queue(Queue("")).name.startswith("amq.gen")
    consumer.consume()
    assert len(channel.consumers) == 2
    assert consumer.consuming_from("q")
    assert consumer.consuming_from(Queue("q"))
    assert not consumer.consuming_from("other")


def test_several_queues_that_the_broker_names(channel: FakeChannel) -> None:
    consumer = Consumer(channel, [Queue(""), Queue("a"), Queue("")])
    consumer.consume()
    names = [queue.name for queue in consumer.queues]
    assert names[1] == "a"
    assert list(tags(channel)) == names
    assert len(set(names)) == 3


def test_a_consume_that_is_refused_can_be_repeated(channel: FakeChannel) -> None:
    def refuse() -> None:
        raise NotFound("no queue")

    consumer = Consumer(channel, queues("q"))
    channel.script["basic_consume"] = refuse
    with pytest.raises(NotFound):
        consumer.consume()
    assert not consumer.consuming_from("q")
    del channel.script["basic_consume"]
    consumer.consume()
    assert list(tags(channel)) == ["q"]


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


def test_raw_messages_of_other_channels_are_converted(client: FakeClient) -> None:
    class Foreign(FakeChannel):
        def message_to_python(self, raw_message: Any) -> Any:
            return self.message(raw_message["body"])

    channel = Foreign(client.reconnect())
    got: list[Any] = []
    consumer = Consumer(channel, queues("q"), callbacks=[lambda body, message: got.append(body)])
    consumer.consume()
    channel.deliver({"body": b"[1]"})  # type: ignore[arg-type]
    drain(client)
    assert got == [[1]]


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


def test_cancel_ends_all(client: FakeClient, channel: FakeChannel) -> None:
    consumer = Consumer(channel, queues("a", "b"))
    consumer.consume()
    assert len(client.session.members) == 1
    consumer.cancel()
    assert channel.consumers == {}
    assert client.session.members == []
    assert not consumer.consuming_from("a")
    consumer.close()
    assert len(channel.of("basic_cancel")) == 2
    consumer.consume()
    assert sorted(tags(channel)) == ["a", "b"]


def test_the_with_block_cancels_after_errors_too(client: FakeClient, channel: FakeChannel) -> None:
    with pytest.raises(RecoverableConnectionError), Consumer(channel, queues("q")):
        raise RecoverableConnectionError
    assert channel.consumers == {}
    with pytest.raises(RuntimeError), Consumer(channel, queues("q")):
        channel.connection.lose()
        raise RuntimeError
    assert client.session.members == []


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


def test_cancel_of_a_link_that_is_lost_meanwhile(channel: FakeChannel) -> None:
    consumer = Consumer(channel, queues("a", "b"))
    consumer.consume()

    def lose() -> None:
        channel.connection.lose()
        raise RecoverableConnectionError

    channel.script["basic_cancel"] = lose
    consumer.cancel()
    assert not consumer.consuming_from("a")


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


def test_requests_go_to_the_channel_of_the_new_life(
    client: FakeClient, channel: FakeChannel
) -> None:
    consumer = Consumer(channel, queues("a"))
    channel.connection.lose()
    consumer.purge()
    assert consumer.channel is not channel
    assert consumer.channel.methods == ["queue_purge"]


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
    assert new.methods == ["basic_qos", "basic_qos", "basic_consume", "basic_consume"]
    assert consumer.queues[0] is queue
    assert queue.channel is new


def test_recovery_repeats_the_users_qos(client: FakeClient, channel: FakeChannel) -> None:
    consumer = Consumer(channel, queues("q"))
    consumer.qos(prefetch_count=9, apply_global=True)
    consumer.consume()
    channel.connection.lose()
    client.session.recover()
    assert consumer.channel.methods == ["basic_qos", "basic_consume"]
    assert consumer.channel.calls[0].arguments["qos"] == (0, 9, True)


def test_recovery_looks_for_queues_that_it_must_not_declare(
    client: FakeClient, channel: FakeChannel
) -> None:
    consumer = Consumer(channel, queues("q"), auto_declare=False)
    consumer.consume()
    channel.connection.lose()
    client.session.recover()
    [call] = client.session.utility.channel.calls
    assert (call.method, call.arguments["passive"]) == ("queue_declare", True)
    assert consumer.channel.methods == ["basic_consume"]


def test_consume_and_revive_after_recovery_change_nothing(
    client: FakeClient, channel: FakeChannel
) -> None:
    consumer = Consumer(channel, queues("q"))
    consumer.consume()
    channel.connection.lose()
    client.session.recover()
    recovered = consumer.channel
    count = len(recovered.calls)
    consumer.consume()
    consumer.revive(recovered)
    consumer.revive(client)
    consumer.revive(client.channel())
    assert consumer.channel is recovered
    assert len(recovered.calls) == count
    assert sum(len(each.consumers) for each in client.reconnect().channels) == 1


def test_recovery_after_revive_changes_nothing(client: FakeClient, channel: FakeChannel) -> None:
    consumer = Consumer(channel, queues("q"))
    consumer.consume()
    before = tags(channel)
    channel.connection.lose()
    consumer.revive(client)
    new = client.default_channel
    assert tags(new) == before
    count = len(new.calls)
    client.session.recover()
    assert consumer.channel is new
    assert len(new.calls) == count


def test_consume_in_the_new_life_does_what_recovery_would(
    client: FakeClient, channel: FakeChannel
) -> None:
    consumer = Consumer(channel, Queue("", exclusive=True))
    consumer.consume()
    [(name, tag)] = tags(channel).items()
    channel.connection.lose()
    consumer.consume()
    [(new_name, new_tag)] = tags(consumer.channel).items()
    assert new_tag == tag
    assert new_name == consumer.queues[0].name != name
    assert consumer.consuming_from(new_name)
    assert not consumer.consuming_from(name)
    count = len(consumer.channel.calls)
    client.session.recover()
    assert len(consumer.channel.calls) == count


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


def test_revive_moves_to_another_channel(channel: FakeChannel, client: FakeClient) -> None:
    consumer = Consumer(channel, queues("a", "b"))
    consumer.consume()
    consumer.add_queue(Queue("c"))
    before = tags(channel)
    other = client.channel()
    consumer.revive(other)
    assert channel.consumers == {}
    assert tags(other) == before
    assert not consumer.consuming_from("c")
    assert all(queue.channel is other for queue in consumer.queues)


def test_revive_on_the_same_channel_keeps_the_consumers(channel: FakeChannel) -> None:
    consumer = Consumer(channel, queues("q"))
    consumer.consume()
    consumer.revive(channel)
    assert len(channel.of("basic_consume")) == 1
    assert len(channel.consumers) == 1


def test_revive_without_a_session() -> None:
    client = FakeClient(has_session=False)
    consumer = Consumer(client, queues("q"))
    consumer.consume()
    old = client.default_channel
    old.connection.lose()
    consumer.revive(client.channel())
    assert tags(consumer.channel) == tags_of(old)
    consumer.cancel()


def tags_of(channel: FakeChannel) -> dict[str, str]:
    """Consumer tag by queue of all that *channel* was ever asked for."""
    return {
        call.arguments["queue"]: call.arguments["consumer_tag"]
        for call in channel.of("basic_consume")
    }


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


def test_a_channel_that_the_program_closed_is_not_brought_back(
    client: FakeClient, channel: FakeChannel
) -> None:
    consumer = Consumer(channel, queues("q"))
    consumer.consume()
    link = channel.connection
    channel.close()
    link.lose()
    client.session.recover()
    assert client.session.members == []
    assert client.reconnect().channels == []


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


def test_moving_to_another_connection_leaves_the_session(
    client: FakeClient, channel: FakeChannel
) -> None:
    consumer = Consumer(channel, queues("q"))
    consumer.consume()
    other = FakeClient()
    consumer.revive(other)
    assert client.session.members == []
    assert len(other.session.members) == 1
    assert channel.consumers == {}


def test_a_session_that_forgot_the_consumer_gets_it_again(
    client: FakeClient, channel: FakeChannel
) -> None:
    consumer = Consumer(client, queues("q"))
    consumer.consume()
    client.session = FakeSession(client)
    assert client.link is not None
    client.link.lose()
    consumer.consume()
    assert len(client.session.members) == 1


def test_a_closed_channel_notifies_who_consumes_again(channel: FakeChannel) -> None:
    consumer = Consumer(channel, queues("q"))
    consumer.consume()
    channel.end(RecoverableChannelError("404 of somebody"))
    with pytest.raises(RecoverableChannelError, match="404 of somebody"):
        consumer.consume()


def test_a_consumer_of_a_connection_goes_on_after_a_channel_error(client: FakeClient) -> None:
    consumer = Consumer(client, queues("q"))
    consumer.consume()
    before = tags(client.default_channel)
    client.default_channel.end(RecoverableChannelError("404 of somebody"))
    consumer.consume()
    assert tags(client.default_channel) == before
    assert consumer.channel is client.default_channel


def test_errors_of_who_consumes_do_not_leave_a_member(
    client: FakeClient, channel: FakeChannel
) -> None:
    consumer = Consumer(channel, queues("q"))
    channel.end(RecoverableChannelError("closed"))
    assert isinstance(outcome(consumer.consume), RecoverableChannelError)
    assert client.session.members == []


@pytest.mark.parametrize("queues", ["mail", ["mail"]])
def test_names_are_no_queues(queues: Any) -> None:
    with pytest.raises(
        TypeError, match=r"queues must be Queue objects, got 'mail': use Queue\('mail'\)"
    ):
        Consumer(None, queues)
