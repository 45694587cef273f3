"""A bad day as the log tells it: each event is one line, with the fields that are known."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
import pytest

import greenconn
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import ConnectionBlocked, NotFound
from greenconn.log import FIELDS, JSONFormatter
from greenconn.messaging import Producer
from greenconn.options import Retry
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
from tests.integration.recovering import SOON, Recoveries, restart_app

#: Standard entries of a line.
STANDARD = {"time", "level", "logger", "message", "error", "traceback"}


class Lines(logging.Handler):
    """Keeps what a program with :class:`JSONFormatter` would print, as it is read again."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(JSONFormatter())
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def of(self, words: str) -> list[dict[str, Any]]:
        """The lines with *words* in their message."""
        return [each for each in map(json.loads, self.texts) if words in each["message"]]

    def all(self, words: str, least: int = 1) -> list[dict[str, Any]]:
        """The lines with *words*, *least* at least: their levels and their fields."""
        until(lambda: len(self.of(words)) >= least, SOON)
        names = ("level", *FIELDS)
        return [{name: line[name] for name in names if name in line} for line in self.of(words)]

    def one(self, words: str) -> dict[str, Any]:
        """The only line with *words*: its level and its fields."""
        (line,) = self.all(words)
        return line


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What the library logs."""
    logger, handler = logging.getLogger("greenconn"), Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def play(connection: Connection, lines: Lines, name: str, restart: Callable[[], None]) -> None:
    """A day with a handler that fails, bodies that are none, a refused consumer and a restart."""
    handled: list[Any] = []

    def handle(body: Any, message: Any) -> None:
        if body == "poison":
            raise LookupError("no such user")
        handled.append(body)

    where = connection.as_uri()
    # RabbitMQ is published to over a connection of its own, which does not delay acks.
    links = 2 if where.startswith("amqp") else 1
    of_consumer = {"queue": name, "consumer": "mail", "connection": where}
    dead = Queue(f"{name}.dead", expires=120)
    dead(connection.default_channel).declare()
    consumer = greenconn.spawn_consumer(
        Queue(name, expires=120),
        handle,
        connection=connection,
        name="mail",
        retry=Retry(tries=2, delay=0.05, jitter=False),
        dead_letter=True,
    )
    assert consumer.wait_ready(SOON)

    def send(body: Any, **properties: Any) -> None:
        greenconn.publish(name, body, connection=connection, **properties)

    begun = lines.one(f"consuming {name}: {__name__}.play.<locals>.handle, concurrency 1")
    assert begun == {"level": "INFO", **of_consumer}
    send("good")
    until(lambda: handled == ["good"], SOON)
    assert lines.all("connected to", links) == [{"level": "INFO", "connection": where}] * links
    assert len(lines.of(f"connected to {where} (publishing)")) == links - 1

    # A handler that fails, and fails again: a dead letter.
    send("poison", message_id="m-1", correlation_id="c-1")
    ids = {**of_consumer, "message_id": "m-1", "correlation_id": "c-1"}
    first = lines.one("retry in")
    tag = first.pop("delivery_tag")
    assert first == {"level": "WARNING", **ids, "attempt": 1}
    second = lines.one(f"the message is moved to queue '{name}.dead'")
    assert second.pop("delivery_tag") == tag
    assert second == {"level": "ERROR", **ids, "attempt": 2}
    (line,) = lines.of("failed in attempt 2 ")
    assert line["error"] == "builtins.LookupError"
    assert line["traceback"].startswith("Traceback")

    # A body that cannot be decoded.
    Producer(connection).publish(
        b"{", name, content_type="application/json", content_encoding="utf-8", message_id="m-2"
    )
    undecodable = lines.one("cannot be decoded")
    assert undecodable.pop("delivery_tag")
    assert undecodable == {"level": "ERROR", **of_consumer, "message_id": "m-2"}
    until(lambda: consumer.stats()["rejected"] == 2, SOON)

    # A consumer that the broker refuses.
    absent = f"{name}-absent"
    refused = greenconn.spawn_consumer(
        absent, handle, connection=connection, name="lost", passive=True
    )
    with pytest.raises(NotFound):
        refused.get(timeout=SOON)
    assert lines.one("consumer of queue lost failed") == {
        "level": "ERROR",
        "queue": absent,
        "consumer": "lost",
        "connection": where,
    }

    # A restart of the broker.
    with Recoveries(connection) as recoveries:
        restart()
        recoveries.wait()
    # A broker that starts may end a connection that it has just taken.
    for line in lines.all(" lost: ", links):
        assert line == {"level": "WARNING", "connection": where}
    assert lines.one("recovered after") == {"level": "WARNING", "connection": where}
    assert consumer.wait_ready(SOON)
    send("after")
    until(lambda: "after" in handled, SOON)
    assert consumer.stop(SOON)
    for text in lines.texts:
        line = json.loads(text)
        assert "\n" not in text
        assert set(line) <= STANDARD | FIELDS, text
        assert line.get("connection", where) == where, text
    for queue in (name, f"{name}.dead"):
        with suppress(NotFound):
            connection.default_channel.queue_delete(queue)


def test_a_day_with_rabbitmq(own_rabbitmq: RabbitMQ, unique: str, lines: Lines) -> None:
    def restart() -> None:
        own_rabbitmq.set_memory_alarm(True)
        producer = Producer(connection)

        def blocked() -> bool:
            with suppress(ConnectionBlocked):  # the broker blocks a connection when it publishes
                producer.publish("more", f"{unique}.dead", timeout=0.5)
            return bool(lines.of(" blocked publishing"))

        until(blocked, SOON)
        where = connection.as_uri()
        assert lines.one(" blocked publishing") == {"level": "WARNING", "connection": where}
        own_rabbitmq.set_memory_alarm(False)
        assert lines.one("unblocked publishing") == {"level": "INFO", "connection": where}
        restart_app(own_rabbitmq)

    with Connection(own_rabbitmq.url, heartbeat=10) as connection:
        play(connection, lines, unique, restart)


def test_a_day_with_redis(own_redis: RedisServer, unique: str, lines: Lines) -> None:
    def restart() -> None:
        own_redis.stop()
        gevent.idle()
        own_redis.start()

    with Connection(own_redis.url) as connection:
        play(connection, lines, unique, restart)
