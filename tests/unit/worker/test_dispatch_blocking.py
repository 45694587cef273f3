"""Handlers that block the hub are logged once each; the hub is sampled only while a handler runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original

import greenconn
from greenconn.green import supervisor
from greenconn.green.supervisor import HandlerHistory, name_of
from greenconn.testing import MemoryBroker
from greenconn.worker import dispatch
from greenconn.worker.dispatch import SAMPLING_INTERVAL, WorkerPool

CAME = 30.0
#: Blocks in a patched process, too.
sleep: Callable[[float], None] = get_original("time", "sleep")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_logged", set())


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker() as made:
        yield made


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log lines about handlers that block."""
    texts = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    return [text for text in texts if "blocked the hub for" in text]


def handled(count: int, consumer: Any) -> None:
    """Wait until so many messages were handled, and the hub has looked since."""
    with gevent.Timeout(CAME):
        while (
            consumer.stats()["handled"] < count or consumer.lifecycle.group.pool.monitor.is_running
        ):
            gevent.sleep(0.01)


def test_each_handler_that_blocks_is_named_once(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture, patched: bool
) -> None:
    def computes(body: Any, message: Any) -> None:
        sleep(0.6)

    def in_the_middle(body: Any, message: Any) -> None:
        gevent.sleep(0.01)
        sleep(0.7)
        gevent.sleep(0.01)

    consumers = {
        each: greenconn.spawn_consumer(each.__name__, each, concurrency=2)
        for each in (computes, in_the_middle)
    }
    for handler, consumer in consumers.items():
        for number in range(2):
            greenconn.publish(handler.__name__, number)
        handled(2, consumer)
    first, second = lines(caplog)
    assert (
        "test_each_handler_that_blocks_is_named_once.<locals>.computes of queue 'computes'" in first
    )
    assert "in_the_middle of queue 'in_the_middle' blocked the hub for " in second
    for line in (first, second):
        assert "The process is " in line
        assert (
            "monkey-patched, so the handler computes" if patched else "not monkey-patched: call"
        ) in line


def test_the_threshold_is_an_option(broker: MemoryBroker, caplog: pytest.LogCaptureFixture) -> None:
    def silent(body: Any, message: Any) -> None:
        sleep(0.8)

    def strict(body: Any, message: Any) -> None:
        sleep(0.35)

    for handler, threshold in ((silent, None), (strict, 0.2)):
        consumer = greenconn.spawn_consumer(handler.__name__, handler, blocking_threshold=threshold)
        greenconn.publish(handler.__name__, 1)
        handled(1, consumer)
    (line,) = lines(caplog)
    assert "strict of queue 'strict'" in line
    with pytest.raises(ValueError, match=r"blocking_threshold must be .* got 0"):
        greenconn.spawn_consumer("q", print, blocking_threshold=0)


def test_only_a_late_sample_is_a_block(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    for module in (dispatch, supervisor):
        monkeypatch.setattr(module, "monotonic", lambda: now)
    noted = HandlerHistory()
    monkeypatch.setattr(dispatch, "HANDLERS", noted)
    pool = WorkerPool()
    pool._count = 1  # a worker that works
    monitor = pool.monitor
    monitor.watch(print, 0.5, "q")
    monitor.start()
    try:
        noted.change(print, name_of(print))
        for _ in range(20):  # it waits, and the hub turns
            now += SAMPLING_INTERVAL
            monitor._sample()
        now += 0.5
        monitor._sample()  # 0.4 s late
        gevent.sleep(0)
        assert not lines(caplog)
        now += 1.0
        noted.change(len, name_of(len))
        now += 0.2
        monitor._sample()
        gevent.sleep(0)
        (line,) = lines(caplog)
        assert "handler builtins.print of queue 'q' blocked the hub for 0.9 s" in line
    finally:
        monitor.stop()
