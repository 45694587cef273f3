"""Messages that come back at once, and how long they wait."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn import Message
from greenconn.clocks import CLOCK
from greenconn.exceptions import BodyTooLarge
from greenconn.worker.handling import (
    FIRST_PAUSE,
    FORGOTTEN_AFTER,
    LONGEST_PAUSE,
    MOST_RETURNED,
    ReturnedMessages,
)


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(CLOCK, "monotonic", clock)
    return clock


def message(body: Any = b"x", *, redelivered: bool = True, **options: Any) -> Message:
    info = {"redelivered": redelivered}
    return Message(body, delivery_info=info, properties={}, headers={}, **options)


def test_each_pause_is_twice_the_last(clock: Clock) -> None:
    returned, pauses = ReturnedMessages(), []
    assert returned.left(message()) == 0.0
    for _ in range(12):
        returned.note(message())
        pauses.append(round(returned.left(message()), 6))
    assert pauses[:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE
    clock.now += LONGEST_PAUSE
    assert returned.left(message()) == 0.0
    clock.now += FORGOTTEN_AFTER
    returned.note(message())
    assert returned.left(message()) == pytest.approx(FIRST_PAUSE)


def test_another_message_does_not_wait(clock: Clock) -> None:
    returned = ReturnedMessages()
    returned.note(message(b"x"))
    assert returned.left(message(b"y")) == 0.0
    assert returned.left(message(b"x", redelivered=False)) == 0.0  # one of the same body
    for body in ("x", b"x", bytearray(b"x"), memoryview(b"x"), None):
        returned.note(message(body))
        assert returned.left(message(body)) > 0.0


@pytest.mark.parametrize("name", ["x-death", "x-delivery-count", "x-greenconn-attempts"])
def test_a_header_tells_that_it_came_before(clock: Clock, name: str) -> None:
    returned, again = ReturnedMessages(), message(redelivered=False)
    again.headers[name] = 1
    returned.note(message())
    assert returned.left(again) > 0.0


def test_an_id_tells_what_came_before(clock: Clock) -> None:
    returned, first, again = ReturnedMessages(), message(b"x"), message(b"x", redelivered=False)
    for each in (first, again):
        each.properties["message_id"] = ["of", "any", "type"]
    returned.note(first)
    assert returned.left(again) > 0.0


def test_the_id_of_another_message_slows_none(clock: Clock) -> None:
    """Publishers may give all messages one id, or one the id of another's message."""
    returned, first, other = ReturnedMessages(), message(b"x"), message(b"y")
    for each in (first, other):
        each.properties["message_id"] = "m"
    for _ in range(5):
        returned.note(first)
    assert returned.left(other) == 0.0
    returned.note(other)
    assert returned.left(other) == pytest.approx(FIRST_PAUSE)


@pytest.mark.parametrize("body", [5, {"a": 1}, [1], 10**12])
def test_a_body_of_an_envelope_that_cannot_be_read(clock: Clock, body: Any) -> None:
    returned = ReturnedMessages()
    returned.note(message(body))
    assert returned.left(message(body)) > 0.0


def test_a_body_that_was_not_kept(clock: Clock) -> None:
    class Bodiless(Message):
        @property
        def body(self) -> Any:
            raise BodyTooLarge("too large")

        @body.setter
        def body(self, value: Any) -> None:
            pass

    returned = ReturnedMessages()
    again = Bodiless(delivery_info={"redelivered": True})
    returned.note(again)
    assert returned.left(again) > 0.0


def test_a_thousand_are_remembered(clock: Clock) -> None:
    returned = ReturnedMessages()
    for number in range(MOST_RETURNED + 1):
        returned.note(message(str(number)))
    assert returned.left(message("0")) == 0.0
    assert returned.left(message("1")) > 0.0
    assert len(returned._pauses) == MOST_RETURNED
