"""Broker restarts while retries and delayed messages wait: none is lost, attempts are counted on."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from gevent.queue import Queue as GreenQueue

import greenconn
from greenconn import RetryLater
from greenconn.connection import Connection
from greenconn.options import Retry
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer
from tests.fix_brokers import RedisFactory
from tests.fix_wires import until
from tests.integration.processes import start

pytestmark = pytest.mark.halved

SOON = 60.0
#: RabbitMQ repeats a hand-over that it could not make, as it was starting, only after three minutes.
LATE = 300.0
COUNT = 20


class Worker:
    """A consumer whose handler fails, or asks for a retry, for each message but delayed ones.

    Attributes:
        attempts: by message, how often it had failed before, at each delivery.
        delayed: messages that were published with a delay.
    """

    def __init__(self, connection: Connection, queue: str, delay: float) -> None:
        self.attempts: defaultdict[int, list[int]] = defaultdict(list)
        self.delayed: set[int] = set()
        self._delay = delay
        self.consumer = greenconn.spawn_consumer(
            queue,
            self._handle,
            connection=connection,
            dead_letter=True,
            retry=Retry(tries=2, delay=delay, jitter=False, hold="broker"),
        )
        assert self.consumer.wait_ready(SOON)

    def _handle(self, body: int | None, message: Any) -> None:
        if body is None:
            return
        if body >= COUNT:
            self.delayed.add(body)
        else:
            self.attempts[body].append(message.headers.get("x-greenconn-attempts", 0))
            raise RetryLater(self._delay, counts=True) if body % 2 else OSError("try me again")

    def wait_held(self) -> None:
        """Wait until the broker holds all messages that have failed."""
        until(lambda: self.consumer.stats()["retried"] == COUNT, SOON)
        until(lambda: self.consumer.stats()["in_flight"] == 0, SOON)


def publish(connection: Connection, queue: str, delay: float) -> None:
    """Publish what fails, and as much with a delay."""
    greenconn.publish_many(queue, list(range(COUNT)), connection=connection, declare=True)
    delayed = list(range(COUNT, 2 * COUNT))
    greenconn.publish_many(queue, delayed, connection=connection, delay=delay)


@contextmanager
def dead_letters(connection: Connection, queue: str) -> Iterator[GreenQueue[tuple[int, int]]]:
    """Consume the dead letters of a queue: their bodies, and how often they have failed."""
    letters: GreenQueue[tuple[int, int]] = GreenQueue()
    consumer = greenconn.spawn_consumer(
        f"{queue}.dead",
        lambda body, message: letters.put((body, message.headers["x-greenconn-attempts"])),
        connection=connection,
    )
    yield letters
    assert consumer.stop(SOON)


def check_restart(
    connection: Connection, queue: str, restart: Callable[[], None], delay: float
) -> None:
    """Restart the broker while it holds the messages, and check what comes of each."""
    worker = Worker(connection, queue, delay)
    publish(connection, queue, delay)
    worker.wait_held()
    assert worker.attempts == {body: [0] for body in range(COUNT)}
    assert not worker.delayed
    restart()
    with dead_letters(connection, queue) as letters:
        check_complete(worker, letters)
    assert worker.consumer.stop(SOON)


def check_complete(worker: Worker, letters: GreenQueue[tuple[int, int]]) -> None:
    """Wait for all messages; the second failure of each was its last."""
    found: set[tuple[int, int]] = set()
    while len(found) < COUNT:
        found.add(letters.get(timeout=LATE))
    assert found == {(body, 2) for body in range(COUNT)}
    until(lambda: len(worker.delayed) == COUNT, LATE)
    for attempts in worker.attempts.values():
        assert attempts == sorted(attempts)  # a copy repeats a number; none begins again
        assert set(attempts) <= {0, 1}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "end",
    [pytest.param(RabbitMQ.stop, marks=pytest.mark.full), RabbitMQ.kill],
    ids=["stop", "kill"],
)
def test_rabbitmq(own_rabbitmq: RabbitMQ, unique: str, end: Callable[[RabbitMQ], None]) -> None:
    with Connection(own_rabbitmq.url) as connection:
        # RabbitMQ 3.10 that is killed just after it has declared quorum queues does not start them.
        greenconn.publish(unique, None, connection=connection, delay=1, declare=True)
        with dead_letters(connection, unique):
            own_rabbitmq.settle()

        def restart() -> None:
            end(own_rabbitmq)
            own_rabbitmq.start()

        check_restart(connection, unique, restart, 20.0)


@pytest.mark.parametrize("end", [RedisServer.stop, RedisServer.kill], ids=["stop", "kill"])
@pytest.mark.sampled(1)
def test_redis(redis_with: RedisFactory, unique: str, end: Callable[[RedisServer], None]) -> None:
    server = redis_with("--appendonly", "yes", "--appendfsync", "always")

    def restart() -> None:
        end(server)
        server.start()

    with Connection(server.url, transport_options={"lease": 2.0}) as connection:
        check_restart(connection, unique, restart, 5.0)


PROGRAM = """
from greenconn.connection import Connection
from tests.integration.test_broker_restarts import Worker, publish

with Connection({url!r}, transport_options={{"lease": 2.0}}) as connection:
    worker = Worker(connection, {queue!r}, 5.0)
    publish(connection, {queue!r}, 5.0)
    worker.wait_held()
    print("held", dict(worker.attempts), flush=True)
    worker.consumer.join()
"""


def test_sqlite(sqlite_url: str, unique: str) -> None:
    """The only process that has the file open is killed: it is the broker."""
    program = start("-c", PROGRAM.format(url=sqlite_url, queue=unique))
    try:
        assert program.line() == f"held { {body: [0] for body in range(COUNT)} }"
        program.signal(signal.SIGKILL)
        program.outcome()
    finally:
        program.end()
    with Connection(sqlite_url, transport_options={"lease": 2.0}) as connection:
        worker = Worker(connection, unique, 5.0)
        with dead_letters(connection, unique) as letters:
            check_complete(worker, letters)
        # Where the kill came before an ack was stored, the message comes beside its copy.
        assert {attempts[-1] for attempts in worker.attempts.values()} == {1}
        assert worker.consumer.stop(SOON)
