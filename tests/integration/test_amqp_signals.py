"""Signals whose handlers raise anywhere in a publish, a call or an ack: nobody gets another's answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from amqp import spec

from greenconn.exceptions import (
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
    Unroutable,
)
from greenconn.transport.amqp.channel import Channel
from greenconn.transport.amqp.link import AmqpLink
from tests.fix_amqp import AmqpPeer, Links, drain
from tests.fix_interrupts import Signal, signals

ENDED = (RecoverableChannelError, RecoverableConnectionError)
WAIT = 30.0


class Subject:
    """A channel that is used until a signal has ended it or its connection, and then another one."""

    def __init__(self, links: Links, prepare: Callable[[Channel], object]) -> None:
        self._links = links
        self._prepare = prepare
        self._link: AmqpLink = links()
        self.channel = self._open()

    def _open(self) -> Channel:
        if self._link.lost is not None:
            self._link = self._links()
        channel = self._link.channel()
        self._prepare(channel)
        return channel

    def renew(self) -> None:
        """Open another one where the channel has ended."""
        if not self.channel.is_open:
            with pytest.raises(ENDED, match="interrupted by Signal"):
                self.channel.check_open()
            if self._link.lost is None:
                self._forget_events()
            self.channel = self._open()

    def _forget_events(self) -> None:
        """Drain what is left of the channel: deliveries, and the error for who drains."""
        while True:
            try:
                self._link.drain(0)
            except ENDED:
                continue
            except TimeoutError:
                return


def each_signal(function: Callable[[], object], long: bool) -> Iterator[BaseException | None]:
    """Run *function* with a signal before each bytecode, or every few ones."""
    step = 1 if long else 5
    for raised in signals(function, first=random.randint(1, step), step=step):
        assert raised is None or isinstance(raised, Signal)
        yield raised


@pytest.mark.parametrize("is_confirmed", [True, False], ids=["confirmed", "not awaited"])
def test_confirms_stay_in_step_after_a_signal_amid_a_publish(
    amqp_links: Links, unique: str, long: bool, is_confirmed: bool
) -> None:
    queue = unique
    subject = Subject(amqp_links, lambda channel: channel.confirm_select())
    subject.channel.queue_declare(queue, auto_delete=False)
    number, must_be_there = 0, set[str]()

    def publish(body: str, key: str = queue) -> None:
        channel = subject.channel
        channel.basic_publish_confirm(
            channel.prepare_message(body), "", key, mandatory=True, timeout=WAIT
        )

    def publish_amid_a_signal() -> None:
        channel = subject.channel
        if is_confirmed:
            publish(f"amid {number}")
        else:
            channel.basic_publish(channel.prepare_message(f"amid {number}"), "", queue, True)

    for raised in each_signal(publish_amid_a_signal, long):
        if raised is None and is_confirmed:
            must_be_there.add(f"amid {number}")
        subject.renew()
        # In step: each gets its own answer, whichever it is.
        publish(f"behind {number}")
        with pytest.raises(Unroutable):
            publish("nowhere", f"{unique}-missing")
        must_be_there.add(f"behind {number}")
        number += 1
    assert number > 20
    channel, found = subject.channel, []
    while (message := channel.basic_get(queue, no_ack=True)) is not None:
        found.append(message.body)
    assert must_be_there <= set(found)
    assert len(found) == len(set(found))
    channel.queue_delete(queue)


def test_replies_reach_their_callers_after_a_signal_amid_a_call(
    amqp_links: Links, unique: str, long: bool
) -> None:
    subject = Subject(amqp_links, lambda channel: None)
    names = [f"{unique}-{each}" for each in range(3)]
    for name in names:
        subject.channel.queue_declare(name, auto_delete=False)

    for _ in each_signal(lambda: subject.channel.queue_declare(names[0], passive=True), long):
        subject.renew()
        answers = [
            gevent.spawn(subject.channel.queue_declare, name, passive=True) for name in names[1:]
        ]
        gevent.joinall(answers, WAIT, raise_error=True)
        assert [each.get().queue for each in answers] == names[1:]
    with pytest.raises(NotFound):
        subject.channel.queue_declare(f"{unique}-missing", passive=True)
    channel = amqp_links().channel()
    for name in names:
        channel.queue_delete(name)


@pytest.mark.parametrize("opens", ["channel", "begin_channel"])
def test_a_signal_amid_the_opening_of_a_channel_ends_no_other(
    amqp_links: Links, long: bool, opens: str
) -> None:
    link = amqp_links()
    other = link.channel()

    def open_and_close() -> None:
        getattr(link, opens)().close()

    for raised in each_signal(open_and_close, long):
        if link.lost is None:
            link.channel().close()
        else:
            assert raised is not None
            with pytest.raises(ENDED, match="sending was interrupted by Signal"):
                other.check_open()
            link = amqp_links()
            other = link.channel()


def test_no_ack_is_forgotten_after_a_signal_amid_another(
    amqp_links: Links, unique: str, long: bool
) -> None:
    def prepare(channel: Channel) -> None:
        channel.basic_qos(0, 2, False)
        channel.basic_consume(unique, callback=messages.append)

    messages: list[Any] = []
    setup = amqp_links().channel()
    setup.queue_declare(unique, auto_delete=False)
    subject = Subject(amqp_links, prepare)
    count = 0

    def next_message() -> None:
        setup.basic_publish_confirm(setup.prepare_message(str(count)), "", unique)
        messages.clear()
        drain(subject.channel.connection, lambda: messages)

    next_message()
    for _ in each_signal(lambda: messages[-1].ack(), long):
        if subject.channel.is_open and not messages[-1].acknowledged:
            try:
                messages[-1].ack()
            except PreconditionFailed:
                pass  # the signal came behind it
        subject.renew()
        count += 1
        # With a prefetch of two it comes only if the broker was told of the others.
        for _ in range(3):
            next_message()
            messages[-1].ack()
        next_message()
    assert count > 5
    setup.queue_delete(unique)


def test_an_ack_for_a_publish_that_was_never_sent_ends_the_channel(
    amqp_peer: AmqpPeer, scripted_link: AmqpLink
) -> None:
    end = amqp_peer.end
    end.answers[spec.Confirm.Select] = (spec.Confirm.SelectOk,)
    channel = scripted_link.channel()
    channel.confirm_select()
    lost: list[BaseException] = []

    def publish() -> None:
        try:
            channel.basic_publish_confirm(channel.prepare_message("1"), "", "queue", timeout=WAIT)
        except ENDED as exc:
            lost.append(exc)

    publisher = gevent.spawn(publish)
    end.expect(spec.Basic.Publish)
    end.method(channel.channel_id, spec.Basic.Ack, "Lb", 2, False)
    publisher.join(WAIT)
    assert "confirmed publish 2 of channel 1, where 1 were sent" in str(lost[0])
    assert not channel.is_open
    assert scripted_link.is_open
    end.expect(spec.Channel.Close)
