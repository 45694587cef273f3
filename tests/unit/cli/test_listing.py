"""The figures of queues, and their trends."""

from __future__ import annotations

import pytest

from greenconn.service.records import Monitor, QueueFigures

pytestmark = pytest.mark.pure


class Figures:
    """A source of figures that a test sets, and its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.queues: list[QueueFigures] = []

    def read(self) -> list[QueueFigures]:
        """Return what the test has set; two seconds have passed."""
        self.now += 2.0
        return self.queues


def test_the_change_and_the_lag_follow_from_two_looks() -> None:
    source = Figures()
    monitor = Monitor(lambda: source.now)
    source.queues = [QueueFigures(name="q", ready=100)]
    (first,) = monitor.trends(source.read())
    assert (first.change, first.lag, first.totals) == (None, None, [100])
    source.queues = [QueueFigures(name="q", ready=60)]
    (second,) = monitor.trends(source.read())
    assert (second.change, second.lag, second.totals) == (-20.0, 3.0, [100, 60])
    source.queues = [QueueFigures(name="q", ready=70)]
    (third,) = monitor.trends(source.read())
    assert (third.change, third.lag) == (5.0, None)
    source.queues = [QueueFigures(name="q", ready=0)]
    assert monitor.trends(source.read())[0].lag == 0.0


def test_a_rate_that_the_broker_tells_counts() -> None:
    source = Figures()
    monitor = Monitor(lambda: source.now)
    source.queues = [
        QueueFigures(name="q", ready=90, unacked=10, in_rate=50.0, out_rate=20.0),
        QueueFigures(name="still", ready=1, unacked=0, in_rate=0.0, out_rate=0.0),
    ]
    busy, still = monitor.trends(source.read())
    assert (busy.lag, still.lag) == (5.0, None)


def test_a_queue_that_is_gone_is_forgotten() -> None:
    source = Figures()
    monitor = Monitor(lambda: source.now)
    source.queues = [QueueFigures(name="q", ready=1)]
    monitor.trends(source.read())
    source.queues = []
    assert monitor.trends(source.read()) == []
    source.queues = [QueueFigures(name="q", ready=5)]
    assert monitor.trends(source.read())[0].change is None


def test_ten_looks_are_kept() -> None:
    source = Figures()
    monitor = Monitor(lambda: source.now)
    for number in range(15):
        source.queues = [QueueFigures(name="q", ready=number)]
        (trend,) = monitor.trends(source.read())
    assert trend.totals == list(range(5, 15))
