"""Messages whose handler failed: retries that the broker holds, and dead letters."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.queue import Queue as GreenQueue

import greenconn
from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import MessageStateError
from greenconn.message import Message
from greenconn.options import Retry
from tests.fix_wires import until
from tests.integration.capabilities import connection_of_kind  # noqa: F401 - ``connection``
from tests.integration.processes import start
from tests.receiving import consuming

pytestmark = pytest.mark.halved

SOON = 60.0


def test_a_retry_with_the_defaults_takes_no_place(connection: Connection, unique: str) -> None:
    """Its first delay is 1 s, and jitter makes it shorter."""
    handled: GreenQueue[Any] = GreenQueue()
    tries: list[str] = []

    def handle(body: str, message: Any) -> None:
        tries.append(body)
        if tries == ["bad"]:
            raise OSError("try me again")
        handled.put(body)

    consumer = consuming(
        unique, handle, connection=connection, prefetch_count=1, retry=greenconn.Retry()
    )
    greenconn.publish_many(unique, ["bad", "good"], connection=connection)
    assert [handled.get(timeout=SOON) for _ in range(2)] == ["good", "bad"]
    assert consumer.stop(SOON)


def test_the_log_of_a_retry_has_the_delay_that_the_broker_keeps(
    connection: Connection, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[str] = []

    def fail_once(body: str, message: Message) -> None:
        tries.append(body)
        if len(tries) == 1:
            raise OSError("try me again")

    retry = Retry(tries=2, delay=0.6, jitter=False, hold="broker")
    consumer = consuming(unique, fail_once, connection=connection, retry=retry)
    with caplog.at_level("WARNING", "greenconn.worker"):
        greenconn.publish(unique, "once", connection=connection)
        until(lambda: len(tries) == 2, SOON)
    assert consumer.stop(SOON)
    counts_in_seconds = connection.transport.driver_type in {"amqp", "beanstalk", "sqs"}
    assert f"retry in {1.0 if counts_in_seconds else 0.6} s" in caplog.text


def test_waiting_retries_stall_nothing(connection: Connection, unique: str) -> None:
    """Ten failing messages fill the prefetch window, and the good ones behind them are not held up."""
    handled: GreenQueue[Any] = GreenQueue()
    tries: dict[int, int] = {}

    def handle(body: int, message: Any) -> None:
        if body < 10:
            tries[body] = tries.get(body, 0) + 1
            if tries[body] == 1:
                raise OSError("try me again")
        handled.put(body)

    consumer = consuming(
        unique,
        handle,
        connection=connection,
        prefetch_count=10,
        retry=Retry(tries=2, delay=30.0, jitter=False, hold="broker"),
    )
    began = monotonic()
    greenconn.publish_many(unique, list(range(20)), connection=connection)
    assert {handled.get(timeout=SOON) for _ in range(10)} == set(range(10, 20))
    assert monotonic() - began < 25.0  # else they came after the retries
    until(lambda: consumer.stats()["retried"] == 10 and consumer.stats()["in_flight"] == 0)
    assert consumer.stop(SOON)


@pytest.mark.sampled(3)
def test_retry_keeps_what_the_message_had(connection: Connection, unique: str) -> None:
    exchange = Exchange(f"{unique}-x", "topic", durable=True)
    seen: GreenQueue[Any] = GreenQueue()

    def handle(body: Any, message: Any) -> None:
        info = message.delivery_info
        properties = message.properties
        seen.put(
            (
                body,
                message.headers.get("a"),
                message.headers.get("x-greenconn-attempts"),
                (info["exchange"], info["routing_key"]),
                [properties.get(each) for each in ("message_id", "correlation_id", "type")],
                message.content_type,
            )
        )
        if message.headers.get("x-greenconn-attempts", 0) < 2:
            raise OSError("try me again")

    consumer = consuming(
        Queue(unique, exchange, "user.#"),
        handle,
        connection=connection,
        retry=Retry(tries=3, delay=1.0, backoff=1.0, jitter=False),
    )
    greenconn.publish(
        exchange,
        {"n": "ü" * 100},
        connection=connection,
        routing_key="user.new",
        headers={"a": [1, "b"]},
        message_id="m",
        correlation_id="c",
        type="t",
        compression="zlib",
    )
    found = [seen.get(timeout=SOON) for _ in range(3)]
    assert [each[2] for each in found] == [None, 1, 2]
    for each in found:
        assert each[:2] == ({"n": "ü" * 100}, [1, "b"])
        assert each[3] == (exchange.name, "user.new")
        assert each[4] == ["m", "c", "t"]
        assert each[5] == "application/json"
    until(lambda: consumer.stats()["handled"] == 1)
    stats = consumer.stats()
    assert (stats["failed"], stats["retried"], stats["rejected"]) == (2, 2, 0)
    assert consumer.stop(SOON)


def test_failed_message_becomes_a_dead_letter(connection: Connection, unique: str) -> None:
    def handle(body: Any, message: Any) -> None:
        raise KeyError("no such article")

    consumer = consuming(
        unique, handle, connection=connection, dead_letter=True, retry=Retry(tries=2, delay=0.01)
    )
    greenconn.publish(
        unique, {"article": 17}, connection=connection, headers={"a": 1}, message_id="m-1"
    )
    greenconn.publish(unique, b"{", connection=connection, content_type="application/json")
    letters = [got(connection, f"{unique}.dead") for _ in range(2)]
    failed, bad = sorted(letters, key=lambda each: each.headers["x-greenconn-reason"])
    assert failed.payload == {"article": 17}
    assert failed.properties["message_id"] == "m-1"
    headers = failed.headers
    assert headers["a"] == 1
    assert headers["x-greenconn-reason"] == "failed"
    assert headers["x-greenconn-error"] == "builtins.KeyError"
    assert headers["x-greenconn-error-text"] == "'no such article'"
    assert headers["x-greenconn-attempts"] == 2
    assert headers["x-greenconn-queue"] == unique
    assert headers["x-greenconn-first-failure"].endswith("+00:00")
    assert bad.headers["x-greenconn-reason"] == "undecodable"
    assert "x-greenconn-attempts" not in bad.headers
    until(lambda: consumer.stats()["rejected"] == 2)
    assert consumer.stop(SOON)


@dataclass
class Item:
    price: float


@dataclass
class Order:
    id: int
    items: list[Item]


def test_body_that_does_not_fit_becomes_a_dead_letter(connection: Connection, unique: str) -> None:
    handled: GreenQueue[Order] = GreenQueue()

    def handle(order: Order, message: Message) -> None:
        handled.put(order)

    consumer = consuming(unique, handle, connection=connection, dead_letter=True)
    bad = {"id": 17, "items": [{"price": "much"}]}
    order = Order(18, [Item(1.5)])
    assert greenconn.publish_many(unique, [bad, order], connection=connection) == 2
    assert handled.get(timeout=SOON) == order
    letter = got(connection, f"{unique}.dead")
    assert letter.payload == bad
    headers = letter.headers
    assert headers["x-greenconn-reason"] == "undecodable"
    assert headers["x-greenconn-error"] == "greenconn.exceptions.DecodeError"
    assert headers["x-greenconn-error-text"] == (
        "the body does not fit Order: Expected `float`, got `str` - at `$.items[0].price`"
    )
    assert consumer.stop(SOON)


def got(connection: Connection, queue: str) -> Any:
    """Take a message that must come."""
    with gevent.Timeout(SOON):
        while True:
            channel = connection.channel()
            try:
                message = channel.basic_get(queue, no_ack=True)
            except connection.channel_errors:
                message = None  # it is not declared yet
            if channel.is_open:
                channel.close()
            if message is not None:
                return message
            gevent.sleep(0.02)


PROGRAM = """
import logging
import sys
import gevent
import greenconn
from greenconn import Retry, RetryLater

