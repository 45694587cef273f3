"""What was declared is there again after the loss of the connection, by whatever channel it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
import pytest

from greenconn import Connection, Consumer, Exchange, Queue, publish, spawn_consumer
from greenconn.exceptions import (
    NotFound,
    RecoverableChannelError,
    ResourceLocked,
)
from greenconn.green.deadline import Deadline
from tests.fix_relay import Relay
from tests.fix_wires import until

SOON = 30.0


@pytest.fixture
def connection(relay: Relay) -> Iterator[Connection]:
    """A connection by way of the relay."""
    with Connection(relay.url) as made:
        yield made


@pytest.fixture
def lose(connection: Connection, relay: Relay) -> Callable[[], None]:
    """Cut the connection and see that it is back."""

    def lose() -> None:
        generation = connection.session.generation
        relay.cut()
        until(lambda: not connection.connected or connection.session.generation > generation)
        connection.ensure_connection()
        assert connection.session.generation == generation + 1
        until(lambda: not is_declaring(connection))

    return lose


def is_declaring(connection: Connection) -> bool:
    """Whether something comes later: the broker may hold it for the lost connection for a moment."""
    later = connection.session.topology._retry
    return later is not None and not later.ready()


def bodies(connection: Connection, queue: str, number: int) -> list[Any]:
    """Take *number* messages."""
    found: list[Any] = []
    with gevent.Timeout(SOON):
        while len(found) < number:
            message = connection.default_channel.basic_get(queue, no_ack=True)
            if message is not None:
                found.append(message.body)
    return found


def exists(connection: Connection, queue: str = "", exchange: str = "") -> bool:
    """Whether a queue or exchange exists."""
    channel = connection.channel()
    try:
        if queue:
            channel.queue_declare(queue, passive=True)
        else:
            channel.exchange_declare(exchange, "direct", passive=True)
    except NotFound:
        return False
    channel.close()
    return True


@pytest.mark.parametrize("nowait", [False, True], ids=["waiting", "nowait"])
def test_what_was_declared_by_hand_is_declared_again(
    connection: Connection, lose: Callable[[], None], unique: str, nowait: bool
) -> None:
    channel = connection.channel()
    inner, outer = f"{unique}-inner", f"{unique}-outer"
    for name in (inner, outer):
        channel.exchange_declare(name, "topic", durable=False, auto_delete=True, nowait=nowait)
    channel.queue_declare(unique, exclusive=True, nowait=nowait)
    channel.queue_bind(unique, inner, "a.#", nowait=nowait)
    channel.exchange_bind(inner, outer, "*.b", nowait=nowait)
    channel.close()
    for _ in range(2):
        lose()
        channel = connection.channel()
        channel.basic_publish(channel.prepare_message(b"x"), outer, "a.b")
        channel.basic_publish(channel.prepare_message(b"y"), outer, "a.c")
        channel.basic_publish(channel.prepare_message(b"z"), outer, "a.b")
        assert bodies(connection, unique, 2) == [b"x", b"z"]
        channel.close()


def test_what_was_undone_stays_undone(
    connection: Connection, lose: Callable[[], None], unique: str
) -> None:
    channel = connection.channel()
    kept, gone = f"{unique}-kept", f"{unique}-gone"
    for name in (kept, gone):
        channel.exchange_declare(name, "direct", durable=False, auto_delete=False)
    for name in (unique, gone):
        channel.queue_declare(name, exclusive=True)
        channel.queue_bind(name, kept, "1")
        channel.queue_bind(name, kept, "2")
    channel.queue_unbind(unique, kept, "2", nowait=True)  # AMQP 0-9-1 has no such flag
    channel.queue_delete(gone, nowait=True)
    channel.exchange_delete(gone)
    lose()
    assert not exists(connection, queue=gone)
    assert not exists(connection, exchange=gone)
    channel = connection.channel()
    for key in ("1", "2", "1"):
        channel.basic_publish(channel.prepare_message(key), kept, key)
    assert bodies(connection, unique, 2) == ["1", "1"]
    channel.exchange_delete(kept)


def test_what_the_broker_deletes_by_itself_is_forgotten(
    connection: Connection, lose: Callable[[], None], unique: str
) -> None:
    """An auto-delete queue with its last consumer, an auto-delete exchange with its last binding."""
    channel, other = connection.channel(), connection.channel()
    source = f"{unique}-x"
    channel.exchange_declare(source, "direct", durable=False, auto_delete=True)
    for number in range(3):
        channel.queue_declare(f"{unique}-{number}", durable=False, auto_delete=True)
        channel.queue_bind(f"{unique}-{number}", source)
        other.basic_consume(f"{unique}-{number}", consumer_tag=f"a{number}")
    channel.basic_consume(f"{unique}-0", consumer_tag="b0")
    other.basic_cancel("a0")
    other.basic_cancel("a1", nowait=True)
    until(lambda: not connection.session.topology.is_auto_delete(f"{unique}-1"))
    lose()
    assert exists(connection, queue=f"{unique}-0")  # it had one more
    assert not exists(connection, queue=f"{unique}-1")
    assert exists(connection, queue=f"{unique}-2")
    assert exists(connection, exchange=source)
    channel = connection.channel()
    for number in (0, 2):
        channel.basic_consume(f"{unique}-{number}", consumer_tag=f"c{number}")
    channel.close()
    lose()
    assert not exists(connection, queue=f"{unique}-0")
    assert not exists(connection, queue=f"{unique}-2")
    assert not exists(connection, exchange=source)
    assert len(connection.session.topology) == 0


def test_a_queue_that_somebody_deletes_under_a_consumer_is_not_brought_back(
    connection: Connection, amqp_url: str, lose: Callable[[], None], unique: str
) -> None:
    channel = connection.channel()
    channel.queue_declare(unique, durable=False, auto_delete=False)
    notified: list[str] = []
    channel.basic_consume(unique, consumer_tag="t", on_cancel=notified.append)
    with Connection(amqp_url) as other:
        other.default_channel.queue_delete(unique)
    connection.drain_events(timeout=SOON)
    assert notified == ["t"]
    lose()
    assert not exists(connection, queue=unique)


def test_passive_declarations_are_not_repeated(
    connection: Connection, amqp_url: str, lose: Callable[[], None], unique: str
) -> None:
    with Connection(amqp_url) as other:
        theirs = other.default_channel
        theirs.queue_declare(unique, durable=False, auto_delete=False)
        theirs.exchange_declare(unique, "direct", durable=False, auto_delete=False)
        channel = connection.channel()
        channel.queue_declare(unique, passive=True)
        channel.exchange_declare(unique, "direct", passive=True)
        theirs.queue_delete(unique)
        theirs.exchange_delete(unique)
        lose()
        assert not exists(connection, queue=unique)
        assert not exists(connection, exchange=unique)


def test_it_can_be_turned_off(relay: Relay, unique: str) -> None:
    with Connection(relay.url, transport_options={"topology_recovery": False}) as connection:
        connection.default_channel.queue_declare(unique, exclusive=True)
        relay.cut()
        until(lambda: not connection.connected)
        until(lambda: is_gone(connection, unique))
        assert len(connection.session.topology) == 0


def test_a_queue_that_the_broker_names_has_its_new_name_everywhere(
    connection: Connection, lose: Callable[[], None], unique: str
) -> None:
    source = Exchange(unique, "fanout", durable=False, auto_delete=True)
    got: list[Any] = []
    consumed, fetched = Queue("", source, exclusive=True), Queue("", source, exclusive=True)
    bound = fetched(connection)
    bound.declare()
    hand = connection.channel().queue_declare(exclusive=True).queue
    connection.default_channel.queue_bind(hand, unique, "")
    with Consumer(
        connection, consumed, callbacks=[lambda body, message: got.append(body)], no_ack=True
    ) as consumer:
        names = {consumer.queues[0].name, bound.name, hand}
        assert len(names) == 3
        for life in range(1, 3):
            lose()
            with gevent.Timeout(SOON):
                connection.session.wait_ready(Deadline(SOON))
            bound.queue_declare()
            now = {
                consumer.queues[0].name,
                bound.name,
                connection.session.topology.current_name(hand),
            }
            assert len(now) == 3
            assert not now & names
            names |= now
            connection.Producer(exchange=source).publish(life)
            while len(got) < life:
                connection.drain_events(timeout=SOON)
            assert [m.decode() for m in [bound.get()] if m] == [life]
            # And no others: each of the three was declared once.
            assert len(connection.session.topology) == 1 + 3 + 3
    connection.default_channel.queue_delete(bound.name)


def is_forgotten(connection: Connection, name: str) -> bool:
    return name not in connection.session.topology._queues


@pytest.mark.parametrize("how", ["cut", "delete"])
def test_a_spawned_consumer_follows_its_queue_to_its_new_name(
    connection: Connection, lose: Callable[[], None], amqp_url: str, unique: str, how: str
) -> None:
    got: list[Any] = []
    source = Exchange(unique, "fanout", durable=False, auto_delete=False)
    queue = Queue("", source, exclusive=how == "cut", auto_delete=True)
    consumer = spawn_consumer(queue, lambda body, message: got.append(body), connection=connection)
    assert consumer.wait_ready(SOON)
    names = set()
    for life in range(3):
        until(lambda: len(connection.session.topology) == 3)
        (name,) = connection.session.topology._queues
        assert name not in names
        names.add(name)
        publish(source, life, connection=connection)
        until(partial(got.__contains__, life))
        if how == "cut":
            lose()
        else:
            with Connection(amqp_url) as other:
                other.default_channel.queue_delete(name)
        until(partial(is_forgotten, connection, name))
        assert consumer.wait_ready(SOON)
    consumer.stop()
    assert got == [0, 1, 2]
    connection.default_channel.exchange_delete(unique)


def test_an_exclusive_queue_that_is_still_locked_comes_later(
    connection: Connection, relay: Relay, amqp_url: str, unique: str
) -> None:
    """As if the broker had not yet noticed that the former connection is dead."""
    free = f"{unique}-free"
    for name in (unique, free):
        connection.default_channel.queue_declare(name, exclusive=True)
    relay.delay = 1.0
    relay.cut()
    with Connection(amqp_url) as other:
        until(lambda: not exists(other, queue=unique))
        other.default_channel.queue_declare(unique, exclusive=True)
        connection.ensure_connection()
        assert exists(connection, queue=free)
        with pytest.raises(ResourceLocked):
            connection.channel().queue_declare(unique, passive=True)
    until(lambda: is_mine(connection, unique), SOON)


def is_mine(connection: Connection, queue: str) -> bool:
    """Whether an exclusive queue exists and is no other connection's."""
    try:
        return exists(connection, queue)
    except ResourceLocked:
        return False


