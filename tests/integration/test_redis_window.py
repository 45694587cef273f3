"""Publishes that nobody waits for: what became of them is told by number."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from redis import exceptions

from greenconn import Connection
from greenconn.exceptions import PublishTimeout, RecoverableConnectionError
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.integration.redis_clients import Control

WINDOW = 20


@pytest.fixture
def connection(own_redis: RedisServer) -> Iterator[Connection]:
    options = {"publish_window": WINDOW}
    with Connection(own_redis.url, transport_options=options) as connection:
        yield connection


def publish(connection: Connection, count: int, queue: str = "q") -> Any:
    """Publish over a channel of its own, which is returned."""
    channel: Any = connection.channel()
    message = channel.prepare_message("x")
    for _ in range(count):
        channel.basic_publish(message, "", queue)
    return channel


def test_a_lost_server_is_reported_by_the_next_channel(
    own_redis: RedisServer, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    publish(connection, 1).flush()
    own_redis.pause()
    old = publish(connection, WINDOW)
    own_redis.kill()
    own_redis.start()
    until(lambda: not old.is_open)
    fresh: Any = connection.channel()
    with pytest.raises(PublishTimeout, match=f"{WINDOW} publishes .* were not confirmed") as caught:
        fresh.flush()
    assert caught.value.maybe_delivered
    fresh.flush()
    with pytest.raises(RecoverableConnectionError):
        old.basic_publish(old.prepare_message("x"), "", "q")
    lines = [each for each in caplog.messages if "were not confirmed" in each]
    assert len(lines) == 1
    assert f"{WINDOW} publishes" in lines[0]


def test_the_channel_itself_may_still_be_asked(
    own_redis: RedisServer, connection: Connection
) -> None:
    publish(connection, 1).flush()
    own_redis.pause()
    channel = publish(connection, WINDOW)
    own_redis.kill()
    own_redis.start()
    with pytest.raises(PublishTimeout, match=f"{WINDOW} publishes .* were not confirmed"):
        channel.flush()


def test_a_full_server_is_reported_when_the_connection_is_closed(
    own_redis: RedisServer, at_server: Control, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"publish_window": 50}
    connection = Connection(own_redis.url, transport_options=options)
    publish(connection, 1).flush()
    at_server("CONFIG", "SET", "maxmemory", "1")
    try:
        own_redis.pause()  # the first refusal must not come before the last publish
        publish(connection, 30)
        publish(connection, 20, "other")
        own_redis.resume()
        with caplog.at_level(logging.ERROR, "greenconn"):
            connection.close()
    finally:
        own_redis.resume()
        at_server("CONFIG", "SET", "maxmemory", "0")
    (line,) = [each for each in caplog.messages if "were refused" in each]
    assert "50 publishes" in line
    assert "OOM" in line


def test_a_closed_channel_is_asked_for_by_the_next_flush(
    connection: Connection, at_server: Control
) -> None:
    at_server("SET", "wrong", "no list")
    other: Any = connection.channel()
    publish(connection, 3, "wrong").close()
    with pytest.raises(exceptions.ResponseError, match=r"3 earlier publishes .* WRONGTYPE"):
        other.flush()
    other.flush()
    refused = publish(connection, 3, "wrong")
    gevent.sleep(0)
    with pytest.raises(exceptions.ResponseError, match=r"3 earlier publishes .* WRONGTYPE"):
        refused.flush()
    with gevent.Timeout(SOON):
        publish(connection, 2 * WINDOW).flush()
