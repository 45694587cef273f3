"""Queues of RabbitMQ that do more than the classic ones, and what messages carry of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.queue import Queue as GreenQueue

import greenconn
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import AMQPNotImplementedError, PreconditionFailed, Unroutable
from greenconn.worker import spawn_consumer
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_wires import until
from tests.receiving import consuming

pytestmark = pytest.mark.halved

CAME = 30.0
QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture
def connection(amqp_url: str) -> Iterator[Connection]:
    with Connection(amqp_url) as connection:
        yield connection


class Declare:
    """Declares queues that are deleted after the test."""

    def __init__(self, connection: Connection, prefix: str) -> None:
        self._connection = connection
        self._prefix = prefix
        self.names: list[str] = []

    def __call__(self, suffix: str = "", **options: Any) -> Queue:
        queue = Queue(f"{self._prefix}{suffix}", **options)
        self.names.append(queue.name)
        queue(self._connection.default_channel).declare()
        return queue


@pytest.fixture
def declare(connection: Connection, unique: str) -> Iterator[Declare]:
    made = Declare(connection, unique)
    yield made
    for name in made.names:
        connection.default_channel.queue_delete(name)


def publish(connection: Connection, name: str, body: Any, **options: Any) -> None:
    greenconn.publish(name, body, connection=connection, timeout=CAME, **options, declare=True)


def received(connection: Connection, queue: Any, **options: Any) -> GreenQueue[Any]:
    """Where a consumer puts the messages of *queue*; it ends with its connection."""
    came: GreenQueue[Any] = GreenQueue()
    consuming(queue, lambda body, message: came.put(message), connection=connection, **options)
    return came


# Quorum queues


def test_quorum_queues_count_deliveries(connection: Connection, declare: Declare) -> None:
    queue = declare(queue_arguments=QUORUM)
    publish(connection, queue.name, "body")
    counts: list[int] = []
    done = gevent.event.Event()

    def handle(body: Any, message: Any) -> None:
        counts.append(message.delivery_count)
        if len(counts) < 4:
            message.requeue()
        else:
            done.set()

    consumer = spawn_consumer(queue, handle, connection=connection)
    assert done.wait(CAME)
    assert counts == [0, 1, 2, 3]
    consumer.stop()


def test_classic_queues_report_that_there_was_one(connection: Connection, declare: Declare) -> None:
    queue = declare()
    # What a quorum queue once wrote into the headers says nothing here.
    publish(connection, queue.name, "body", headers={"x-delivery-count": 7})
    channel = connection.default_channel
    counts = []
    for _ in range(3):
        message = channel.basic_get(queue.name)
        counts.append(message.delivery_count)
        message.requeue()
    assert counts[0] == 0
    assert all(counts[1:])


def test_a_delivery_limit_dead_letters(connection: Connection, declare: Declare) -> None:
    dead = declare("-dead")
    queue = declare(
        queue_arguments={
            **QUORUM,
            "x-delivery-limit": 2,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead.name,
        }
    )
    tried: list[int] = []

    def fail(body: Any, message: Any) -> None:
        tried.append(message.delivery_count)
        raise OSError("a poison message")

    consumer = spawn_consumer(queue, fail, connection=connection, on_error="requeue")
    came = received(connection, dead)
    publish(connection, queue.name, "poison")
    message = came.get(timeout=CAME)
    assert tried == [0, 1, 2]
    (death,) = message.headers["x-death"]
    assert (death["reason"], death["queue"], death["count"]) == ("delivery_limit", queue.name, 1)
    assert consumer.stop(CAME)


def has_limits_of_channels(connection: Connection) -> bool:
    """Whether the broker knows a prefetch for a whole channel."""
    version = connection.connection.server_version
    return version is None or version < (4, 3)


def test_a_limit_for_the_channel_becomes_one_for_each_consumer(
    connection: Connection, declare: Declare
) -> None:
    queue = declare(queue_arguments=QUORUM)
    for body in range(5):
        publish(connection, queue.name, body)
    channel = connection.channel()
    got: list[Any] = []
    consumer = connection.Consumer(queue, channel, on_message=got.append)
    consumer.qos(prefetch_count=2, apply_global=True)
    consumer.consume()  # the broker would end the connection
    while len(got) < 2:
        connection.drain_events(timeout=CAME)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.2)
    for message in list(got):
        message.ack()
    while len(got) < 4:
        connection.drain_events(timeout=CAME)
    assert connection.session.generation == 1
    consumer.cancel()
    channel.close()


@pytest.mark.full
def test_a_limit_under_which_others_run_is_not_changed(
    connection: Connection, declare: Declare
) -> None:
    classic, quorum = declare("-classic"), declare("-quorum", queue_arguments=QUORUM)
    if not has_limits_of_channels(connection):
        pytest.skip("RabbitMQ 4.3 knows no prefetch for a whole channel")
    channel = connection.channel()
    channel.basic_qos(0, 5, True)
    channel.basic_consume(classic.name, callback=print)
    with pytest.raises(AMQPNotImplementedError, match="without apply_global"):
        channel.basic_consume(quorum.name, callback=print)
    assert channel.is_open
    assert connection.session.generation == 1
    channel.close()


@pytest.mark.full
def test_what_the_broker_ends_the_connection_for_says_what_to_do(
    connection: Connection, declare: Declare, amqp_url: str
) -> None:
    quorum = declare("-quorum", queue_arguments=QUORUM)
    stream = declare("-stream", queue_arguments={"x-queue-type": "stream"})
    publish(connection, stream.name, "body")
    with Connection(amqp_url) as other:  # which knows of neither queue
        has_limits = has_limits_of_channels(other)
        if has_limits:
            channel = other.channel()
            channel.basic_qos(0, 5, True)
            with pytest.raises(AMQPNotImplementedError, match="prefetch without apply_global"):
                channel.basic_consume(quorum.name, callback=print)
        channel = other.channel()
        with pytest.raises(AMQPNotImplementedError, match="read by consumers with an offset"):
            channel.basic_get(stream.name)
        came = received(other, quorum)
        publish(connection, quorum.name, "body")
        assert came.get(timeout=CAME).payload == "body"
        assert other.session.generation == 2 + has_limits


@pytest.mark.full
def test_a_killed_change_of_the_limit_is_done_again(
    connection: Connection, declare: Declare
) -> None:
    quorum = declare(queue_arguments=QUORUM)
    channel = connection.channel()
    channel.basic_qos(0, 5, True)
    killed = gevent.spawn(channel.basic_consume, quorum.name, callback=print)
    gevent.sleep(0)
    killed.kill()
    channel.basic_consume(quorum.name, callback=print)
    assert channel.consumers.qos == (0, 5, False)
    channel.close()
    assert connection.session.generation == 1


@pytest.mark.full
def test_a_deleted_queue_may_come_back_as_another(connection: Connection, unique: str) -> None:
    channel = connection.default_channel
    channel.queue_declare(unique, durable=True, auto_delete=False, arguments=QUORUM)
    channel.queue_declare(unique, passive=True)  # which says nothing of its kind
    assert channel.connection.queues.kinds == {unique: "quorum"}
    channel.queue_delete(unique)
    assert channel.connection.queues.kinds == {}
    channel.queue_declare(unique, durable=True, auto_delete=False, arguments=QUORUM)
    with connection.channel() as other:
        other.queue_delete(unique)
        other.queue_declare(unique, auto_delete=True)
    assert channel.connection.queues.kinds == {}
    channel.queue_delete(unique)


@pytest.mark.full
def test_a_quorum_consumer_outlives_a_restart(own_rabbitmq: RabbitMQ, unique: str) -> None:
    queue = Queue(unique, queue_arguments=QUORUM)
    with Connection(own_rabbitmq.url) as connection:
        handled: list[int] = []
        consumer = consuming(
            queue, lambda body, message: handled.append(body), connection=connection, concurrency=5
        )
        for body in range(50):
            publish(connection, unique, body)
        own_rabbitmq.stop()
        own_rabbitmq.start()
        # Confirmed: so it is there, however long the queue takes to find its leader.
        for body in range(50, 100):
            publish(connection, unique, body)
        until(lambda: set(handled) == set(range(100)))
        # A quorum queue of an earlier test may still know a consumer of before the restart.
        consumers = own_rabbitmq.ctl("list_consumers", "--no-table-headers", "queue_name")
        assert consumers.split().count(unique) == 1
        assert consumer.stop(CAME)


# All queues


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_one_active_consumer(connection: Connection, declare: Declare, kind: str) -> None:
    queue = declare(queue_arguments={"x-queue-type": kind, "x-single-active-consumer": True})
    came: list[list[int]] = [[], []]

    def handle(which: int) -> Callable[[int, Any], None]:
        return lambda body, message: came[which].append(body)

    active, standby = (
        spawn_consumer(queue, handle(which), connection=connection, prefetch_count=1)
        for which in range(2)
    )
    assert active.wait_ready(CAME)
    assert standby.wait_ready(CAME)
    for body in range(10):
        publish(connection, queue.name, body)
    until(lambda: sum(map(len, came)) == 10)
    assert [] in came  # all went to one
    served = came.index(list(range(10)))
    (active, standby)[served].stop()
    publish(connection, queue.name, 10)
    until(lambda: came[1 - served] == [10])
    (active, standby)[1 - served].stop()


@pytest.mark.full
def test_what_a_quorum_queue_cannot_be(connection: Connection, unique: str) -> None:
    for options in ({"durable": False}, {"auto_delete": True}, {"max_priority": 5}):
        with pytest.raises(PreconditionFailed, match="invalid"):
            Queue(unique, queue_arguments=QUORUM, **options)(connection.channel()).declare()


def test_a_quorum_queue_that_is_deleted_under_its_consumer(
    connection: Connection, amqp_url: str, declare: Declare
) -> None:
    """RabbitMQ 3.10 leaves consumers at the old queue if it is declared again at once."""
    queue = declare(queue_arguments=QUORUM)
    came = received(connection, queue)
    with Connection(amqp_url) as publishing:
        greenconn.publish(queue, 0, connection=publishing, timeout=CAME)
        assert came.get(timeout=CAME).payload == 0
        for number in (1, 2, 3):
            connection.default_channel.queue_delete(queue.name)
            with pytest.raises(Unroutable):
                greenconn.publish(queue, number, connection=publishing, timeout=CAME)
            greenconn.publish(queue, number, connection=publishing, timeout=CAME)
            assert came.get(timeout=CAME).payload == number
