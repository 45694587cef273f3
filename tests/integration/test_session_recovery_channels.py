"""Channels, and what programs do on them, over the loss of their connection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import (
    NotFound,
    OperationalError,
    PreconditionFailed,
    PublishNacked,
    RecoverableConnectionError,
    ResourceError,
    ResourceLocked,
    Unroutable,
)
from greenconn.messaging import Consumer, Producer
from tests.brokers.rabbitmq import RabbitMQHandle
from tests.fix_relay import Relay
from tests.fix_wires import until
from tests.integration.recovering import SOON, consumers_of, lose, settled
from tests.receiving import bodies_in


@pytest.fixture
def connection(relay: Relay) -> Iterator[Connection]:
    """A connection that can be cut."""
    with Connection(relay.url, heartbeat=10) as made:
        yield made


@pytest.fixture
def other(amqp_url: str, unique: str) -> Iterator[Connection]:
    """A connection that stays; the test's queue is there, and deleted at the end."""
    with Connection(amqp_url) as made:
        made.default_channel.queue_declare(unique, durable=True, auto_delete=False)
        yield made
        with suppress(*made.channel_errors):
            made.default_channel.queue_delete(unique)


def cut(relay: Relay, connection: Connection) -> None:
    """Lose a connection that nothing brings back by itself."""
    relay.cut()
    until(lambda: not connection.connected)


# Many


@pytest.mark.full
def test_a_hundred_channels(
    relay: Relay, connection: Connection, other: Connection, rabbitmq: RabbitMQHandle, unique: str
) -> None:
    """Each with a consumer and a producer: all work again, each on a channel of its own."""
    got: Counter[int] = Counter()
    producers, consumers = [], []

    def receiver(number: int) -> Any:
        def receive(body: Any, message: Any) -> None:
            assert body == number
            got[number] += 1
            message.ack()

        return receive

    for number in range(100):
        channel = connection.channel()
        queue = Queue(f"{unique}-{number}", durable=False, expires=60)
        consumers.append(Consumer(channel, queue, callbacks=[receiver(number)], prefetch_count=1))
        consumers[-1].consume()
        producers.append(Producer(channel))

    def exchange_messages() -> None:
        got.clear()
        for number, producer in enumerate(producers):
            producer.publish(number, f"{unique}-{number}", retry=True)
        while len(got) < 100:
            with suppress(*connection.connection_errors):
                connection.drain_events(timeout=SOON)

    exchange_messages()
    for _ in range(3):
        lose(relay, connection)
        exchange_messages()
        channels = {producer.channel for producer in producers}
        assert len(channels) == 100
        assert channels == {consumer.channel for consumer in consumers}
    assert rabbitmq.ctl("list_channels", "consumer_count").splitlines().count("1") >= 100


@pytest.mark.full
def test_as_many_channels_as_the_broker_allows(
    relay: Relay, other: Connection, unique: str
) -> None:
    """Their numbers are free again in each life, for the same channels and no others."""
    with Connection(relay.url, transport_options={"channel_max": 10}) as connection:
        consumers = []
        for number in range(9):  # the library's own lookups need one
            queue = Queue(f"{unique}-{number}", durable=False, expires=60)
            consumers.append(Consumer(connection.channel(), queue))
            consumers[-1].consume()
        for _ in range(5):
            lose(relay, connection)
            for number in range(9):
                settled(other, f"{unique}-{number}")
            ids = {consumer.channel.channel_id for consumer in consumers}
            assert len(ids) == 9
            assert ids <= set(range(1, 11))
        opened: list[Any] = []
        with pytest.raises(ResourceError, match="10 channels"):
            opened.extend(connection.channel() for _ in range(3))
        consumers[0].channel.close()
        with connection.channel() as channel:
            assert channel.channel_id not in ids - {consumers[0]._channel.channel_id}


