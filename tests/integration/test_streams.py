"""Streams of RabbitMQ: where a consumer begins, what its answers mean, where it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import gevent
import pytest

import greenconn
from greenconn.connection import Connection
from greenconn.entity import Queue, SuperStream
from greenconn.exceptions import AMQPNotImplementedError, NotFound, PreconditionFailed
from greenconn.options import Retry
from greenconn.publishing import publish
from greenconn.service.offsets import FileOffsets, QueueOffsets
from greenconn.streams import OffsetStore
from greenconn.worker import ConsumerGreenlet, spawn_consumer
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_relay import Relay
from tests.fix_wires import until

CAME = 30.0
STREAM = {"x-queue-type": "stream"}


@pytest.fixture
def connection(amqp_url: str) -> Iterator[Connection]:
    with Connection(amqp_url, transport_options={"confirm_publish": True}) as connection:
        yield connection


@pytest.fixture
def stream(connection: Connection, unique: str) -> Iterator[Queue]:
    """A stream of ten messages, whose bodies are their offsets."""
    queue = Queue(unique, queue_arguments=STREAM)
    queue(connection.default_channel).declare()
    fill(connection, unique, range(10))
    yield queue
    connection.default_channel.queue_delete(unique)


def fill(connection: Connection, name: str, bodies: range) -> None:
    producer = connection.Producer()
    for body in bodies:
        producer.publish(body, routing_key=name)


class Reader:
    """A consumer of a stream, and what it has handled: offsets."""

    def __init__(self, queue: Any, connection: Connection, **options: Any) -> None:
        self.handled: list[int] = []
        options.setdefault("handler", self.handle)
        self.consumer: ConsumerGreenlet = spawn_consumer(
            queue, options.pop("handler"), connection=connection, **options
        )
        assert self.consumer.wait_ready(CAME)

    def handle(self, body: int, message: Any) -> None:
        assert message.headers["x-stream-offset"] == body
        assert message.delivery_count == 0
        self.handled.append(body)

    def wait(self, count: int) -> list[int]:
        until(lambda: len(self.handled) >= count)
        return self.handled

    def stop(self) -> None:
        assert self.consumer.stop(CAME)


@pytest.mark.parametrize(
    ("offset", "first"),
    [
        ("first", 0),
        (0, 0),
        (4, 4),
        ("1h", 0),
        ("30s", 0),
        (datetime.now(timezone.utc) - timedelta(hours=1), 0),
        (datetime(2020, 1, 1), 0),
    ],
    ids=str,
)
def test_where_to_begin(connection: Connection, stream: Queue, offset: Any, first: int) -> None:
    reader = Reader(stream, connection, offset=offset)
    assert reader.wait(10 - first) == list(range(first, 10))
    reader.stop()


@pytest.mark.full
@pytest.mark.parametrize("by_name", [True, False], ids=["name", "Queue"])
def test_next_is_what_comes_from_now_on(
    connection: Connection, stream: Queue, by_name: bool
) -> None:
    # A Queue that says it is a stream is read from the next message on.
    target = (stream.name, {"offset": "next"}) if by_name else (stream, {})
    reader = Reader(target[0], connection, **target[1])
    fill(connection, stream.name, range(10, 13))
    assert reader.wait(3) == [10, 11, 12]
    reader.stop()


@pytest.mark.full
def test_last_is_the_last_piece(connection: Connection, stream: Queue) -> None:
    reader = Reader(stream, connection, offset="last")
    until(lambda: reader.handled and reader.handled[-1] == 9)
    reader.stop()


@pytest.mark.parametrize(
    "offset", ["bogus", "1", "1w", "-1h", "", -1, 1.5, True, [1], timedelta(hours=1)]
)
def test_what_is_no_offset_never_reaches_the_broker(
    connection: Connection, stream: Queue, offset: Any
) -> None:
    # RabbitMQ 3.10 crashes at it, and ends the connection.
    with pytest.raises(ValueError, match="offset must be"):
        spawn_consumer(stream, print, connection=connection, offset=offset)
    channel = connection.channel()
    channel.basic_qos(0, 10)
    with pytest.raises(ValueError, match="offset must be"):
        channel.basic_consume(stream.name, arguments={"x-stream-offset": offset})
    assert connection.session.generation == 1


@pytest.mark.full
def test_two_read_the_same(connection: Connection, stream: Queue) -> None:
    readers = [Reader(stream, connection, offset="first") for _ in range(2)]
    for reader in readers:
        assert reader.wait(10) == list(range(10))
        reader.stop()


def test_an_ack_asks_for_more(connection: Connection, stream: Queue) -> None:
    reader = Reader(stream, connection, offset="first", prefetch_count=2)
    assert reader.wait(10) == list(range(10))
    reader.stop()


def test_what_fails_is_gone_on_behind(connection: Connection, stream: Queue) -> None:
    seen: list[int] = []

    def handle(body: int, message: Any) -> None:
        seen.append(body)
        if body % 3 == 0:
            raise OSError("not this one")
        if body == 4:
            message.requeue()
        if body == 5:
            message.reject()

    reader = Reader(stream, connection, offset="first", handler=handle, prefetch_count=1)
    until(lambda: len(seen) == 10)
    assert seen == list(range(10))  # nothing came again, nothing was held up
    until(lambda: reader.consumer.stats()["rejected"] == 4)
    reader.stop()
    kept = greenconn.dead_letters(stream.name, connection=connection)
    assert {letter.message.payload for letter in kept.look()} == {0, 3, 6, 9}
    connection.default_channel.queue_delete(kept.name)
    assert connection.session.generation == 1


@pytest.mark.full
def test_what_fails_may_be_tried_again(connection: Connection, stream: Queue) -> None:
    seen: list[int] = []

    def handle(body: int, message: Any) -> None:
        seen.append(body)
        if body == 3 and seen.count(3) < 3:
            raise OSError("try me again")

    retry = Retry(tries=3, delay=0.01)
    reader = Reader(stream, connection, offset="first", handler=handle, retry=retry)
    until(lambda: sorted(seen) == sorted([*range(10), 3, 3]))
    reader.stop()


@pytest.mark.full
@pytest.mark.parametrize("end", ["stop", "kill", "pause"])
def test_an_end_amid_messages_costs_no_connection(
    connection: Connection, stream: Queue, end: str
) -> None:
    began = gevent.event.Event()

    def handle(body: int, message: Any) -> None:
        seen.append(body)
        began.set()
        gevent.sleep(0.05)

    seen: list[int] = []
    reader = Reader(stream, connection, offset="first", handler=handle, prefetch_count=5)
    assert began.wait(CAME)
    if end == "stop":
        assert reader.consumer.stop(CAME)
    elif end == "kill":
        reader.consumer.kill()
    else:
        reader.consumer.pause()
        until(lambda: reader.consumer.stats()["state"] == "paused")
        reader.consumer.resume()
        until(lambda: len(set(seen)) == 10)
        reader.stop()
    # A reject would have ended it.
    connection.default_channel.queue_declare(stream.name, passive=True)
    assert connection.session.generation == 1


def test_a_stream_demands_acks_and_a_prefetch(connection: Connection, stream: Queue) -> None:
    unbounded: list[dict[str, Any]] = [{"no_ack": True}, {"prefetch_count": 0}]
    offsets: list[dict[str, Any]] = [{}, {"offset": "first"}]
    for options in unbounded:
        for offset in offsets:
            with pytest.raises(ValueError, match="acks and a prefetch_count"):
                spawn_consumer(stream, print, connection=connection, **options, **offset)
    with pytest.raises(ValueError, match="cannot requeue"):
        spawn_consumer(stream, print, connection=connection, on_error="requeue")
    channel = connection.channel()
    with pytest.raises(AMQPNotImplementedError, match="no_ack must be False"):
        channel.basic_consume(stream.name, no_ack=True)
    with pytest.raises(AMQPNotImplementedError, match="can only be consumed"):
        channel.basic_get(stream.name)
    with pytest.raises(PreconditionFailed, match="prefetch"):
        channel.basic_consume(stream.name)
    assert connection.session.generation == 1


@pytest.mark.full
def test_kombus_consumer_reads_streams(connection: Connection, stream: Queue) -> None:
    seen: list[int] = []
    stream.consumer_arguments = {"x-stream-offset": 2}

    def handle(body: int, message: Any) -> None:
        seen.append(body)
        # To a stream all answers are the same.
        (message.ack, message.reject, message.requeue)[body % 3]()

    with connection.Consumer(stream, callbacks=[handle], prefetch_count=3):
        while len(seen) < 8:
            connection.drain_events(timeout=CAME)
    assert seen == list(range(2, 10))
    assert connection.session.generation == 1


def test_a_reader_goes_on_where_it_was(
    relay: Relay, connection: Connection, stream: Queue, unique: str
) -> None:
    empty = Queue(f"{unique}-next", queue_arguments=STREAM)
    kombus: list[int] = []

    def take(body: int, message: Any) -> None:
        kombus.append(body)
        message.ack()

    with Connection(relay.url) as cut, Connection(relay.url) as draining:
        reader = Reader(stream, cut, offset="first")
        late = Reader(empty, cut)
        theirs = Queue(unique, queue_arguments=STREAM, consumer_arguments={"x-stream-offset": 5})
        consumer = draining.Consumer(theirs, callbacks=[take], prefetch_count=5)
        consumer.consume()
        while len(kombus) < 5:
            draining.drain_events(timeout=CAME)
        reader.wait(10)
        relay.server.stop()
        until(lambda: not cut.connected and not draining.connected)
        fill(connection, unique, range(10, 20))
        fill(connection, empty.name, range(5))
        relay.server.start()
        assert reader.wait(20) == list(range(20))  # not from the start again
        assert late.wait(5) == list(range(5))  # nothing missed, though it had read nothing
        lost: Any = draining.connection_errors
        while len(kombus) < 15:
            try:
                draining.drain_events(timeout=CAME)
            except lost:  # once
                pass
        assert kombus == list(range(5, 20))
        reader.stop()
        late.stop()
        consumer.cancel()
    connection.default_channel.queue_delete(empty.name)


@pytest.mark.full
def test_a_reader_outlives_a_restart(own_rabbitmq: RabbitMQ, unique: str) -> None:
    options = {"confirm_publish": True}
    with Connection(own_rabbitmq.url, transport_options=options) as connection:
        queue = Queue(unique, queue_arguments=STREAM)
        queue(connection.default_channel).declare()
        fill(connection, unique, range(20))
        reader = Reader(queue, connection, offset="first")
        reader.wait(20)
        lives = connection.session.generation
        own_rabbitmq.stop()
        own_rabbitmq.start()
        until(lambda: connection.session.generation > lives)
        assert reader.consumer.wait_ready(CAME)
        # Not earlier: RabbitMQ 3.10 confirms and drops what comes before the stream is up again.
        fill(connection, unique, range(20, 30))
        assert reader.wait(30) == list(range(30))
        reader.stop()


@pytest.mark.full
@pytest.mark.parametrize("by_name", [False, True], ids=["Queue", "name"])
def test_a_stream_that_is_made_again_is_read_from_its_beginning(
    connection: Connection, stream: Queue, by_name: bool, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    reader = Reader(
        stream.name if by_name else stream,
        connection,
        offset="first",
        handler=lambda body, message: seen.append(body),
    )
    until(lambda: len(seen) == 10)
    # RabbitMQ 3.10 may end the reader's connection for a stream that is not all there yet (541).
    with connection.clone() as other, other.channel() as channel:
        channel.queue_delete(stream.name)
        if by_name:
            # It is waited for, and no classic queue takes its place.
            until(lambda: reader.consumer.stats()["state"] == "recovering")
            gevent.sleep(0.3)
            stream(channel).declare()
    until(lambda: "is restarted" in caplog.text)
    assert reader.consumer.wait_ready(CAME)
    fill(connection, stream.name, range(100, 105))
    until(lambda: len(seen) == 15)
    assert seen[10:] == list(range(100, 105))
    reader.stop()


@pytest.mark.full
def test_a_stream_that_is_not_there_is_not_made_a_queue(
    connection: Connection, unique: str
) -> None:
    consumer = spawn_consumer(unique, print, connection=connection, offset="first")
    with pytest.raises(NotFound):
        consumer.get(timeout=CAME)
    with pytest.raises(NotFound), connection.channel() as channel:
        channel.queue_declare(unique, passive=True)


def test_what_was_not_handled_comes_again_after_a_loss(
    connection: Connection, stream: Queue
) -> None:
    hold = gevent.event.Event()
    seen: list[int] = []

    def handle(body: int, message: Any) -> None:
        seen.append(body)
        if body == 4 and seen.count(4) == 1:
            hold.wait(CAME)

    reader = Reader(stream, connection, offset="first", handler=handle, concurrency=2)
    until(lambda: len(seen) == 10)
    connection.session.life.link.end(ConnectionResetError("cut"))  # as a network does
    until(lambda: seen.count(4) == 2)
    until(lambda: seen[-1] == 9)
    assert seen[10:] == list(range(4, 10))
    hold.set()
    reader.stop()


MakeStore = Callable[[], OffsetStore]


@pytest.fixture(params=["file", "quorum queue", "classic queue"])
def make_store(
    request: pytest.FixtureRequest, amqp_url: str, stream: Queue, tmp_path: Path
) -> Iterator[MakeStore]:
    """Return the store of one more program for offsets."""
    if request.param == "file":
        yield lambda: FileOffsets(tmp_path)
        return
    with Connection(amqp_url) as connection:
        made = QueueOffsets(connection, queue_arguments={"x-queue-type": request.param.split()[0]})
        yield lambda: made
        connection.default_channel.queue_delete(made.queue(stream.name, "reader").name)


def test_a_reader_goes_on_in_its_next_program(
    connection: Connection, stream: Queue, make_store: MakeStore
) -> None:
    read: list[int] = []
    for count in (10, 5, 0, 7):
        fill(connection, stream.name, range(max(len(read), 10), len(read) + count))
        reader = Reader(stream, connection, offsets=make_store(), name="reader")
        read += reader.wait(count)
        reader.stop()
    assert read == list(range(22))


def test_an_offset_is_stored_while_its_reader_runs(
    connection: Connection, stream: Queue, make_store: MakeStore
) -> None:
    options = {"name": "reader", "store_every": 4, "store_interval": 3600}
    reader = Reader(stream, connection, offsets=make_store(), **options)
    fill(connection, stream.name, range(10, 50))
    reader.wait(50)
    # To load it here could put an older one in place of that which is just stored.
    (subscription,) = reader.consumer.lifecycle._subscriptions
    until(
        lambda: subscription._recorder is not None and (subscription._recorder._stored or 0) >= 20
    )
    reader.stop()
    assert make_store().load(stream.name, "reader") == 50


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_was_not_handled_is_read_by_the_next_program(
    connection: Connection, stream: Queue, make_store: MakeStore, end: str
) -> None:
    began, hold = gevent.event.Event(), gevent.event.Event()
    handled: list[int] = []

    def handle(body: int, message: Any) -> None:
        if body == 3 and not began.is_set():
            began.set()
            hold.wait(CAME)
        handled.append(body)

    options: dict[str, Any] = {"handler": handle, "name": "reader", "prefetch_count": 5}
    reader = Reader(stream, connection, offsets=make_store(), **options)
    assert began.wait(CAME)
    if end == "stop":
        assert not reader.consumer.stop(0.01)
    else:
        reader.consumer.kill()
    assert handled == [0, 1, 2]
    assert make_store().load(stream.name, "reader") == 3
    reader = Reader(stream, connection, offsets=make_store(), **options)
    until(lambda: handled == list(range(10)))
    reader.stop()


def test_an_offset_may_be_loaded_any_number_of_times(
    connection: Connection, stream: Queue, make_store: MakeStore
) -> None:
    # RabbitMQ 4 drops what was delivered 20 times.
    store = make_store()
    assert store.load(stream.name, "reader") is None
    store.store(stream.name, "reader", 7)
    assert [make_store().load(stream.name, "reader") for _ in range(30)] == [7] * 30
    store.store(stream.name, "reader", 8)
    assert store.load(stream.name, "reader") == 8
    assert store.load(stream.name, "another") is None
    if isinstance(store, QueueOffsets):
        connection.default_channel.queue_delete(store.queue(stream.name, "another").name)


def test_a_store_that_is_away_is_waited_for(
    relay: Relay, connection: Connection, stream: Queue
) -> None:
    with Connection(relay.url, transport_options={"reply_timeout": 1}) as away:
        offsets = QueueOffsets(away)
        reader = Reader(stream, connection, offsets=offsets, name="reader", store_interval=0.05)
        reader.wait(10)
        relay.server.stop()
        fill(connection, stream.name, range(10, 15))
        reader.wait(15)
        relay.server.start()
        # Not by loading it, which could put an older one in place of that which is just stored.
        (subscription,) = reader.consumer.lifecycle._subscriptions
        until(lambda: subscription._recorder is not None and subscription._recorder._stored == 15)
        reader.stop()
        # With the timeouts of every day: a server that has just started may be slow.
        assert QueueOffsets(connection).load(stream.name, "reader") == 15
        connection.default_channel.queue_delete(offsets.queue(stream.name, "reader").name)


def test_what_is_no_offset_ends_the_reader(
    connection: Connection, stream: Queue, tmp_path: Path
) -> None:
    offsets = FileOffsets(tmp_path)
    Path(offsets.path(stream.name, "reader")).write_text("seven")
    consumer = spawn_consumer(stream, print, connection=connection, offsets=offsets, name="reader")
    with pytest.raises(ValueError, match="must have an offset"):
        consumer.get(timeout=CAME)


def test_a_replay_from_a_time_on(connection: Connection, unique: str) -> None:
    # The broker begins with the chunk that was written at that time or after it.
    queue = Queue(unique, queue_arguments=STREAM)
    queue(connection.default_channel).declare()
    fill(connection, unique, range(5))
    gevent.sleep(1.1)  # a time of AMQP has no fractions
    since = datetime.now(timezone.utc)
    gevent.sleep(1.1)
    fill(connection, unique, range(5, 10))
    reader = Reader(queue, connection, offset=since)
    assert reader.wait(5) == list(range(5, 10))
    reader.stop()
    connection.default_channel.queue_delete(unique)


@pytest.fixture
def super_stream(connection: Connection, unique: str) -> Iterator[SuperStream]:
    """A super stream of three partitions."""
    made = SuperStream(unique)
    made.declare(connection.default_channel)
    yield made
    made.delete(connection.default_channel)


def test_a_super_stream_keeps_the_order_of_each_key(
    connection: Connection, super_stream: SuperStream
) -> None:
    keys = [f"customer {number}" for number in range(10)]
    for number in range(60):
        key = keys[number % 10]
        publish(super_stream.stream_of(key), [key, number], connection=connection)
    seen: list[tuple[str, list[Any]]] = []

    def handle(body: list[Any], message: Any) -> None:
        seen.append((message.delivery_info["consumer_tag"], body))

    reader = Reader(
        list(super_stream.streams), connection, handler=handle, offset="first", prefetch_count=30
    )
    until(lambda: len(seen) == 60)
    reader.stop()
    assert len({tag for tag, _ in seen}) == 3
    for key in keys:
        came = [(tag, body[1]) for tag, body in seen if body[0] == key]
        assert len({tag for tag, _ in came}) == 1
        assert [number for _, number in came] == sorted(number for _, number in came)


def test_a_super_stream_is_bound_as_rabbitmq_binds_it(
    connection: Connection, super_stream: SuperStream
) -> None:
    # Clients of the stream protocol publish through the exchange, by the number of a partition.
    super_stream.declare(connection.default_channel)  # again: nothing differs
    producer = connection.Producer()
    for number in range(3):
        producer.publish(0, exchange=super_stream.name, routing_key=str(number))
    for stream in super_stream.streams:
        reader = Reader(stream.name, connection, offset="first")
        assert reader.wait(1) == [0]
        reader.stop()
