"""The watchdog for consumers that get nothing although their queues hold messages."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn import health
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.publishing import publish
from greenconn.service.health import Watchdog
from greenconn.transport import memory
from greenconn.worker import ConsumerGreenlet, spawn_consumer
from tests.fix_wires import until
from tests.receiving import consuming

SOON = 30.0


@pytest.fixture
def connection(unique: str) -> Iterator[Connection]:
    """A connection to a broker that no other test uses."""
    with Connection(f"memory:///{unique}") as connection:
        yield connection
    memory.reset(unique)


@contextmanager
def watching(**options: Any) -> Iterator[Watchdog]:
    watchdog = Watchdog(0.2, **options)
    try:
        yield watchdog
    finally:
        watchdog.stop()


class Stuck:
    """A handler that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.entered, self.go_on = Event(), Event()

    def __call__(self, body: Any, message: Any) -> None:
        self.entered.set()
        self.go_on.wait(SOON)


def state_of(consumer: ConsumerGreenlet) -> str:
    """The state of a consumer as a probe would tell it."""
    name = consumer.lifecycle.options.name
    (found,) = (each for each in health.check().consumers if each.name == name)
    return found.state if found.reason is None else found.reason.state


@pytest.mark.parametrize("is_fatal", [False, True])
def test_handlers_that_are_stuck_are_found(
    connection: Connection, unique: str, is_fatal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    handle = Stuck()
    consumer = consuming(unique, handle, connection=connection, prefetch_count=2)
    for number in range(4):
        publish(unique, number, connection=connection)
    assert handle.entered.wait(SOON)
    assert state_of(consumer) == "running"
    with watching(is_fatal=is_fatal):
        until(lambda: state_of(consumer) == "stalled", SOON)
        (reason,) = health.check().reasons
        assert (reason.what, reason.name) == ("consumer", unique)
        assert "it has 2 that its handlers do not finish" in str(reason.why)
        assert "greenconn.debug.dump()" in reason.remedy
        assert reason.needs_restart is is_fatal
        assert health.check().is_live is not is_fatal
        assert not health.check().is_ready
        gevent.sleep(0.3)  # it is logged once
        records = [each for each in caplog.records if "is stalled" in each.getMessage()]
        assert [(each.levelno, vars(each)["queue"]) for each in records] == [
            (logging.ERROR, unique)
        ]
        handle.go_on.set()
        until(lambda: state_of(consumer) == "running", SOON)
        until(lambda: consumer.stats()["handled"] == 4, SOON)
    assert consumer.stop(SOON)


def test_consumers_that_have_nothing_to_do_are_well(
    connection: Connection, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[Any] = []
    consumer = spawn_consumer(
        unique, lambda body, message: handled.append(body), connection=connection
    )
    paused = spawn_consumer(f"{unique}-paused", print, connection=connection)
    assert consumer.wait_ready(SOON)
    assert paused.wait_ready(SOON)
    assert paused.pause(SOON)
    publish(f"{unique}-paused", 1, connection=connection)
    publish(unique, 1, connection=connection)
    until(lambda: handled == [1], SOON)
    looks: list[Any] = []
    look = Watchdog._look
    monkeypatch.setattr(Watchdog, "_look", lambda self: looks.append(look(self)))
    with watching():
        until(lambda: len(looks) > 8, SOON)
    assert health.check().is_ready
    assert consumer.stop(SOON)
    assert paused.stop(SOON)


def test_a_queue_that_another_has_to_itself_is_left_out(
    connection: Connection, unique: str
) -> None:
    queue = Queue(unique, queue_arguments={"x-single-active-consumer": True})
    consumer = consuming(queue, print, connection=connection)
    (subscription,) = consumer.lifecycle._queues
    assert subscription.is_shown_to_others(subscription.arguments or {})
    assert subscription.is_shown_to_others({"x-queue-type": "stream"})
    assert not subscription.is_shown_to_others({"x-queue-type": "quorum"})
    assert consumer.stop(SOON)


def test_a_watchdog_may_be_stopped_while_it_looks(
    connection: Connection, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Event()

    def has_waiting_messages(self: Any, deadline: Any) -> bool:
        asked.set()
        gevent.sleep(SOON)
        return True

    monkeypatch.setattr(
        "greenconn.worker.lifecycle.ConsumerLifecycle.has_waiting_messages", has_waiting_messages
    )
    consumer = consuming(unique, print, connection=connection)
    with watching() as watchdog:
        assert asked.wait(SOON)
        looking = watchdog._looking.greenlet
        assert looking is not None
    looking.join(SOON)
    assert looking.dead
    watchdog.stop()
    assert consumer.stop(SOON)


def test_a_broker_that_does_not_say_is_no_stall(
    connection: Connection, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def refuse(self: Any, deadline: Any) -> bool:
        asked.append(deadline)
        raise OSError("away")

    monkeypatch.setattr("greenconn.worker.lifecycle.ConsumerLifecycle.has_waiting_messages", refuse)
    consumer = consuming(unique, print, connection=connection)
    with watching():
        until(lambda: len(asked) > 6, SOON)
        assert state_of(consumer) == "running"
    assert consumer.stop(SOON)


@pytest.mark.parametrize("after", [0, -1.0])
def test_the_time_must_be_above_zero(after: float) -> None:
    with pytest.raises(ValueError, match="after must be above 0 s"):
        Watchdog(after)
