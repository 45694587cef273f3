"""Channels that many greenlets share, on RabbitMQ: everybody gets what is his, whoever is killed."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.threadpool import ThreadPool

from greenconn.exceptions import (
    AccessRefused,
    ChannelError,
    ConnectionBlocked,
    ConsumerCancelled,
    ContentTooLarge,
    NotFound,
    PreconditionFailed,
    PublishNacked,
    RecoverableChannelError,
    RecoverableConnectionError,
    ResourceError,
    ResourceLocked,
    Unroutable,
    WrongHub,
)
from greenconn.green.deadline import Deadline
from greenconn.transport import base
from greenconn.transport.amqp.channel import Channel
from greenconn.transport.amqp.link import AmqpLink
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_amqp import Links, drain
from tests.fix_interrupts import interruptions
from tests.fix_wires import until

WAIT = 20.0


class Sink:
    """Notes what it is given, as the reader wants it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.errors: list[BaseException] = []
        self.taken: Callable[[Any], None] | None = None

    def deliver(self, message: Any) -> None:
        self.messages.append(message)

    def cancelled(self, exc: BaseException) -> None:
        self.errors.append(exc)

    def give_back(self) -> None:
        for each in self.messages:
            each.put_back()


def message(channel: Channel, body: str = "body") -> Any:
    return channel.prepare_message(body, None, "text/plain", "utf-8", None, {"delivery_mode": 1})


@pytest.fixture
def queue(amqp_links: Links, unique: str) -> Iterator[str]:
    """An empty queue."""
    channel = amqp_links().channel()
    channel.queue_declare(unique, auto_delete=False)
    yield unique
    amqp_links().channel().queue_delete(unique)


def fill(channel: Channel, queue: str, number: int) -> None:
    """Put the messages ``0`` to ``number - 1`` into a queue."""
    for each in range(number):
        channel.basic_publish(message(channel, str(each)), "", queue)
    until(lambda: channel.queue_declare(queue, passive=True).message_count == number)


def counts(channel: Channel, queue: str) -> tuple[int, int]:
    """Messages that are ready, and consumers."""
    declared = channel.queue_declare(queue, passive=True)
    return declared.message_count, declared.consumer_count


def all_of(greenlets: list[Any]) -> list[Any]:
    """Their values; errors are raised."""
    gevent.joinall(greenlets, timeout=WAIT, raise_error=True)
    assert all(each.ready() for each in greenlets)
    return [each.value for each in greenlets]


# Replies.


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


def test_gets_of_many_greenlets_take_each_message_once(amqp_channel: Channel, queue: str) -> None:
    fill(amqp_channel, queue, 100)
    got = all_of([gevent.spawn(amqp_channel.basic_get, queue) for _ in range(120)])
    bodies = [each.body for each in got if each is not None]
    assert sorted(bodies, key=int) == [str(number) for number in range(100)]
    for each in got:
        if each is not None:
            amqp_channel.basic_ack(each.delivery_tag)
    assert counts(amqp_channel, queue) == (0, 0)


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


def test_a_prefetch_holds_although_its_caller_was_killed(amqp_link: AmqpLink, queue: str) -> None:
    channel = amqp_link.channel()
    caller = gevent.spawn(channel.basic_qos, 0, 3, False)
    gevent.sleep(0)
    caller.kill()
    fill(amqp_link.channel(), queue, 5)
    got: list[Any] = []
    channel.basic_consume(queue, callback=got.append)
    # Known to be bounded: what waits for those who drain is not counted.
    until(lambda: len(amqp_link.events) == 3)
    assert amqp_link.budget.held == 0
    successor = amqp_link.channel()
    successor.take_over(channel)
    assert successor.consumers._prefetch == 3


def test_a_message_that_a_killed_caller_got_goes_back(amqp_link: AmqpLink, queue: str) -> None:
    channel, other = amqp_link.channel(), amqp_link.channel()
    fill(channel, queue, 5)

    def get() -> None:
        channel.basic_get(queue).requeue()

    for _ in interruptions(get):
        until(lambda: counts(other, queue) == (5, 0))


