"""Limits whose holders are killed or suspended, and whose store is away."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, Limit, Message, Rate
from greenconn.defaults import reset
from greenconn.exceptions import OperationalError
from greenconn.limits.store import Read, store_for
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
from tests.integration.processes import Running, start

SOON = 120.0
BROKERS = ("amqp", "redis", "postgresql", "sqlite")

#: Its handlers never end.
PROGRAM = """
import os
import gevent, greenconn
greenconn.configure(os.environ["URL"], limits=os.environ.get("LIMITS"))
def work(body, message):
    print(body, flush=True)
    gevent.sleep(1000)
consumer = greenconn.spawn_consumer(
    os.environ["QUEUE"], work, concurrency=2, limit=greenconn.Limit(1, lease=2)
)
print("ready", consumer.wait_ready(), flush=True)
consumer.join()
"""


@pytest.fixture(params=BROKERS)
def places(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    """The URL of a broker, and where its limits are."""
    url = str(request.getfixturevalue(f"{request.param}_url"))
    return url, str(request.getfixturevalue("redis_url")) if request.param == "amqp" else None


@pytest.fixture
def connection(places: tuple[str, str | None], unique: str) -> Iterator[Connection]:
    url, limits = places
    greenconn.configure(limits=limits)
    with Connection(url) as connection:
        connection.default_channel.queue_declare(unique, durable=True, auto_delete=False)
        yield connection
        connection.default_channel.queue_delete(unique)
    reset()


@pytest.mark.programs
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.sampled(2)
def test_the_place_of_a_process_that_ends_or_stands_still_comes_back(
    number: int, places: tuple[str, str | None], connection: Connection, unique: str
) -> None:
    url, limits = places
    environment = {"URL": url, "QUEUE": unique, **({"LIMITS": limits} if limits else {})}
    holder = start("-c", PROGRAM, env=environment)
    begun: list[Any] = []
    try:
        greenconn.publish(unique, "first", connection=connection)
        assert {holder.line(), holder.line()} == {"ready True", "first"}
        consumer = greenconn.spawn_consumer(
            unique,
            lambda body, message: begun.append(body),
            connection=connection,
            limit=Limit(1, lease=2),
        )
        # More than the prefetch windows of both, so that each has some at any time.
        greenconn.publish_many(unique, ["second"] * 60, connection=connection)
        # The holder renews its place for as long as it lives.
        until(lambda: consumer.stats()["deferred"] >= 2, SOON)
        assert begun == []
        _signal(holder, number, url)
        until(lambda: begun, SOON)
        if number == signal.SIGSTOP:
            holder.signal(signal.SIGCONT)
        consumer.kill()
    finally:
        holder.end()


def _signal(holder: Running, number: int, url: str) -> None:
    if number == signal.SIGSTOP:
        holder.suspend(url)
    else:
        holder.signal(number)


@pytest.mark.full
def test_a_store_that_is_away_puts_messages_back_and_is_logged_once(
    amqp_url: str, own_redis: RedisServer, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    handled: list[Any] = []
    first, may_end = Event(), Event()

    def work(body: Any, message: Message) -> None:
        handled.append(body)
        first.set()
        may_end.wait(SOON)

    greenconn.configure(limits=own_redis.url)
    with Connection(amqp_url) as connection:
        greenconn.publish(unique, 0, connection=connection, declare=True)
        consumer = greenconn.spawn_consumer(
            unique,
            work,
            connection=connection,
            concurrency=3,
            limit=Limit(1, lease=1),
            rate=Rate(1000),
        )
        assert first.wait(SOON)
        own_redis.stop()
        greenconn.publish_many(unique, [1, 2, 3], connection=connection)
        until(lambda: consumer.stats()["deferred"] >= 4, SOON)
        assert handled == [0]
        with pytest.raises(OperationalError, match="the store of its keys cannot be asked"):
            greenconn.publish(unique, 4, connection=connection, unique="a", timeout=1)
        own_redis.start()
        # The place is that of the handler that runs, though the server has lost it.
        until(lambda: _is_back(connection), SOON)
        may_end.set()
        until(lambda: sorted(handled) == [0, 1, 2, 3], SOON)
        assert consumer.stats()["failed"] == 0
        assert consumer.stop(SOON)
        connection.default_channel.queue_delete(unique)
    warned = [each for each in caplog.records if "are put back" in each.getMessage()]
    assert len(warned) == 1
    assert warned[0].levelno == logging.WARNING
    reset()


def _is_back(connection: Connection) -> bool:
    """Whether the store answers."""
    try:
        store_for(connection, "a test").ask([Read("any", "any")])
    except Exception:
        gevent.sleep(0.1)
        return False
    return True
