"""An error that a program throws into a call, as ``gevent.Timeout(seconds, TimeoutError)`` does.

The call raises that very error: it is no error of the connection, although it may be of such a class,
so nothing is repeated, and the link goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import gevent
import pytest
from gevent import Greenlet, get_hub

import greenconn
from greenconn import Connection, Queue
from greenconn.green.hub import yield_to_hub
from greenconn.limits.store import find_store
from greenconn.messaging import Consumer
from tests.brokers.ports import free_ports
from tests.fix_interrupts import OwnTimeout

SOON = 30.0
#: In how many turns of the hub the error comes, and after how many with a pause.
TURNS, PAUSES = 7, 4
PAUSE = 0.0001


Call = Callable[[], object]


@contextmanager
def getting(connection: Connection, queue: Any) -> Iterator[Call]:
    """Each get but the first waits for the acknowledgement of the one before."""
    for number in range(2 * (TURNS + PAUSES)):
        greenconn.publish(queue, number, connection=connection)

    def call() -> None:
        for _ in range(2):
            queue.get(no_ack=True)

    yield call


@contextmanager
def publishing(connection: Connection, queue: Any) -> Iterator[Call]:
    yield lambda: greenconn.publish(queue, "a", connection=connection)


@contextmanager
def publishing_much(connection: Connection, queue: Any) -> Iterator[Call]:
    yield lambda: greenconn.publish(queue, "a" * 150_000, connection=connection)


@contextmanager
def publishing_many(connection: Connection, queue: Any) -> Iterator[Call]:
    yield lambda: greenconn.publish_many(queue, ["a", "b", "c"], connection=connection)


@contextmanager
def publishing_many_large(connection: Connection, queue: Any) -> Iterator[Call]:
    """Each message but the first waits for the writer's next turn."""
    bodies = ["a" * 70_000] * 3
    yield lambda: greenconn.publish_many(queue, bodies, connection=connection)


@contextmanager
def publishing_unique(connection: Connection, queue: Any) -> Iterator[Call]:
    keys = count()
    yield lambda: greenconn.publish(queue, "a", connection=connection, unique=f"{next(keys)}")


@contextmanager
def publishing_many_unique(connection: Connection, queue: Any) -> Iterator[Call]:
    keys = count()
    yield lambda: greenconn.publish_many(
        queue, ["a", "b"], connection=connection, unique=lambda body: f"{next(keys)}"
    )


@contextmanager
def debouncing(connection: Connection, queue: Any) -> Iterator[Call]:
    yield lambda: greenconn.publish(queue, "a", connection=connection, debounce="key", delay=60)


@contextmanager
def delaying(connection: Connection, queue: Any) -> Iterator[Call]:
    yield lambda: greenconn.publish(queue, "a", connection=connection, delay=60)


@contextmanager
def ensuring(connection: Connection, queue: Any) -> Iterator[Call]:
    producer = connection.Producer()
    publish = connection.ensure(producer, producer.publish)
    yield lambda: publish("a", routing_key=queue.name)


@contextmanager
def putting(connection: Connection, queue: Any) -> Iterator[Call]:
    with connection.SimpleQueue(queue) as simple:
        yield lambda: simple.put("a")


@contextmanager
def flushing(connection: Connection, queue: Any) -> Iterator[Call]:
    producer = connection.Producer()

    def call() -> None:
        producer.publish("a", routing_key=queue.name)
        connection.flush(timeout=SOON)

    yield call


@contextmanager
def starting(connection: Connection, queue: Any) -> Iterator[Call]:
    def call() -> None:
        consumer = greenconn.spawn_consumer(
            queue.name, lambda body, message: None, connection=connection
        )
        try:
            consumer.wait_ready(SOON)
        finally:
            consumer.stop()

    yield call


@contextmanager
def retrying(connection: Connection, queue: Any) -> Iterator[Call]:
    producer = connection.Producer()
    yield lambda: producer.publish("a", routing_key=queue.name, retry=True)


@contextmanager
def declaring(connection: Connection, queue: Any) -> Iterator[Call]:
    numbers = count()

    def call() -> None:
        Queue(f"{queue.name}-{next(numbers)}", expires=60)(connection.default_channel).declare()

    yield call


@contextmanager
def draining(connection: Connection, queue: Any) -> Iterator[Call]:
    with Consumer(connection.default_channel, [queue], callbacks=[lambda body, message: None]):
        yield lambda: connection.drain_events(timeout=SOON)


@contextmanager
def waiting_for_a_message(connection: Connection, queue: Any) -> Iterator[Call]:
    with connection.SimpleQueue(queue) as simple:
        yield lambda: simple.get(timeout=SOON)


@contextmanager
def waiting_for_a_pool(connection: Connection, queue: Any) -> Iterator[Call]:
    pool = connection.Pool(1)
    with pool.acquire():
        yield lambda: pool.acquire(block=True, timeout=SOON)
    pool.force_close_all()


