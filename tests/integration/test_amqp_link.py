"""The connection to RabbitMQ: channel numbers, its end, forks, threads, heartbeats."""

from __future__ import annotations

import os
from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event
from gevent.threadpool import ThreadPool

from greenconn.exceptions import NotFound, RecoverableConnectionError, ResourceError, WrongHub
from greenconn.green.deadline import Deadline
from greenconn.transport.amqp.link import AmqpLink
from tests.fix_amqp import Links
from tests.fix_interrupts import interruptions
from tests.fix_wires import until
from tests.integration.amqp_clients import WAIT, all_of, counts, fill, message


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


def test_channels_opened_and_closed_by_many_at_once(amqp_links: Links, unique: str) -> None:
    link = amqp_links(channel_max=20)

    def use(number: int) -> None:
        for _ in range(10):
            with link.channel() as channel:
                name = f"{unique}-{number}"
                assert channel.queue_declare(name, exclusive=True).queue == name

    all_of([gevent.spawn(use, number) for number in range(20)])
    until(lambda: len(link.channels) == 1)


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


def test_a_forked_child_knows_that_it_has_no_connection(amqp_links: Links, amqp_queue: str) -> None:
    link = amqp_links()
    channel = link.channel()
    fill(channel, amqp_queue, 3)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            with gevent.Timeout(20):
                for use in (
                    lambda: channel.queue_declare(amqp_queue, passive=True),
                    lambda: channel.basic_publish(message(channel), "", amqp_queue),
                    link.channel,
                    lambda: link.drain(Deadline(0)),
                ):
                    with pytest.raises(RecoverableConnectionError):
                        use()
                link.close()
                with amqp_links().channel() as own:
                    own.basic_ack(own.basic_get(amqp_queue).delivery_tag)
            status = 0
        finally:
            os._exit(status)
    ended: list[int] = []

    def has_ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        ended[:] = [os.waitstatus_to_exitcode(status)] if found else []
        return bool(found)

    until(has_ended, 30)
    assert ended == [0]
    until(lambda: counts(channel, amqp_queue)[0] == 2)
    assert link.is_open


def test_another_thread_is_notified_that_it_needs_a_connection_of_its_own(
    amqp_link: AmqpLink, amqp_queue: str
) -> None:
    channel = amqp_link.channel()
    fill(channel, amqp_queue, 1)
    got = channel.basic_get(amqp_queue)
    uses: list[Callable[[], object]] = [
        amqp_link.channel,
        channel.close,
        lambda: channel.queue_declare(amqp_queue, passive=True),
        lambda: channel.basic_publish(message(channel), "", amqp_queue),
        lambda: channel.basic_publish_confirm(message(channel), "", amqp_queue),
        lambda: channel.basic_consume(amqp_queue, "tag", callback=print),
        lambda: channel.basic_get(amqp_queue),
        lambda: channel.basic_ack(got.delivery_tag),
        lambda: channel.basic_reject(got.delivery_tag, True),
        lambda: channel.basic_recover(True),
        lambda: amqp_link.drain(Deadline(0)),
        amqp_link.close,
    ]

    def refusal(use: Callable[[], object]) -> str:
        try:
            use()
        except WrongHub as exc:
            return str(exc)
        return "none"

    pool = ThreadPool(1)
    try:
        for use in uses:
            text = str(pool.spawn(refusal, use).get(timeout=WAIT))
            assert "'MainThread'" in text
            assert "clone" in text
    finally:
        pool.kill()
    assert counts(channel, amqp_queue) == (0, 0)
    channel.basic_ack(got.delivery_tag)
    assert not channel.consumers.by_tag


def test_an_idle_link_with_a_short_heartbeat_stays_open(amqp_links: Links) -> None:
    link = amqp_links(heartbeat=1)
    assert link.heartbeat == 1
    lost = Event()
    link.on_lost = lambda exc: lost.set()
    for _ in range(18):
        # Nobody drains: what the broker sends is heard all the same.
        link.heartbeat_tick(2)
        assert not lost.wait(0.25)
    assert link.is_open
    with link.channel() as channel:
        assert channel.is_open
