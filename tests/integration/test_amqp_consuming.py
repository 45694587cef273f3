"""Consumers on channels that many greenlets share, on RabbitMQ: cancelled, or their caller killed."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from greenconn.green.deadline import Deadline
from greenconn.transport.amqp.link import AmqpLink
from tests.fix_amqp import drain
from tests.fix_interrupts import interruptions
from tests.fix_wires import until
from tests.integration.amqp_clients import all_of, counts, fill


def test_a_prefetch_holds_although_its_caller_was_killed(
    amqp_link: AmqpLink, amqp_queue: str
) -> None:
    channel = amqp_link.channel()
    caller = gevent.spawn(channel.basic_qos, 0, 3, False)
    gevent.sleep(0)
    caller.kill()
    fill(amqp_link.channel(), amqp_queue, 5)
    got: list[Any] = []
    channel.basic_consume(amqp_queue, callback=got.append)
    # Known to be bounded: what waits for those who drain is not counted.
    until(lambda: len(amqp_link.events) == 3)
    assert amqp_link.budget.held == 0
    successor = amqp_link.channel()
    successor.take_over(channel)
    assert successor.consumers._prefetch == 3


def test_a_consumer_of_a_killed_caller_is_cancelled_and_its_deliveries_go_back(
    amqp_link: AmqpLink, amqp_queue: str
) -> None:
    channel, other = amqp_link.channel(), amqp_link.channel()
    fill(channel, amqp_queue, 5)
    channel.basic_qos(0, 3, False)
    seen: list[str] = []

    def consume() -> None:
        channel.basic_cancel(channel.basic_consume(amqp_queue, "tag", callback=seen.append))

    for run in interruptions(consume):
        if run.raised is None:
            # Cancelled in order: its deliveries are the program's.
            with pytest.raises(TimeoutError):
                while True:
                    amqp_link.drain(Deadline(0))
            for each in seen:
                each.requeue()  # type: ignore[attr-defined]
        elif counts(other, amqp_queue)[1] and channel.consumers.by_tag:
            # Killed in basic_cancel, or its cancel is on its way.
            until(lambda: not channel.consumers.by_tag)
        with pytest.raises(TimeoutError):
            while True:
                amqp_link.drain(Deadline(0))
        for each in seen:
            if not each.acknowledged:  # type: ignore[attr-defined]
                each.requeue()  # type: ignore[attr-defined]
        seen.clear()
        until(lambda: counts(other, amqp_queue) == (5, 0))
        until(lambda: not channel.consumers.by_tag)


def test_a_tag_whose_caller_was_killed_is_free_when_the_broker_has_cancelled_it(
    amqp_link: AmqpLink, amqp_queue: str
) -> None:
    channel = amqp_link.channel()
    killed = gevent.spawn(channel.basic_consume, amqp_queue, "tag", callback=print)
    gevent.sleep(0)
    killed.kill()
    assert b"tag" in channel.consumers.by_tag
    assert channel.basic_consume(amqp_queue, "tag", callback=print) == "tag"
    assert counts(channel, amqp_queue)[1] == 1
    # Two consumers of one tag: the broker would close the connection.
    with pytest.raises(ValueError, match="in use"):
        channel.basic_consume(amqp_queue, "tag", callback=print)


def test_deliveries_after_a_cancel_without_waiting_go_back(
    amqp_link: AmqpLink, amqp_queue: str
) -> None:
    channel = amqp_link.channel()
    fill(channel, amqp_queue, 50)
    got: list[Any] = []
    channel.basic_consume(amqp_queue, "tag", nowait=True, callback=got.append)
    channel.basic_cancel("tag", nowait=True)
    until(lambda: counts(channel, amqp_queue) == (50, 0))
    assert not got
    channel.basic_consume(amqp_queue, "tag", callback=got.append)
    drain(amqp_link, lambda: len(got) == 50)
    channel.basic_cancel("tag", nowait=True)
    until(lambda: not channel.consumers.by_tag)  # nothing stays behind


@pytest.mark.parametrize("nowait", [False, True], ids=["waiting", "nowait"])
def test_a_cancel_hands_on_what_the_broker_has_deleted(
    amqp_link: AmqpLink, amqp_queue: str, nowait: bool
) -> None:
    channel = amqp_link.channel()
    got: list[Any] = []
    fill(channel, amqp_queue, 50)
    channel.basic_consume(amqp_queue, "tag", no_ack=True, callback=got.append)
    until(lambda: len(amqp_link.events) == 50)
    amqp_link.drain(Deadline(10))
    assert len(got) == 1
    channel.basic_cancel("tag", nowait=nowait)
    assert len(got) == 50
    assert amqp_link.budget.held == 0


def test_a_callback_that_fails_during_a_cancel_leaves_the_rest_to_be_drained(
    amqp_link: AmqpLink, amqp_queue: str
) -> None:
    channel = amqp_link.channel()
    got: list[Any] = []

    def fail_at_third(message: Any) -> None:
        got.append(message)
        if len(got) == 3:
            raise RuntimeError("the third")

    fill(channel, amqp_queue, 10)
    channel.basic_consume(amqp_queue, "tag", no_ack=True, callback=fail_at_third)
    until(lambda: len(amqp_link.events) == 10)
    with pytest.raises(RuntimeError, match="the third"):
        channel.basic_cancel("tag")
    drain(amqp_link, lambda: len(got) == 10)
    assert amqp_link.budget.held == 0


@pytest.mark.parametrize("nowait", [False, True], ids=["waiting", "nowait"])
def test_a_consumer_that_is_cancelled_twice_holds_nothing_back(
    amqp_link: AmqpLink, amqp_queue: str, nowait: bool
) -> None:
    """RabbitMQ answers the second request before the queue has answered the first."""
    channel = amqp_link.channel()
    fill(channel, amqp_queue, 100)
    for _ in range(10):
        channel.basic_consume(amqp_queue, "tag", callback=lambda message: message.requeue())
        cancelling = [
            gevent.spawn(channel.basic_cancel, "tag", nowait=nowait and number > 0)
            for number in range(3)
        ]
        if nowait:
            gevent.sleep(0)
            cancelling[0].kill()
        all_of(cancelling)
        until(lambda: not channel.consumers.by_tag)
        with pytest.raises(TimeoutError):
            while True:
                amqp_link.drain(Deadline(0))
        until(lambda: counts(channel, amqp_queue) == (100, 0))
