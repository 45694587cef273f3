"""What was only prefetched goes back without being counted, before its channel goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from struct import pack
from typing import Any

import gevent
import pytest
from amqp import spec
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import ConsumerCancelled
from greenconn.green.deadline import Deadline
from greenconn.transport.amqp.acks import REQUEUES_AT_ONCE
from greenconn.transport.amqp.link import AmqpLink
from greenconn.transport.amqp.topology import KnownQueues
from greenconn.worker import spawn_consumer
from tests.fix_amqp import AmqpPeer, BrokerEnd, Links, Method
from tests.fix_wires import until
from tests.integration.contract import Side, beanstalk_side, sqs_side

CAME = 20.0
#: Fixtures of the addresses of the stores that count deliveries here.
on_each_store = pytest.mark.parametrize(
    "store",
    [
        "redis_url",
        "sqlite_url",
        pytest.param("mongodb_url", marks=pytest.mark.full),
        pytest.param("couchdb_url", marks=pytest.mark.full),
    ],
)
#: Uses a queue for a while, and leaves.
Use = Callable[[Connection, Queue, set[int]], None]
#: The flags of a ``basic.nack``: one delivery, or all up to one.
REQUEUE, REQUEUE_ALL = 2, 3
LIMIT = 3


# On the wire


@pytest.fixture
def end(amqp_peer: AmqpPeer, amqp_links: Links) -> BrokerEnd:
    """A server that says that a consumer has ended when it is asked to end it."""
    amqp_peer.prepare = lambda end: end.answers.update(
        {
            spec.Basic.Consume: (spec.Basic.ConsumeOk, "s", "tag"),
            spec.Basic.Cancel: (spec.Basic.CancelOk, "s", "tag"),
        }
    )
    amqp_links(amqp_peer.url)
    return amqp_peer.end


@pytest.fixture
def link(amqp_links: Links, end: BrokerEnd) -> AmqpLink:
    return amqp_links.links[-1]


def sent(end: BrokerEnd, last: Method) -> list[tuple[Method, bytes]]:
    """What the client sent up to *last*, but for the opening."""
    methods: list[tuple[Method, bytes]] = []
    with gevent.Timeout(CAME):
        while not methods or methods[-1][0] != last:
            _, method, arguments, _ = end.got.get()
            if method[0] == 60 or method == last:
                methods.append((method, arguments))
    return [each for each in methods if each[0] != spec.Basic.Consume]


def nack(tag: int, flags: int = REQUEUE) -> tuple[Method, bytes]:
    return spec.Basic.Nack, pack(">QB", tag, flags)


def filled(link: AmqpLink, end: BrokerEnd, count: int) -> Any:
    """A channel with so many deliveries that nobody has drained."""
    channel = link.channel()
    channel.basic_consume("q", "tag", callback=lambda message: None)
    for tag in range(1, count + 1):
        end.deliver(1, "tag", tag)
    until(lambda: len(link.events) == count)
    return channel


@pytest.mark.parametrize("closes", ["channel", "connection"])
def test_consumers_end_then_all_goes_back_then_it_is_closed(
    link: AmqpLink, end: BrokerEnd, closes: str
) -> None:
    channel = filled(link, end, 40)
    if closes == "channel":
        channel.close()
        last = spec.Channel.Close
    else:
        link.close()
        last = spec.Connection.Close
    cancel, *answers, (method, _) = sent(end, last)
    assert cancel[0] == spec.Basic.Cancel
    assert answers == [nack(40, REQUEUE_ALL)]
    assert method == last
    assert not len(link.events)


def test_what_was_begun_is_not_covered(link: AmqpLink, end: BrokerEnd) -> None:
    filled(link, end, 5)
    link.drain(Deadline(CAME))  # the first one: its callback has it
    link.close()
    _, *answers, _ = sent(end, spec.Connection.Close)
    assert answers == [nack(tag) for tag in (2, 3, 4, 5)]


def test_many_behind_one_that_was_begun(link: AmqpLink, end: BrokerEnd) -> None:
    """A quorum queue takes few answers at once, and a channel that ends loses the others."""
    count = 2 * REQUEUES_AT_ONCE
    filled(link, end, count)
    link.drain(Deadline(CAME))
    link.close()
    _, *answers, _ = sent(end, spec.Connection.Close)
    assert answers == [(spec.Basic.Reject, pack(">QB", 1, True)), nack(count, REQUEUE_ALL)]


def test_many_go_back_in_groups_while_the_channel_lives(link: AmqpLink, end: BrokerEnd) -> None:
    count = 2 * REQUEUES_AT_ONCE + 1
    channel = filled(link, end, count)
    messages = [argument for _, argument in link.events.clear()]
    for message in messages[1:]:
        message.put_back()
    channel.acks.flush()
    assert len(channel.acks.ledger.requeued) == REQUEUES_AT_ONCE
    until(lambda: not channel.acks.ledger.requeued)
    messages[0].ack()
    answers = sent(end, spec.Basic.Ack)
    assert answers[:-1] == [nack(tag) for tag in range(2, count + 1)]
    assert answers[-1] == (spec.Basic.Ack, pack(">QB", 1, False))


def test_an_ack_covers_nothing_that_is_about_to_go_back(link: AmqpLink, end: BrokerEnd) -> None:
    filled(link, end, 4)
    first, second, third, fourth = (argument for _, argument in link.events.clear())
    second.put_back()
    second.put_back()  # again: does nothing
    for message in (first, third, fourth):
        message.ack()
    link.channel()  # whatever is asked, the answers come first
    assert sent(end, spec.Basic.Nack) == [
        (spec.Basic.Ack, pack(">QB", 1, False)),
        (spec.Basic.Ack, pack(">QB", 3, False)),
        (spec.Basic.Ack, pack(">QB", 4, False)),
        nack(2, REQUEUE_ALL - 1),
    ]


def test_a_consumer_that_the_broker_has_cancelled_is_cancelled_from_here_too(
    link: AmqpLink, end: BrokerEnd
) -> None:
    channel = link.channel()
    gone: list[str] = []
    channel.basic_consume("q", "tag", callback=print, on_cancel=gone.append)
    end.method(1, spec.Basic.Cancel, "sb", "tag", True)
    link.drain(Deadline(CAME))
    assert gone == ["tag"]
    assert end.expect(spec.Basic.Cancel)[2] == b"\x03tag\0"
    channel.basic_consume("q", "tag", callback=print)  # its tag is free


# The warning


def message(count: object) -> Any:
    class Delivered:
        headers = {"x-delivery-count": count}

    return Delivered


@pytest.mark.parametrize(
    ("version", "arguments", "first"),
    [
        ((4, 3), None, 15),
        ((4, 0), {"x-queue-type": "quorum"}, 15),
        ((3, 10), {"x-queue-type": "quorum"}, None),
        ((3, 10), {"x-queue-type": "quorum", "x-delivery-limit": 4}, 3),
        ((4, 3), {"x-queue-type": "quorum", "x-delivery-limit": -1}, None),
        ((4, 3), {"x-queue-type": "quorum", "x-dead-letter-exchange": ""}, None),
        ((4, 3), {}, None),
        (None, None, None),
    ],
    ids=str,
)
def test_who_comes_near_the_limit_is_warned_once(
    version: tuple[int, int] | None,
    arguments: dict[str, Any] | None,
    first: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = KnownQueues("here", version)
    if arguments is not None:
        limits.declared("q", arguments)
    for count in (None, "many", *range(1, 25)):
        limits.check_delivery_count("q", message(count))
    gevent.sleep(0)
    logged = [each.getMessage() for each in caplog.records if "delivered" in each.getMessage()]
    assert len(logged) == (first is not None)
    if first is not None:
        assert f"'q' was delivered {first} times" in logged[0]
        assert "x-dead-letter-exchange" in logged[0]


# On a broker that tells the two apart


@pytest.fixture
def queue(newer_amqp_url: str, unique: str) -> Iterator[Queue]:
    """Sixty messages in a quorum queue that drops what was delivered more than three times."""
    queue = Queue(unique, queue_arguments={"x-queue-type": "quorum", "x-delivery-limit": LIMIT})
    with Connection(newer_amqp_url) as connection:
        queue(connection.default_channel).declare()
        for number in range(60):
            connection.Producer().publish(number, routing_key=unique)
    yield queue
    with Connection(newer_amqp_url) as connection:
        queue(connection.default_channel).delete()


def stopped(connection: Connection, queue: Queue, seen: set[int]) -> None:
    begun = Event()

    def handle(body: int, message: Any) -> None:
        seen.add(body)
        begun.set()
        gevent.sleep(0.01)

    consumer = spawn_consumer(queue, handle, prefetch_count=50, connection=connection)
    assert begun.wait(CAME)
    assert consumer.stop(CAME)


def closed(connection: Connection, queue: Queue, seen: set[int]) -> None:
    begun = Event()

    def handle(body: int, message: Any) -> None:
        begun.set()
        message.ack()
        seen.add(body)
        gevent.sleep(0.02)

    spawn_consumer(queue, handle, prefetch_count=50, concurrency=1, connection=connection)
    assert begun.wait(CAME)


def drained(connection: Connection, queue: Queue, seen: set[int]) -> None:
    def handle(body: int, message: Any) -> None:
        seen.add(body)
        message.ack()

    with connection.Consumer([queue], callbacks=[handle], prefetch_count=50):
        connection.drain_events(timeout=CAME)


def channel_closed(connection: Connection, queue: Queue, seen: set[int]) -> None:
    channel = connection.channel()
    consumer = connection.Consumer([queue], callbacks=[], prefetch_count=50, channel=channel)
    consumer.consume()
    until(lambda: len(connection.connection.events))
    channel.close()


def cancelled(connection: Connection, queue: Queue, seen: set[int]) -> None:
    """A consumer that leaves its channel open."""
    consumer = connection.Consumer([queue], callbacks=[], prefetch_count=50)
    consumer.consume()
    until(lambda: len(connection.connection.events))
    consumer.cancel()


def come_and_go(use: Use, url: str, queue: Queue, times: int) -> None:
    """Consume more often than the limit allows; all sixty messages must have been seen at the end."""
    seen: set[int] = set()
    for _ in range(times):
        with Connection(url) as connection:
            use(connection, queue, seen)
    with Connection(url) as connection:
        queue = queue(connection.default_channel)
        deadline = Deadline(CAME)
        while len(seen) < 60:
            message = queue.get()
            if message is not None:
                seen.add(message.payload)
                message.ack()
                deadline = Deadline(CAME)  # a stand-in takes its time for each
            assert not deadline.has_ended, f"{60 - len(seen)} messages are gone"


@pytest.mark.parametrize("use", [stopped, closed, drained, channel_closed, cancelled])
def test_nothing_is_lost_by_coming_and_going(use: Use, newer_amqp_url: str, queue: Queue) -> None:
    come_and_go(use, newer_amqp_url, queue, 2 * LIMIT + 2)


@pytest.mark.parametrize("use", [stopped, closed, drained])
@on_each_store
def test_nothing_is_lost_in_a_store(
    use: Use, store: str, unique: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(store)
    queue = Queue(unique, queue_arguments={"x-delivery-limit": LIMIT})
    with Connection(url) as connection:
        queue(connection.default_channel).declare()
        for number in range(60):
            connection.Producer().publish(number, routing_key=unique)
    come_and_go(use, url, queue, LIMIT + 1)
    with Connection(url) as connection:
        queue(connection.default_channel).delete()


@on_each_store
def test_a_lost_connection_counts_what_was_begun(
    store: str, unique: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(store)
    queue = Queue(unique, queue_arguments={"x-delivery-limit": LIMIT})
    go_on, seen = Event(), []

    def handle(body: int, message: Any) -> None:
        assert go_on.wait(CAME)
        seen.append(body)

    with Connection(url) as keeper, Connection(url) as connection:
        channel = keeper.default_channel
        queue(channel).declare()
        for number in range(20):
            keeper.Producer().publish(number, routing_key=unique)
        consumer = spawn_consumer(
            queue, handle, concurrency=1, prefetch_count=50, connection=connection
        )
        for _ in range(LIMIT + 1):
            until(lambda: channel.queue_declare(unique, passive=True).message_count == 0)
            generation = connection.session.generation
            connection.connection.end(ConnectionResetError("cut by the test"))
            until(partial(_is_later, connection, generation))
            assert consumer.wait_ready(CAME)
        go_on.set()
        until(lambda: set(seen) == set(range(20)))
        assert consumer.stop(CAME)
        queue(channel).delete()


def _is_later(connection: Connection, generation: int) -> bool:
    return connection.session.generation > generation


@pytest.mark.parametrize(
    ("url", "side_of"), [("beanstalk_url", beanstalk_side), ("quick_sqs_url", sqs_side)]
)
def test_servers_that_count_themselves_count_all(
    url: str, side_of: Callable[[str, str], Side], unique: str, request: pytest.FixtureRequest
) -> None:
    side = side_of(request.getfixturevalue(url), unique)
    keeper = side.channel()
    dead = side.queue(keeper)
    arguments = {"x-delivery-limit": 2, "x-dead-letter-exchange": ""}
    queue = side.queue(keeper, arguments={**arguments, "x-dead-letter-routing-key": dead})
    side.send(keeper, "x", "", queue)
    for _ in range(2):
        channel = side.channel()
        channel.basic_consume(queue, "tag", callback=print)
        until(partial(len, channel.connection.events))
        channel.connection.close()  # an open one might take it once more
    assert keeper.basic_get(queue) is None
    letter = side.get(keeper, dead)
    assert letter.body == "x"
    assert letter.headers["x-death"][0]["reason"] == "delivery_limit"
    side.close()


class Slow:
    """A consumer whose first handler is slower than its queue waits."""

    def __init__(self, url: str, name: str) -> None:
        self.connection = Connection(url)
        self.queue = Queue(
            name, queue_arguments={"x-queue-type": "quorum", "x-consumer-timeout": 1000}
        )
        self.queue(self.connection.default_channel).declare()
        self.seen: list[int] = []
        self.go_on = Event()

    def publish(self, count: int) -> None:
        for number in range(count):
            self.connection.Producer().publish(number, routing_key=self.queue.name)

    def handle(self, body: int, message: Any) -> None:
        self.seen.append(body)
        if len(self.seen) == 1:
            assert self.go_on.wait(CAME)

    def close(self) -> None:
        self.queue(self.connection.default_channel).delete()
        self.connection.close()


@pytest.fixture
def slow(newer_amqp_url: str, unique: str) -> Iterator[Slow]:
    slow = Slow(newer_amqp_url, unique)
    yield slow
    slow.close()


def test_a_consumer_timeout_costs_nobody_else_anything(
    slow: Slow, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    slow.publish(3)
    consumer = spawn_consumer(slow.queue, slow.handle, concurrency=1, connection=slow.connection)
    others: list[Any] = []
    other = spawn_consumer(
        f"{unique}-other", lambda body, message: others.append(body), connection=slow.connection
    )
    until(lambda: "longer than the broker's consumer timeout" in caplog.text)
    (record,) = [each for each in caplog.records if "the broker's consumer timeout" in each.msg]
    assert unique in record.getMessage()
    assert "in its handler Slow.handle" in record.getMessage()
    assert consumer.wait_ready(CAME)
    slow.go_on.set()
    until(lambda: sorted(slow.seen) == [0, 0, 1, 2])  # each once but for the one that was begun
    slow.connection.Producer().publish("here", routing_key=f"{unique}-other")
    until(lambda: others)
    assert slow.connection.session.generation == 1
    assert consumer.stop(CAME)
    assert other.stop(CAME)
    channel = slow.connection.default_channel
    assert channel.queue_declare(unique, passive=True)[1:] == (0, 0)  # nothing there, nobody left
    channel.queue_delete(f"{unique}-other")


def test_a_kombu_consumer_that_was_too_slow_can_consume_again(slow: Slow) -> None:
    slow.publish(3)
    seen: list[int] = []

    def handle(body: int, message: Any) -> None:
        seen.append(body)
        message.ack()

    connection = slow.connection
    with connection.Consumer([slow.queue], callbacks=[handle]) as consumer:
        until(lambda: len(connection.connection.events) == 3)
        link = connection.connection
        until(lambda: len(link.events) == 1)  # nothing but that it was cancelled
        with pytest.raises(ConsumerCancelled, match="cancelled"):
            connection.drain_events(timeout=CAME)
        assert seen == []
        consumer.consume()
        while len(seen) < 3:
            connection.drain_events(timeout=CAME)
    assert seen == [0, 1, 2]
    assert connection.session.generation == 1


def test_who_comes_near_the_limit_of_a_real_queue_is_warned(
    newer_amqp_url: str, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    seen: dict[int, int] = {}
    enough = Event()

    def handle(body: int, message: Any) -> None:
        seen[body] = message.delivery_count
        if message.delivery_count < LIMIT:
            message.requeue()
        else:
            enough.set()

    with Connection(newer_amqp_url) as connection, caplog.at_level(logging.WARNING):
        consumer = spawn_consumer(queue.name, handle, connection=connection)
        named = spawn_consumer(queue, handle, connection=connection)
        assert enough.wait(CAME)
        assert consumer.stop(CAME)
        assert named.stop(CAME)
    assert f"'{queue.name}' was delivered {LIMIT} times before" in caplog.text
