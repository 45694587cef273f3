"""What queues of RabbitMQ 4.3 can: retries that the broker delays, priorities, filters of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gevent.queue import Empty
from gevent.queue import Queue as GreenQueue

from greenconn import Connection, Queue, publish, spawn_consumer
from greenconn.worker import ConsumerGreenlet

CAME = 30.0


@pytest.fixture
def connection(newer_amqp_url: str) -> Iterator[Connection]:
    with Connection(newer_amqp_url) as connection:
        yield connection


@pytest.fixture
def make_queue(connection: Connection, unique: str) -> Iterator[Any]:
    """Declares the queue *unique* with arguments; deleted after the test."""

    def make_queue(**arguments: Any) -> Queue:
        named = {f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}
        queue = Queue(unique, queue_arguments=named)
        queue(connection.default_channel).declare()
        return queue

    yield make_queue
    connection.default_channel.queue_delete(unique)


def test_a_message_whose_retry_the_broker_delays_holds_up_no_other(
    connection: Connection, make_queue: Any
) -> None:
    queue = make_queue(
        queue_type="quorum",
        delayed_retry_type="all",
        delayed_retry_min=200,
        delayed_retry_max=1000,
        delivery_limit=3,
    )
    handled: GreenQueue[tuple[str, int]] = GreenQueue()

    def handle(body: str, message: Any) -> None:
        handled.put((body, message.delivery_count))
        if body == "bad":
            raise OSError("not now")

    consumer = spawn_consumer(
        queue, handle, on_error="requeue", concurrency=1, prefetch_count=1, connection=connection
    )
    assert consumer.wait_ready(CAME)
    publish(queue, "bad", connection=connection)
    publish(queue, "good", connection=connection)
    # Without the delay the bad one would be first again.
    assert [handled.get(timeout=CAME) for _ in range(5)] == [
        *(("bad", 0), ("good", 0), ("bad", 1), ("bad", 2), ("bad", 3)),
    ]
    consumer.stop(CAME)


def test_a_quorum_queue_has_all_priorities(connection: Connection, make_queue: Any) -> None:
    queue = make_queue(queue_type="quorum")
    for priority in (3, 9, 0, 6):
        publish(queue, priority, priority=priority, connection=connection)
    bodies = []
    while (message := connection.default_channel.basic_get(queue.name, no_ack=True)) is not None:
        bodies.append(int(message.body))
    assert bodies == [9, 6, 3, 0]


def test_a_consumer_of_a_stream_that_filters(connection: Connection, make_queue: Any) -> None:
    """The broker leaves out blocks without a match, so each message is looked at again."""
    queue = make_queue(queue_type="stream")
    with connection.channel() as channel:
        for region in ("amer", "emea") * 3:
            headers = {"x-stream-filter-value": region}
            body = channel.prepare_message(region, headers=headers)
            channel.basic_publish_confirm(body, "", queue.name)
    arguments = {"x-stream-offset": "first", "x-stream-filter": "emea"}
    filtering = Queue(
        queue.name, queue_arguments=queue.queue_arguments, consumer_arguments=arguments
    )
    got: GreenQueue[str] = GreenQueue()

    def handle(body: str, message: Any) -> None:
        if message.headers["x-stream-filter-value"] == "emea":
            got.put(body)

    consumer: ConsumerGreenlet = spawn_consumer(filtering, handle, connection=connection)
    assert [got.get(timeout=CAME) for _ in range(3)] == ["emea"] * 3
    with pytest.raises(Empty):
        got.get(timeout=0.2)
    consumer.stop(CAME)