logging.disable()  # nobody reads the pipe

def handle(body, message):
    if "x-greenconn-attempts" not in message.headers:
        raise {error}
    sys.stdout.write("%d\\n" % body)
    sys.stdout.flush()

greenconn.configure({url!r}, transport_options={options!r})
consumer = greenconn.spawn_consumer(
    {queue!r}, handle, prefetch_count=20,
    retry=Retry(tries=5, delay=2.0, backoff=1.0, hold="broker"),
)
print("ready" if consumer.wait_ready(60) else "not ready", flush=True)
consumer.join()
"""


@pytest.mark.parametrize(
    ("which", "error"),
    [
        *(("amqp_url", "OSError()"), ("redis_url", "OSError()"), ("sqlite_url", "OSError()")),
        *(("amqp_url", "RetryLater(2)"), ("sqlite_url", "RetryLater(2)")),
    ],
)
@pytest.mark.sampled(1)
def test_killed_worker_loses_no_waiting_retry(
    request: pytest.FixtureRequest, which: str, error: str, unique: str
) -> None:
    url = request.getfixturevalue(which)
    options = {} if which == "amqp_url" else {"lease": 1.0}
    program = PROGRAM.format(url=url, options=options, queue=unique, error=error)
    with Connection(url, transport_options=options) as connection:
        greenconn.publish_many(unique, list(range(200)), connection=connection, declare=True)
        done: set[int] = set()
        for life in range(3):
            worker = start("-c", program)
            try:
                while (line := worker.line()) != "ready":
                    done.add(int(line))  # a retry may be due before
                if life < 2:
                    # Some wait for their retry, some are being sent again, some were not begun.
                    with connection.channel() as channel:
                        until(lambda: waiting(channel, unique) < 150 - 60 * life)  # noqa: B023
                    worker.signal(signal.SIGKILL)
                    done |= {int(each) for each in worker.outcome().output.split()}
                else:
                    with gevent.Timeout(SOON):
                        while len(done) < 200:
                            done.add(int(worker.line()))
            finally:
                worker.end()
    assert done == set(range(200))


#: Fails always, and prints a line for each attempt.
FAILING = """
import logging
import greenconn
from greenconn import Retry

