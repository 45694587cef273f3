"""Stalled consumers at real brokers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gevent.event import Event

from greenconn import health
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.publishing import publish
from greenconn.service.health import Watchdog
from greenconn.worker import spawn_consumer
from tests.fix_wires import until

SOON = 60.0


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    """One that is quick to find something."""
    watchdog = Watchdog(1.0)
    yield watchdog
    watchdog.stop()


def stalled() -> list[str]:
    """Names of consumers that a probe calls stalled."""
    return [each.name for each in health.check().reasons if each.state == "stalled"]


@pytest.mark.parametrize("broker", ["amqp", "redis"])
def test_stuck_handlers_are_found_and_forgotten(
    broker: str, unique: str, watchdog: Watchdog, request: pytest.FixtureRequest
) -> None:
    go_on = Event()

    def handle(body: Any, message: Any) -> None:
        go_on.wait(SOON)

    with Connection(request.getfixturevalue(f"{broker}_url")) as connection:
        queue = Queue(unique, expires=120)
        busy = spawn_consumer(queue, handle, connection=connection, prefetch_count=2, name="busy")
        idle = spawn_consumer(
            Queue(f"{unique}-idle", expires=120), handle, connection=connection, name="idle"
        )
        assert busy.wait_ready(SOON)
        assert idle.wait_ready(SOON)
        for number in range(4):
            publish(unique, number, connection=connection)
        until(lambda: stalled() == ["busy"], SOON)
        go_on.set()
        until(lambda: busy.stats()["handled"] == 4, SOON)
        until(lambda: not stalled(), SOON)
        assert health.check().is_ready
        assert busy.stop(SOON)
        assert idle.stop(SOON)
        for name in (unique, f"{unique}-idle"):
            connection.default_channel.queue_delete(name)


def test_a_consumer_that_the_broker_leaves_out_is_found(
    amqp_url: str, unique: str, watchdog: Watchdog
) -> None:
    """Another one has the queue to itself, which who knows only its name cannot see."""
    go_on = Event()
    arguments = {"x-single-active-consumer": True, "x-expires": 120_000}
    queue = Queue(unique, queue_arguments=arguments)

    def handle(body: Any, message: Any) -> None:
        go_on.wait(SOON)

    with (
        Connection(amqp_url) as connection,
        Connection(amqp_url) as other,
        Connection(amqp_url) as third,
    ):
        active = spawn_consumer(queue, handle, connection=other, prefetch_count=1, name="active")
        assert active.wait_ready(SOON)
        waiting = spawn_consumer(unique, handle, connection=connection, name="waiting")
        knowing = spawn_consumer(queue, handle, connection=third, name="knowing")
        assert waiting.wait_ready(SOON)
        assert knowing.wait_ready(SOON)
        for number in range(3):
            publish(unique, number, connection=other)
        until(lambda: stalled() == ["waiting"], SOON)
        (reason,) = health.check().reasons
        assert "look at the consumers of the queue at the broker" in reason.remedy
        go_on.set()
        until(lambda: not stalled(), SOON)
        for each in (waiting, knowing, active):
            assert each.stop(SOON)
        connection.default_channel.queue_delete(unique)
