"""The ticker: in time, late after a blocked hub, and not to be stopped by an error."""

from __future__ import annotations

import logging
import time

import gevent
import pytest
from gevent.event import Event
from gevent.hub import get_hub
from gevent.threadpool import ThreadPool

from greenconn.green.supervisor import Ticker
from tests.interpreter import printed


class Ticks:
    """Takes ticks down; ``wait(n)`` until there are *n*."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.at: list[float] = []
        self.in_hub: set[bool] = set()
        self.error: BaseException | None = None
        self._came = Event()

    def __call__(self, lag: float) -> None:
        self.lags.append(lag)
        self.at.append(time.monotonic())
        self.in_hub.add(gevent.getcurrent() is get_hub())
        self._came.set()
        error = self.error
        if error is not None:
            raise error

    def wait(self, count: int) -> None:
        while len(self.lags) < count:
            self._came.clear()
            assert self._came.wait(5)


def spin(seconds: float) -> None:
    """Block the hub."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_it_ticks_in_the_hub() -> None:
    ticks = Ticks()
    ticker = Ticker(0.01, ticks, "t")
    ticker.start()
    ticker.start()
    assert repr(ticker) == "<Ticker 't': 0.01 s, running>"
    ticks.wait(5)
    ticker.stop()
    ticker.stop()
    assert not ticker.is_running
    assert ticks.in_hub == {True}
    count = len(ticks.lags)
    gevent.sleep(0.03)
    assert len(ticks.lags) == count


def test_it_can_be_started_again() -> None:
    ticks = Ticks()
    ticker = Ticker(0.01, ticks, "t")
    for count in (1, 2, 3):
        ticker.start()
        ticks.wait(count)
        ticker.stop()


def test_it_can_be_stopped_by_its_own_function() -> None:
    ticks: list[float] = []
    done = Event()

    def once(lag: float) -> None:
        ticks.append(lag)
        ticker.stop()
        done.set()

    ticker = Ticker(0.005, once, "t")
    ticker.start()
    assert done.wait(5)
    gevent.sleep(0.03)
    assert len(ticks) == 1


def test_it_keeps_its_pace() -> None:
    ticks = Ticks()
    ticker = Ticker(0.02, ticks, "t")
    ticker.start()
    ticks.wait(6)
    ticker.stop()
    assert ticks.at[5] - ticks.at[0] > 0.08


def test_a_blocked_hub_is_noticed_and_makes_no_burst() -> None:
    ticks = Ticks()
    ticker = Ticker(0.05, ticks, "t")
    ticker.start()
    ticks.wait(1)
    seen = len(ticks.lags)
    spin(0.4)
    ticks.wait(seen + 2)
    ticker.stop()
    late = ticks.lags[seen]
    assert 0.2 < late < 10.0
    assert ticks.at[seen + 1] - ticks.at[seen] >= 0.045


def test_an_error_is_logged_once_by_a_greenlet_and_the_ticks_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            in_hub.append(gevent.getcurrent() is get_hub())

    in_hub: list[bool] = []
    handler = Handler()
    logging.getLogger("greenconn.green").addHandler(handler)
    ticks = Ticks()
    ticks.error = LookupError("broken")
    ticker = Ticker(0.005, ticks, "pulse")
    ticker.start()
    try:
        ticks.wait(4)
        gevent.sleep(0.01)
        assert len(caplog.records) == 1
        assert "pulse" in caplog.text
        assert "LookupError: broken" in caplog.text
        ticks.error = None
        ticks.wait(len(ticks.lags) + 2)
        ticks.error = KeyError("again")
        ticks.wait(len(ticks.lags) + 2)
        gevent.sleep(0.01)
        assert len(caplog.records) == 2
    finally:
        ticker.stop()
        logging.getLogger("greenconn.green").removeHandler(handler)
    assert set(in_hub) == {False}


@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
def test_an_interval_must_be_positive(interval: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Ticker(interval, lambda lag: None, "t")


def test_it_keeps_no_process_alive() -> None:
    code = (
        "import gevent\n"
        "from greenconn.green.supervisor import Ticker\n"
        "Ticker(60, print, 't').start()\n"
        "gevent.get_hub().join()\n"
        "print('ended')\n"
    )
    assert printed("-c", code, timeout=30) == "ended\n"


def test_it_keeps_no_loop_running() -> None:
    def run() -> bool:
        ticker = Ticker(60.0, lambda lag: None, "t")
        ticker.start()
        has_ended: bool = get_hub().join(30.0)
        ticker.stop()
        return has_ended

    thread = ThreadPool(1)
    try:
        assert thread.apply(run)
    finally:
        thread.kill()
