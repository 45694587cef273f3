"""Messages that nobody confirms, over the loss of the connection and over its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.exceptions import ConnectionBlocked, ConnectionError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.messaging import Producer
from tests.fix_relay import Relay
from tests.fix_wires import until
from tests.receiving import bodies_in

SOON = 30.0
PADDING = "x" * 50_000

Stall = Callable[..., int]


@pytest.fixture
def connection(relay: Relay, unique: str) -> Iterator[Connection]:
    """A connection by way of the relay, with a queue."""
    with Connection(relay.url, transport_options={"blocked_timeout": 0.05}) as made:
        made.default_channel.queue_declare(unique, durable=True, auto_delete=False)
        yield made
        relay.is_passing.set()
        made.default_channel.queue_delete(unique)


def stall(publish: Callable[..., Any], queue: str) -> int:
    """Publish until nothing is taken any more; how many were."""
    number = 0
    while True:
        try:
            publish([number, PADDING], queue)
        except ConnectionBlocked:
            return number
        number += 1


def numbers(connection: Connection, queue: str) -> list[int]:
    """Take all messages, in their order."""
    return [body[0] for body in bodies_in(connection, queue)]


@pytest.mark.parametrize("on_channel", [False, True], ids=["connection", "channel"])
def test_the_next_publish_reports_how_many_had_not_left(
    connection: Connection, relay: Relay, unique: str, on_channel: bool
) -> None:
    channel = connection.channel()
    producer = Producer(channel if on_channel else connection)
    producer.publish([-1, ""], unique)
    relay.is_passing.clear()
    writer = connection.session.life.link.writer
    count = stall(producer.publish, unique)
    behind = writer.pending // len(PADDING)  # wholly; one more may have begun to leave
    assert 10 < behind < 40
    relay.cut()
    relay.is_passing.set()
    until(lambda: not connection.connected)
    with pytest.raises(
        RecoverableConnectionError, match=r"\d+ messages that were published"
    ) as raised:
        producer.publish([-2, ""], unique)
    lost = int(str(raised.value).split(" messages")[0].split()[-1])
    assert behind <= lost <= behind + 1
    producer.publish([count, ""], unique)
    producer.publish([count + 1, ""], unique)
    assert connection.session.generation == 2
    found: list[int] = []
    with gevent.Timeout(SOON):
        while found[-2:] != [count, count + 1]:
            found += numbers(connection, unique)
    assert -2 not in found
    assert len(found) <= count - lost + 3


@pytest.mark.full
def test_a_channel_of_a_former_life_reports_it_too(
    connection: Connection, relay: Relay, unique: str
) -> None:
    channel = connection.channel()
    relay.is_passing.clear()
    stall(
        lambda body, queue: channel.basic_publish(channel.prepare_message("x" * 50_000), "", queue),
        unique,
    )
    relay.cut()
    relay.is_passing.set()
    until(lambda: not connection.connected)
    for _ in range(2):
        with pytest.raises(RecoverableConnectionError, match="messages that were published"):
            channel.queue_declare(unique, passive=True)


@pytest.mark.full
def test_what_left_is_not_spoken_of(connection: Connection, relay: Relay, unique: str) -> None:
    producer = Producer(connection)
    for number in range(100):
        producer.publish([number, ""], unique)
    until(lambda: connection.session.life.link.writer.pending == 0)
    gevent.sleep(0.1)
    relay.cut()
    until(lambda: not connection.connected)
    producer.publish([100, ""], unique)
    connection.default_channel.queue_declare(unique, passive=True)
    until(lambda: numbers(connection, unique) == list(range(101)))


@pytest.mark.full
@pytest.mark.parametrize("times", [1, 3], ids=["once", "again and again"])
@pytest.mark.parametrize("is_used", [False, True], ids=["untouched", "used"])
def test_with_retry_they_are_sent_again_in_order(
    connection: Connection, relay: Relay, unique: str, is_used: bool, times: int
) -> None:
    """Even if nobody touches the connection any more; before what is published after them."""
    producer = Producer(connection)
    relay.is_passing.clear()

    def publish(body: Any, queue: str) -> None:
        producer.publish(body, queue, retry=True)

    count = stall(publish, unique)
    behind = connection.session.life.link.writer.pending // len(PADDING)
    for _ in range(times):
        # It comes back, takes a little, and is gone again.
        relay.cut()
        until(lambda: not connection.connected)
        relay.is_passing.set()
        if times > 1:
            until(lambda: connection.connected or not len(connection.session._members))
            relay.is_passing.clear()
    relay.is_passing.set()
    if is_used:
        publish([count, ""], unique)
    else:
        count -= 1
    found: list[int] = []
    with gevent.Timeout(SOON), Connection(connection.as_uri(include_password=True)) as other:
        until(lambda: not len(connection.session._members), SOON)
        while times == 1 and count not in found:
            found += numbers(other, unique)
        gevent.sleep(0.1)
        found += numbers(other, unique)
    if times == 1:  # else the lives between took some, and lost them
        assert set(found) >= set(range(count - behind + 1, count + 1))
        assert found.count(count) == 1
    assert found == sorted(found)


@pytest.mark.full
def test_some_with_retry_and_some_without(
    connection: Connection, relay: Relay, unique: str
) -> None:
    producer = Producer(connection)
    relay.is_passing.clear()

    def publish(body: Any, queue: str) -> None:
        producer.publish(body, queue, retry=body[0] % 2 == 0)

    count = stall(publish, unique)
    behind = connection.session.life.link.writer.pending // len(PADDING)
    relay.cut()
    relay.is_passing.set()
    until(lambda: not connection.connected)
    until(lambda: connection.connected)
    with pytest.raises(RecoverableConnectionError, match=r"\d+ messages that were published"):
        producer.publish([-2, ""], unique)
    found: list[int] = []
    even = [number for number in range(count - behind, count) if number % 2 == 0]
    with gevent.Timeout(SOON):
        while not set(even) <= set(found):
            found += numbers(connection, unique)
    assert found == sorted(found)


@pytest.mark.full
def test_those_that_somebody_awaits_are_not_counted_nor_sent_again(
    connection: Connection, relay: Relay, unique: str
) -> None:
    """Their callers are told, each of its own."""
    channel = connection.channel()
    relay.is_passing.clear()

    def publish(number: int) -> None:
        message = channel.prepare_message(f"{number}{PADDING}")
        if number % 3 == 0:
            channel.basic_publish(message, "", unique, timeout=0.05)
        elif number % 3 == 1:
            channel.basic_publish(message, "", unique, timeout=0.05)
            channel.keep_publish()
        else:
            awaited.append(channel.begin_publish(message, "", unique, deadline=Deadline(0.05)))

    awaited: list[Any] = []
    count = stall(lambda body, queue: publish(body[0]), unique)
    link = connection.session.life.link
    behind = link.writer.pending // len(PADDING)
    relay.cut()
    relay.is_passing.set()
    until(lambda: link.lost is not None)
    for each in awaited[-3:]:
        with pytest.raises((ConnectionError, OSError)):
            each.wait(Deadline(SOON))
    left = list(range(count - behind, count))
    successor = connection.session.successor(channel)
    with pytest.raises(RecoverableConnectionError, match=r"\d+ messages that were") as raised:
        successor.basic_publish(channel.prepare_message("lost"), "", unique)
    lost = int(str(raised.value).split(" messages")[0].split()[-1])
    assert lost - sum(number % 3 == 0 for number in left) in (0, 1)
    found: list[int] = []
    again = [number for number in left if number % 3 == 1]
    with gevent.Timeout(SOON):
        while not set(again) <= set(found):
            message = successor.basic_get(unique, no_ack=True)
            if message is not None:
                found.append(int(message.body.rstrip("x")))
    assert not {number for number in left[2:] if number % 3 != 1} & set(found)


@pytest.mark.full
def test_a_close_that_has_to_leave_some_behind_says_so(
    relay: Relay, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = Connection(relay.url, transport_options={"blocked_timeout": 0.05})
    connection.default_channel.queue_declare(unique, arguments={"x-expires": 60_000})
    relay.is_passing.clear()
    stall(Producer(connection).publish, unique)
    connection.close()
    gevent.sleep(0.01)
    assert "messages that were published without confirm had not been sent" in caplog.text
    relay.is_passing.set()


def test_a_close_lets_all_leave(relay: Relay, amqp_url: str, unique: str) -> None:
    relay.rate = 4e6
    connection = Connection(relay.url)
    connection.default_channel.queue_declare(unique, arguments={"x-expires": 60_000})
    producer = Producer(connection)
    for number in range(100):
        producer.publish([number, PADDING], unique)
    connection.close()
    found: list[int] = []
    with Connection(amqp_url) as other, gevent.Timeout(SOON):
        while len(found) < 100:
            found += numbers(other, unique)
        other.default_channel.queue_delete(unique)
    assert found == list(range(100))


def lose_one(producer: Producer, exchange: str) -> None:
    """Publish to an exchange that is not there, and wait for what that costs."""
    producer.publish("lost", "key", exchange=exchange)
    channel = producer.channel
    until(lambda: not channel.is_open)


@pytest.mark.full
def test_the_next_publish_reports_one_to_an_absent_exchange(amqp_url: str, unique: str) -> None:
    with Connection(amqp_url) as connection:
        producer, absent = connection.Producer(), f"{unique}-absent"
        lose_one(producer, absent)
        with pytest.raises(connection.channel_errors, match=rf"NOT_FOUND.*{absent}"):
            producer.publish([1], unique)
        connection.default_channel.queue_declare(unique, exclusive=True, auto_delete=False)
        lose_one(producer, absent)
        producer.publish([2], unique, retry=True)
        until(lambda: numbers(connection, unique) == [2])
