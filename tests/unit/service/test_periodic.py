"""Times of periodic calls, and calls on a broker in memory with a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import gevent
import pytest

import greenconn
from greenconn import App, Queue
from greenconn.listeners import HandledEvent, Listener
from greenconn.service.periodic import Cron, Every, spawn_periodic
from greenconn.testing import ManualClock, MemoryBroker
from tests.fix_wires import until

SOON = 20.0


@pytest.fixture
def app() -> App:
    return App()


def at(text: str, zone: Any = timezone.utc) -> float:
    """Return the seconds since 1970 of a local time."""
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def test_a_clock_that_is_set_back_delays_no_period() -> None:
    assert Every(60).corrected(3600.0, 61.0) == 120
    assert Every(60).corrected(120.0, 61.0) == 120
    assert Every(60).corrected(180.0, 119.5) == 180  # by less than a second


def test_times_of_cron() -> None:
    pytest.importorskip("cronsim")
    cron = Cron("0 3 * * MON-FRI")
    friday = at("2026-11-20T04:00:00")
    assert cron.following(friday) == at("2026-11-23T03:00:00")
    assert repr(cron) == "cron '0 3 * * MON-FRI' UTC"
    paris = ZoneInfo("Europe/Paris")
    summer = Cron("30 9 * * *", paris)
    assert summer.following(at("2026-07-01T00:00:00")) == at("2026-07-01T09:30:00", paris)


@pytest.mark.parametrize("hours", [0, 1, 2.9, 3.1, 24, 24 * 365])
def test_a_clock_that_is_set_back_by_hours_counts_again(hours: float) -> None:
    pytest.importorskip("cronsim")
    for expression in ("0 * * * *", "0 3 * * *", "0 0 29 2 *"):
        cron = Cron(expression)
        last = cron.following(at("2026-11-20T02:30:00"))
        due = cron.following(last)
        now = last - hours * 3600
        expected = due if hours < 3 else cron.following(now)
        assert cron.corrected(due, now) == expected
        assert cron.corrected(expected, now) == expected > now


@contextmanager
def called(schedule: Any, clock: ManualClock) -> Iterator[list[float]]:
    """Make the calls of a schedule by *clock*, and note their times."""
    calls: list[float] = []
    with MemoryBroker():
        consumer = spawn_periodic(
            "called", lambda: calls.append(clock.now()), schedule=schedule, clock=clock
        )
        until(lambda: clock.armed == 1, what="it waits")
        yield calls
        assert consumer.stop(SOON)


def test_no_call_is_repeated_in_the_hour_that_the_end_of_summer_time_repeats() -> None:
    pytest.importorskip("cronsim")
    paris = ZoneInfo("Europe/Paris")
    clock = ManualClock()
    begin = at("2026-10-25T01:10:00")  # 02:10, for the second time
    clock.move(begin - clock.now())
    with called(Cron("30 2 * * *", paris), clock) as calls:
        for _ in range(30):
            clock.move(3600)
            until(lambda: clock.armed == 1, what="it waits again")
    assert calls == [begin + 25 * 3600]  # at the first look after 02:30


class SetClock(ManualClock):
    """A clock that can be set back, too."""

    def set(self, now: float) -> None:
        self._now = now
        self._timers = [(now, number, timer) for _, number, timer in self._timers]
        self.move(0)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(3600.0, [3]), (4 * 3600.0, [3, 3]), (28 * 3600.0, [3, -21, 3])],  # hours
)
def test_calls_after_the_clock_was_set_back(seconds: float, expected: list[float]) -> None:
    pytest.importorskip("cronsim")
    clock = SetClock()
    midnight = at("2026-11-20T00:00:00")
    clock.set(midnight + 1)
    with called(Cron("0 3 * * *"), clock) as calls:
        clock.move(3 * 3600)
        until(lambda: calls and clock.armed == 1, what="it was called")
        clock.set(clock.now() - seconds)
        while clock.now() < midnight + 20 * 3600:
            until(lambda: clock.armed == 1, what="it waits")
            clock.move(600)
    assert [round((each - midnight) / 3600, 1) for each in calls] == expected


@pytest.mark.parametrize(
    ("declare", "error", "text"),
    [
        (lambda app: app.every(lambda: None), TypeError, r"must be a number: @app.every\(60\)"),
        (lambda app: app.every(0), ValueError, "seconds must be above 0, got 0"),
        (lambda app: app.every(-1.0), ValueError, "seconds must be above 0"),
        (lambda app: app.every(60)(3), TypeError, "function must be a callable, got 3"),
        (lambda app: [app.every(60, name="n")(print) for _ in "ab"], ValueError, "'n' is taken"),
    ],
)
def test_wrong_declarations(app: App, declare: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        declare(app)


@pytest.mark.parametrize(
    ("expression", "tz", "error", "text"),
    [
        ("every day", None, ValueError, "must have five fields"),
        ("61 * * * *", None, ValueError, "must have five fields such as .* got '61"),
        (5, None, TypeError, "expression must be text"),
        ("* * * * *", "UTC", TypeError, "tz must be a tzinfo"),
        ("0 0 30 2 *", None, ValueError, "30 2"),
    ],
)
def test_wrong_expressions(
    app: App, expression: Any, tz: Any, error: type[Exception], text: str
) -> None:
    pytest.importorskip("cronsim")
    with pytest.raises(error, match=text):
        app.cron(expression, tz=tz)


def test_a_zone_that_does_not_know_its_next_change(app: App) -> None:
    pytest.importorskip("cronsim")
    pytz = pytest.importorskip("pytz")
    with pytest.raises(TypeError, match="tz must be a tzinfo such as zoneinfo"):
        app.cron("30 2 * * *", tz=pytz.timezone("Europe/Paris"))
    assert Cron("30 2 * * *", pytz.utc).following(0.0) == 9000


async def coroutine() -> None:
    """Stand for a function that never runs when it is called."""


def test_a_function_that_would_never_run(app: App) -> None:
    with pytest.raises(TypeError, match="would never run"):
        app.every(60)(coroutine)  # type: ignore[type-var]


def test_a_clock_that_the_test_moves(app: App) -> None:
    calls: list[str] = []

    @app.every(60)
    def minute() -> None:
        calls.append("minute")

    @app.every(90, name="longer")
    def longer() -> None:
        calls.append("longer")

    with app.testing() as test:
        assert calls == []
        test.run_until_idle()  # a schedule has no end
        assert calls == []
        test.advance(60)
        assert calls == ["minute"]
        test.advance(60)
        assert calls == ["minute", "longer", "minute"]
        names = [each.lifecycle.options.name for each in app.consumers]
        assert names == [f"{__name__}.{minute.__qualname__}", "longer"]
        test.advance(600)
        assert (calls.count("minute"), calls.count("longer")) == (12, 8)
    assert app.consumers == []
    minute()


def test_calls_publish_and_have_the_contexts_of_the_application(app: App) -> None:
    handled: list[Any] = []
    within: list[str] = []

    @app.around_handle
    def context(message: Any) -> Iterator[None]:
        within.append("in")
        yield
        within.append("out")

    @app.consumer("load")
    def handle(body: Any, message: Any) -> None:
        handled.append(body)

    @app.every(60)
    def load() -> None:
        assert within[-1] == "in"
        app.publish("load", len(handled))

    with app.testing() as test:
        for _ in range(3):
            test.advance(60)
    assert handled == [0, 1, 2]
    assert within.count("in") == within.count("out") == 6


def test_the_token_of_the_first_call_has_its_time(app: App) -> None:
    due: list[float] = []

    @app.around_handle
    def context(message: Any) -> Iterator[None]:
        due.append(message.payload["due"])
        yield

    app.every(60)(lambda: None)
    with app.testing() as test:
        for _ in range(3):
            test.advance(60)
    assert due == [1020, 1080, 1140]


def test_a_call_that_fails_is_logged_and_the_next_one_comes(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    @app.every(60, name="failing")
    def fails() -> None:
        calls.append(1)
        raise OSError("the disk is full")

    with app.testing() as test:
        for _ in range(2):
            test.advance(60)
    assert len(calls) == 2
    assert caplog.text.count("the periodic call 'failing' failed") == 2


def test_calls_that_are_missed_while_one_runs_are_left_out(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    @app.every(60)
    def slow() -> None:
        calls.append(1)
        gevent.sleep(200)

    with app.testing() as test:
        test.advance(250)
        assert len(calls) == 1
        test.advance(60)
        assert len(calls) == 2
        test.advance(200)
    assert "calls that were left out, as the one before took longer or came late: 3" in caplog.text


def test_a_stop_waits_for_the_call_that_runs(app: App) -> None:
    ended: list[int] = []
    begun = gevent.event.Event()

    @app.every(60)
    def slow() -> None:
        begun.set()
        gevent.sleep(0.05)
        ended.append(1)

    with app.testing() as test:
        test.advance(60)
        assert begun.wait(SOON)
    assert ended == [1]


def test_a_token_of_another_schedule_says_nothing(app: App) -> None:
    calls: list[int] = []
    app.every(60, name="changed")(lambda: calls.append(1))
    with app.testing() as test:
        queue = Queue(
            "greenconn.periodic.changed", queue_arguments={"x-single-active-consumer": True}
        )
        for body in ("text", {}, {"due": "soon"}, {"due": 1.0, "schedule": "every 5 s"}):
            greenconn.publish(queue, body)
        test.run_until_idle()
        assert calls == []
        test.advance(60)
        assert calls == [1]


def test_one_token_is_published_for_a_time(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[float | None] = []
    calls: list[int] = []
    handled: list[int] = []

    def publish_late(queue: Any, body: Any, **options: Any) -> None:
        if body["due"] is not None and body["due"] not in published:
            # That of a process that has just started, while the leader has none.
            published.append(body["due"])
            count = len(handled)
            greenconn.publish(queue, {**body, "due": None}, connection=options["connection"])
            until(lambda: len(handled) > count)
        else:
            published.append(body["due"])
        greenconn.publish(queue, body, **options)

    class Handled(Listener):
        def on_handled(self, event: HandledEvent) -> None:
            handled.append(1)

    monkeypatch.setattr("greenconn.service.periodic.publish", publish_late)
    app.every(60)(lambda: calls.append(1))
    greenconn.add_listener(listener := Handled())
    try:
        with app.testing() as test:
            for _ in range(3):
                test.advance(60)
    finally:
        greenconn.remove_listener(listener)
    assert len(calls) == 3
    times = [due for due in published if due is not None]
    assert times == sorted(set(times))


def test_a_call_killed_before_its_next_token_is_published_is_followed(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def publish_or_die(queue: Any, body: Any, **options: Any) -> None:
        if len(calls) == 1 and not killed:
            killed.append(1)
            raise gevent.GreenletExit
        greenconn.publish(queue, body, **options)

    killed: list[int] = []
    monkeypatch.setattr("greenconn.service.periodic.publish", publish_or_die)
    app.every(60)(lambda: calls.append(1))
    with app.testing() as test:
        for _ in range(3):
            test.advance(60)
    assert killed
    assert len(calls) >= 2
