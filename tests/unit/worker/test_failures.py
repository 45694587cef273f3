"""The header with the number of attempts, which any publisher can write."""

from __future__ import annotations

from typing import Any

import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection
from greenconn.message import Message
from greenconn.worker.failures import ATTEMPTS, MOST_ATTEMPTS, attempts_of


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

    with Connection("memory://forged-attempts") as connection:
        retry = greenconn.Retry(delay=0.0)
        consumer = greenconn.spawn_consumer("forged", handle, connection=connection, retry=retry)
        greenconn.publish("forged", 1, connection=connection, headers={ATTEMPTS: 2**62})
        assert handled.wait(10)
        assert consumer.stop(10)


@pytest.mark.parametrize("keys", [{"a": 1}, 5, [], [7], "text", None])
def test_a_strange_death_does_not_stop_the_replay(keys: Any) -> None:
    deaths = [{"queue": "mended", "routing-keys": keys, "exchange": 5}]
    with Connection("memory://strange-deaths") as connection:
        for body in (1, 2):
            headers = {"x-death": deaths} if body == 1 else None
            greenconn.publish(
                "mended.dead", body, connection=connection, headers=headers, declare=True
            )
        with connection.channel() as channel:
            channel.queue_declare("mended")
            assert greenconn.dead_letters("mended", connection=connection).replay() == 2
            assert channel.queue_purge("mended") == 2