def test_a_consumer_of_a_killed_caller_is_cancelled_and_its_deliveries_go_back(
    amqp_link: AmqpLink, queue: str
) -> None:
    channel, other = amqp_link.channel(), amqp_link.channel()
    fill(channel, queue, 5)
    channel.basic_qos(0, 3, False)
    seen: list[str] = []

    def consume() -> None:
        channel.basic_cancel(channel.basic_consume(queue, "tag", callback=seen.append))

    for run in interruptions(consume):
        if run.raised is None:
            # Cancelled in order: its deliveries are the program's.
            with pytest.raises(TimeoutError):
                while True:
                    amqp_link.drain(Deadline(0))
            for each in seen:
                each.requeue()  # type: ignore[attr-defined]
        elif counts(other, queue)[1] and channel.consumers.by_tag:
            # Killed in basic_cancel, or its cancel is on its way.
            until(lambda: not channel.consumers.by_tag)
        with pytest.raises(TimeoutError):
            while True:
                amqp_link.drain(Deadline(0))
        for each in seen:
            if not each.acknowledged:  # type: ignore[attr-defined]
                each.requeue()  # type: ignore[attr-defined]
        seen.clear()
        until(lambda: counts(other, queue) == (5, 0))
        until(lambda: not channel.consumers.by_tag)


def test_a_tag_whose_caller_was_killed_is_free_when_the_broker_has_cancelled_it(
    amqp_link: AmqpLink, queue: str
) -> None:
    channel = amqp_link.channel()
    killed = gevent.spawn(channel.basic_consume, queue, "tag", callback=print)
    gevent.sleep(0)
    killed.kill()
    assert b"tag" in channel.consumers.by_tag
    assert channel.basic_consume(queue, "tag", callback=print) == "tag"
    assert counts(channel, queue)[1] == 1
    # Two consumers of one tag: the broker would close the connection.
    with pytest.raises(ValueError, match="in use"):
        channel.basic_consume(queue, "tag", callback=print)


def test_a_channel_of_a_killed_caller_is_closed(amqp_link: AmqpLink) -> None:
    kept = amqp_link.channel()
    for run in interruptions(amqp_link.channel):
        if run.result is not None:
            run.result.close()
        until(lambda: set(amqp_link.channels.values()) == {amqp_link, kept})
    numbers = {amqp_link.channel().channel_id for _ in range(5)}
    assert numbers == {2, 3, 4, 5, 6}


def test_each_switch_of_close_may_be_the_last(amqp_link: AmqpLink, queue: str) -> None:
    channels: list[Channel] = []

    def close() -> None:
        channels.append(amqp_link.channel())
        channels[-1].basic_consume(queue, callback=print)
        channels[-1].close()

    for _ in interruptions(close):
        for each in channels:
            each.close()
        until(lambda: len(amqp_link.channels) == 1)
    assert amqp_link.is_open


