"""What becomes of consumers, and of the messages in their hands, when the connection is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import ConsumerCancelled, NotFound, PreconditionFailed
from greenconn.messaging import Consumer
from greenconn.worker import spawn_consumer
from tests.brokers.rabbitmq import RabbitMQHandle
from tests.fix_relay import Relay
from tests.fix_wires import until
from tests.integration.recovering import SOON, Recoveries, consumers_of, exists, lose, send, settled
from tests.receiving import Receiver, consuming

pytestmark = pytest.mark.halved

Errors = list[BaseException]


@pytest.fixture
def connection(relay: Relay) -> Iterator[Connection]:
    """A connection that can be cut."""
    with Connection(relay.url, heartbeat=10) as made:
        yield made


@pytest.fixture
def other(amqp_url: str, unique: str) -> Iterator[Connection]:
    """A connection that stays; what is named after the test is deleted at its end."""
    with Connection(amqp_url) as made:
        yield made
        with suppress(*made.channel_errors):  # it may be the other connection's own
            made.default_channel.queue_delete(unique)


@pytest.fixture
def errors(connection: Connection) -> Iterator[Errors]:
    """Somebody drains the connection; the errors that this raised."""
    errors: Errors = []

    def drain() -> None:
        while True:
            try:
                connection.drain_events()
            except connection.connection_errors + connection.channel_errors as exc:
                errors.append(exc)

    greenlet = gevent.spawn(drain)
    yield errors
    greenlet.kill()


def left(connection: Connection, queue: str) -> int:
    with connection.channel() as channel:
        return int(channel.queue_declare(queue, passive=True).message_count)


# All come back, once


@pytest.mark.full
def test_one_consumer_after_each_of_many_losses(
    relay: Relay, connection: Connection, other: Connection, unique: str, errors: Errors, long: bool
) -> None:
    got = Receiver()
    consumer = Consumer(connection, Queue(unique), callbacks=[got])
    consumer.consume()
    tags = dict(consumer._active_tags)
    rounds = 50 if long else 10
    for number in range(rounds):
        lose(relay, connection)
        settled(other, unique)
        send(other, unique, number)
        until(lambda number=number: number in got)  # type: ignore[misc]
    assert consumer._active_tags == tags
    assert relay.accepted == 1 + rounds
    assert len(errors) == rounds  # each loss was told once


def test_many_consumers_of_one_queue(
    relay: Relay, connection: Connection, other: Connection, unique: str, errors: Errors, long: bool
) -> None:
    number = 1024 if long else 200
    got: Counter[int] = Counter()
    queue = Queue(unique)

    def make(each: int) -> Consumer:
        def receive(body: Any, message: Any) -> None:
            got[each] += 1
            message.ack()

        consumer = Consumer(connection, queue, callbacks=[receive], prefetch_count=1)
        consumer.consume()
        return consumer

    consumers = [make(each) for each in range(number)]
    assert consumers_of(other, unique) == number
    lose(relay, connection)
    settled(other, unique, number)
    send(other, unique, *range(2 * number))
    until(lambda: got.total() == 2 * number)
    assert len(got) == number
    assert len(consumers) == number


@pytest.mark.full
def test_many_queues(
    relay: Relay, connection: Connection, other: Connection, unique: str, long: bool
) -> None:
    """Consumers that run in the background, on few channels."""
    number = 5000 if long else 200
    got: set[str] = set()
    queues = [Queue(f"{unique}-{each}", durable=False, expires=600) for each in range(number)]

    def handle(body: Any, message: Any) -> None:
        got.add(message.delivery_info["routing_key"])

    consumer = spawn_consumer(queues, handle, connection=connection, prefetch_count=number)
    assert consumer.wait_ready(SOON * 3)
    lose(relay, connection)
    channel = other.channel()
    for queue in queues:
        settled(other, queue.name) if consumers_of(other, queue.name) != 1 else None
        channel.basic_publish(
            channel.prepare_message("x", content_type="text/plain"), routing_key=queue.name
        )
    until(lambda: len(got) == number, SOON * 3)
    assert consumer.stop(timeout=SOON)
    for queue in queues:
        channel.queue_delete(queue.name)


def test_a_cancelled_consumer_does_not_come_back(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    stays = Consumer(connection, Queue(f"{unique}-2", auto_delete=True))
    stays.consume()
    gone = Consumer(connection, Queue(unique))
    gone.consume()
    gone.cancel()
    both = Consumer(connection, [Queue(f"{unique}-3", auto_delete=True), Queue(unique)])
    both.consume()
    both.cancel_by_queue(unique)
    lose(relay, connection)
    settled(other, f"{unique}-2")
    settled(other, f"{unique}-3")
    assert consumers_of(other, unique) == 0


def test_cancelled_while_the_broker_is_away(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    stays = Consumer(connection, Queue(f"{unique}-2", auto_delete=True))
    stays.consume()
    gone = Consumer(connection, Queue(unique))
    gone.consume()
    lose(relay, connection, then=gone.cancel)
    settled(other, f"{unique}-2")
    assert consumers_of(other, unique) == 0


def test_started_while_the_broker_is_away(
    relay: Relay, connection: Connection, other: Connection, unique: str, errors: Errors
) -> None:
    first = Consumer(connection, Queue(f"{unique}-2", auto_delete=True))
    first.consume()
    got = Receiver()
    second = Consumer(connection, Queue(unique), callbacks=[got])
    starting: list[gevent.Greenlet[..., Any]] = []
    lose(relay, connection, then=lambda: starting.append(gevent.spawn(second.consume)))
    for each in starting:
        with suppress(*connection.connection_errors):
            each.get(timeout=SOON)
    second.consume()
    settled(other, unique)
    send(other, unique, "x")
    until(lambda: got == ["x"])
    assert consumers_of(other, unique) == 1


def test_options_of_consumers_come_back(
    relay: Relay, connection: Connection, other: Connection, rabbitmq: RabbitMQHandle, unique: str
) -> None:
    queue = Queue(unique, consumer_arguments={"x-priority": 7})
    consumer = Consumer(connection, queue, no_ack=True, tag_prefix=f"{unique}-tag-")
    consumer.consume()

    def rows() -> list[str]:
        vhost = connection.virtual_host or "/"
        columns = ("queue_name", "consumer_tag", "ack_required", "arguments")
        return [
            row
            for row in rabbitmq.ctl("list_consumers", "-p", vhost, *columns).splitlines()
            if row.startswith(unique)
        ]

    before = rows()
    assert len(before) == 1
    assert "x-priority" in before[0]
    assert f"{unique}-tag-" in before[0]
    lose(relay, connection)
    settled(other, unique)
    # The listing breaks off where somebody else's queue is deleted meanwhile.
    until(lambda: rows() == before, SOON)


@pytest.mark.parametrize("asked", ["prefetch_count", "qos", "global"])
def test_the_prefetch_comes_back(
    relay: Relay, connection: Connection, other: Connection, unique: str, errors: Errors, asked: str
) -> None:
    got: list[Any] = []
    consumer = Consumer(
        connection,
        Queue(unique),
        on_message=got.append,
        prefetch_count=3 if asked == "prefetch_count" else None,
    )
    if asked != "prefetch_count":
        consumer.qos(prefetch_count=3, apply_global=asked == "global")
    consumer.consume()
    send(other, unique, *range(10))
    until(lambda: len(got) == 3)
    lose(relay, connection)
    until(lambda: len(got) == 6)  # the same three again
    assert sorted(message.payload for message in got[3:]) == [0, 1, 2]
    assert all(message.delivery_info["redelivered"] for message in got[3:])
    got[3].ack()
    until(lambda: len(got) == 7)
    assert left(other, unique) == 10 - 4
    assert got[6].payload == 3


# Messages of a former life


def test_acks_of_a_former_life_are_dropped(
    relay: Relay, connection: Connection, other: Connection, unique: str, errors: Errors
) -> None:
    """The delivery tags of both lives are the same numbers."""
    got: list[Any] = []
    consumer = Consumer(connection, Queue(unique), on_message=got.append)
    consumer.consume()
    send(other, unique, *"abcd")
    until(lambda: len(got) == 4)
    lose(relay, connection)
    until(lambda: len(got) == 8)
    old, new = got[:4], got[4:]
    assert [each.delivery_tag for each in old] == [each.delivery_tag for each in new]
    old[0].ack()
    old[1].reject()
    old[2].requeue()
    old[3].ack(multiple=True)
    # They are all still unanswered: a round trip on the same channel, then the end of it.
    consumer.channel.basic_qos(0, 0, False)
    assert len(got) == 8
    assert not errors[1:]
    new[1].ack()
    consumer.cancel()
    connection.close()
    until(lambda: left(other, unique) == 3)


def test_an_ack_after_recovery_out_of_a_callback(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    """Each of several callbacks sees the loss between delivery and answer."""
    got: list[tuple[Any, bool]] = []

    def receive(body: Any, message: Any) -> None:
        is_again = message.delivery_info["redelivered"]
        got.append((body, is_again))
        if not is_again:
            lose(relay, connection)
        message.ack()

    consumer = Consumer(connection, Queue(unique), callbacks=[receive], prefetch_count=1)
    consumer.consume()
    send(other, unique, 1, 2, 3)
    while len(got) < 6:
        with suppress(*connection.connection_errors):
            connection.drain_events(timeout=SOON)
    assert got == [(1, False), (1, True), (2, False), (2, True), (3, False), (3, True)]
    connection.close()
    assert left(other, unique) == 0


def test_what_nobody_has_taken_comes_once(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    got: list[Any] = []
    consumer = Consumer(connection, Queue(unique), on_message=got.append, prefetch_count=50)
    consumer.consume()
    send(other, unique, *range(50))
    events = connection.session.life.link.events
    until(lambda: len(events) == 50)
    lose(relay, connection)
    until(lambda: len(connection.session.life.link.events) == 50)
    assert len(events) == 0
    for _ in range(50):
        connection.drain_events(timeout=SOON)
    assert [message.payload for message in got] == list(range(50))
    for message in got:
        message.ack()
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.05)
    connection.close()
    assert left(other, unique) == 0


def test_messages_that_need_no_ack(
    relay: Relay, connection: Connection, other: Connection, unique: str, errors: Errors
) -> None:
    got: list[Any] = []
    consumer = Consumer(connection, Queue(unique), on_message=got.append, no_ack=True)
    consumer.consume()
    send(other, unique, 1)
    until(lambda: len(got) == 1)
    lose(relay, connection)
    settled(other, unique)
    send(other, unique, 2)
    until(lambda: len(got) == 2)
    for message in got:
        message.ack()  # nothing is sent
    assert [message.payload for message in got] == [1, 2]


# Who cannot come back


@pytest.mark.full
def test_an_exclusive_consumer_whose_place_is_still_taken(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    got: list[Any] = []
    consumer = consuming(
        unique, lambda body, message: got.append(body), connection=connection, exclusive=True
    )
    taker = other.clone()

    def take() -> None:
        until(lambda: consumers_of(other, unique) == 0)
        taker.default_channel.basic_consume(unique, exclusive=True)

    relay.server.stop()
    until(lambda: not connection.connected)
    take()
    relay.server.start()
    until(lambda: connection.connected, SOON)
    gevent.sleep(0.3)  # time for an attempt that is refused
    assert not consumer.dead
    taker.close()
    send(other, unique, "mine")
    until(lambda: got == ["mine"], SOON)
    assert consumer.stop(timeout=SOON)


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("why", ["deleted", "differs"])
def test_a_consumer_that_is_refused(
    relay: Relay,
    connection: Connection,
    other: Connection,
    unique: str,
    errors: Errors,
    why: str,
    place: str,
) -> None:
    """Whoever drains is told once; the others come back, and it is not tried again and again."""
    got = Receiver()
    with other.channel() as channel:
        channel.queue_declare(unique, durable=True, auto_delete=False)
    refused = Consumer(connection, Queue(unique), callbacks=[got], auto_declare=why != "deleted")
    fine = Consumer(connection, Queue(f"{unique}-2", auto_delete=True), callbacks=[got])
    for consumer in (refused, fine) if place == "first" else (fine, refused):
        consumer.consume()  # they share the default channel

    def meddle() -> None:
        with other.channel() as channel:
            channel.queue_delete(unique)
            if why == "differs":
                channel.queue_declare(unique, durable=False, auto_delete=False)

    lose(relay, connection, then=meddle)
    settled(other, f"{unique}-2")
    send(other, f"{unique}-2", "fine")
    until(lambda: got == ["fine"])
    kind = NotFound if why == "deleted" else PreconditionFailed
    until(lambda: any(isinstance(exc, kind) for exc in errors))
    # A second loss: it is no member any more.
    lose(relay, connection)
    settled(other, f"{unique}-2")
    assert [isinstance(exc, kind) for exc in errors].count(True) == 1
    # When the reason is gone it may be started again.
    with other.channel() as channel:
        channel.queue_delete(unique)
        channel.queue_declare(unique, durable=True, auto_delete=False)
    refused.revive(connection.channel())
    refused.consume()
    send(other, unique, "back")
    until(lambda: got == ["fine", "back"])
    assert consumers_of(other, unique) == 1


# Queues that go with the connection


def test_a_queue_that_deletes_itself_while_it_is_restored(
    relay: Relay, connection: Connection, other: Connection, unique: str, errors: Errors, long: bool
) -> None:
    """The broker buries the old connection while the new one declares: nobody hears of it."""
    got = Receiver()
    names = [f"{unique}-{each}" for each in range(20)]
    exchange = Exchange(unique, auto_delete=True)
    for name in names:
        queue = Queue(name, exchange, name, auto_delete=True)
        Consumer(connection, queue, callbacks=[got]).consume()
    rounds = 100 if long else 5
    for _ in range(rounds):
        lose(relay, connection)
    for name in names:
        assert consumers_of(other, name) == 1
        send(other, name, name, exchange=unique)
    until(lambda: sorted(got) == sorted(names))
    assert len(errors) == rounds


def test_a_queue_that_deletes_itself_and_has_others(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    """Their consumers are not waited for more than a moment, all together."""
    queues = [Queue(f"{unique}-{each}", auto_delete=True) for each in range(20)]
    Consumer(other, queues).consume()
    consumers = [Consumer(connection, queue) for queue in queues]
    for consumer in consumers:
        consumer.consume()
    began = monotonic()
    lose(relay, connection)
    assert monotonic() - began < 15.0  # one after the other would take 20 s
    for queue in queues:
        settled(other, queue.name, 2)


@pytest.mark.full
def test_entities_that_delete_themselves_one_after_the_other(
    relay: Relay, connection: Connection, other: Connection, unique: str, errors: Errors
) -> None:
    """With the consumer goes its queue, with that its exchange: all come back, with the binding."""
    got = Receiver()
    names = [f"{unique}-{each}" for each in range(5)]
    consumers = [
        Consumer(
            connection,
            Queue(name, Exchange(name, "fanout", auto_delete=True), auto_delete=True),
            callbacks=[got],
        )
        for name in names
    ]
    for consumer in consumers:
        consumer.consume()

    def gone() -> None:
        for name in names:
            until(lambda name=name: not exists(other, name))  # type: ignore[misc]
            until(lambda name=name: not exists(other, exchange=name))  # type: ignore[misc]

    lose(relay, connection, then=gone)
    for name in names:
        settled(other, name)
        send(other, "", name, exchange=name)
    until(lambda: sorted(got) == names)


# Cancelled by the broker


def test_a_deleted_queue_is_reported_once_and_may_be_consumed_from_again(
    connection: Connection, other: Connection, unique: str
) -> None:
    got = Receiver()
    consumer = Consumer(connection, Queue(unique), callbacks=[got])
    consumer.consume()
    other.default_channel.queue_delete(unique)
    with pytest.raises(ConsumerCancelled, match="consumer-"):
        connection.drain_events(timeout=SOON)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.05)
    assert not exists(other, unique)  # nobody has declared it behind the owner's back
    consumer.revive(connection.channel())
    consumer.consume()
    send(other, unique, "again")
    connection.drain_events(timeout=SOON)
    assert got == ["again"]
    assert consumers_of(other, unique) == 1


def test_a_consumer_cancelled_by_the_broker_comes_back_after_a_loss(
    relay: Relay, connection: Connection, other: Connection, unique: str, errors: Errors
) -> None:
    """It was never told to end, so it is wanted."""
    got = Receiver()
    consumer = Consumer(connection, Queue(unique), callbacks=[got])
    consumer.consume()
    other.default_channel.queue_delete(unique)
    until(lambda: [type(exc) for exc in errors] == [ConsumerCancelled])
    lose(relay, connection)
    settled(other, unique)
    send(other, unique, "again")
    until(lambda: got == ["again"])


@pytest.mark.parametrize("ends", [False, True])
def test_what_came_from_a_queue_that_was_deleted_is_handled(
    connection: Connection, other: Connection, unique: str, ends: bool
) -> None:
    """These are the last copies.  A consumer that stops meanwhile leaves none in its hands."""
    got: list[int] = []
    go_on = Event()

    def handle(body: int, message: Any) -> None:
        got.append(body)
        assert go_on.wait(SOON)

    consumer = consuming(unique, handle, concurrency=1, connection=connection)
    send(other, unique, 1, 2, 3)
    until(lambda: consumer.stats()["received"] == 3)
    other.default_channel.queue_delete(unique)
    until(lambda: not consumer.lifecycle.is_confirmed)
    if ends:
        stopping = gevent.spawn(consumer.stop, SOON)
        until(lambda: consumer.lifecycle.is_cancelled)
        go_on.set()
        assert stopping.get()
        assert consumer.stats()["handled"] + consumer.stats()["requeued"] == 3
        return
    go_on.set()
    until(lambda: got == [1, 2, 3])
    assert consumer.wait_ready(SOON)
    assert consumer.stats()["received"] == 3
    assert consumer.stop(SOON)


def test_a_deleted_queue_that_must_not_be_declared_ends_its_consumer(
    connection: Connection, other: Connection, unique: str
) -> None:
    other.default_channel.queue_declare(unique, durable=True, auto_delete=False)
    consumer = consuming(unique, lambda body, message: None, connection=connection, passive=True)
    other.default_channel.queue_delete(unique)
    with pytest.raises((NotFound, ConsumerCancelled)):
        consumer.get(timeout=SOON)


@pytest.mark.full
def test_a_queue_that_is_deleted_for_ever_makes_nobody_spin(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    """Somebody deletes it whenever it is there."""
    declared = 0
    is_over = Event()
    consumer = consuming(unique, lambda body, message: None, connection=connection)

    def delete() -> None:
        nonlocal declared
        while not is_over.is_set():
            if exists(other, unique):
                other.default_channel.queue_delete(unique)
                declared += 1
            gevent.sleep(0.005)

    deleting = gevent.spawn(delete)
    gevent.sleep(1.0)
    is_over.set()
    deleting.get(timeout=SOON)
    assert 1 <= declared < 30
    settled(other, unique)
    assert consumer.stop(timeout=SOON)


# More than once at the same time


@pytest.mark.full
def test_lost_again_while_it_is_restored(
    relay: Relay, connection: Connection, other: Connection, unique: str, errors: Errors, long: bool
) -> None:
    """The link ends after each number of bytes that the broker is told in restoring."""
    got = Receiver()
    consumers = [
        Consumer(
            connection,
            [Queue(f"{unique}-{each}", Exchange(unique, auto_delete=True), "k", expires=60)],
            callbacks=[got],
            prefetch_count=5,
        )
        for each in range(5)
    ]
    for consumer in consumers:
        consumer.consume()
    with Recoveries(connection) as recoveries:
        for budget in range(100, 4000, 20 if long else 400):
            relay.budget = budget
            relay.cut()
            until(lambda: (relay.budget or 0) <= 0 or recoveries.count > 0, SOON)
            if relay.budget > 0:
                break
        relay.budget = None
        until(lambda: recoveries.count > 0 and connection.connected, SOON)
    for each in range(5):
        settled(other, f"{unique}-{each}")
    send(other, "k", "x", exchange=unique)
    until(lambda: got == ["x"] * 5)


def test_callbacks_run_while_others_are_restored(
    relay: Relay, connection: Connection, other: Connection, unique: str
) -> None:
    """Who comes back first works before the last one is there."""
    got = Event()
    first = Consumer(connection, Queue(unique), callbacks=[lambda body, message: got.set()])
    first.consume()
    rest = [Consumer(connection, Queue(f"{unique}-{each}", auto_delete=True)) for each in range(50)]
    for consumer in rest:
        consumer.consume()
    drain: Callable[[], Any] = connection.drain_events
    draining = gevent.spawn(drain)
    with pytest.raises(connection.connection_errors):
        relay.cut()
        draining.get(timeout=SOON)
    send(other, unique, "x")
    connection.drain_events(timeout=SOON)
    assert got.is_set()
    for each in range(50):
        settled(other, f"{unique}-{each}")
