"""Channels whose first requests leave behind ``channel.open``, before the broker has replied to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from amqp import spec

import greenconn
from greenconn import Connection, Queue, rpc, spawn_consumer
from greenconn.entity.declaration import existence_key
from greenconn.exceptions import (
    AccessRefused,
    NotAllowed,
    NotFound,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.slot import Slot
from greenconn.transport.amqp import Transport
from greenconn.transport.amqp.channel import Channel
from greenconn.transport.amqp.link import AmqpLink
from greenconn.transport.amqp.publishing import PendingConfirm
from greenconn.worker.lifecycle import ConsumerState
from tests.fix_amqp import AmqpPeer, BrokerEnd, Links, Method
from tests.fix_interrupts import interruptions
from tests.fix_relay import Relay
from tests.fix_wires import until
from tests.receiving import consuming

SOON = 30.0


@pytest.fixture
def end(amqp_peer: AmqpPeer, scripted_link: AmqpLink) -> BrokerEnd:
    """The server's end of ``scripted_link``, which does not reply when a channel is opened."""
    amqp_peer.end.ignored = {spec.Channel.Open}
    return amqp_peer.end


def begun(link: AmqpLink, *tags: str) -> tuple[Channel, list[Any]]:
    """Return a channel that is being opened, and the greenlets that start consumers on it."""
    channel = link.begin_channel()
    channel.begin_qos(7)
    return channel, [gevent.spawn(channel.basic_consume, "q", tag, callback=print) for tag in tags]


def publishing(channel: Channel) -> Any:
    """Return a greenlet that publishes in confirm mode."""
    channel.begin_confirms()
    return gevent.spawn(channel.basic_publish_confirm, channel.prepare_message("x"), "", "q")


def test_requests_follow_before_the_broker_has_replied(
    scripted_link: AmqpLink, end: BrokerEnd
) -> None:
    channel, consuming = begun(scripted_link, "a", "b")
    publisher = publishing(channel)
    end.expect(spec.Connection.Open)
    sent = [end.got.get(timeout=SOON)[1] for _ in range(6)]
    assert sent[:3] == [spec.Channel.Open, spec.Basic.Qos, spec.Confirm.Select]
    assert sent[3:] == [spec.Basic.Consume, spec.Basic.Consume, spec.Basic.Publish]
    assert len(channel.calls.pending) == 5
    end.method(1, spec.Channel.OpenOk, "S", "")
    end.method(1, spec.Basic.QosOk)
    end.method(1, spec.Confirm.SelectOk)
    end.method(1, spec.Basic.Ack, "Lb", 1, False)
    for tag in "ba":  # the queue replies
        end.method(1, spec.Basic.ConsumeOk, "s", tag)
    assert [each.get(timeout=SOON) for each in consuming] == ["a", "b"]
    publisher.get(timeout=SOON)
    assert channel.consumers.qos == (0, 7, False)
    assert not len(channel.calls.pending)


@pytest.mark.parametrize("blamed", [spec.Channel.Open, spec.Basic.Qos, spec.Confirm.Select])
def test_what_others_need_is_refused_to_all_of_them(
    scripted_link: AmqpLink, end: BrokerEnd, blamed: Method
) -> None:
    apart = scripted_link.begin_channel()
    channel, callers = begun(scripted_link, "a", "b")
    callers.append(publishing(channel))
    end.expect(spec.Basic.Publish)
    if blamed != spec.Channel.Open:
        end.method(2, spec.Channel.OpenOk, "S", "")
    if blamed == spec.Confirm.Select:
        end.method(2, spec.Basic.QosOk)
    end.method(2, spec.Channel.Close, "BsBB", 403, "not you", *blamed)
    for caller in callers:
        with pytest.raises(AccessRefused, match="not you"):
            caller.get(timeout=SOON)
    assert not channel.is_open
    end.expect(spec.Channel.CloseOk)
    assert scripted_link.begin_channel().channel_id == 2
    assert apart.is_open


