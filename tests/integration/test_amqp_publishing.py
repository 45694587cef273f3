"""Publishing on channels that many greenlets share, on RabbitMQ: confirms, returns, a blocked broker."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from greenconn.exceptions import (
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
