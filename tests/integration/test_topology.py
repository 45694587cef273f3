"""What was declared is there again after the loss of the connection, by whatever channel it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
import pytest

from greenconn import Connection, Consumer, Exchange, Queue, publish, spawn_consumer
from greenconn.exceptions import NotFound, RecoverableChannelError, ResourceLocked
from greenconn.green.deadline import Deadline
from tests.fix_relay import Relay
from tests.fix_wires import until

pytestmark = pytest.mark.halved

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


@pytest.fixture
def many(connection: Connection, amqp_url: str, unique: str) -> Iterator[list[str]]:
    """Names of queues that are bound to an exchange by their names, and are deleted in the end."""
    names = [f"{unique}-{number}" for number in range(150)]
    channel = connection.default_channel
    channel.exchange_declare(unique, "direct", durable=False, auto_delete=False)
    with channel.pipeline() as pipeline:
        for name in names:
            pipeline.send(channel.queue_declare, queue=name, durable=False, auto_delete=False)
            pipeline.send(channel.queue_bind, queue=name, exchange=unique, routing_key=name)
        for _ in range(2 * len(names)):
            pipeline.receive()
    yield names
    with Connection(amqp_url) as other:
        channel = other.default_channel
        for name in names:
            channel.queue_delete(name)
        channel.exchange_delete(unique)


def are_bound(connection: Connection, exchange: str, queues: list[str]) -> bool:
    """Whether each of *queues* is there, bound by its name, and empty before."""
    with connection.channel() as channel:
        for name in queues:
            # A queue may be counted before it takes what it was not asked to confirm.
            channel.basic_publish_confirm(
                channel.prepare_message("x"), exchange, name, timeout=SOON
            )
        counts = [channel.queue_declare(name, passive=True).message_count for name in queues]
        for name in queues:
            channel.queue_purge(name)
    return counts == [1] * len(queues)


def test_of_many_only_those_that_are_refused_are_missing(
    connection: Connection, relay: Relay, amqp_url: str, many: list[str], unique: str
) -> None:
    refused = [many[number] for number in (0, 1, 63, 64, 100, 149)]
    with Connection(amqp_url) as other:
        theirs = other.default_channel
        relay.server.stop()
        until(lambda: not connection.connected)
        for name in many:
            theirs.queue_delete(name)
        for name in refused:
            theirs.queue_declare(name, exclusive=True)
        relay.server.start()
        connection.ensure_connection(interval_start=0.1)
        assert are_bound(connection, unique, [each for each in many if each not in refused])
        for name in refused:
            with pytest.raises(ResourceLocked):
                connection.channel().queue_declare(name, passive=True)
    until(lambda: all(is_mine(connection, name) for name in refused), SOON)
    until(lambda: not is_declaring(connection))
    assert are_bound(connection, unique, many)


def test_of_many_only_the_one_that_ends_the_whole_connection_is_given_up(
    connection: Connection, relay: Relay, many: list[str], unique: str
) -> None:
    """As if a plugin that is needed for its type had been disabled.

    RabbitMQ 4 refuses that as any other, and keeps the connection.
    """
    channel, topology = connection.default_channel, connection.session.topology
    kinds = ["fanout"] * 5 + ["x-no-such-type"] + ["fanout"] * 5
    for number, kind in enumerate(kinds):
        name = f"{unique}-{number}"
        if kind == "fanout":
            channel.exchange_declare(name, kind, durable=False, auto_delete=False)
            channel.queue_bind(many[number], name)
        else:
            topology.exchange_declared(name, kind, False, False, None)
    known, accepted = len(topology), relay.accepted
    relay.cut()
    until(lambda: not connection.connected)
    with gevent.Timeout(SOON):
        connection.ensure_connection(interval_start=0.1)
    has_ended = relay.accepted > accepted + 1
    assert len(topology) == known - has_ended
    assert are_bound(connection, unique, many)
    channel = connection.channel()
    for number, kind in enumerate(kinds):
        if kind == "fanout":
            channel.exchange_delete(f"{unique}-{number}")


@pytest.mark.parametrize("budget", ["budget", "back_budget"])
@pytest.mark.sampled(1)
def test_a_connection_that_is_lost_amid_many_declarations(
    connection: Connection,
    relay: Relay,
    amqp_url: str,
    many: list[str],
    unique: str,
    budget: str,
    long: bool,
) -> None:
    with Connection(amqp_url) as other:
        theirs = other.default_channel
        for number in range(20 if long else 3):
            relay.server.stop()
            until(lambda: not connection.connected)
            for name in many[number::2]:
                theirs.queue_delete(name)
            relay.server.start()
            # The handshake takes less than 1,000 bytes, and all declarations more than 7,000.
            before = relay.accepted
            setattr(relay, budget, 1000 + 4997 * number % 6000)
            coming = gevent.spawn(connection.ensure_connection, interval_start=0.1)
            until(lambda: getattr(relay, budget) == 0)
            setattr(relay, budget, None)
            relay.cut()
            coming.get(timeout=SOON)
            assert relay.accepted >= before + 2
            assert are_bound(connection, unique, many)


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
