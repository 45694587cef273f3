"""One connection, many greenlets: nothing nests, nothing starves, nothing is lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import OperationalError, RecoverableConnectionError
from greenconn.publishing import publish
from tests.fix_relay import Relay

DEADLINE = 50.0


@pytest.fixture(params=["amqp", "memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """The address of a broker of each kind."""
    if request.param == "memory":
        return "memory://"
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """An open connection, confirms on."""
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        yield connection


@pytest.fixture
def queue(connection: Connection, unique: str) -> Iterator[Queue]:
    """A declared queue of the test's own."""
    queue = Queue(unique, expires=300)(connection.default_channel)
    queue.declare()
    yield queue
    with Connection(connection.as_uri(include_password=True)) as other:
        other.default_channel.queue_delete(unique)


@pytest.mark.parametrize("prefetch", [1, 2, 10, 0])
def test_a_callback_may_publish_declare_and_get_on_its_own_channel(
    connection: Connection, queue: Queue, unique: str, prefetch: int
) -> None:
    channel = connection.default_channel
    producer = connection.Producer(channel)
    for number in range(20):
        producer.publish({"number": number}, routing_key=queue.name)
    depth = deepest = 0
    handled: list[int] = []
    other = f"{unique}-other"

    def callback(body: Any, message: Any) -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        channel.queue_declare(other, durable=True, auto_delete=False)
        producer.publish(body, routing_key=other)
        got = channel.basic_get(other)
        assert got.decode() == body
        got.ack()
        message.ack()
        handled.append(body["number"])
        depth -= 1

    options: dict[str, Any] = {"prefetch_count": prefetch} if prefetch else {}
    with connection.Consumer([queue], callbacks=[callback], channel=channel, **options):
        while len(handled) < 20:
            connection.drain_events(timeout=DEADLINE)
    channel.queue_delete(other)
    assert handled == list(range(20))
    assert deepest == 1


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_no_ack_consumer_may_declare_and_publish_for_each_message(
    connection: Connection, queue: Queue, unique: str, long: bool
) -> None:
    count = 100_000 if long else 3_000
    fill = connection.clone(transport_options={})
    with fill:
        producer = fill.Producer()
        for number in range(count):
            producer.publish({"number": number, "padding": "x" * 230}, routing_key=queue.name)
    other = Queue(f"{unique}-other", max_length=1)(connection.default_channel)
    answers = connection.Producer()
    handled = 0

    def callback(body: Any, message: Any) -> None:
        nonlocal handled
        other.declare()
        answers.publish(body, routing_key=other.name)
        handled += 1

    with connection.Consumer([queue], callbacks=[callback], no_ack=True):
        while handled < count:
            connection.drain_events(timeout=DEADLINE)
    other.delete()


@pytest.mark.timeout(600)
def test_a_loop_that_only_publishes_lets_others_run(amqp_url: str, unique: str, long: bool) -> None:
    count = 1_000_000 if long else 50_000
    turns = delivered = 0
    is_over = Event()
    # The broker answers when it has taken all that was published before.
    patient = {"reply_timeout": 300.0}
    with (
        Connection(amqp_url, heartbeat=1, transport_options=patient) as connection,
        Connection(amqp_url) as other,
    ):
        queue = Queue(unique, max_length=1000)(connection.default_channel)
        queue.declare()

        def publish_all() -> None:
            producer = connection.Producer()
            for number in range(count):
                producer.publish(number, routing_key=unique)
            is_over.set()

        def count_turns() -> None:
            nonlocal turns
            while not is_over.is_set():
                gevent.sleep(0.001)
                turns += 1

        def consume() -> None:
            nonlocal delivered

            def callback(body: Any, message: Any) -> None:
                nonlocal delivered
                delivered += 1
                message.ack()

            with other.Consumer([Queue(unique, no_declare=True)], callbacks=[callback]):
                while not is_over.is_set():
                    try:
                        other.drain_events(timeout=0.1)
                    except TimeoutError:
                        continue

        others = [gevent.spawn(count_turns), gevent.spawn(consume)]
        publisher = gevent.spawn(publish_all)
        publisher.get(timeout=500)
        gevent.joinall(others, timeout=DEADLINE, raise_error=True)
        queue.delete()
    assert turns > 5
    assert delivered > 5


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_settlements_and_kills_over_shared_channels_agree_with_the_broker(
    url: str, unique: str, seed: int, long: bool
) -> None:
    """Every message is either acknowledged, or rejected, or still there: none is lost or invented."""
    rng = random.Random(seed)
    count = 6_000 if long else 600
    left = Counter[int]()
    gone = Counter[int]()
    with Connection(url) as connection:
        queue = Queue(unique, expires=300)(connection.default_channel)
        queue.declare()
        producer = connection.Producer()
        for number in range(count):
            producer.publish(number, routing_key=unique)
        channels = [connection.channel() for _ in range(2)]
        for channel in channels:
            channel.basic_qos(0, 50, False)

        def drain() -> None:
            while True:
                connection.drain_events()

        def callback(message: Any) -> None:
            number = message.decode()
            choice = rng.random()
            if choice < 0.6:
                message.ack()
                gone[number] += 1
            elif choice < 0.75:
                message.reject()
                gone[number] += 1
            elif choice < 0.9:
                message.requeue()
            else:
                gevent.sleep(0)  # a switch amid the work: a place to be killed at
                message.ack()
                gone[number] += 1

        tags = [
            (channel, channel.basic_consume(unique, callback=callback)) for channel in channels * 2
        ]
        for _ in range(30):
            drainers = [gevent.spawn(drain) for _ in range(5)]
            gevent.joinall(drainers, timeout=rng.random() * 0.02)
            gevent.killall(drainers)
        for channel, tag in tags:
            channel.basic_cancel(tag)
        for channel in channels:
            channel.close()  # what nobody answered goes back, perhaps a moment later
        end = monotonic() + DEADLINE
        while gone.total() + left.total() < count and monotonic() < end:
            for message in iter(lambda: connection.default_channel.basic_get(unique), None):
                left[message.decode()] += 1
                message.ack()
            gevent.sleep(0.01)
        assert connection.default_channel.basic_get(unique) is None
        queue.delete()
    assert all(times == 1 for times in gone.values())
    assert all(times == 1 for times in left.values())
    assert sorted([*gone, *left]) == list(range(count))


