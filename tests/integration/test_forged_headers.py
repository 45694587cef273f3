"""Headers that the library reads, with values that any publisher can write, on each way of a message.

Each message is handled, retried, kept as a dead letter, shown by the command line and replayed.  No
header ends a consumer, blocks the hub, stops what is behind its message, or sends it anywhere.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

import greenconn
from greenconn import Connection
from greenconn.cli import main
from tests.fix_wires import until
from tests.integration.capabilities import connection_of_kind  # noqa: F401 - ``connection``
from tests.integration.test_malformed_parts import put

SOON = 30.0
#: What is read anywhere.
NAMES = [
    *("x-greenconn-attempts", "x-greenconn-first-failure", "x-greenconn-exchange"),
    *("x-greenconn-routing-key", "x-greenconn-reason", "x-greenconn-error"),
    *("x-greenconn-claim", "x-greenconn-waited"),
    *("x-greenconn-error-text", "x-greenconn-traceback", "x-greenconn-queue"),
    *("x-death", "x-first-death-queue", "x-first-death-reason", "x-first-death-exchange"),
    *("x-last-death-queue", "x-delivery-count", "x-stream-offset", "redelivered", "x-delay"),
    *("CC", "BCC", "compression", "ticket", "expires", "clock", "eta", "sentry-trace", "baggage"),
]
#: Values that each broker stores.
VALUES: list[Any] = [
    *(2**62, -(2**62), 0, -1, 1.5, 1e300, True, None),
    *("", "other", "\x1b[31m\x07\x9b31m\r\0", "x" * 20_000),
    *([], {}, [[[[]]]], [1, "other"], ["\ud800"], {"a": {"b": [1]}}),
    [{"queue": "other", "reason": "expired", "count": 2**62, "routing-keys": 5, "exchange": []}],
    [{"queue": [], "reason": {}, "count": "many"}, 5, {"queue": "other", "count": -5}],
]
#: Values that only JSON or only AMQP has.
OF_JSON: list[Any] = [float("nan"), float("inf"), 10**300, "\ud800"]
OF_AMQP: list[Any] = [b"\xff\xfe", datetime(2026, 1, 2)]


def forged(connection: Connection) -> list[dict[str, Any]]:
    """Return the headers of the messages."""
    values = [*VALUES, *(OF_AMQP if connection.transport_cls in ("amqp", "memory") else OF_JSON)]
    found = [{name: value} for name in NAMES for value in values]
    obeyed = {"amqp": {"CC", "BCC"}, "memory": {"CC", "BCC", "x-delay"}}  # when they are published
    return [each for each in found if not each.keys() & obeyed.get(connection.transport_cls, set())]


def publish_all(connection: Connection, queue: str) -> int:
    """Publish messages with all headers, and return how many."""
    cases = forged(connection)
    with connection.channel() as channel:
        for name in (queue, f"{queue}.other"):
            channel.queue_declare(name, durable=True, auto_delete=False)
        if connection.transport_cls in ("amqp", "memory"):
            for number, headers in enumerate(cases):
                body = json.dumps({"number": number})
                message = channel.prepare_message(body, 0, "application/json", "utf-8", headers)
                channel.basic_publish_confirm(message, "", queue)
        else:
            put(connection, queue, [{"headers": headers} for headers in cases])
        return int(channel.queue_declare(queue, passive=True).message_count)


@pytest.mark.parametrize("hold", ["process", "broker"])
@pytest.mark.parametrize(
    "broker_kind", ["memory", "amqp", "redis", "sqlite", "beanstalk"], indirect=True
)
@pytest.mark.sampled(2)
def test_forged_headers_on_each_way(
    connection: Connection,
    unique: str,
    hold: Any,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("CRITICAL", "greenconn")  # each failure has its line
    count = publish_all(connection, unique)
    assert count > 300
    calls: list[Any] = []

    def fail(body: Any, message: Any) -> None:
        calls.append(message.delivery_count)
        raise ValueError("fails")

    retry = greenconn.Retry(tries=2, delay=0.01, jitter=False, hold=hold)
    consumer = greenconn.spawn_consumer(
        unique, fail, connection=connection, retry=retry, dead_letter=True, concurrency=20
    )
    dead = greenconn.dead_letters(unique, connection=connection)
    until(lambda: dead.count() == count, SOON)
    assert consumer.stop(SOON)
    letters = dead.look(count)
    assert len(letters) == count
    assert all(isinstance(each.attempts, int) and each.attempts >= 0 for each in letters)
    assert {each.queue for each in letters} == {unique}
    until(lambda: dead.count() == count, SOON)
    if connection.transport_cls in ("amqp", "sqlite") and hold == "process":
        url = connection.as_uri(include_password=True)
        for words in (["dead", "look", unique], ["peek", dead.name], ["peek", unique]):
            for options in ([], ["--json"]):
                assert main([*words, "-n", "1000", "-u", url, *options]) == 0
                out = capsys.readouterr().out
                assert not {"\x1b", "\x07", "\x9b"} & set(out)
                if options:
                    assert all(isinstance(json.loads(line), dict) for line in out.splitlines())
                until(lambda: dead.count() == count, SOON)
    assert dead.replay() == count
    handled: list[Any] = []

    def handle(body: Any, message: Any) -> None:
        handled.append(message.headers)

    consumer = greenconn.spawn_consumer(
        unique, handle, connection=connection, retry=retry, concurrency=20
    )
    unread = len(OF_JSON + VALUES)
    until(lambda: consumer.stats()["handled"] + consumer.stats()["rejected"] == count, SOON)
    assert len(handled) > count - unread  # those that are said to be compressed
    assert consumer.stop(SOON)
    with connection.channel() as channel:
        assert channel.queue_declare(f"{unique}.other", passive=True).message_count == 0