# Errors of the broker.


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
def test_an_error_reaches_its_own_caller_and_others_are_told_the_cause(
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


def test_a_failed_publish_that_nobody_awaits_is_told_to_the_next(
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


def test_a_failed_publish_in_confirm_mode_that_nobody_awaits_is_told_to_the_next(
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


def test_consumers_of_a_channel_that_an_error_closes_are_told(
    amqp_link: AmqpLink, queue: str, unique: str
) -> None:
    channel, sink = amqp_link.channel(), Sink()
    channel.basic_consume(queue, callback=print)
    channel.basic_consume(queue, sink=sink)
    with pytest.raises(NotFound):
        channel.queue_declare(f"{unique}-absent", passive=True)
    assert len(sink.errors) == 1
    with pytest.raises(RecoverableChannelError, match="404"):
        amqp_link.drain(Deadline(WAIT))


def test_arguments_that_fit_no_field_or_frame_harm_nobody(amqp_link: AmqpLink, unique: str) -> None:
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
    amqp_channel: Channel, queue: str, size: int
) -> None:
    body = os.urandom(size)
    headers = {"long": "x" * 60_000}
    for each in (None, headers):
        sent = amqp_channel.prepare_message(body, None, None, None, each, None)
        amqp_channel.basic_publish_confirm(sent, "", queue)
        got = amqp_channel.basic_get(queue, no_ack=True)
        assert got.body == body
        assert got.headers == (each or {})


# Channel numbers.


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


# Answers.


def test_an_ack_is_never_merged_over_what_is_rejected_in_the_same_turn(
    amqp_channel: Channel, queue: str
) -> None:
    fill(amqp_channel, queue, 9)
    tags = [amqp_channel.basic_get(queue).delivery_tag for _ in range(9)]
    for each in (tags[0], tags[2], tags[3]):
        amqp_channel.basic_ack(each)
    amqp_channel.basic_reject(tags[1], True)
    for each in (tags[4], tags[6]):
        amqp_channel.basic_ack(each)
    amqp_channel.basic_reject(tags[5], True)
    amqp_channel.basic_ack(tags[8], multiple=True)
    until(lambda: counts(amqp_channel, queue) == (2, 0))
    assert [amqp_channel.basic_get(queue).body for _ in range(2)] == ["1", "5"]


def test_recover_brings_back_all_that_is_unanswered_and_drops_answers_given_meanwhile(
    amqp_link: AmqpLink, queue: str
) -> None:
    channel = amqp_link.channel()
    fill(channel, queue, 20)
    got: list[Any] = []
    channel.basic_consume(queue, callback=got.append)
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
    assert counts(channel, queue) == (0, 1)
    assert channel.is_open


def test_what_recover_without_waiting_brings_back_is_answered_by_its_new_tag(
    amqp_link: AmqpLink, queue: str
) -> None:
    channel = amqp_link.channel()
    fill(channel, queue, 2)
    before = [channel.basic_get(queue) for _ in range(2)]
    channel.basic_recover_async(requeue=True)
    before[0].ack()  # too late: it comes again
    until(lambda: counts(channel, queue) == (2, 0))
    with pytest.raises(PreconditionFailed, match="already acknowledged"):
        before[1].ack()
    for _ in range(2):
        channel.basic_get(queue).ack()
    until(lambda: counts(channel, queue) == (0, 0))
    assert channel.is_open


@pytest.mark.parametrize("seed", range(3))
def test_random_answers_leave_at_the_broker_what_was_not_answered(
    amqp_links: Links, queue: str, seed: int, long: bool
) -> None:
    """Consumers, gets, acks, rejects, recovers and kills over shared channels against a model."""
    rng = random.Random(seed)
    total = 3000 if long else 400
    fill(amqp_links().channel(), queue, total)
    link = amqp_links()
    channels = [link.channel() for _ in range(3)]
    held: list[Any] = []
    gone: set[str] = set()
    numbers = count()
    for channel in channels:
        channel.basic_qos(0, rng.choice([5, 20]), False)
        for _ in range(2):
            channel.basic_consume(queue, callback=held.append)

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
                one = rng.choice(channels).basic_get(queue)
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
            victim = rng.randrange(len(workers))
            workers[victim].kill()
            workers[victim] = gevent.spawn(work)
    gevent.killall(workers)
    assert all(channel.is_open for channel in channels)
    link.close()
    channel = amqp_links().channel()
    until(lambda: counts(channel, queue) == (total - len(gone), 0))
    left = {channel.basic_get(queue, no_ack=True).body for _ in range(total - len(gone))}
    assert left == {str(number) for number in range(total)} - gone


def test_acks_in_order_leave_in_few_frames(amqp_link: AmqpLink, queue: str) -> None:
    channel = amqp_link.channel()
    fill(channel, queue, 500)
    channel.basic_qos(0, 100, False)
    done = Counter[str]()

    def handle(each: Any) -> None:
        each.ack()
        done["messages"] += 1

    channel.basic_consume(queue, callback=handle)
    sends = amqp_link.writer.sends
    drain(amqp_link, lambda: done["messages"] == 500)
    assert counts(channel, queue) == (0, 1)
    assert amqp_link.writer.sends - sends < 250


# Confirms and returns.


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
def test_a_routing_key_of_bytes_is_told_apart_when_it_comes_back(
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
    amqp_channel: Channel, queue: str
) -> None:
    class Marked(str):
        """As the safe texts of template engines."""

    buffer = bytearray(b"buffer")
    bodies: list[Any] = [Marked("m\u00e4rz"), buffer, memoryview(buffer)[::-1]]
    for body in bodies:
        amqp_channel.basic_publish(amqp_channel.prepare_message(body), "", queue)
    buffer[:] = b"\0" * 6
    bodies = [amqp_channel.basic_get(queue).raw for _ in range(3)]
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


def test_returns_of_equal_messages_are_told_apart_by_their_order(
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


# Consumers.


def test_a_deleted_queue_cancels_its_consumers(amqp_link: AmqpLink, unique: str) -> None:
    channel, sink = amqp_link.channel(), Sink()
    channel.queue_declare(unique, auto_delete=False)
    cancelled: list[str] = []
    channel.basic_consume(unique, "told", callback=print, on_cancel=cancelled.append)
    channel.basic_consume(unique, "sunk", sink=sink)
    amqp_link.channel().queue_delete(unique)
    drain(amqp_link, lambda: cancelled)
    channel.queue_declare(unique, auto_delete=False)
    channel.basic_consume(unique, "raised", callback=print)
    channel.queue_delete(unique)
    with pytest.raises(ConsumerCancelled, match="raised"):
        amqp_link.drain(Deadline(WAIT))
    until(lambda: sink.errors)
    assert cancelled == ["told"]
    assert isinstance(sink.errors[0], ConsumerCancelled)
    assert channel.is_open
    until(lambda: not channel.consumers.by_tag)


def test_deliveries_after_a_cancel_without_waiting_go_back(amqp_link: AmqpLink, queue: str) -> None:
    channel = amqp_link.channel()
    fill(channel, queue, 50)
    got: list[Any] = []
    channel.basic_consume(queue, "tag", nowait=True, callback=got.append)
    channel.basic_cancel("tag", nowait=True)
    until(lambda: counts(channel, queue) == (50, 0))
    assert not got
    channel.basic_consume(queue, "tag", callback=got.append)
    drain(amqp_link, lambda: len(got) == 50)
    channel.basic_cancel("tag", nowait=True)
    until(lambda: not channel.consumers.by_tag)  # nothing stays behind


@pytest.mark.parametrize("nowait", [False, True], ids=["waiting", "nowait"])
def test_nothing_is_handed_out_after_a_cancel_without_acks(
    amqp_link: AmqpLink, queue: str, nowait: bool, caplog: pytest.LogCaptureFixture
) -> None:
    channel = amqp_link.channel()
    got: list[Any] = []
    fill(channel, queue, 50)
    channel.basic_consume(queue, "tag", no_ack=True, callback=got.append)
    until(lambda: len(amqp_link.events) == 50)
    amqp_link.drain(Deadline(10))
    assert len(got) == 1
    channel.basic_cancel("tag", nowait=nowait)
    with pytest.raises(TimeoutError):
        amqp_link.drain(Deadline(0))
    assert len(got) == 1
    assert amqp_link.budget.held == 0
    (told,) = (each.getMessage() for each in caplog.records if "they are lost" in each.getMessage())
    assert f"49 message(s) of queue {queue!r}" in told


@pytest.mark.parametrize("nowait", [False, True], ids=["waiting", "nowait"])
def test_a_consumer_that_is_cancelled_twice_holds_nothing_back(
    amqp_link: AmqpLink, queue: str, nowait: bool
) -> None:
    """RabbitMQ answers the second request before the queue has answered the first."""
    channel = amqp_link.channel()
    fill(channel, queue, 100)
    for _ in range(10):
        channel.basic_consume(queue, "tag", callback=lambda message: message.requeue())
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
        until(lambda: counts(channel, queue) == (100, 0))


# The end of the connection.


def test_close_flushes_and_tells_all_who_wait(amqp_links: Links, queue: str) -> None:
    link = amqp_links()
    channel = link.channel()
    draining = [gevent.spawn(link.drain, Deadline(WAIT)) for _ in range(3)]
    gevent.sleep(0)
    for number in range(1000):
        channel.basic_publish(message(channel, str(number)), "", queue)
    waiting = gevent.spawn(channel.queue_declare, queue, passive=True)
    gevent.sleep(0)
    link.close()
    link.close()
    for each in draining:
        with pytest.raises(RecoverableConnectionError):
            each.get(timeout=WAIT)
    waiting.join(WAIT)
    assert waiting.value is not None or isinstance(waiting.exception, RecoverableConnectionError)
    with pytest.raises(RecoverableConnectionError):
        channel.queue_declare(queue, passive=True)
    with pytest.raises(RecoverableConnectionError):
        channel.basic_publish(message(channel), "", queue)
    with pytest.raises(RecoverableConnectionError):
        link.channel()
    other = amqp_links().channel()
    until(lambda: counts(other, queue) == (1000, 0))


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


def test_a_forked_child_knows_that_it_has_no_connection(amqp_links: Links, queue: str) -> None:
    link = amqp_links()
    channel = link.channel()
    fill(channel, queue, 3)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            with gevent.Timeout(20):
                for use in (
                    lambda: channel.queue_declare(queue, passive=True),
                    lambda: channel.basic_publish(message(channel), "", queue),
                    link.channel,
                    lambda: link.drain(Deadline(0)),
                ):
                    with pytest.raises(RecoverableConnectionError):
                        use()
                link.close()
                with amqp_links().channel() as own:
                    own.basic_ack(own.basic_get(queue).delivery_tag)
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
    until(lambda: counts(channel, queue)[0] == 2)
    assert link.is_open


def test_another_thread_is_told_that_it_needs_a_connection_of_its_own(
    amqp_link: AmqpLink, queue: str
) -> None:
    channel = amqp_link.channel()
    fill(channel, queue, 1)
    got = channel.basic_get(queue)
    uses: list[Callable[[], object]] = [
        amqp_link.channel,
        channel.close,
        lambda: channel.queue_declare(queue, passive=True),
        lambda: channel.basic_publish(message(channel), "", queue),
        lambda: channel.basic_publish_confirm(message(channel), "", queue),
        lambda: channel.basic_consume(queue, "tag", callback=print),
        lambda: channel.basic_get(queue),
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
    assert counts(channel, queue) == (0, 0)
    channel.basic_ack(got.delivery_tag)
    assert not channel.consumers.by_tag


# A broker that takes nothing.


def test_a_blocked_broker_makes_publishers_wait_and_then_go_on_in_order(
    own_rabbitmq: RabbitMQ, unique: str
) -> None:
    links = Links(own_rabbitmq.url)
    link = links(blocked_timeout=0.2)
    told: list[str] = []
    other = links(on_blocked=told.append, on_unblocked=lambda: told.append("free"))
    try:
        channel = link.channel()
        channel.queue_declare(unique, auto_delete=False)
        channel.basic_publish_confirm(message(channel, "first"), "", unique)
        own_rabbitmq.set_memory_alarm(True)
        # The broker says so when a connection publishes.
        for each in (channel, other.channel()):
            each.basic_publish(message(channel, "provokes"), "", unique)
        until(lambda: link.gate.blocked and other.gate.blocked)
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
        drain(other, lambda: len(told) == 2)
        assert told[0]
        assert told[1] == "free"
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
        until(lambda: link.gate.blocked)
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
