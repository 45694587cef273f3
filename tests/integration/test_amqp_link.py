"""The connection to RabbitMQ: channel numbers, its end, forks, threads, heartbeats."""

from __future__ import annotations

import gevent
import pytest

from greenconn.exceptions import (
    NotFound,
    RecoverableConnectionError,
    ResourceError,
)
from greenconn.green.deadline import Deadline
from tests.fix_amqp import Links
from tests.fix_interrupts import interruptions
from tests.fix_wires import until
from tests.integration.amqp_clients import WAIT, counts, message


def test_at_most_as_many_channels_as_agreed(amqp_links: Links) -> None:
    link = amqp_links(channel_max=3)
    channels = [link.channel() for _ in range(3)]
    with pytest.raises(ResourceError, match="all 3 channels"):
        link.channel()
    channels[1].close()
    assert link.channel().channel_id == 2
    with pytest.raises(ResourceError):
        link.channel()
    with pytest.raises(NotFound):
        channels[0].queue_declare("greenconn-absent", passive=True)
    assert link.channel().channel_id == 1


def test_close_flushes_and_notifies_all_who_wait(amqp_links: Links, amqp_queue: str) -> None:
    link = amqp_links()
    channel = link.channel()
    draining = [gevent.spawn(link.drain, Deadline(WAIT)) for _ in range(3)]
    gevent.sleep(0)
    for number in range(1000):
        channel.basic_publish(message(channel, str(number)), "", amqp_queue)
    waiting = gevent.spawn(channel.queue_declare, amqp_queue, passive=True)
    gevent.sleep(0)
    link.close()
    link.close()
    for each in draining:
        with pytest.raises(RecoverableConnectionError):
            each.get(timeout=WAIT)
    waiting.join(WAIT)
    assert waiting.value is not None or isinstance(waiting.exception, RecoverableConnectionError)
    with pytest.raises(RecoverableConnectionError):
        channel.queue_declare(amqp_queue, passive=True)
    with pytest.raises(RecoverableConnectionError):
        channel.basic_publish(message(channel), "", amqp_queue)
    with pytest.raises(RecoverableConnectionError):
        link.channel()
    other = amqp_links().channel()
    until(lambda: counts(other, amqp_queue) == (1000, 0))


def test_each_switch_of_opening_and_closing_a_link_may_be_the_last(amqp_links: Links) -> None:
    def use() -> None:
        link = amqp_links()
        try:
            link.channel()
        finally:
            link.close()

    for run in interruptions(use, delays=(0, 2)):
        assert not [link for link in amqp_links.links if link.is_open]
        assert run.raised is None or run.was_interrupted
