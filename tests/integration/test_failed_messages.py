"""What becomes of a message whose handler failed for good, with the default options: never nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gevent
import pytest

import greenconn
from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.options import Retry
from tests.fix_wires import until
from tests.integration.capabilities import (
    Kind,
    connection_of_kind,  # noqa: F401 - ``connection``
)
from tests.integration.test_worker_failures import got
from tests.receiving import consuming

pytestmark = pytest.mark.halved

SOON = 60.0
TEXT = {"order": 17}
REASON, ERROR = "x-greenconn-reason", "x-greenconn-error"


def fail(body: Any, message: Any) -> None:
    raise KeyError("no such article")


def hang(body: Any, message: Any) -> None:
    gevent.sleep(SOON)


def convert(body: int, message: Any) -> None:
    raise AssertionError("it does not fit")


def has_given_up(consumer: greenconn.ConsumerGreenlet) -> bool:
    return bool(consumer.stats()["rejected"] == 1)


@dataclass(frozen=True)
class Failure:
    """A way to fail, and what is known of it afterwards."""

    error: str
    handler: Callable[..., None] = fail
    options: Mapping[str, Any] = field(default_factory=dict)
    body: Any = field(default_factory=lambda: TEXT)
    properties: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 1

    @property
    def reason(self) -> str:
        return "failed" if self.attempts else "undecodable"


JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
FAILURES = {
    "exception": Failure("builtins.KeyError"),
    "timeout": Failure("Timeout", hang, {"handler_timeout": 0.05}),
    "exhausted": Failure(
        "builtins.KeyError", options={"retry": Retry(tries=3, delay=0.01)}, attempts=3
    ),
    "batch": Failure("builtins.KeyError", options={"batch_size": 1}),
    "undecodable": Failure("DecodeError", body=b"{\xff", properties=JSON, attempts=0),
    "packed": Failure(
        "DecodeError",
        body=b"\0no zlib",
        properties={**JSON, "headers": {"compression": "application/x-gzip"}},
        attempts=0,
    ),
    "refused": Failure(
        "ContentDisallowed",
        body=b"\x80\x05N.",
        properties={"content_type": "application/x-python-serialize", "content_encoding": "binary"},
        attempts=0,
    ),
    "schema": Failure("DecodeError", convert, {"schema": int}, attempts=0),
}


@pytest.mark.parametrize("place", ["dead", "exchange"])
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
@pytest.mark.sampled(48)
def test_failed_message_is_kept(
    connection: Connection, unique: str, failure: Failure, place: str
) -> None:
    """In the queue of dead letters, or by the dead-letter exchange of its queue; once, and as it was."""
    queue: str | Queue = unique
    kept = f"{unique}.dead"
    if place == "exchange":
        exchange, kept = Exchange(f"{unique}-dlx"), f"{unique}-kept"
        arguments = {"x-dead-letter-exchange": exchange.name, "x-dead-letter-routing-key": "failed"}
        queue = Queue(unique, queue_arguments=arguments)
        with connection.channel() as channel:
            Queue(kept, exchange, "failed")(channel).declare()
    consumer = consuming(queue, failure.handler, connection=connection, **failure.options)
    greenconn.publish(queue, failure.body, connection=connection, **failure.properties)
    letter = got(connection, kept)
    if isinstance(failure.body, bytes):
        assert bytes(letter.body) == failure.body
        assert letter.content_type == failure.properties["content_type"]
    else:
        assert letter.payload == failure.body
    headers = letter.headers
    if place == "dead":
        assert headers[REASON] == failure.reason
        assert headers[ERROR].endswith(failure.error)
        assert headers["x-greenconn-queue"] == unique
        assert headers.get("x-greenconn-attempts", 0) == failure.attempts
        assert failure.error.rpartition(".")[2] in headers["x-greenconn-traceback"]
        assert 'File "' in headers["x-greenconn-traceback"]
    until(partial(has_given_up, consumer), SOON)
    assert consumer.stop(SOON)
    for name in {unique, f"{unique}.dead", kept}:
        assert waiting(connection, name) == 0


def waiting(connection: Connection, queue: str) -> int:
    """Return the number of messages in a queue; 0 if there is none."""
    try:
        with connection.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)
    except connection.channel_errors:
        return 0


def test_message_of_a_killed_handler_comes_again(connection: Connection, unique: str) -> None:
    handled: list[str] = []

    def die_first(body: str, message: Any) -> None:
        handled.append(body)
        if len(handled) == 1:
            raise gevent.GreenletExit

    consumer = consuming(unique, die_first, connection=connection)
    greenconn.publish(unique, "twice", connection=connection)
    until(lambda: handled == ["twice", "twice"], SOON)
    until(lambda: consumer.stats()["handled"] == 1, SOON)
    assert consumer.stop(SOON)


def test_queue_of_dead_letters_is_made_when_it_is_needed(
    connection: Connection, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = consuming(unique, fail, connection=connection)
    with connection.channel() as channel, pytest.raises(connection.channel_errors):
        channel.queue_declare(f"{unique}.dead", passive=True)
    with caplog.at_level(logging.ERROR, "greenconn.worker"):
        greenconn.publish(unique, TEXT, connection=connection)
        assert got(connection, f"{unique}.dead").payload == TEXT
    failures = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert f"the message is moved to queue '{unique}.dead'" in failures[0].getMessage()
    assert consumer.stop(SOON)


def test_exchange_that_leads_nowhere_loses_nothing(
    connection: Connection, broker_kind: Kind, unique: str
) -> None:
    """RabbitMQ would not say."""
    if broker_kind.title == "AMQP":
        pytest.skip("RabbitMQ drops what its dead-letter exchange drops")
    queue = Queue(unique, durable=True, queue_arguments={"x-dead-letter-exchange": "nowhere"})
    consumer = consuming(queue, fail, connection=connection)
    greenconn.publish(queue, TEXT, connection=connection)
    assert got(connection, f"{unique}.dead").payload == TEXT
    assert consumer.stop(SOON)


def test_losing_a_message_is_asked_for(connection: Connection, unique: str) -> None:
    consumer = consuming(unique, fail, connection=connection, on_error="discard")
    greenconn.publish(unique, TEXT, connection=connection)
    until(partial(has_given_up, consumer), SOON)
    assert consumer.stop(SOON)
    with connection.channel() as channel:
        assert channel.queue_declare(unique, passive=True).message_count == 0
    with connection.channel() as channel, pytest.raises(connection.channel_errors):
        channel.queue_declare(f"{unique}.dead", passive=True)


@pytest.mark.parametrize("consumes_first", [False, True])
@pytest.mark.parametrize(
    ("consumed", "published"),
    [(None, True), (True, None), (False, True), (True, False), ("own", True), (False, "own")],
)
@pytest.mark.sampled(36)
def test_forms_of_dead_letter_mix(
    connection: Connection,
    broker_kind: Kind,
    unique: str,
    consumed: str | bool | None,
    published: str | bool | None,
    consumes_first: bool,
) -> None:
    """A name, a Queue, one with dead letters, and one with dead letters in a queue of its own."""

    def target(form: str | bool | None) -> str | Queue:
        if form is None:
            return unique
        return Queue(unique, dead_letter=f"{unique}-own" if form == "own" else form)

    def publish() -> None:
        with connection.clone() as other:  # as another program does
            greenconn.publish(target(published), TEXT, connection=other, declare=True)

    if not consumes_first:
        publish()
    consumer = consuming(
        target(consumed),
        fail,
        connection=connection,
        dead_letter=True if consumed is None else None,
    )
    if consumes_first:
        publish()
    kept = f"{unique}-own" if consumed == "own" else f"{unique}.dead"
    if published == "own" and not consumes_first and broker_kind.title != "SQS":
        # By the broker: it is not this consumer's option.  Each client of SQS knows its own only.
        kept = f"{unique}-own"
    assert got(connection, kept).payload == TEXT
    assert consumer.stop(SOON)


def test_queue_of_dead_letters_may_have_arguments_of_its_own(
    connection: Connection, unique: str
) -> None:
    with connection.clone() as other, other.channel() as channel:
        Queue(f"{unique}.dead", message_ttl=3600)(channel).declare()
    queue = Queue(unique, dead_letter=True)
    consumer = consuming(queue, fail, connection=connection)
    greenconn.publish(queue, TEXT, connection=connection)
    assert got(connection, f"{unique}.dead").payload == TEXT
    assert consumer.stop(SOON)