def test_all_may_be_done_on_a_connection_that_another_greenlet_drains(
    connection: Connection, queue: Queue, unique: str, long: bool
) -> None:
    """Opening channels, publishing, and adding consumers is for everybody."""
    each = 2_000 if long else 100
    got = Counter[int]()
    complete = Event()
    added = Queue(f"{unique}-added", expires=300)

    def callback(body: Any, message: Any) -> None:
        message.ack()
        got[body] += 1
        if len(got) == 3 * each:
            complete.set()

    def drain() -> None:
        while True:
            connection.drain_events()

    def send(first: int, name: str) -> None:
        with connection.channel() as channel:
            producer = connection.Producer(channel)
            for number in range(first, first + each):
                producer.publish(number, routing_key=name)

    with connection.Consumer([queue], callbacks=[callback], prefetch_count=10) as consumer:
        drainer = gevent.spawn(drain)
        senders = [gevent.spawn(send, first * each, queue.name) for first in range(2)]
        consumer.add_queue(added)
        consumer.consume()
        senders.append(gevent.spawn(send, 2 * each, added.name))
        gevent.joinall(senders, timeout=DEADLINE, raise_error=True)
        assert complete.wait(DEADLINE)
        consumer.cancel_by_queue(added.name)
        drainer.kill()
    added(connection.default_channel).delete()
    assert got == Counter(range(3 * each))


@pytest.mark.full
def test_large_bodies_over_a_slow_line_stay_whole(
    relay: Relay, amqp_url: str, unique: str, long: bool
) -> None:
    """Two channels and a shared one, a socket that is full all the time, and somebody is killed."""
    each = 60 if long else 6
    sizes = (100_000, 1_000_000)
    relay.rate = 50e6
    with Connection(relay.url) as connection, Connection(amqp_url) as other:
        queue = Queue(unique, expires=300)(other.default_channel)
        queue.declare()
        channels = [connection.channel() for _ in range(2)]

        def send(sender: int) -> None:
            producer = connection.Producer(channels[sender % 2])
            for number in range(each):
                body = bytes([sender + 1]) * sizes[number % 2]
                producer.publish(body, routing_key=unique, headers={"sender": sender})

        senders = [gevent.spawn(send, sender) for sender in range(4)]
        killed = senders.pop()
        while connection.connection.writer.pending < 1 << 16 and not killed.ready():
            gevent.sleep(0.001)
        killed.kill()
        gevent.joinall(senders, timeout=DEADLINE, raise_error=True)
        relay.rate = None
        got = Counter[int]()
        with Connection(amqp_url) as reader, gevent.Timeout(DEADLINE):
            while min(got[sender] for sender in range(3)) < each:
                message = reader.default_channel.basic_get(unique, no_ack=True)
                if message is None:
                    gevent.sleep(0.01)
                    continue
                sender = message.headers["sender"]
                assert len(message.body) in sizes
                assert set(message.body) == {sender + 1}
                got[sender] += 1
        queue.delete()
    assert got[3] <= each


def test_many_publish_well_while_two_are_refused(amqp_url: str, unique: str) -> None:
    refused: dict[int, Exception] = {}
    shared = Connection(amqp_url)

    def one(number: int) -> None:
        try:
            if number == 50:
                publish(Exchange(f"{unique}-gone", no_declare=True), number, connection=shared)
            elif number == 51:
                publish(unique, number, connection=shared, user_id="foreign", declare=True)
            else:
                publish(unique, number, connection=shared, declare=True)
        except OperationalError as exc:
            refused[number] = exc

    with shared:
        publish(unique, "first", connection=shared, declare=True)
        gevent.joinall([gevent.spawn(one, number) for number in range(102)], raise_error=True)
        channel = shared.default_channel
        found = set()
        while (message := channel.basic_get(unique, no_ack=True)) is not None:
            found.add(message.decode())
        channel.queue_delete(unique)
    assert sorted(refused) == [50, 51]
    assert found == {"first", *range(50), *range(52, 102)}


def test_a_connection_that_is_closed_notifies_those_who_drain(url: str) -> None:
    connection = Connection(url)
    connection.connect()
    drainers = [gevent.spawn(connection.drain_events) for _ in range(3)]
    gevent.sleep(0)
    connection.close()
    for drainer in drainers:
        with pytest.raises(RecoverableConnectionError):
            drainer.get(timeout=DEADLINE)
