"""Tests for ``test_pauses``: one relies on time, one waits for an event."""

from __future__ import annotations

from time import monotonic

import gevent
from gevent.event import Event

TURNS = 30


def _turns(of: Event) -> None:
    for _ in range(TURNS):
        gevent.sleep(0.0001)
    of.set()


def test_relies_on_time() -> None:
    """A process that stands still is late."""
    ready = Event()
    began_at = monotonic()
    gevent.spawn(_turns, ready)
    assert ready.wait(30)
    assert monotonic() - began_at < 0.24


def test_waits_for_an_event() -> None:
    """A late event is as good."""
    ready = Event()
    gevent.spawn(_turns, ready)
    assert ready.wait(30)
