"""Links whose channels are made in this process."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from greenconn import Connection
from greenconn.broker import link as module
from greenconn.broker.consuming import STALE


@pytest.fixture
def link() -> Iterator[Any]:
    """A link to a broker in memory."""
    with Connection("memory://") as connection:
        yield connection.default_channel.connection


def no_use(argument: object) -> object:
    """Return what the event of a consumer that is gone does."""
    return STALE


def test_an_event_that_is_of_no_use_is_not_the_one_that_is_waited_for(link: Any) -> None:
    got: list[str] = []
    link.events.put((no_use, None))
    link.events.put((got.append, "mail"))
    link.drain(30)
    assert got == ["mail"]


def test_time_runs_on_through_events_that_are_of_no_use(
    link: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = count(0.0, 100.0)
    monkeypatch.setattr(module, "monotonic", lambda: next(times))
    link.events.put((no_use, None))
    with pytest.raises(TimeoutError):
        link.drain(50)


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_who_finds_nothing_is_notified(link: Any, timeout: float) -> None:
    with pytest.raises(TimeoutError):
        link.drain(timeout)
