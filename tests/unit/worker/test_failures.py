"""The headers of failures, which any publisher can write."""

from __future__ import annotations

from typing import Any

import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection
from greenconn.exceptions import PublishRefused
from greenconn.message import Message
from greenconn.transport.memory import reset
from greenconn.worker.failures import ATTEMPTS, MOST_ATTEMPTS, QUEUE, attempts_of, count_of


@pytest.mark.parametrize(
    ("value", "attempts"),
    [(3, 3), (0, 0), (-(2**62), 0), (2**62, MOST_ATTEMPTS), ("9", 0), (1e300, 0), ([1], 0)],
)
def test_attempts_are_bounded(value: Any, attempts: int) -> None:
    assert attempts_of(Message(headers={ATTEMPTS: value})) == attempts


def test_a_forged_count_does_not_block_the_hub() -> None:
    handled = Event()

    def handle(body: Any, message: Any) -> None:
        handled.set()
        raise ValueError("fails")

    with Connection("memory:///forged-attempts") as connection:
        retry = greenconn.Retry(delay=0.0)
        consumer = greenconn.spawn_consumer("forged", handle, connection=connection, retry=retry)
        greenconn.publish("forged", 1, connection=connection, headers={ATTEMPTS: 2**62})
        assert handled.wait(10)
        assert consumer.stop(10)


@pytest.mark.parametrize("keys", [{"a": 1}, 5, [], [7], "text", None])
def test_a_strange_death_does_not_stop_the_replay(keys: Any) -> None:
    deaths = [{"queue": "mended", "routing-keys": keys, "exchange": 5}]
    with Connection("memory:///strange-deaths") as connection:
        for body in (1, 2):
            headers = {"x-death": deaths} if body == 1 else None
            greenconn.publish(
                "mended.dead", body, connection=connection, headers=headers, declare=True
            )
        with connection.channel() as channel:
            channel.queue_declare("mended")
            assert greenconn.dead_letters("mended", connection=connection).replay() == 2
            assert channel.queue_purge("mended") == 2


def dead(connection: Connection, *headers: dict[str, Any], queue: str = "mine") -> Any:
    """Return the dead letters of a queue, which is there, with these headers."""
    for number, each in enumerate(headers):
        greenconn.publish(
            f"{queue}.dead", number, connection=connection, headers=each, declare=True
        )
    with connection.channel() as channel:
        for name in (queue, "other"):
            channel.queue_declare(name, auto_delete=False)
    return greenconn.dead_letters(queue, connection=connection)


def waiting(connection: Connection, queue: str) -> int:
    with connection.channel() as channel:
        return count_of(channel, queue)


@pytest.mark.parametrize(
    "headers", [{QUEUE: "other"}, {"x-death": [{"queue": "other", "reason": "rejected"}]}]
)
def test_a_forged_queue_does_not_choose_where_a_replay_goes(
    headers: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with Connection("memory:///forged-queue") as connection:
        letters = dead(connection, headers, {}, {QUEUE: "mine"}, {QUEUE: 5})
        assert letters.replay() == 3
        assert (waiting(connection, "mine"), waiting(connection, "other")) == (3, 0)
        assert letters.count() == 1
        (record,) = [each for each in caplog.records if each.name == "greenconn.worker"]
        assert record.getMessage() == (
            "1 dead letters in queue 'mine.dead' are of other queues ('other') and were not "
            "replayed: replay them by the name of their queue, or name a target"
        )
        named = greenconn.dead_letters("other", name="mine.dead", connection=connection)
        assert named.replay(limit=1) == 1
        assert waiting(connection, "other") == 1
    reset("forged-queue")


def test_one_that_cannot_be_sent_does_not_stop_the_replay_of_those_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Connection("memory:///unsendable") as connection:
        letters = dead(connection, {}, {}, {})
        with connection.channel() as channel:
            message = channel.prepare_message("0", properties={"expiration": "soon"})
            taken = [channel.basic_get("mine.dead") for _ in range(3)]
            # Past the check of a publish: another program may have stored it.
            taken[0].entry.envelope = {**message}
            for each in taken:
                each.requeue()
        with pytest.raises(PublishRefused, match="invalid expiration 'soon'"):
            letters.replay()
        assert (waiting(connection, "mine"), letters.count()) == (2, 1)
        assert "cannot be published again, and stays" in caplog.text
    reset("unsendable")


def test_a_replay_sends_no_copies_and_does_not_wait() -> None:
    headers = {"CC": ["other"], "BCC": ["other"], "x-delay": 3_600_000, "mine": 1}
    with Connection("memory:///obeyed") as connection:
        dead(connection)
        with connection.channel() as channel:
            channel.queue_declare("mine.dead", auto_delete=False)
            channel.basic_publish(
                channel.prepare_message("x", headers={"mine": 1}), "", "mine.dead"
            )
            message = channel.basic_get("mine.dead")
            message.entry.envelope = {**message.entry.envelope, "headers": headers}
            message.requeue()
            assert greenconn.dead_letters("mine", connection=connection).replay() == 1
            message = channel.basic_get("mine", no_ack=True)
            assert message.headers["mine"] == 1
            assert not headers.keys() - {"mine"} & message.headers.keys()
        assert waiting(connection, "other") == 0
    reset("obeyed")