def is_gone(connection: Connection, queue: str) -> bool:
    """Whether an exclusive queue does not exist, for a lost connection neither."""
    try:
        return not exists(connection, queue)
    except ResourceLocked:
        return False


def test_what_is_refused_does_not_keep_the_connection_away(
    connection: Connection, relay: Relay, amqp_url: str, unique: str
) -> None:
    channel = connection.default_channel
    channel.queue_declare(unique, durable=False, auto_delete=False)
    channel.queue_declare(f"{unique}-2", exclusive=True)
    with Connection(amqp_url) as other:
        other.default_channel.queue_delete(unique)
        other.default_channel.queue_declare(unique, durable=True, auto_delete=False)
        relay.cut()
        until(lambda: not connection.connected)
        until(lambda: is_mine(connection, f"{unique}-2"))
        other.default_channel.queue_delete(unique)


def test_close_forgets_what_was_declared(connection: Connection, unique: str) -> None:
    connection.default_channel.queue_declare(unique, exclusive=True)
    connection.close()
    connection.connect()
    until(lambda: is_gone(connection, unique))


def test_the_error_of_a_nowait_declaration_is_nobody_elses(
    connection: Connection, unique: str
) -> None:
    channel = connection.channel()
    channel.queue_declare(unique, exclusive=True)
    other = connection.channel()
    other.queue_declare(unique, durable=True, nowait=True)  # differs: 406
    with pytest.raises(RecoverableChannelError, match="because of another call"):
        other.queue_declare(unique, exclusive=True)
    assert not other.is_open
    third = connection.channel()
    third.queue_declare(f"{unique}-2", exclusive=True, nowait=True)  # this one succeeds
    with pytest.raises(ResourceLocked):
        third.queue_declare(unique, durable=True)
