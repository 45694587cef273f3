"""What was declared by hand on channels, over losses and restarts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue, binding
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_relay import Relay, RelayFactory
from tests.fix_wires import until
from tests.integration.recovering import SOON, consumers_of, exists, restart_app, send, settled


@pytest.fixture
def connection(relay: Relay) -> Iterator[Connection]:
    """A connection that can be cut."""
    with Connection(relay.url, heartbeat=10) as made:
        yield made


@pytest.fixture
def other(amqp_url: str) -> Iterator[Connection]:
    """A connection that stays."""
    with Connection(amqp_url) as made:
        yield made


def cut(relay: Relay, connection: Connection) -> None:
    """Lose the connection, and use it again."""
    relay.cut()
    until(lambda: not connection.connected)
    connection.ensure_connection(interval_start=0.1)


def left(connection: Connection, queue: str) -> int:
    """How many messages are in a queue."""
    with connection.channel() as channel:
        return int(channel.queue_declare(queue, passive=True).message_count)


# What comes back


@pytest.mark.parametrize("nowait", [False, True])
def test_a_chain_of_exchanges(
    relay: Relay, connection: Connection, other: Connection, unique: str, nowait: bool
) -> None:
    """Declared, bound to each other and to a queue; somebody else deletes all while we are away."""
    names = [f"{unique}-{each}" for each in range(4)]
    channel = connection.channel()
    for name in names:
        channel.exchange_declare(name, "topic", auto_delete=False, nowait=nowait)
    for source, destination in pairwise(names):
        channel.exchange_bind(destination, source, "a.#", nowait=nowait)
    channel.queue_declare(unique, durable=False, auto_delete=False, nowait=nowait)
    channel.queue_bind(unique, names[-1], "*.b", nowait=nowait)
    channel.queue_declare(unique, passive=True)
    send(other, "a.b", "1", exchange=names[0])
    assert left(other, unique) == 1
    relay.server.stop()
    until(lambda: not connection.connected)
    theirs = other.channel()
    theirs.queue_delete(unique)
    for name in names:
        theirs.exchange_delete(name)
    relay.server.start()
    connection.ensure_connection(interval_start=0.1)
    send(other, "a.b", "2", exchange=names[0])
    send(other, "a.c", "to nobody", exchange=names[0])
    assert left(other, unique) == 1
    theirs.queue_delete(unique)
    for name in names:
        theirs.exchange_delete(name)


@pytest.mark.full
def test_a_restart_of_the_broker_with_what_does_not_outlive_it(
    own_rabbitmq: RabbitMQ, unique: str
) -> None:
    """Transient entities, and those that the broker names, with consumers that nobody rebuilds."""
    got: list[Any] = []
    with Connection(own_rabbitmq.url) as connection:
        channel = connection.channel()
        channel.exchange_declare(unique, "fanout", durable=False, auto_delete=True)
        for name in (f"{unique}-1", f"{unique}-2"):
            channel.queue_declare(name, durable=False, auto_delete=False)
            channel.queue_bind(name, unique)
        named = channel.queue_declare("", exclusive=True).queue
        channel.queue_bind(named, unique)
        consumer = connection.Consumer(
            Queue(f"{unique}-3", Exchange(unique, "fanout", durable=False, auto_delete=True)),
            callbacks=[lambda body, message: got.append(body)],
        )
        consumer.consume(no_ack=True)
        for number in range(2):
            restart_app(own_rabbitmq)
            with Connection(own_rabbitmq.url) as other:
                settled(other, f"{unique}-3")
                send(other, "", number, exchange=unique)
                with gevent.Timeout(SOON):
                    while got[-1:] != [number]:
                        with suppress(*connection.connection_errors):
                            connection.drain_events()
                for name in (f"{unique}-1", f"{unique}-2"):
                    assert left(other, name) == 1
                    other.default_channel.queue_purge(name)
            bound = own_rabbitmq.ctl("list_bindings", "source_name", "destination_name")
            to_us = [row.split("\t")[1] for row in bound.splitlines() if row.startswith(unique)]
            assert sorted(to_us)[-3:] == [f"{unique}-{each}" for each in (1, 2, 3)]
            assert len(to_us) == 4
            assert named not in to_us
        for each in (1, 2, 3):
            connection.default_channel.queue_delete(f"{unique}-{each}")


def test_bindings_of_a_queue_object(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    exchange = Exchange(unique, "headers", auto_delete=True)
    queue = Queue(
        unique,
        bindings=[
            binding(exchange, arguments={"x-match": "all", "a": 1}),
            binding(exchange, arguments={"x-match": "any", "b": 2}),
        ],
        durable=False,
        expires=60,
    )
    queue(connection).declare()
    relay.server.stop()
    until(lambda: not connection.connected)
    other.channel().queue_delete(unique)
    assert not exists(other, exchange=unique)
    relay.server.start()
    connection.ensure_connection(interval_start=0.1)
    channel = other.channel()
    for headers in ({"c": 3}, {"a": 1}, {"b": 2}):
        message = channel.prepare_message("x", content_type="text/plain", headers=headers)
        channel.basic_publish_confirm(message, unique, "", timeout=SOON)
    assert left(other, unique) == 2
    other.channel().queue_delete(unique)


# What does not


@pytest.mark.parametrize("undone", ["queue", "exchange", "queue binding", "exchange binding"])
def test_what_was_undone_does_not_come_back(
    relay: Relay, connection: Connection, other: Connection, unique: str, undone: str
) -> None:
    first, second = f"{unique}-1", f"{unique}-2"
    channel = connection.channel()
    for name in (first, second):
        channel.exchange_declare(name, "fanout", auto_delete=False)
    channel.queue_declare(unique, durable=False, auto_delete=False)
    channel.exchange_bind(second, first)
    channel.queue_bind(unique, second)
    if undone == "queue":
        channel.queue_delete(unique)
    elif undone == "exchange":
        channel.exchange_delete(second)
    elif undone == "queue binding":
        channel.queue_unbind(unique, second)
    else:
        channel.exchange_unbind(second, first)
    cut(relay, connection)
    assert exists(other, unique) is (undone != "queue")
    assert exists(other, exchange=second) is (undone != "exchange")
    send(other, "", "x", exchange=first)
    if undone != "queue":
        assert left(other, unique) == 0
    theirs = other.channel()
    theirs.queue_delete(unique)
    for name in (first, second):
        theirs.exchange_delete(name)


def test_what_others_deleted_is_there_again_and_what_they_declared_stays_theirs(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    connection.channel().queue_declare(unique, durable=False, auto_delete=False)
    other.channel().queue_declare(f"{unique}-2", exclusive=True)
    other.channel().queue_delete(unique)
    cut(relay, connection)
    assert exists(other, unique)
    other.channel().queue_delete(f"{unique}-2")
    cut(relay, connection)
    assert not exists(other, f"{unique}-2")
    other.channel().queue_delete(unique)


def test_a_channel_that_was_closed_takes_nothing_along(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    """Entities belong to the broker, not to the channel over which they were declared."""
    with connection.channel() as channel:
        channel.queue_declare(unique, durable=False, auto_delete=False)
    relay.server.stop()
    until(lambda: not connection.connected)
    other.channel().queue_delete(unique)
    relay.server.start()
    connection.ensure_connection(interval_start=0.1)
    assert exists(other, unique)
    other.channel().queue_delete(unique)


# Many


@pytest.mark.full
def test_many_queues(
    relay: Relay, connection: Connection, other: Connection, unique: str, long: bool
) -> None:
    names = [f"{unique}-{each}" for each in range(5000 if long else 200)]
    channel = connection.channel()
    channel.exchange_declare(unique, "direct", auto_delete=False)
    for name in names:
        channel.queue_declare(name, durable=False, auto_delete=False)
        channel.queue_bind(name, unique, name)
    relay.server.stop()
    until(lambda: not connection.connected)
    theirs = other.channel()
    for name in names[::2]:
        theirs.queue_delete(name)
    for name in names[1::2]:
        theirs.queue_unbind(name, unique, name)
    relay.server.start()
    connection.ensure_connection(interval_start=0.1)
    theirs.confirm_select()
    for name in names:
        theirs.begin_publish(theirs.prepare_message("x"), unique, name)
    theirs.basic_publish_confirm(theirs.prepare_message("x"), unique, names[-1], timeout=SOON)
    theirs.queue_purge(names[-1])
    names.pop()
    assert all(theirs.queue_declare(name, passive=True).message_count == 1 for name in names)
    for number in range(len(names) + 1):
        theirs.queue_delete(f"{unique}-{number}")
    theirs.exchange_delete(unique)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["queues", "unbound", "deleted", "exchanges unbound", "exchanges"])
def test_what_comes_and_goes_leaves_no_record(
    relay: Relay, connection: Connection, other: Connection, unique: str, kind: str, long: bool
) -> None:
    """Entities that delete themselves, made again and again: nothing is kept, nothing comes back."""
    channel = connection.channel()
    for number in range(1000 if long else 50):  # the broker takes 10 ms and more for each
        name, second = f"{unique}-{number}", f"{unique}-{number}-2"
        if kind == "queues":
            channel.queue_declare(name, durable=False, auto_delete=True)
            channel.basic_cancel(channel.basic_consume(name, no_ack=True))
            continue
        channel.exchange_declare(name, "fanout", durable=False, auto_delete=True)
        if kind in ("unbound", "deleted"):
            queue = channel.queue_declare("", exclusive=True).queue
            channel.queue_bind(queue, name)
            if kind == "unbound":
                channel.queue_unbind(queue, name)
            channel.queue_delete(queue)
        else:
            channel.exchange_declare(second, "fanout", durable=False, auto_delete=True)
            channel.exchange_bind(second, name)
            if kind == "exchanges unbound":
                channel.exchange_unbind(second, name)
            channel.exchange_delete(second)
    assert len(connection.session.topology) == 0
    cut(relay, connection)
    assert not exists(other, f"{unique}-0")
    assert not exists(other, exchange=f"{unique}-0")


# Names that the broker gives


@pytest.mark.full
def test_names_of_the_broker_over_many_lives(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    queue = Queue("", Exchange(unique, "fanout", auto_delete=True), exclusive=True)(connection)
    queue.declare()
    names = {queue.name}
    for number in range(1, 6):
        cut(relay, connection)
        send(other, "", number, exchange=unique)
        message = queue.get(no_ack=True)
        assert message is not None
        assert message.payload == number
        names.add(queue.name)
        assert len(names) == number + 1
    queue.delete()
    until(lambda: not exists(other, exchange=unique))


def test_a_queue_that_is_used_before_its_consumer_is_back(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    """Whoever learns of the new name first: the others have it, too."""
    got: list[Any] = []
    queue = Queue("", Exchange(unique, "fanout", auto_delete=True), exclusive=True)
    consumer = connection.Consumer(queue, callbacks=[lambda body, message: got.append(body)])
    consumer.consume(no_ack=True)
    bound = consumer.queues[0]
    for number in range(3):
        former = bound.name
        relay.cut()
        until(lambda former=former: connection.session.topology.current_name(former))  # type: ignore[misc]
        bound.queue_declare(passive=True)
        assert bound.name != former
        settled(connection, bound.name)
        assert list(consumer._active_tags) == [bound.name]
        send(other, "", number, exchange=unique)
        with gevent.Timeout(SOON):
            while got[-1:] != [number]:
                with suppress(*connection.connection_errors):
                    connection.drain_events()
    bound.bind_to(bound.exchange, "too")
    bound.unbind_from(bound.exchange, "too")
    assert bound.purge() == 0
    assert got == [0, 1, 2]


# Over several brokers


@pytest.mark.full
def test_the_next_broker_knows_nothing_yet(
    own_rabbitmq: RabbitMQ, relay_to: RelayFactory, amqp_url: str, other: Connection, unique: str
) -> None:
    """Durable or not: what was declared on one is declared on the next."""
    first, second = relay_to(own_rabbitmq.url), relay_to(amqp_url)
    got: list[Any] = []
    with Connection([first.url, second.url]) as connection:
        channel = connection.channel()
        channel.exchange_declare(unique, "direct", durable=True, auto_delete=False)
        channel.queue_declare(f"{unique}-2", durable=True, auto_delete=False)
        channel.queue_bind(f"{unique}-2", unique, "k")
        consumer = connection.Consumer(
            Queue(unique), callbacks=[lambda body, message: got.append(body)]
        )
        consumer.consume(no_ack=True)
        assert not exists(other, unique)
        first.server.stop()
        settled(other, unique)
        send(other, unique, "here")
        send(other, "k", "there", exchange=unique)
        with gevent.Timeout(SOON):
            while got != ["here"]:
                with suppress(*connection.connection_errors):
                    connection.drain_events()
        assert left(other, f"{unique}-2") == 1
        assert consumers_of(other, unique) == 1
    with Connection(own_rabbitmq.url) as own:
        for each in (own, other):
            theirs = each.channel()
            for name in (unique, f"{unique}-2"):
                theirs.queue_delete(name)
            theirs.exchange_delete(unique)
