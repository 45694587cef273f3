"""Handlers that wait for their turn, and whose messages are dropped."""

from __future__ import annotations

import pytest
from gevent import GreenletExit, Timeout, spawn
from gevent.event import Event

from greenconn import Message
from greenconn.worker.dispatch import NotBegun, Parked, drop_parked

SOON = 60.0


def test_a_message_that_is_dropped_ends_the_wait() -> None:
    message, waits = Message(), Event()

    def wait() -> str:
        try:
            with Parked(message):
                waits.set()
                Event().wait(SOON)
        except NotBegun:
            return "not begun"
        return "begun"

    waiting = spawn(wait)
    assert waits.wait(SOON)
    assert drop_parked(message)
    assert not drop_parked(message)
    assert waiting.get(timeout=SOON) == "not begun"


def test_a_turn_that_comes_at_the_same_moment() -> None:
    message, turn, waits = Message(), Event(), Event()
    begun: list[object] = []

    def wait() -> object:
        with Parked(message) as parked:
            waits.set()
            turn.wait(SOON)
            parked.begin()
            begun.append(message)
        return None

    waiting = spawn(wait)
    assert waits.wait(SOON)
    turn.set()
    assert drop_parked(message)
    assert isinstance(waiting.get(timeout=SOON), NotBegun)
    assert begun == []


def test_a_failure_at_the_same_moment_is_not_the_messages() -> None:
    message = Message()
    with pytest.raises(NotBegun), Parked(message):
        assert drop_parked(message)
        raise Timeout(0.0)
    with pytest.raises(GreenletExit) as raised, Parked(message):
        assert drop_parked(message)
        raise GreenletExit
    assert type(raised.value) is GreenletExit