def test_an_error_of_one_consumer_is_its_own(scripted_link: AmqpLink, end: BrokerEnd) -> None:
    _, (failing, other) = begun(scripted_link, "a", "b")
    end.expect(spec.Basic.Consume)
    end.expect(spec.Basic.Consume)
    end.method(1, spec.Channel.OpenOk, "S", "")
    end.method(1, spec.Basic.QosOk)
    end.method(1, spec.Channel.Close, "BsBB", 404, "no queue", *spec.Basic.Consume)
    with pytest.raises(NotFound):
        failing.get(timeout=SOON)
    with pytest.raises(RecoverableChannelError, match="because of another call"):
        other.get(timeout=SOON)


@pytest.mark.parametrize("is_refused", [True, False])
def test_all_learn_why_the_connection_has_ended(
    amqp_peer: AmqpPeer, scripted_link: AmqpLink, end: BrokerEnd, is_refused: bool
) -> None:
    channel, callers = begun(scripted_link, "a", "b")
    callers.append(publishing(channel))
    end.expect(spec.Basic.Publish)
    if is_refused:
        end.method(0, spec.Connection.Close, "BsBB", 530, "too many channels", *spec.Channel.Open)
    else:
        amqp_peer.peer.drop()
    for caller in callers:
        with pytest.raises(NotAllowed if is_refused else RecoverableConnectionError):
            caller.get(timeout=SOON)
    assert not channel.is_open
    assert not scripted_link.is_open


def test_a_channel_is_closed_before_it_was_open(scripted_link: AmqpLink, end: BrokerEnd) -> None:
    end.ignored = {spec.Channel.Open, spec.Channel.Close}
    channel, (consuming,) = begun(scripted_link, "a")
    end.expect(spec.Basic.Consume)
    closing = gevent.spawn(channel.close)
    end.expect(spec.Channel.Close)
    with pytest.raises(RecoverableChannelError, match="closed by this program"):
        consuming.get(timeout=SOON)
    end.method(1, spec.Channel.OpenOk, "S", "")
    end.method(1, spec.Basic.QosOk)
    end.method(1, spec.Basic.ConsumeOk, "s", "a")
    assert scripted_link.begin_channel().channel_id == 2  # the number is in use until close-ok
    end.method(1, spec.Channel.CloseOk)
    closing.get(timeout=SOON)
    assert scripted_link.begin_channel().channel_id == 1
    assert scripted_link.is_open


def test_the_prefetch_holds_for_consumers_that_follow(
    scripted_link: AmqpLink, end: BrokerEnd
) -> None:
    channel = scripted_link.begin_channel()
    channel.begin_qos(10)
    channel.begin_qos(500)
    consuming = gevent.spawn(channel.basic_consume, "q", "tag", callback=print)
    end.expect(spec.Basic.Consume)
    end.method(1, spec.Channel.OpenOk, "S", "")
    end.method(1, spec.Basic.QosOk)
    end.method(1, spec.Basic.QosOk)
    end.method(1, spec.Basic.ConsumeOk, "s", "tag")
    consuming.get(timeout=SOON)
    assert channel.consumers.qos == (0, 500, False)
    for tag in range(1, 1501):  # above what the first prefetch would tolerate
        end.deliver(1, "tag", tag)
    until(lambda: len(scripted_link.events) == 1500 or not scripted_link.is_open)
    assert scripted_link.is_open


# With RabbitMQ


def test_each_switch_of_one_that_begins_a_channel_may_be_its_last(
    amqp_links: Links, amqp_queue: str
) -> None:
    link, watching = amqp_links(), amqp_links().channel()
    channels: list[Channel] = []

    def use() -> None:
        channel = link.begin_channel()
        channels.append(channel)
        channel.begin_qos(7)
        channel.basic_consume(amqp_queue, "tag", callback=print)

    for _ in interruptions(use):
        channel = channels.pop()
        # Whatever became of the first one, the next consumer is as any other.
        assert channel.basic_consume(amqp_queue, callback=print)
        channel.close()
        until(lambda: set(link.channels.values()) == {link})
        assert watching.queue_declare(amqp_queue, passive=True).consumer_count == 0
    assert link.begin_channel().channel_id == 1


