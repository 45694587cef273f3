"""What a handler chooses by the exception that it raises, on every transport."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from functools import partial
from time import monotonic
from typing import Any

import pytest
from gevent.queue import Queue as GreenQueue

import greenconn
from greenconn import DeadLetter, Discard, Retry, RetryLater
from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.listeners import HandledEvent, RetryEvent, SettleEvent
from tests.fix_wires import until
from tests.integration.capabilities import Kind
from tests.integration.test_worker_failures import got, waiting

pytestmark = pytest.mark.halved

SOON = 60.0


class TooMany(RetryLater):
    """An error of a program."""


@pytest.fixture
def connection(broker_kind: Kind, kind_url: str) -> Iterator[Connection]:
    options = {name: each for name, each in broker_kind.options.items() if name != "fanout_lists"}
    with Connection(kind_url, transport_options=options) as connection:
        yield connection


class Recorder(greenconn.Listener):
    """Keeps events of handlers."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.on_handled = self.on_retry = self.on_settle = self.events.append  # type: ignore[assignment]


def has(consumer: greenconn.ConsumerGreenlet, **numbers: int) -> bool:
    stats: Mapping[str, object] = consumer.stats()
    return all(stats[name] == number for name, number in numbers.items())


@pytest.mark.sampled(3)
def test_message_is_redelivered_when_its_handler_has_said(
    connection: Connection, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Never earlier, without a policy of retries, and without holding up the next one."""
    handled: GreenQueue[Any] = GreenQueue()
    calls: list[str] = []

    def handle(body: str, message: Any) -> None:
        calls.append(body)
        if body == "busy" and calls.count(body) == 1:
            try:
                raise OSError("429")
            except OSError as exc:
                raise TooMany(timedelta(seconds=2)) from exc
        if body == "at" and calls.count(body) == 1:
            raise RetryLater(at=datetime.now(timezone.utc) + timedelta(seconds=2))
        handled.put((body, monotonic(), dict(message.headers)))

    consumer = greenconn.spawn_consumer(unique, handle, connection=connection, prefetch_count=1)
    assert consumer.wait_ready(SOON)
    with caplog.at_level("INFO", "greenconn.worker"):
        began = monotonic()
        greenconn.publish_many(unique, ["busy", "at", "next"], connection=connection)
        assert handled.get(timeout=SOON)[0] == "next"
        for _ in range(2):
            body, at, headers = handled.get(timeout=SOON)
            assert body in {"busy", "at"}
            assert at - began >= 1.98  # clocks of two kinds may differ by some ms
            assert headers["x-greenconn-attempts"] == 0
            assert "x-greenconn-first-failure" not in headers
    until(partial(has, consumer, failed=0, retried=2, handled=3))
    assert consumer.stop(SOON)
    assert "in 2.0 s: OSError: 429" in caplog.text
    assert not [
        each
        for each in caplog.records
        if each.name == "greenconn.worker" and each.levelno > logging.INFO
    ]


@pytest.mark.sampled(3)
def test_calls_that_count_end(connection: Connection, unique: str) -> None:
    exchange = Exchange(f"{unique}-x", "direct", durable=True)
    keys: list[str] = []

    def handle(body: str, message: Any) -> None:
        keys.append(message.delivery_info["routing_key"])
        raise RetryLater(1, counts=True)

    consumer = greenconn.spawn_consumer(
        Queue(unique, exchange, "key"),
        handle,
        connection=connection,
        retry=Retry(tries=2),
        dead_letter=True,
    )
    assert consumer.wait_ready(SOON)
    greenconn.publish(exchange, "x", connection=connection, routing_key="key")
    letter = got(connection, f"{unique}.dead")
    assert letter.headers["x-greenconn-attempts"] == 2
    assert letter.headers["x-greenconn-error"].endswith("RetryLater")
    assert keys == ["key", "key"]
    until(partial(has, consumer, failed=2, retried=1, rejected=1))
    assert consumer.stop(SOON)


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}], ids=["one", "batch"])
def test_discarded_message_is_acknowledged(
    connection: Connection, unique: str, caplog: pytest.LogCaptureFixture, options: Any
) -> None:
    def handle(body: Any, message: Any) -> None:
        raise Discard("its order is cancelled")

    recorder = Recorder()
    consumer = greenconn.spawn_consumer(
        unique, handle, connection=connection, retry=Retry(tries=5), **options
    )
    assert consumer.wait_ready(SOON)
    greenconn.add_listener(recorder)
    try:
        with caplog.at_level("INFO", "greenconn.worker"):
            greenconn.publish(unique, "x", connection=connection)
            until(partial(has, consumer, discarded=1, failed=0, in_flight=0))
            assert consumer.stop(SOON)
    finally:
        greenconn.remove_listener(recorder)
    handled, settled = recorder.events
    assert isinstance(handled, HandledEvent)
    assert isinstance(handled.error, Discard)
    assert isinstance(settled, SettleEvent)
    assert settled.outcome == "ack"
    logged = [each for each in caplog.records if "its order is cancelled" in each.getMessage()]
    assert [each.levelno for each in logged] == [logging.INFO]
    with connection.channel() as channel:
        assert waiting(channel, unique) == 0


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}], ids=["one", "batch"])
def test_dead_letter_is_made_at_once(connection: Connection, unique: str, options: Any) -> None:
    def handle(body: Any, message: Any) -> None:
        raise DeadLetter("no such customer") from KeyError(17)

    consumer = greenconn.spawn_consumer(
        unique, handle, connection=connection, retry=Retry(tries=5), **options
    )
    assert consumer.wait_ready(SOON)
    greenconn.publish(unique, "x", connection=connection)
    headers = got(connection, f"{unique}.dead").headers
    assert headers["x-greenconn-reason"] == "failed"
    assert headers["x-greenconn-error-text"] == "no such customer"
    assert headers["x-greenconn-attempts"] == 1
    assert "KeyError: 17" in headers["x-greenconn-traceback"]
    until(partial(has, consumer, failed=1, retried=0, rejected=1))
    assert consumer.stop(SOON)


@pytest.mark.sampled(3)
def test_batch_is_redelivered(connection: Connection, unique: str) -> None:
    handled: set[int] = set()
    recorder = Recorder()

    def handle(bodies: list[int], messages: list[Any]) -> None:
        if any("x-greenconn-attempts" not in each.headers for each in messages):
            raise RetryLater(1)
        handled.update(bodies)

    with connection.channel() as channel:
        Queue(unique)(channel).declare()
    greenconn.publish_many(unique, [1, 2, 3], connection=connection)
    greenconn.add_listener(recorder)
    try:
        consumer = greenconn.spawn_consumer(
            unique, handle, connection=connection, batch_size=3, batch_interval=0.2
        )
        until(lambda: handled == {1, 2, 3}, SOON)
        assert consumer.stop(SOON)
    finally:
        greenconn.remove_listener(recorder)
    delays = {each.delay for each in recorder.events if isinstance(each, RetryEvent)}
    assert delays == {1.0}
    assert consumer.get()["failed"] == 0
    with connection.channel() as channel:
        assert waiting(channel, unique) == 0