logging.disable()  # nobody reads the pipe

def handle(body, message):
    print(body, flush=True)
    raise OSError("try me again")

greenconn.configure({url!r}, transport_options={{"lease": 1.0}})
consumer = greenconn.spawn_consumer(
    {queue!r}, handle, prefetch_count=20,
    retry=Retry(tries=100000, delay=0.05, backoff=1.0, hold="broker"),
)
consumer.join()
"""
#: Transports that store a delayed message in the place of a held one, in one step.
ONE_STEP = [
    "redis_url",
    "sqlite_url",
    "mongodb_url",
    pytest.param("redis_cluster_url", marks=pytest.mark.full),
]


@pytest.mark.programs
@pytest.mark.parametrize("which", ONE_STEP)
@pytest.mark.sampled(1)
def test_killed_worker_leaves_no_message_twice(
    request: pytest.FixtureRequest, which: str, unique: str
) -> None:
    url, count = request.getfixturevalue(which), 50
    with Connection(url, transport_options={"lease": 1.0}) as connection:
        greenconn.publish_many(unique, list(range(count)), connection=connection, declare=True)
        for _ in range(3):
            worker = start("-c", FAILING.format(url=url, queue=unique))
            try:
                for _ in range(4 * count):
                    worker.line()
                worker.signal(signal.SIGKILL)
                worker.outcome()
            finally:
                worker.end()
        found: list[int] = []
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: found.append(body), connection=connection
        )
        until(lambda: len(set(found)) == count, SOON)
        gevent.sleep(0.5)  # a second copy would wait for 0.05 s
        assert consumer.stop(SOON)
    assert sorted(found) == list(range(count))


@pytest.mark.parametrize("which", ONE_STEP)
def test_delayed_message_takes_the_place_of_a_held_one(
    request: pytest.FixtureRequest, which: str, unique: str
) -> None:
    url = request.getfixturevalue(which)
    with Connection(url, transport_options={"lease": 600.0}) as connection:
        channel = connection.channel()
        channel.queue_declare(unique, durable=True)
        channel.basic_publish(channel.prepare_message("old"), "", unique)
        held = channel.basic_get(unique)
        later = channel.prepare_message("new", headers={"x-delay": 200}, priority=3)
        assert not held.replace(later, "another queue")
        assert not held.acknowledged
        assert held.replace(later, unique)
        assert held.acknowledged
        with pytest.raises(MessageStateError):
            held.replace(later, unique)
        channel.flush()
        assert waiting(channel, unique) == 0
        channel.close()  # what is held would be requeued
        message = got(connection, unique)
        assert (message.body, message.properties["priority"]) == ("new", 3)
        assert not message.redelivered


@pytest.mark.parametrize("which", ONE_STEP)
def test_message_of_a_lost_link_is_not_replaced(
    request: pytest.FixtureRequest, which: str, unique: str
) -> None:
    url = request.getfixturevalue(which)
    with Connection(url, transport_options={"lease": 600.0}) as connection:
        channel = connection.channel()
        channel.queue_declare(unique, durable=True)
        channel.basic_publish(channel.prepare_message("old"), "", unique)
        held = channel.basic_get(unique)
        later = channel.prepare_message("new", headers={"x-delay": 200})
        connection.session.life.link.end(ConnectionResetError("cut"))
        assert not held.replace(later, unique)
        assert not held.acknowledged
        assert got(connection, unique).body == "old"


def waiting(channel: Any, queue: str) -> int:
    return int(channel.queue_declare(queue, passive=True).message_count)
