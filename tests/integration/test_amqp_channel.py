"""Channels that many greenlets share, on RabbitMQ: everybody gets what is his, whoever is killed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import count
from typing import Any

import gevent
import pytest

from greenconn.exceptions import (
    AccessRefused,
    ContentTooLarge,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    ResourceLocked,
)
from greenconn.green.deadline import Deadline
from greenconn.transport.amqp.channel import Channel
from greenconn.transport.amqp.link import AmqpLink
from tests.fix_amqp import Links
from tests.fix_interrupts import interruptions
from tests.fix_wires import until
from tests.integration.amqp_clients import WAIT, Sink, counts, fill, message


def test_each_switch_of_a_caller_may_be_its_last(amqp_link: AmqpLink, unique: str) -> None:
    channel = amqp_link.channel()
    names = [f"{unique}-{number}" for number in range(3)]

    def use() -> None:
        for name in names:
            assert channel.queue_declare(name, exclusive=True).queue == name
            channel.queue_bind(name, "amq.direct", "key")
            channel.queue_unbind(name, "amq.direct", "key")
        channel.basic_qos(0, 7, False)
        channel.queue_purge(names[0])

    for _ in interruptions(use):
        # The next caller gets its own answer all the same.
        name = f"{unique}-next"
        assert channel.queue_declare(name, exclusive=True).queue == name


def test_each_switch_of_close_may_be_the_last(amqp_link: AmqpLink, amqp_queue: str) -> None:
    channels: list[Channel] = []

    def close() -> None:
        channels.append(amqp_link.channel())
        channels[-1].basic_consume(amqp_queue, callback=print)
        channels[-1].close()

    for _ in interruptions(close):
        for each in channels:
            each.close()
        until(lambda: len(amqp_link.channels) == 1)
    assert amqp_link.is_open


@pytest.fixture
def provoke(amqp_links: Links, unique: str) -> Callable[[type[Exception], Channel], Any]:
    """Calls a method for which the broker closes the channel with the error that is asked for."""

    def call(error: type[Exception], channel: Channel) -> Any:
        if error is NotFound:
            return channel.queue_declare(f"{unique}-absent", passive=True)
        if error is AccessRefused:
            return channel.exchange_declare("amq.mine", "direct")
        if error is ResourceLocked:
            return channel.queue_declare(f"{unique}-locked", passive=True)
        return channel.queue_declare(
            f"{unique}-locked", exclusive=True, arguments={"x-max-length": 3}
        )

    return call


@pytest.mark.parametrize("error", [NotFound, AccessRefused, ResourceLocked, PreconditionFailed])
def test_an_error_reaches_its_own_caller_and_others_get_the_cause(
    amqp_links: Links,
    unique: str,
    error: type[Exception],
    provoke: Callable[[type[Exception], Channel], Any],
) -> None:
    owner = amqp_links()
    mine = owner.channel()
    mine.queue_declare(f"{unique}-locked", exclusive=True)
    link = owner if error is PreconditionFailed else amqp_links()
    channel, apart = link.channel(), link.channel()
    channel.queue_declare(unique, exclusive=True)
    calls: list[Any] = [
        gevent.spawn(channel.queue_declare, unique, passive=True) for _ in range(10)
    ]
    failing: Any = gevent.spawn(provoke, error, channel)
    calls += [gevent.spawn(channel.queue_declare, unique, passive=True) for _ in range(10)]
    gevent.joinall([failing, *calls], timeout=WAIT)
    with pytest.raises(error):
        failing.get()
    code = str(failing.exception.reply_code)
    for call in calls:
        if call.exception is not None:
            with pytest.raises(RecoverableChannelError, match=code) as caught:
                call.get()
            assert not isinstance(caught.value, error)
    # Those that were sent before it were answered.
    assert [call.value.queue for call in calls[:10]] == [unique] * 10
    assert not channel.is_open
    with pytest.raises(RecoverableChannelError, match=code):
        channel.queue_declare(unique, passive=True)
    assert apart.queue_declare(unique, passive=True).queue == unique
    assert link.is_open


def test_a_failed_publish_that_nobody_awaits_is_reported_to_the_next(
    amqp_link: AmqpLink, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = amqp_link.channel(), amqp_link.channel()
    old.basic_publish(message(old), f"{unique}-absent", "key")
    until(lambda: not old.is_open)
    new.take_over(old)
    with pytest.raises(RecoverableChannelError, match=r"without confirm is lost.*404") as caught:
        new.basic_publish(message(new), "", unique)
    assert isinstance(caught.value.__cause__, NotFound)
    new.basic_publish(message(new), "", unique)  # it is told once
    until(lambda: caplog.text.count("without confirm is lost") == 1)
    with pytest.raises(NotFound):
        new.basic_publish_confirm(message(new), f"{unique}-absent", "key")
    third = amqp_link.channel()
    third.take_over(new)
    third.basic_publish(message(third), "", unique)  # that one was told to its own publisher
    assert third.is_open


def test_a_consumer_that_could_not_start_is_its_callers_matter_alone(
    amqp_link: AmqpLink, unique: str
) -> None:
    sink = Sink()
    options: list[dict[str, Any]] = [{"callback": print}, {"sink": sink}]
    for each in options:
        channel = amqp_link.channel()
        with pytest.raises(NotFound):
            channel.basic_consume(f"{unique}-absent", **each)
    with pytest.raises(TimeoutError):
        amqp_link.drain(Deadline(0))
    assert not sink.errors


def test_arguments_that_fit_no_field_or_frame_affect_nobody_else(
    amqp_link: AmqpLink, unique: str
) -> None:
    channel = amqp_link.channel()
    long_name = "x" * 300
    with pytest.raises(ValueError, match="does not fit"):
        channel.queue_declare(long_name)
    with pytest.raises(ValueError, match="255"):
        channel.basic_publish(message(channel), "", long_name)
    with pytest.raises(ValueError, match="does not fit"):
        channel.basic_consume(unique, long_name, callback=print)
    with pytest.raises(ContentTooLarge):
        channel.queue_declare(unique, exclusive=True, arguments={"x-large": "x" * 140_000})
    large = channel.prepare_message("x", None, None, None, {"large": "x" * 140_000}, None)
    with pytest.raises(ContentTooLarge):
        channel.basic_publish(large, "", unique)
    assert channel.queue_declare(unique, exclusive=True).queue == unique
    assert not channel.consumers.by_tag


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 200_000, 3_000_000])
def test_bodies_and_headers_at_the_edges_of_a_frame(
    amqp_channel: Channel, amqp_queue: str, size: int
) -> None:
    body = os.urandom(size)
    headers = {"long": "x" * 60_000}
    for each in (None, headers):
        sent = amqp_channel.prepare_message(body, None, None, None, each, None)
        amqp_channel.basic_publish_confirm(sent, "", amqp_queue)
        got = amqp_channel.basic_get(amqp_queue, no_ack=True)
        assert got.body == body
        assert got.headers == (each or {})


@pytest.mark.parametrize("seed", range(3))
def test_random_settlements_leave_at_the_broker_what_was_not_settled(
    amqp_links: Links, amqp_queue: str, seed: int, long: bool
) -> None:
    """Consumers, gets, acks, rejects, recovers and kills over shared channels against a model."""
    rng = random.Random(seed)
    total = 3000 if long else 400
    fill(amqp_links().channel(), amqp_queue, total)
    link = amqp_links()
    channels = [link.channel() for _ in range(3)]
    held: list[Any] = []
    gone: set[str] = set()
    numbers = count()
    for channel in channels:
        channel.basic_qos(0, rng.choice([5, 20]), False)
        for _ in range(2):
            channel.basic_consume(amqp_queue, callback=held.append)

    def answer(each: Any) -> None:
        choice = rng.random()
        channel, tag, answered = each.channel, each.delivery_tag, [each]
        ledger = channel.acks.ledger
        if choice < 0.1:
            meant = [one for one in held if one.channel is channel and one.delivery_tag <= tag]
            tags = {one.delivery_tag for one in [each, *meant]}
            # Not over deliveries of which the program knows nothing yet.
            if {one for one in ledger.outstanding if one <= tag} == tags:
                answered += meant
                for one in meant:
                    held.remove(one)
                channel.basic_ack(tag, multiple=True)
            else:
                channel.basic_ack(tag)
        elif choice < 0.7:
            channel.basic_ack(tag)
        else:
            try:
                channel.basic_reject(tag, choice >= 0.85)
            except PreconditionFailed:
                return  # while it waited for its turn to write, all was put back
            if choice >= 0.85:
                return
        if not ledger.is_recovering:  # else it comes again
            gone.update(one.body for one in answered)

    def work() -> None:
        while True:
            number = next(numbers)
            if number % 10 == 0:
                one = rng.choice(channels).basic_get(amqp_queue)
                if one is not None:
                    held.append(one)
            elif number % 97 == 0:
                channel = rng.choice(channels)
                mine = [one for one in held if one.channel is channel]
                for one in mine:
                    held.remove(one)
                channel.basic_recover(True)
                # What came between the sending and the reply was put back too.
                tags = channel.acks.ledger.outstanding
                held[:] = [
                    one for one in held if one.channel is not channel or one.delivery_tag in tags
                ]
            elif held and rng.random() < 0.7:
                each = held.pop(rng.randrange(len(held)))
                if each.delivery_tag in each.channel.acks.ledger.outstanding:
                    answer(each)
            else:
                try:
                    link.drain(Deadline(0.001))
                except TimeoutError:
                    pass

    workers = [gevent.spawn(work) for _ in range(8)]
    end = total * 3 // 4
    with gevent.Timeout(40):
        while len(gone) < end:
            gevent.sleep(0.001)
            target = rng.randrange(len(workers))
            workers[target].kill()
            workers[target] = gevent.spawn(work)
    gevent.killall(workers)
    assert all(channel.is_open for channel in channels)
    link.close()
    channel = amqp_links().channel()
    until(lambda: counts(channel, amqp_queue) == (total - len(gone), 0))
    left = {channel.basic_get(amqp_queue, no_ack=True).body for _ in range(total - len(gone))}
    assert left == {str(number) for number in range(total)} - gone
