"""What a message holds writes no line of the log: a name of its own is quoted there, and cut."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import greenconn
from greenconn.connection import Connection
from greenconn.contrib.idempotency import MemoryIds, handled_once
from greenconn.entity import Queue
from greenconn.options import Retry
from greenconn.pidbox import Mailbox
from tests.fix_wires import until

SOON = 30.0
FORGED = "x\n2026-01-01 ERROR an invented line \x1b[2J"
MESSAGES: tuple[dict[str, Any], ...] = (
    {"message_id": FORGED},
    {"message_id": FORGED},
    {"content_type": FORGED},
    {"content_type": FORGED, "headers": {"compression": FORGED}},
    {"content_encoding": FORGED},
    {"correlation_id": FORGED, "reply_to": FORGED},
    {"type": FORGED, "app_id": FORGED},
    {"headers": {"traceparent": FORGED, "baggage": FORGED, "x-attempts": FORGED, FORGED: FORGED}},
    {"headers": {"x-death": [{"queue": FORGED, "exchange": FORGED, "reason": FORGED, "count": 1}]}},
)


def send(connection: Connection, queue: str, headers: Any = None, **properties: Any) -> None:
    """Send a message as no publisher of ours makes it."""
    channel = connection.default_channel
    content_type = properties.pop("content_type", "text/plain")
    encoding = properties.pop("content_encoding", "utf-8")
    message = channel.prepare_message(b"x", 0, content_type, encoding, headers or {}, properties)
    channel.basic_publish(message, "", queue)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the library logs, to the last detail."""
    caplog.set_level(logging.DEBUG, "greenconn")
    return caplog


def check(log: pytest.LogCaptureFixture) -> None:
    """Each message of the log is one line that any terminal may show."""
    texts = [record.getMessage() for record in log.records if record.name.startswith("greenconn.")]
    assert texts
    assert [each for each in texts if not each.isprintable() or len(each) > 1500] == []


def refuse(body: Any, message: Any) -> None:
    """A handler that fails with a text of its publisher's."""
    raise ValueError(FORGED)


@handled_once(MemoryIds())
def accept(body: Any, message: Any) -> None:
    """A handler that is called once for each id."""


@pytest.mark.parametrize("handler", [refuse, accept])
def test_handlers(broker_kind: Any, kind_url: str, unique: str, log: Any, handler: Any) -> None:
    with Connection(kind_url) as connection:
        queue = Queue(unique)
        queue(connection.default_channel).declare()
        retry = Retry(tries=2, delay=0.01)
        consumer = greenconn.spawn_consumer(queue, handler, connection=connection, retry=retry)
        for properties in MESSAGES:
            send(connection, unique, **properties)

        def ended() -> int:
            stats = consumer.stats()
            return int(stats["handled"] + stats["rejected"])

        until(lambda: ended() >= len(MESSAGES), SOON)
        consumer.stop()
    check(log)


def test_commands(unique: str, log: Any) -> None:
    with Connection("memory://") as connection:
        node = Mailbox(unique)(connection).Node("a", handlers={})
        node.dispatch(FORGED)
        node.dispatch("x" * 100_000)
        node.handle_message({"method": FORGED, "pattern": FORGED, "matcher": FORGED})
    assert len(log.records) >= 3
    check(log)
