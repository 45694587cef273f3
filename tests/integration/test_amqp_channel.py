"""Channels that many greenlets share, on RabbitMQ: everybody gets what is his, whoever is killed."""

from __future__ import annotations

import os
import random
from collections import Counter
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
from tests.fix_amqp import Links, drain
from tests.fix_interrupts import interruptions
from tests.fix_wires import until
from tests.integration.amqp_clients import WAIT, Sink, all_of, counts, fill, message


def test_each_of_many_callers_gets_its_own_answer(amqp_channel: Channel, unique: str) -> None:
    names = [f"{unique}-{number}" for number in range(10)]
    for number, name in enumerate(names):
        amqp_channel.queue_declare(name, exclusive=True)
        fill(amqp_channel, name, number)

    def ask(number: int) -> tuple[str, int]:
        declared = amqp_channel.queue_declare(names[number % 10], passive=True)
        return declared.queue, declared.message_count

    answers = all_of([gevent.spawn(ask, number) for number in range(100)])
    assert answers == [(names[number % 10], number % 10) for number in range(100)]


def test_gets_of_many_greenlets_take_each_message_once(
    amqp_channel: Channel, amqp_queue: str
) -> None:
    fill(amqp_channel, amqp_queue, 100)
    got = all_of([gevent.spawn(amqp_channel.basic_get, amqp_queue) for _ in range(120)])
    bodies = [each.body for each in got if each is not None]
    assert sorted(bodies, key=int) == [str(number) for number in range(100)]
    for each in got:
        if each is not None:
            amqp_channel.basic_ack(each.delivery_tag)
    assert counts(amqp_channel, amqp_queue) == (0, 0)


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


def test_a_message_that_a_killed_caller_got_goes_back(amqp_link: AmqpLink, amqp_queue: str) -> None:
    channel, other = amqp_link.channel(), amqp_link.channel()
    fill(channel, amqp_queue, 5)

    def get() -> None:
        channel.basic_get(amqp_queue).requeue()

    for _ in interruptions(get):
        until(lambda: counts(other, amqp_queue) == (5, 0))


def test_a_channel_of_a_killed_caller_is_closed(amqp_link: AmqpLink) -> None:
    kept = amqp_link.channel()
    for run in interruptions(amqp_link.channel):
        if run.result is not None:
            run.result.close()
        until(lambda: set(amqp_link.channels.values()) == {amqp_link, kept})
    numbers = {amqp_link.channel().channel_id for _ in range(5)}
    assert numbers == {2, 3, 4, 5, 6}


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


def test_a_failed_publish_is_not_the_error_of_one_who_declares(
    amqp_channel: Channel, unique: str
) -> None:
    amqp_channel.basic_publish(message(amqp_channel), f"{unique}-absent", "key")
    with pytest.raises(RecoverableChannelError, match="404") as caught:
        amqp_channel.queue_declare(unique, exclusive=True)
    assert not isinstance(caught.value, NotFound)
    assert isinstance(caught.value.__cause__, NotFound)


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


def test_a_failed_publish_with_confirms_that_nobody_awaits_is_reported_to_the_next(
    amqp_link: AmqpLink, unique: str
) -> None:
    old, new = amqp_link.channel(), amqp_link.channel()
    old.confirm_select()
    old.basic_publish(message(old), f"{unique}-absent", "key", mandatory=True)
    until(lambda: not old.is_open)
    new.take_over(old)
    with pytest.raises(RecoverableChannelError, match=r"without confirm is lost.*404"):
        new.basic_publish(message(new), "", unique)


def test_the_error_of_a_killed_caller_is_nobody_elses(amqp_channel: Channel, unique: str) -> None:
    killed = gevent.spawn(amqp_channel.queue_declare, f"{unique}-absent", passive=True)
    gevent.sleep(0)
    waiting = gevent.spawn(amqp_channel.queue_declare, unique, exclusive=True)
    gevent.sleep(0)
    killed.kill()
    with pytest.raises(RecoverableChannelError, match="404") as caught:
        waiting.get(timeout=WAIT)
    assert not isinstance(caught.value, NotFound)


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


