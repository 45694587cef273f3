"""The end of a process: handlers finish in time, publishes are confirmed, connections are closed."""

from __future__ import annotations

import logging
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn.green.deadline import Deadline
from greenconn.service.app import stop_and_close, time_for_handlers
from greenconn.session.session import sessions_in_use
from greenconn.testing import MemoryBroker

SOON = 20.0


@pytest.mark.parametrize(("given", "left"), [(0.0, 0.0), (4.0, 3.0), (8.0, 6.0), (30.0, 28.0)])
def test_time_for_handlers(given: float, left: float) -> None:
    assert time_for_handlers(given) == left


def test_a_running_handler_finishes_and_may_publish() -> None:
    begun, release = Event(), Event()

    def handle(body: Any, message: Any) -> None:
        begun.set()
        release.wait(SOON)
        greenconn.publish("done", body)

    with MemoryBroker() as broker:
        greenconn.spawn_consumer("mail", handle)
        greenconn.publish("mail", 1)
        assert begun.wait(SOON)
        stopping = gevent.spawn(stop_and_close, Deadline(SOON))
        gevent.sleep(0)
        assert not stopping.ready()
        release.set()
        assert stopping.get(timeout=SOON) is True
        assert sessions_in_use() == []
        assert broker.bodies("done") == [1]


def test_a_handler_that_does_not_end_is_interrupted(caplog: pytest.LogCaptureFixture) -> None:
    begun = Event()

    def handle(body: Any, message: Any) -> None:
        begun.set()
        Event().wait(SOON)

    with MemoryBroker() as broker, caplog.at_level(logging.WARNING, "greenconn.shutdown"):
        greenconn.spawn_consumer("mail", handle)
        greenconn.publish("mail", 1)
        assert begun.wait(SOON)
        assert stop_and_close(Deadline(0)) is False
        assert broker.bodies("mail") == [1]
    assert [each.getMessage() for each in caplog.records] == [
        "handlers had not ended when the process stopped, so they were interrupted, and their "
        "messages requeued"
    ]
