"""What queues of RabbitMQ 4.3 can: limits, delayed retries, priorities, filters, one active consumer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gevent.event import Event
from gevent.queue import Queue as GreenQueue

from greenconn import Connection, Queue, publish, spawn_consumer
from greenconn.exceptions import PreconditionFailed
from greenconn.worker import ConsumerGreenlet, handling

CAME = 30.0
#: Milliseconds: a message that is held back so long does not come in the time of a test.
NEVER = 600_000


@pytest.fixture
def connection(newer_amqp_url: str) -> Iterator[Connection]:
    with Connection(newer_amqp_url) as connection:
        yield connection


class MakeQueue:
    """Declares queues with arguments; they are deleted after the test."""

    def __init__(self, connection: Connection, prefix: str) -> None:
        self._connection = connection
        self._prefix = prefix
        self.names: list[str] = []

    def __call__(self, suffix: str = "", **arguments: Any) -> Queue:
        named = {f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}
        queue = Queue(f"{self._prefix}{suffix}", queue_arguments=named)
        self.names.append(queue.name)
        queue(self._connection.default_channel).declare()
        return queue


@pytest.fixture
def make_queue(connection: Connection, unique: str) -> Iterator[MakeQueue]:
    make_queue = MakeQueue(connection, unique)
    yield make_queue
    for name in make_queue.names:
        connection.default_channel.queue_delete(name)


Start = Callable[..., ConsumerGreenlet]


@pytest.fixture
def start(connection: Connection) -> Start:
    """Start a consumer, and wait until it consumes."""

    def start(queue: Queue, handler: Callable[[Any, Any], None], **options: Any) -> Any:
        consumer = spawn_consumer(queue, handler, connection=connection, **options)
        assert consumer.wait_ready(CAME)
        return consumer

    return start


# Delivery limits


def test_a_quorum_queue_without_a_limit_has_one_of_20(
    connection: Connection, make_queue: MakeQueue, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else 21 deliveries of one message take a minute.
    monkeypatch.setattr(handling, "LONGEST_PAUSE", handling.FIRST_PAUSE)
    dead = make_queue("-dead")
    queue = make_queue(
        queue_type="quorum", dead_letter_exchange="", dead_letter_routing_key=dead.name
    )
    counts: list[int] = []
    deaths: GreenQueue[Any] = GreenQueue()

    def fail(body: str, message: Any) -> None:
        counts.append(message.delivery_count)
        raise OSError("a poison message")

    failing = start(queue, fail, on_error="requeue")
    burying = start(dead, lambda body, message: deaths.put(message.headers["x-death"][0]))
    publish(queue, "poison", connection=connection)
    death = deaths.get(timeout=CAME)
    assert (death["reason"], death["queue"]) == ("delivery_limit", queue.name)
    assert counts == list(range(21))
    assert failing.stop(CAME)
    assert burying.stop(CAME)


@pytest.mark.parametrize(
    ("argument", "value"), [("consumer_timeout", 1000), ("delayed_retry_type", "failed")]
)
def test_what_only_a_quorum_queue_has(
    connection: Connection, unique: str, argument: str, value: Any
) -> None:
    with pytest.raises(PreconditionFailed, match="of queue type rabbit_classic_queue"):
        MakeQueue(connection, unique)(**{argument: value})


# Retries that the broker delays


def test_a_message_whose_retry_the_broker_delays_holds_up_no_other(
    connection: Connection, make_queue: MakeQueue, start: Start
) -> None:
    queue = make_queue(
        queue_type="quorum",
        delayed_retry_type="failed",
        delayed_retry_min=200,
        delayed_retry_max=1000,
        delivery_limit=3,
    )
    handled: GreenQueue[tuple[str, int]] = GreenQueue()
    both_are_there = Event()

    def handle(body: str, message: Any) -> None:
        handled.put((body, message.delivery_count))
        if body == "bad":
            assert both_are_there.wait(CAME)
            raise OSError("not now")

    consumer = start(queue, handle, on_error="requeue", concurrency=1, prefetch_count=1)
    publish(queue, "bad", connection=connection)
    publish(queue, "good", connection=connection)
    both_are_there.set()
    # Without the delay the bad one would be first again.
    assert [handled.get(timeout=CAME) for _ in range(5)] == [
        *(("bad", 0), ("good", 0), ("bad", 1), ("bad", 2), ("bad", 3))
    ]
    assert consumer.stop(CAME)


@pytest.mark.parametrize("kind", ["failed", "returned"])
def test_which_messages_are_held_back(
    connection: Connection, make_queue: MakeQueue, start: Start, kind: str
) -> None:
    """A consumer that pauses returns what waits for its handler; a handler that raises has failed."""
    queue = make_queue(queue_type="quorum", delayed_retry_type=kind, delayed_retry_min=NEVER)
    for body in range(5):
        publish(queue, body, connection=connection)
    failing, may_fail, came = Event(), Event(), GreenQueue[int]()

    def fail(body: int, message: Any) -> None:
        failing.set()
        assert may_fail.wait(CAME)
        raise OSError("not now")

    first = start(queue, fail, on_error="requeue", concurrency=1, prefetch_count=5)
    assert failing.wait(CAME)
    assert first.pause(CAME)
    may_fail.set()
    assert first.stop(CAME)
    second = start(queue, lambda body, message: came.put(body), concurrency=1)
    expected = [1, 2, 3, 4] if kind == "failed" else [0]
    assert sorted(came.get(timeout=CAME) for _ in expected) == expected
    publish(queue, 5, connection=connection)
    assert came.get(timeout=CAME) == 5  # and not one that is held back
    assert second.stop(CAME)


# Priorities


def test_a_quorum_queue_has_32_priorities(connection: Connection, make_queue: MakeQueue) -> None:
    queue = make_queue(queue_type="quorum")
    priorities = random.Random(5).sample(range(32), 32)
    for priority in priorities:
        publish(queue, priority, priority=priority, connection=connection)
    bodies = []
    while (message := connection.default_channel.basic_get(queue.name, no_ack=True)) is not None:
        bodies.append(int(message.body))
    assert bodies == list(range(31, -1, -1))


def test_all_above_is_the_highest(connection: Connection, make_queue: MakeQueue) -> None:
    queue = make_queue(queue_type="quorum")
    for priority in (255, 31, 100):
        publish(queue, priority, priority=priority, connection=connection)
    channel = connection.default_channel
    bodies = [int(channel.basic_get(queue.name, no_ack=True).body) for _ in range(3)]
    assert bodies == [255, 31, 100]


def test_a_quorum_queue_takes_no_max_priority(connection: Connection, unique: str) -> None:
    queue = Queue(unique, max_priority=5, queue_arguments={"x-queue-type": "quorum"})
    with pytest.raises(PreconditionFailed, match="leave out max_priority"):
        queue(connection.default_channel).declare()


# One active consumer


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_a_higher_priority_makes_a_consumer_the_active_one(
    connection: Connection, make_queue: MakeQueue, start: Start, kind: str
) -> None:
    queue = make_queue(queue_type=kind, single_active_consumer=True)
    handled: GreenQueue[tuple[str, int]] = GreenQueue()
    first = start(queue, lambda body, message: handled.put(("first", body)))
    publish(queue, 1, connection=connection)
    assert handled.get(timeout=CAME) == ("first", 1)
    second = start(queue, lambda body, message: handled.put(("second", body)), priority=10)
    publish(queue, 2, connection=connection)
    # A classic queue keeps the one that it has.
    active = {"quorum": "second", "classic": "first"}[kind]
    assert handled.get(timeout=CAME) == (active, 2)
    assert {"first": first, "second": second}[active].stop(CAME)
    publish(queue, 3, connection=connection)
    assert handled.get(timeout=CAME) == ({"first": "second", "second": "first"}[active], 3)
    assert first.stop(CAME)
    assert second.stop(CAME)


# Filters of a stream


def fill(connection: Connection, queue: Queue, regions: tuple[str | None, ...]) -> None:
    """Publish one message for each region; each is a block of its own."""
    with connection.channel() as channel:
        for region in regions:
            headers = {} if region is None else {"x-stream-filter-value": region}
            message = channel.prepare_message(region or "none", headers=headers)
            channel.basic_publish_confirm(message, "", queue.name)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"x-stream-filter": "emea"}, {"emea"}),
        ({"x-stream-filter": ["emea", "apac"]}, {"emea", "apac"}),
        ({"x-stream-filter": "emea", "x-stream-match-unfiltered": True}, {"emea", None}),
    ],
    ids=["one value", "two values", "without a value too"],
)
def test_a_consumer_of_a_stream_that_filters(
    connection: Connection,
    make_queue: MakeQueue,
    start: Start,
    arguments: dict[str, Any],
    expected: set[str | None],
) -> None:
    """The broker leaves out blocks without a match, so each message is looked at again."""
    queue = make_queue(queue_type="stream")
    fill(connection, queue, (*("amer", "emea", "apac", None) * 3, "emea"))
    filtering = Queue(
        queue.name,
        queue_arguments=queue.queue_arguments,
        consumer_arguments={"x-stream-offset": "first", **arguments},
    )
    got: list[str | None] = []
    is_complete = Event()

    def handle(body: str, message: Any) -> None:
        region = message.headers.get("x-stream-filter-value")
        if region in expected:
            got.append(region)
        if message.headers["x-stream-offset"] == 12:  # the last one
            is_complete.set()

    consumer = start(filtering, handle, concurrency=1)
    assert is_complete.wait(CAME)
    regions = ("amer", "emea", "apac", None) * 3
    assert got == [*(region for region in regions if region in expected), "emea"]
    assert consumer.stop(CAME)
