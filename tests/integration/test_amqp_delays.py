"""Delayed messages on RabbitMQ: levels, landing queues, and what they cannot keep."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import gevent
import pytest

import greenconn
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.transport.native_delayed_delivery import (
    LONGEST_DELAY,
    MAX_LEVEL,
    PREFIX,
    landing_queue,
    level_name,
    without_former_delays,
)

SOON = 30.0


def test_what_rabbitmq_cannot_keep(amqp_url: str, unique: str) -> None:
    with Connection(amqp_url) as connection:
        Queue(unique, exclusive=True)(connection.default_channel).declare()
        for options, text in (
            ({"delay": LONGEST_DELAY + 1}, f"delay must be at most {LONGEST_DELAY} seconds"),
            ({"delay": 1, "expires": 5}, "expiration must be None with a delay"),
            ({"delay": 1, "headers": {"CC": ["a"]}}, "header CC must not be set with a delay"),
        ):
            with pytest.raises(ValueError, match=text):
                greenconn.publish(unique, "x", connection=connection, **options)


@pytest.mark.parametrize(
    ("exchange", "key"), [("", "a/b"), ("x", "k.#"), ("", "*"), ("", "ü" * 100), ("x" * 200, "k")]
)
def test_landing_queue_has_no_wildcards_and_room_for_the_digits(exchange: str, key: str) -> None:
    name = landing_queue(exchange, key)
    assert len(name.encode()) < 255 - 2 * 28
    assert not set(name) & set("*#")
    assert name != landing_queue(exchange, key + "x") != landing_queue("other", key)


def test_levels_are_declared_once_a_link(amqp_url: str, unique: str) -> None:
    with Connection(amqp_url) as connection:
        channel = connection.default_channel
        Queue(unique, exclusive=True)(channel).declare()
        greenlets = [
            gevent.spawn(greenconn.publish, unique, n, connection=connection, delay=1)
            for n in range(20)
        ]
        gevent.joinall(greenlets, timeout=SOON, raise_error=True)
        got: set[Any] = set()
        with gevent.Timeout(SOON):
            while len(got) < 20:
                message = channel.basic_get(unique, no_ack=True)
                if message is None:
                    gevent.sleep(0.05)
                else:
                    got.add(message.payload)
        channel.queue_delete(landing_queue("", unique))


@pytest.mark.parametrize(("delay", "highest"), [(1, 0), (1.5, 1), (3, 1), (2**20, 20)])
def test_a_delayed_message_passes_no_level_above_its_delay(
    amqp_url: str, unique: str, delay: float, highest: int
) -> None:
    landing = landing_queue("", unique)
    with Connection(amqp_url) as connection:
        channel = connection.default_channel
        for name in (unique, f"{unique}-levels"):
            Queue(name, exclusive=True)(channel).declare()
        greenconn.publish(unique, "first", connection=connection, delay=1)  # declares the levels
        for level in range(highest, MAX_LEVEL + 1):
            channel.queue_bind(f"{unique}-levels", level_name(level, PREFIX), f"#.{landing}")
        greenconn.publish(unique, "second", connection=connection, delay=delay)
        passed = [channel.basic_get(f"{unique}-levels", no_ack=True) for _ in range(2)]
        assert passed[0].delivery_info["exchange"] == level_name(highest, PREFIX)
        assert passed[1] is None
        channel.queue_delete(landing)


def test_traces_of_a_former_delay_are_taken_off() -> None:
    other: dict[str, Any] = {
        "queue": "mail",
        "reason": "rejected",
        "exchange": "",
        "routing-keys": ["mail"],
        "count": 2,
        "time": datetime(2026, 1, 2),
    }
    own = {**other, "queue": "greenconn_celery_delayed_3", "reason": "expired"}
    headers = {
        "a": 1,
        "x-death": [own, {"queue": landing_queue("", "mail")}],
        "x-first-death-queue": "greenconn_celery_delayed_3",
        "x-first-death-reason": "expired",
        "x-first-death-exchange": "",
        "x-last-death-queue": "mail",
    }
    assert without_former_delays(headers) == {"a": 1, "x-last-death-queue": "mail"}
    assert without_former_delays({"x-death": [own, other]}) == {"x-death": [other]}
    assert without_former_delays({"x-death": [other]}, "mail") == {"x-death": [other]}
    circle = {**other, "reason": "expired"}
    assert without_former_delays({"x-death": [circle]}) == {"x-death": [circle]}
    assert without_former_delays({"x-death": [circle, other]}, "mail") == {"x-death": [other]}


FORGED: dict[str, list[Any]] = {
    "queue": [5, [], None],
    "reason": [5, [], {}, "nothing", None],
    "exchange": [5, [], None],
    "routing-keys": [5, {}, [5], None],
    "count": ["many", 0, -5, 2**62, 1.5, None],
    "time": [5, "soon", None],
}


@pytest.mark.parametrize(
    "forged", [{name: value} for name, values in FORGED.items() for value in values], ids=str
)
def test_a_forged_death_is_taken_off(forged: dict[str, Any]) -> None:
    death = {
        "queue": "mail",
        "reason": "expired",
        "exchange": "",
        "routing-keys": [],
        "count": 1,
        "time": datetime(2026, 1, 2),
    }
    assert without_former_delays({"a": 1, "x-death": [{**death, **forged}]}) == {"a": 1}
    assert without_former_delays({"x-death": [5, death, "x"]}) == {"x-death": [death]}
    assert without_former_delays({"x-death": forged, "x-first-death-queue": []}) == {}
