"""Dead letters, seen, counted, published again and deleted, on every transport."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import gevent
import pytest
from gevent.queue import Queue as GreenQueue

import greenconn
from greenconn.cli import main
from greenconn.connection import Connection
from greenconn.entity import Queue
from tests.fix_wires import until
from tests.integration.capabilities import connection_of_kind  # noqa: F401 - ``connection``
from tests.receiving import consuming

SOON = 60.0


def fill(connection: Connection, queue: Any, count: int = 4) -> None:
    """Make dead letters, every second one with another error."""

    def fail(body: int, message: Any) -> None:
        raise (KeyError if body % 2 else ValueError)(f"no {body}")

    consumer = consuming(queue, fail, connection=connection, dead_letter=True)
    greenconn.publish_many(queue, list(range(count)), connection=connection)
    until(lambda: consumer.stats()["rejected"] == count)
    assert consumer.stop(SOON)


def test_dead_letters_are_seen_replayed_and_purged(connection: Connection, unique: str) -> None:
    dead = greenconn.dead_letters(unique, connection=connection)
    assert dead.count() == 0
    assert dead.look() == []
    assert dead.replay() == 0
    assert dead.purge() == 0
    fill(connection, unique)
    until(lambda: dead.count() == 4)
    for _ in range(2):  # looking changes nothing
        letters = dead.look()
        assert sorted(each.message.payload for each in letters) == [0, 1, 2, 3]
        assert {each.error for each in letters} == {"builtins.KeyError", "builtins.ValueError"}
        assert {each.reason for each in letters} == {"failed"}
        assert {each.attempts for each in letters} == {1}
        assert {each.queue for each in letters} == {unique}
        until(lambda: dead.count() == 4)
    assert len(dead.look(1)) == 1

    got: GreenQueue[Any] = GreenQueue()
    consumer = consuming(
        unique, lambda body, message: got.put((body, message)), connection=connection
    )
    until(lambda: dead.count() == 4)
    assert dead.replay(lambda each: each.error == "builtins.KeyError") == 2
    found = [got.get(timeout=SOON) for _ in range(2)]
    assert sorted(body for body, _ in found) == [1, 3]
    headers = found[0][1].headers
    assert headers["x-greenconn-attempts"] == 0
    assert "x-greenconn-error" not in headers
    assert "x-death" not in headers
    until(lambda: dead.count() == 2)
    assert dead.replay(limit=1, rate=100.0) == 1
    assert got.get(timeout=SOON)[0] in (0, 2)
    until(lambda: dead.count() == 1)
    assert dead.purge() in (0, 1)  # SQS does not tell
    until(lambda: dead.count() == 0)
    assert consumer.stop(SOON)


def test_first_failure_of_a_retry_held_in_the_process(connection: Connection, unique: str) -> None:
    times: list[datetime] = []

    def fail(body: object, message: object) -> None:
        times.append(datetime.now(timezone.utc))
        raise KeyError("no")

    retry = greenconn.Retry(tries=3, delay=0.05, hold="process")
    consumer = consuming(unique, fail, connection=connection, dead_letter=True, retry=retry)
    greenconn.publish(unique, "x", connection=connection)
    until(lambda: consumer.stats()["rejected"] == 1)
    assert consumer.stop(SOON)
    dead = greenconn.dead_letters(unique, connection=connection)
    until(lambda: dead.count() == 1)
    (letter,) = dead.look()
    assert letter.attempts == 3
    assert datetime.fromisoformat(letter.first_failure or "") < times[1]


def test_queue_declares_where_its_dead_letters_go(connection: Connection, unique: str) -> None:
    queue = Queue(unique, dead_letter=True)
    assert (queue.queue_arguments or {})["x-dead-letter-routing-key"] == f"{unique}.dead"
    channel = connection.default_channel
    queue(channel).declare()
    greenconn.publish(queue, "x", connection=connection)
    with gevent.Timeout(SOON):
        while (message := channel.basic_get(unique)) is None:
            gevent.sleep(0.02)
    message.reject()
    dead = greenconn.dead_letters(queue, connection=connection)
    assert dead.name == f"{unique}.dead"
    until(lambda: dead.count() == 1)
    (letter,) = dead.look()
    assert (letter.queue, letter.reason, letter.attempts) == (unique, "rejected", 0)
    assert dead.replay() == 1
    with gevent.Timeout(SOON):
        while (message := channel.basic_get(unique)) is None:
            gevent.sleep(0.02)
    assert message.payload == "x"
    assert "x-death" not in message.headers
    message.ack()


def test_one_that_cannot_be_published_stays(connection: Connection, unique: str) -> None:
    fill(connection, unique, 2)
    dead = greenconn.dead_letters(unique, connection=connection)
    until(lambda: dead.count() == 2)
    with pytest.raises(greenconn.exceptions.Unroutable):
        dead.replay(target=f"{unique}-missing")
    until(lambda: dead.count() == 2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"limit": 0}, "limit must be a positive integer or None, got 0"),
        ({"rate": 0}, "rate must be a number above 0 or None, got 0"),
    ],
)
def test_wrong_replay(amqp_url: str, options: dict[str, Any], text: str) -> None:
    with Connection(amqp_url) as connection:
        with pytest.raises(ValueError, match=text):
            greenconn.dead_letters("q", connection=connection).replay(**options)
        with pytest.raises(ValueError, match="queue must be the name"):
            greenconn.dead_letters("", connection=connection)


def test_command_line(amqp_url: str, unique: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Connection(amqp_url) as connection:
        fill(connection, unique)
        dead = greenconn.dead_letters(unique, connection=connection)
        until(lambda: dead.count() == 4)
        assert main(["dead", "count", unique, "-u", amqp_url]) == 0
        assert capsys.readouterr().out == "4\n"
        assert main(["dead", "look", unique, "-n", "1", "--json", "-u", amqp_url]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["reason"], shown["text"], shown["body"]) == ("failed", "no 0", 0)
        assert main(["dead", "look", unique, "-n", "2", "-u", amqp_url]) == 0
        seen = capsys.readouterr()
        assert seen.err == f"{unique}.dead: 2 of 4 messages\n"
        first, _, rest = seen.out.partition("\n\n")
        assert [line.split(maxsplit=1) for line in first.splitlines()[:4]] == [
            ["#1", "failed"],
            ["error", "builtins.ValueError"],
            ["text", "no 0"],
            ["attempts", "1"],
        ]
        assert first.endswith("\n  0")
        assert rest.startswith("#2  failed\n")
        assert main(["dead", "replay", unique, "--error", "KeyError", "-u", amqp_url]) == 0
        assert capsys.readouterr().out == f"replayed 2 messages of {unique}.dead\n"
        assert main(["dead", "purge", unique, "--yes", "-u", amqp_url]) == 0
        assert capsys.readouterr().out == f"purged 2 messages of {unique}.dead\n"
        assert dead.count() == 0