@contextmanager
def calling(connection: Connection, queue: Any) -> Iterator[Call]:
    yield lambda: greenconn.rpc.call(queue, "a", connection=connection, timeout=SOON)


@contextmanager
def closing(connection: Connection, queue: Any) -> Iterator[Call]:
    def call() -> None:
        channel = connection.channel()
        Consumer(channel, [queue]).consume()
        channel.close()

    yield call


def outcome(call: Call) -> BaseException | None:
    """Return what *call* raises."""
    try:
        call()
    except Exception as exc:
        return exc
    return None


def throw(into: Greenlet[..., Any], error: OwnTimeout, thrown: list[OwnTimeout]) -> None:
    """Throw an error into a greenlet that waits, as the hub does."""
    if not into.dead:
        thrown.append(error)
        into.throw(error)


def raises_what_is_thrown(using: Any, connection: Connection, name: str) -> None:
    """Throw an error into a call in each of its turns of the hub."""
    queue = Queue(name)(connection.default_channel)
    queue.declare()
    link = connection.default_channel.connection
    with using(connection, queue) as call:
        for turn in range(1, TURNS + PAUSES):
            asking = gevent.spawn(outcome, call)
            for _ in range(turn):
                gevent.sleep(PAUSE if turn >= TURNS else 0)
            error, thrown = OwnTimeout("mine"), list[OwnTimeout]()
            get_hub().loop.run_callback(throw, asking, error, thrown)
            assert asking.get(timeout=SOON) is (error if thrown else None)
    assert connection.default_channel.connection is link
    queue.delete()


@pytest.mark.sampled(16)
@pytest.mark.parametrize(
    "using",
    [
        getting,
        publishing,
        publishing_much,
        publishing_many,
        publishing_many_large,
        delaying,
        ensuring,
        putting,
        flushing,
        starting,
        retrying,
        declaring,
        draining,
        waiting_for_a_message,
        waiting_for_a_pool,
        calling,
        closing,
    ],
)
def test_an_own_timeout_is_raised_and_ends_nothing_else(
    kind_url: str, unique: str, using: Any
) -> None:
    with Connection(kind_url) as connection:
        raises_what_is_thrown(using, connection, unique)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("using", [publishing_unique, publishing_many_unique, debouncing])
def test_an_own_timeout_is_raised_while_keys_are_taken(
    kind_url: str, unique: str, using: Any
) -> None:
    with Connection(kind_url) as connection:
        if find_store(connection) is None:
            pytest.skip("keeps no keys itself")
        raises_what_is_thrown(using, connection, unique)


def test_an_own_timeout_is_raised_while_the_publisher_looks_why_its_message_was_refused(
    amqp_url: str, unique: str
) -> None:
    with Connection(amqp_url) as connection:
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        queue = Queue(unique, queue_arguments=full)
        greenconn.publish(queue, "a", connection=connection)
        for turn in range(1, 3 * TURNS):
            asking = gevent.spawn(
                outcome, partial(greenconn.publish, queue, "a", connection=connection, timeout=SOON)
            )
            for _ in range(turn):
                yield_to_hub()
            error, thrown = OwnTimeout("mine"), list[OwnTimeout]()
            get_hub().loop.run_callback(throw, asking, error, thrown)
            result = asking.get(timeout=SOON)
            assert result is error if thrown else isinstance(result, greenconn.PublishNacked)


@pytest.mark.parametrize("scheme", ["amqp", "redis", "postgresql"])
@pytest.mark.parametrize(
    "using",
    [
        lambda connection: greenconn.publish("q", "a", connection=connection),
        lambda connection: greenconn.publish_many("q", ["a"], connection=connection),
        lambda connection: connection.Producer().publish("a", routing_key="q", retry=True),
        lambda connection: greenconn.rpc.call("q", "a", connection=connection, timeout=SOON),
        lambda connection: connection.ensure_connection(),
        lambda connection: connection.default_channel,
    ],
    ids=["publish", "publish_many", "retry", "call", "ensure_connection", "default_channel"],
)
def test_an_own_timeout_is_raised_while_the_broker_is_away(
    scheme: str, using: Callable[[Connection], object]
) -> None:
    (port,) = free_ports(1)
    for seconds in (0.0, 0.01, 0.1, 0.4):  # while it connects, and between two attempts
        with Connection(f"{scheme}://127.0.0.1:{port}/none") as connection:
            error = OwnTimeout("mine")
            timer = get_hub().loop.timer(seconds)
            thrown: list[OwnTimeout] = []
            asking = gevent.spawn(outcome, partial(using, connection))
            gevent.sleep(0)
            timer.start(throw, asking, error, thrown)
            result = asking.get(timeout=SOON)
            timer.close()
            assert result is error or not thrown