class Waits:
    """Counts how often greenlets wait for a reply, and for a confirm."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replies = self.confirms = 0
        wait_reply, wait = AmqpLink.wait_reply, PendingConfirm.wait

        def counted_reply(link: AmqpLink, slot: Slot[Any], *how: Any) -> Any:
            self.replies += 1
            return wait_reply(link, slot, *how)

        def counted_confirm(pending: PendingConfirm, *how: Any) -> Any:
            self.confirms += 1
            return wait(pending, *how)

        monkeypatch.setattr(AmqpLink, "wait_reply", counted_reply)
        monkeypatch.setattr(PendingConfirm, "wait", counted_confirm)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(monkeypatch)


def consume(connection: Connection, name: str) -> None:
    consuming(name, lambda body, message: None, connection=connection)


def publish(connection: Connection, name: str) -> None:
    greenconn.publish(name, "x", connection=connection)


@pytest.mark.parametrize("use", [consume, publish])
def test_a_queue_that_exists_takes_two_round_trips(
    amqp_url: str, amqp_queue: str, waits: Waits, use: Callable[[Connection, str], None]
) -> None:
    with Connection(amqp_url) as connection:
        connection.connect()
        use(connection, amqp_queue)
        assert waits.replies + waits.confirms == 2


@pytest.mark.parametrize("is_link", [True, False])
@pytest.mark.parametrize("use", [consume, publish])
def test_a_subclass_decides_on_each_channel(
    amqp_url: str, amqp_queue: str, use: Callable[[Connection, str], None], is_link: bool
) -> None:
    decided: list[Channel] = []

    class OwnLink(AmqpLink):
        def channel(self, channel_id: int | None = None, callback: Any = None) -> Channel:
            channel = super().channel(channel_id, callback)
            decided.append(channel)
            return channel

    class LinkTransport(Transport):
        Connection = OwnLink

    class OwnTransport(Transport):
        def create_channel(self, connection: AmqpLink) -> Channel:
            channel = super().create_channel(connection)
            decided.append(channel)
            return channel

    transport = LinkTransport if is_link else OwnTransport
    with Connection(amqp_url, transport=transport) as connection:
        use(connection, amqp_queue)
        link = decided[0].connection
        assert {link, *decided} == set(link.channels.values())


def test_the_first_call_takes_two_round_trips(amqp_url: str, unique: str, waits: Waits) -> None:
    queue = Queue(unique, durable=False, auto_delete=True)
    with Connection(amqp_url) as serving, Connection(amqp_url) as connection:
        server = rpc.spawn_server(queue, lambda value: value, connection=serving)
        assert server.wait_ready(SOON)
        connection.connect()
        waits.replies = 0
        assert rpc.call(unique, 5, connection=connection) == 5
        assert waits.replies == 1  # for the reply consumer; then for the reply itself
        assert server.stop()


def test_a_consumer_that_is_killed_while_it_starts_leaves_nothing_behind(
    amqp_links: Links, relay: Relay, amqp_queue: str
) -> None:
    watching = amqp_links().channel()
    with Connection(relay.url) as connection:
        connection.connect()
        # The channel of lookups is there, so that only the consumer's is to be opened.
        publish(connection, amqp_queue)
        watching.queue_purge(amqp_queue)
        link = connection.session.life.link
        before = len(link.channels)
        connection.session.life.declared_entities.add(existence_key(amqp_queue))
        relay.is_passing.clear()
        killed = spawn_consumer(amqp_queue, lambda body, message: None, connection=connection)
        until(lambda: any(each.consumers.by_tag for each in list(link.channels.values())[1:]))
        assert len(link.channels) == before + 1
        killed.kill(block=False)
        relay.is_passing.set()
        killed.join(timeout=SOON)
        assert killed.state is ConsumerState.KILLED
        until(lambda: not any(each.consumers.by_tag for each in list(link.channels.values())[1:]))
        assert watching.queue_declare(amqp_queue, passive=True).consumer_count == 0
        bodies: list[Any] = []
        consumer = consuming(
            amqp_queue, lambda body, message: bodies.append(body), connection=connection
        )
        assert len(link.channels) == before + 1  # the channel serves the next one
        publish(connection, amqp_queue)
        until(lambda: bodies)
        assert consumer.stop()