def test_consumers_of_a_channel_that_an_error_closes_are_notified(
    amqp_link: AmqpLink, amqp_queue: str, unique: str
) -> None:
    channel, sink = amqp_link.channel(), Sink()
    channel.basic_consume(amqp_queue, callback=print)
    channel.basic_consume(amqp_queue, sink=sink)
    with pytest.raises(NotFound):
        channel.queue_declare(f"{unique}-absent", passive=True)
    assert len(sink.errors) == 1
    with pytest.raises(RecoverableChannelError, match="404"):
        amqp_link.drain(Deadline(WAIT))


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


def test_an_ack_is_never_merged_over_what_is_rejected_in_the_same_turn(
    amqp_channel: Channel, amqp_queue: str
) -> None:
    fill(amqp_channel, amqp_queue, 9)
    tags = [amqp_channel.basic_get(amqp_queue).delivery_tag for _ in range(9)]
    for each in (tags[0], tags[2], tags[3]):
        amqp_channel.basic_ack(each)
    amqp_channel.basic_reject(tags[1], True)
    for each in (tags[4], tags[6]):
        amqp_channel.basic_ack(each)
    amqp_channel.basic_reject(tags[5], True)
    amqp_channel.basic_ack(tags[8], multiple=True)
    until(lambda: counts(amqp_channel, amqp_queue) == (2, 0))
    assert [amqp_channel.basic_get(amqp_queue).body for _ in range(2)] == ["1", "5"]


def test_recover_redelivers_all_that_is_unacked_and_drops_acks_given_meanwhile(
    amqp_link: AmqpLink, amqp_queue: str
) -> None:
    channel = amqp_link.channel()
    fill(channel, amqp_queue, 20)
    got: list[Any] = []
    channel.basic_consume(amqp_queue, callback=got.append)
    drain(amqp_link, lambda: len(got) == 20)
    for each in got[:5]:
        each.ack()
    recovering = gevent.spawn(channel.basic_recover, True)
    gevent.sleep(0)
    for each in got[5:10]:
        each.ack()  # too late: they come again
    got[10].reject()
    recovering.get(timeout=WAIT)
    first, got[:] = got[:], []
    drain(amqp_link, lambda: len(got) == 15)
    assert sorted(int(each.body) for each in got) == list(range(5, 20))
    assert all(each.delivery_info["redelivered"] for each in got)
    for each in first[11:]:
        with pytest.raises(PreconditionFailed):
            channel.basic_ack(each.delivery_tag)
    for each in got:
        each.ack()
    assert counts(channel, amqp_queue) == (0, 1)
    assert channel.is_open


def test_what_recover_async_redelivers_is_acked_by_its_new_tag(
    amqp_link: AmqpLink, amqp_queue: str
) -> None:
    channel = amqp_link.channel()
    fill(channel, amqp_queue, 2)
    before = [channel.basic_get(amqp_queue) for _ in range(2)]
    channel.basic_recover_async(requeue=True)
    before[0].ack()  # too late: it comes again
    until(lambda: counts(channel, amqp_queue) == (2, 0))
    with pytest.raises(PreconditionFailed, match="already acknowledged"):
        before[1].ack()
    for _ in range(2):
        channel.basic_get(amqp_queue).ack()
    until(lambda: counts(channel, amqp_queue) == (0, 0))
    assert channel.is_open


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


def test_acks_in_order_leave_in_few_frames(amqp_link: AmqpLink, amqp_queue: str) -> None:
    channel = amqp_link.channel()
    fill(channel, amqp_queue, 500)
    channel.basic_qos(0, 100, False)
    done = Counter[str]()

    def handle(each: Any) -> None:
        each.ack()
        done["messages"] += 1

    channel.basic_consume(amqp_queue, callback=handle)
    sends = amqp_link.writer.sends
    drain(amqp_link, lambda: done["messages"] == 500)
    assert counts(channel, amqp_queue) == (0, 1)
    assert amqp_link.writer.sends - sends < 250
