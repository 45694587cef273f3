"""Which handler had the hub: the longest of a time is named."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from greenconn.green import supervisor
from greenconn.green.hub import yield_to_hub
from greenconn.green.supervisor import HandlerHistory, log_blocked, name_of
from greenconn.listeners import LISTENERS, HubBlockedEvent, Listener


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: Any) -> None:
        self.now = 0.0
        monkeypatch.setattr(supervisor, "monotonic", lambda: self.now)


def first() -> None: ...


def second() -> None: ...


def test_the_handler_that_had_most_of_a_time_is_named(monkeypatch: Any) -> None:
    clock = Clock(monkeypatch)
    noted = HandlerHistory()
    assert noted.name_within(0.0, 100.0) is None
    for at, handler in ((1.0, first), (2.0, second), (7.0, first), (8.0, second)):
        clock.now = at
        noted.change(handler, name_of(handler))
    assert noted.handler is second
    module = __name__
    assert noted.name_within(0.0, 2.0) == f"{module}.first"
    assert noted.name_within(1.5, 7.5) == f"{module}.second"
    assert noted.name_within(7.0, 8.2) == f"{module}.first"
    assert noted.name_within(7.0, 60.0) == f"{module}.second"  # until now
    assert noted.name_within(0.0, 0.5) is None
    assert noted.name_within(0.0, 1.0) is None  # the first one began as it ended


class Recorder(Listener):
    """Keeps what it is told of a blocked hub."""

    def __init__(self) -> None:
        self.heard: list[HubBlockedEvent] = []

    def on_hub_blocked(self, event: HubBlockedEvent) -> None:
        self.heard.append(event)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A listener of this process."""
    recorder = Recorder()
    LISTENERS.add(recorder)
    yield recorder
    LISTENERS.remove(recorder)


def test_listeners_learn_once_that_the_hub_was_blocked(
    monkeypatch: Any, recorder: Recorder
) -> None:
    clock = Clock(monkeypatch)
    noted = HandlerHistory()
    for at, handler in ((1.0, first), (2.0, second)):
        clock.now = at
        noted.change(handler, name_of(handler))
    noted.tell_blocked(1.5, 4.0)
    noted.tell_blocked(1.0, 4.1)  # another connection notices the same
    noted.tell_blocked(4.0, 6.0)  # it was blocked again at once
    yield_to_hub()
    module = __name__
    assert [(each.duration, each.handlers) for each in recorder.heard] == [
        (2.5, {f"{module}.first": 0.5, f"{module}.second": 2.0}),
        (2.0, {f"{module}.second": 2.0}),
    ]


@pytest.mark.parametrize("is_known", [True, False])
def test_the_log_names_the_handler_that_blocked_the_hub(
    monkeypatch: Any, caplog: pytest.LogCaptureFixture, recorder: Recorder, is_known: bool
) -> None:
    clock = Clock(monkeypatch)
    noted = HandlerHistory()
    monkeypatch.setattr(supervisor, "HANDLERS", noted)
    for at, handler in ((8.0, first), (11.4, second)):
        clock.now = at
        if is_known:
            noted.change(handler, name_of(handler))
    clock.now = 13.0
    log_blocked(logging.getLogger("greenconn.test"), "amqp://broker", 2.5, 1.0)
    assert not caplog.records  # a log handler may switch: not in the hub
    yield_to_hub()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "the hub was blocked for 2.5 s, amqp://broker had to wait" in record.getMessage()
    # It may have begun an interval before the tick was due.
    named = f"the last handler called was {__name__}.first" if is_known else "no handler was called"
    assert named in record.getMessage()
    assert [each.duration for each in recorder.heard] == [2.5]