def test_closed_channels_do_not_come_back(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    channels = [connection.channel() for _ in range(4)]
    consumers = [Consumer(channel, Queue(unique)) for channel in channels]
    for consumer in consumers:
        consumer.consume()
    channels[1].close()
    channels[3].close()
    assert settled(other, unique, 2) == (2, 2)
    lose(relay, connection)
    settled(other, unique, 2)
    channels_now = connection.session.life.link.channels
    assert consumers[0].channel in channels_now.values()
    assert consumers[2].channel in channels_now.values()
    for closed in (consumers[1], consumers[3]):
        assert not closed._channel.is_open


# Errors of channels are not losses


@pytest.mark.parametrize("code", [404, 405, 406])
def test_a_channel_that_the_broker_closed_is_not_recovered(
    relay: Relay, connection: Connection, other: Connection, unique: str, code: int
) -> None:
    consumer = Consumer(connection.channel(), Queue(f"{unique}-2", auto_delete=True))
    consumer.consume()
    owner = other.clone()
    owner.default_channel.queue_declare(f"{unique}-3", exclusive=True)
    channel = connection.channel()
    link = connection.session.life.link
    if code == 404:
        with pytest.raises(NotFound):
            channel.queue_declare(f"{unique}-4", passive=True)
    elif code == 405:
        with pytest.raises(ResourceLocked):
            channel.queue_declare(f"{unique}-3", exclusive=True)
    else:
        with pytest.raises(PreconditionFailed):
            channel.queue_declare(unique, durable=False, auto_delete=False)
    assert not channel.is_open
    assert connection.session.life.link is link
    assert consumers_of(other, f"{unique}-2") == 1
    assert relay.accepted == 1
    lose(relay, connection)
    settled(other, f"{unique}-2")
    with pytest.raises(connection.connection_errors + connection.channel_errors):
        channel.queue_declare(unique, passive=True)
    owner.close()


def test_a_channel_of_a_former_life_says_so(
    relay: Relay, connection: Connection, unique: str
) -> None:
    channel = connection.channel()
    cut(relay, connection)
    calls: list[Any] = [
        lambda: channel.queue_declare(unique, passive=True),
        lambda: channel.basic_publish(channel.prepare_message("x"), routing_key=unique),
        lambda: channel.basic_get(unique),
        lambda: channel.basic_consume(unique),
        lambda: channel.basic_qos(0, 1, False),
    ]
    for call in calls:
        with pytest.raises(RecoverableConnectionError):
            call()
    channel.close()
    connection.ensure_connection()
    for call in calls:
        with pytest.raises(RecoverableConnectionError):
            call()


# What channels are set to


@pytest.mark.parametrize("kind", ["default", "own"])
def test_confirms_come_back(
    relay: Relay, connection: Connection, other: Connection, unique: str, kind: str
) -> None:
    """A producer on a channel with confirms has one with confirms afterwards."""
    channel = connection.default_channel if kind == "default" else connection.channel()
    channel.confirm_select()
    producer = Producer(connection if kind == "default" else channel)
    bounded = Queue(f"{unique}-2", max_length=1, queue_arguments={"x-overflow": "reject-publish"})
    bounded(connection).declare()
    producer.channel.basic_publish_confirm(producer.channel.prepare_message("1"), "", bounded.name)
    for _ in range(3):
        cut(relay, connection)
        now = producer.channel
        assert now.is_open
        with pytest.raises(PublishNacked):
            now.basic_publish_confirm(now.prepare_message("2"), "", bounded.name, timeout=SOON)
        with pytest.raises(Unroutable):
            now.basic_publish_confirm(now.prepare_message("2"), "", f"{unique}-none", True)
    other.default_channel.queue_delete(bounded.name)


def test_transactions_come_back(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    """What was not committed is not there; the channel that takes over is transactional, too."""
    channel = connection.channel()
    channel.tx_select()
    producer = Producer(channel)
    producer.publish("lost", unique)
    producer.publish("lost too", unique)
    channel.queue_declare(unique, passive=True)  # the broker has heard of them
    cut(relay, connection)
    with pytest.raises(RecoverableConnectionError):
        channel.tx_commit()
    producer.publish("rolled back", unique)
    now = producer.channel
    assert now is not channel
    now.tx_rollback()
    producer.publish("committed", unique)
    assert bodies_in(other, unique) == []
    now.tx_commit()
    assert bodies_in(other, unique) == ["committed"]


# Publishing meanwhile


def test_publishing_without_retries_raises_or_is_done(
    relay: Relay, other: Connection, unique: str
) -> None:
    """Confirmed: what did not raise is there.  The next call finds a new link by itself."""
    taken: set[int] = set()
    errors: list[BaseException] = []
    with Connection(relay.url, transport_options={"confirm_publish": True}) as connection:
        producer = Producer(connection)
        losses: tuple[type[BaseException], ...] = (OperationalError, *connection.connection_errors)

        def work(number: int) -> None:
            for count in range(100):
                try:
                    producer.publish(number * 100 + count, unique)
                except losses as exc:
                    errors.append(exc)
                else:
                    taken.add(number * 100 + count)

        workers = [gevent.spawn(work, number) for number in range(20)]
        for share in range(1, 4):
            until(lambda share=share: len(taken) > 400 * share, SOON)  # type: ignore[misc]
            relay.cut()
        gevent.joinall(workers, timeout=SOON, raise_error=True)
        assert 1 <= len(errors) <= 60  # each cut costs a greenlet one publish at most
        assert taken <= set(bodies_in(other, unique))
