"""Publishing on channels that many greenlets share, on RabbitMQ: confirms, returns, a blocked broker."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from greenconn.exceptions import (
    ChannelError,
    ConnectionBlocked,
    NotFound,
    PublishNacked,
    RecoverableChannelError,
    Unroutable,
)
from greenconn.green.deadline import Deadline
from greenconn.transport import base
from greenconn.transport.amqp.channel import Channel
from greenconn.transport.amqp.link import AmqpLink
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_amqp import Links, drain
from tests.fix_interrupts import interruptions
from tests.fix_wires import until
from tests.integration.amqp_clients import WAIT, all_of, counts, message


def test_each_of_many_publishers_gets_its_own_verdict(amqp_channel: Channel, unique: str) -> None:
    full, free = f"{unique}-full", f"{unique}-free"
    limits = {"x-max-length": 5, "x-overflow": "reject-publish"}
    amqp_channel.queue_declare(full, exclusive=True, arguments=limits)
    amqp_channel.queue_declare(free, exclusive=True)
    verdicts: list[list[str]] = [[] for _ in range(100)]

    def publish(number: int) -> None:
        for turn in range(5):
            where = (full, free, f"{unique}-nowhere")[(number + turn) % 3]
            try:
                amqp_channel.basic_publish_confirm(
                    message(amqp_channel, f"{number}-{turn}"), "", where, mandatory=True
                )
                verdicts[number].append("taken")
            except PublishNacked:
                verdicts[number].append("refused")
            except Unroutable as exc:
                verdicts[number].append("returned" if exc.routing_key == where else "mixed up")

    all_of([gevent.spawn(publish, number) for number in range(100)])
    taken = 0
    for number, each in enumerate(verdicts):
        for turn, verdict in enumerate(each):
            kind = (number + turn) % 3
            assert verdict in (("taken", "refused"), ("taken",), ("returned",))[kind]
            taken += kind == 0 and verdict == "taken"
    assert taken >= 5
    assert counts(amqp_channel, full)[0] == taken
    assert counts(amqp_channel, free)[0] == sum(
        (number + turn) % 3 == 1 for number in range(100) for turn in range(5)
    )


def test_each_switch_of_a_publisher_may_be_its_last(amqp_channel: Channel, unique: str) -> None:
    amqp_channel.queue_declare(unique, exclusive=True)

    def publish() -> None:
        amqp_channel.basic_publish_confirm(message(amqp_channel, "good"), "", unique)
        with pytest.raises(Unroutable):
            amqp_channel.basic_publish_confirm(
                message(amqp_channel, "bad"), "", f"{unique}-nowhere", mandatory=True
            )

    for _ in interruptions(publish):
        amqp_channel.basic_publish_confirm(message(amqp_channel, "next"), "", unique)
        with pytest.raises(Unroutable):
            amqp_channel.basic_publish_confirm(
                message(amqp_channel, "next"), "", f"{unique}-nowhere", mandatory=True
            )


def test_publishes_that_are_refused_here_do_not_disturb_the_count(
    amqp_channel: Channel, unique: str
) -> None:
    amqp_channel.queue_declare(unique, exclusive=True)
    amqp_channel.confirm_select()
    nowhere = f"{unique}-nowhere"
    for _ in range(3):
        with pytest.raises(ValueError):
            amqp_channel.basic_publish(message(amqp_channel), "", "x" * 300)
        with pytest.raises(ValueError):
            amqp_channel.basic_publish_confirm(message(amqp_channel), "x" * 300, "key")
        amqp_channel.basic_publish(message(amqp_channel), "", unique)
        amqp_channel.basic_publish_confirm(message(amqp_channel), "", unique, mandatory=True)
        with pytest.raises(Unroutable):
            amqp_channel.basic_publish_confirm(message(amqp_channel), "", nowhere, mandatory=True)


@pytest.mark.parametrize("name", [b"plain", "\u00e4\u20ac".encode(), b"\xff no text"])
def test_a_routing_key_of_bytes_is_distinguished_when_it_comes_back(
    amqp_channel: Channel, unique: str, name: bytes
) -> None:
    key: Any = unique.encode() + name
    with pytest.raises(Unroutable):
        amqp_channel.basic_publish_confirm(message(amqp_channel), b"", key, mandatory=True)  # type: ignore[arg-type]
    if b"\xff" in name:
        return  # no name of a queue, for RabbitMQ
    amqp_channel.queue_declare(key, exclusive=True)
    amqp_channel.basic_publish_confirm(message(amqp_channel), "", key, mandatory=True)
    assert amqp_channel.basic_get(key).body == "body"


def test_bodies_of_subclasses_and_buffers_are_sent_as_they_were(
    amqp_channel: Channel, amqp_queue: str
) -> None:
    class Marked(str):
        """As the safe texts of template engines."""

    buffer = bytearray(b"buffer")
    bodies: list[Any] = [Marked("m\u00e4rz"), buffer, memoryview(buffer)[::-1]]
    for body in bodies:
        amqp_channel.basic_publish(amqp_channel.prepare_message(body), "", amqp_queue)
    buffer[:] = b"\0" * 6
    bodies = [amqp_channel.basic_get(amqp_queue).raw for _ in range(3)]
    assert bodies == ["m\u00e4rz".encode(), b"buffer", b"reffub"]
    nothing: list[Any] = [5, None, ["x"]]
    for body in nothing:
        with pytest.raises(TypeError):
            amqp_channel.prepare_message(body)


def test_returns_that_nobody_listens_for_or_drains_do_not_fill_the_memory(
    amqp_link: AmqpLink,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(base, "RETURNS_LIMIT", 10 * (base.RETURN_OVERHEAD + 200))  # with the header
    channel = amqp_link.channel()

    def publish_lost() -> None:
        for _ in range(50):
            channel.basic_publish(message(channel, "x" * 100), "", unique, mandatory=True)
        channel.basic_qos(0, 1, False)  # its answer comes behind them

    publish_lost()
    assert len(amqp_link.events) == 0
    returned: list[Any] = []
    channel.events["basic_return"].add(lambda *args: returned.append(args))
    for number in (10, 20):
        publish_lost()
        assert len(amqp_link.events) == 10
        while len(returned) < number:
            amqp_link.drain(Deadline(WAIT))
    until(lambda: "on_return is not set" in caplog.text)


def test_a_return_of_a_publish_that_nobody_awaits_is_an_event(
    amqp_link: AmqpLink, unique: str
) -> None:
    channel = amqp_link.channel()
    returned: list[Any] = []
    channel.events["basic_return"].add(lambda *args: returned.append(args))
    channel.basic_publish(message(channel, "lost"), "amq.direct", unique, mandatory=True)
    drain(amqp_link, lambda: returned)
    exc, exchange, routing_key, each = returned[0]
    assert (exchange, routing_key, each.body) == ("amq.direct", unique, "lost")
    assert isinstance(exc, ChannelError)
    assert exc.reply_code == 312


def test_returns_of_equal_messages_are_distinguished_by_their_order(
    amqp_link: AmqpLink, unique: str
) -> None:
    channel = amqp_link.channel()
    returned: list[Any] = []
    channel.events["basic_return"].add(lambda *args: returned.append(args))
    channel.confirm_select()
    channel.basic_publish(message(channel), "", unique, mandatory=True)
    channel.queue_declare(unique, exclusive=True, nowait=True)
    # The first of these two equal messages was returned, and nobody awaited that.
    channel.basic_publish_confirm(message(channel), "", unique, mandatory=True)
    drain(amqp_link, lambda: returned)
    assert len(returned) == 1


def test_a_publish_to_an_absent_exchange_is_refused_to_its_publisher(
    amqp_link: AmqpLink, unique: str
) -> None:
    channel = amqp_link.channel()
    with pytest.raises(NotFound):
        channel.basic_publish_confirm(message(channel), f"{unique}-absent", "key")
    channel = amqp_link.channel()
    channel.confirm_select()
    channel.basic_publish(message(channel), f"{unique}-absent", "key")
    with pytest.raises(RecoverableChannelError, match="404"):
        channel.basic_publish_confirm(message(channel), "", f"{unique}-absent")
    channel = amqp_link.channel()
    channel.confirm_select()
    channel.basic_publish(message(channel), "", f"{unique}-absent")
    channel.basic_publish_confirm(message(channel), "", f"{unique}-absent")
    with pytest.raises(NotFound):  # the one without confirm was looked at before
        channel.basic_publish_confirm(message(channel), f"{unique}-absent", "key")
    channel = amqp_link.channel()
    publishes = [
        gevent.spawn(channel.basic_publish_confirm, message(channel), f"{unique}-absent", "key")
        for _ in range(3)
    ]
    gevent.joinall(publishes, timeout=WAIT)
    # Nobody can tell which of them it was, unless the first was answered before the others began.
    with pytest.raises((RecoverableChannelError, NotFound), match="404"):
        publishes[0].get()
    for each in publishes[1:]:
        with pytest.raises(RecoverableChannelError, match="404"):
            each.get()


def test_a_blocked_broker_makes_publishers_wait_and_then_go_on_in_order(
    own_rabbitmq: RabbitMQ, unique: str
) -> None:
    links = Links(own_rabbitmq.url)
    link = links(blocked_timeout=0.2)
    notified: list[str] = []
    other = links(on_blocked=notified.append, on_unblocked=lambda: notified.append("free"))
    try:
        channel = link.channel()
        channel.queue_declare(unique, auto_delete=False)
        channel.basic_publish_confirm(message(channel, "first"), "", unique)
        own_rabbitmq.set_memory_alarm(True)
        # The broker says so when a connection publishes.
        for each in (channel, other.channel()):
            each.basic_publish(message(channel, "provokes"), "", unique)
        until(lambda: link.flow_control.blocked and other.flow_control.blocked)
        for publish in (channel.basic_publish, channel.basic_publish_confirm):
            with pytest.raises(ConnectionBlocked, match="memory"):
                publish(message(channel, "never"), "", unique)
            with pytest.raises(ConnectionBlocked):
                publish(message(channel, "never"), "", unique, timeout=0.01)
        waiting = [
            gevent.spawn(
                channel.basic_publish_confirm, message(channel, str(n)), "", unique, timeout=30
            )
            for n in range(20)
        ]
        gevent.sleep(0)
        # A connection that does not publish is served.
        assert links().channel().queue_declare(unique, passive=True).queue == unique
        own_rabbitmq.set_memory_alarm(False)
        all_of(waiting)
        drain(other, lambda: len(notified) == 2)
        assert notified[0]
        assert notified[1] == "free"
        until(lambda: counts(channel, unique)[0] == 23)
        bodies = [channel.basic_get(unique, no_ack=True).body for _ in range(23)]
        assert [each for each in bodies if each.isdigit()] == [str(n) for n in range(20)]
        channel.queue_delete(unique)
    finally:
        links.close()


def test_kills_of_those_whom_a_blocked_broker_makes_wait(
    own_rabbitmq: RabbitMQ, unique: str
) -> None:
    links = Links(own_rabbitmq.url)
    link = links()
    try:
        channel = link.channel()
        channel.queue_declare(unique, auto_delete=False)
        own_rabbitmq.set_memory_alarm(True)
        channel.basic_publish(message(channel, "provokes"), "", unique)
        until(lambda: link.flow_control.blocked)
        waiting = [
            gevent.spawn(channel.basic_publish, message(channel, str(n)), "", unique)
            for n in range(10)
        ]
        gevent.sleep(0)
        gevent.killall(waiting[::2])
        own_rabbitmq.set_memory_alarm(False)
        all_of(waiting[1::2])
        until(lambda: counts(channel, unique)[0] == 6)
        channel.queue_delete(unique)
    finally:
        links.close()
