"""Publishing on channels that many greenlets share, on RabbitMQ: confirms, returns, a blocked broker."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from greenconn.exceptions import ChannelError, Unroutable
from greenconn.green.deadline import Deadline
from greenconn.transport import base
from greenconn.transport.amqp.channel import Channel
from greenconn.transport.amqp.link import AmqpLink
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_amqp import Links, drain
from tests.fix_interrupts import interruptions
from tests.fix_wires import until
from tests.integration.amqp_clients import WAIT, all_of, counts, message


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
