"""Streams: what an offset is, and where a reader goes on."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenconn.entity import Queue
from greenconn.streams import SLACK, StreamPosition, check_offset, offset_of


@pytest.mark.parametrize(
    "offset",
    ["first", "last", "next", "1h", "30s", "7D", "2Y", "1M", "5m", 0, 10**12, datetime.now()],
)
def test_what_is_an_offset(offset: Any) -> None:
    check_offset(offset)


@pytest.mark.parametrize(
    "offset", ["", "First", "1", "h", "1 h", "1h ", "-1h", "\u0661h", -1, True, 1.0, None, b"1h"]
)
def test_what_is_none(offset: Any) -> None:
    with pytest.raises(ValueError, match="offset must be"):
        check_offset(offset)


def test_where_a_queue_is_read_from() -> None:
    stream = {"x-queue-type": "stream"}
    assert offset_of(Queue("q")) is None
    assert offset_of(Queue("q", queue_arguments={"x-queue-type": "quorum"})) is None
    assert offset_of(Queue("q", queue_arguments=stream)) == "next"
    first = {"x-stream-offset": "first"}
    assert offset_of(Queue("q", queue_arguments=stream, consumer_arguments=first)) == "first"
    assert offset_of(Queue("q", consumer_arguments=first)) == "first"


class Streamed:
    """A message of a stream."""

    def __init__(self, offset: int) -> None:
        self.headers = {"x-stream-offset": offset}
        self._state = "RECEIVED"

    @property
    def acknowledged(self) -> bool:
        """Whether it was answered."""
        return self._state != "RECEIVED"


def test_a_stream_begins_where_the_program_says() -> None:
    assert StreamPosition("first").restart() == "first"
    assert StreamPosition(7).restart() == 7


def test_a_stream_goes_on_behind_what_was_acked() -> None:
    position = StreamPosition("first")
    put = position.watching(lambda message: None)
    messages = [Streamed(offset) for offset in range(10)]
    for message in messages:
        put(message)
    for message in messages:
        message._state = "ACK"
    assert position.restart() == 10
    assert position.restart() == 10


def test_a_stream_goes_on_with_the_first_that_was_not_acked() -> None:
    position = StreamPosition("last")
    put = position.watching(lambda message: None)
    messages = [Streamed(offset) for offset in range(10)]
    for message in messages:
        put(message)
        message._state = "REJECTED"
    messages[4]._state = "RECEIVED"
    assert position.restart() == 4
    put(messages[4])
    messages[4]._state = "REQUEUED"
    put(messages[5])
    assert position.restart() == 4


def test_what_is_settled_before() -> None:
    position = StreamPosition("first")
    put = position.watching(lambda message: None)
    before = [position.settled_before]
    position.begin_at(3)
    before.append(position.settled_before)
    messages = [Streamed(offset) for offset in range(3, 8)]
    for message in messages:
        put(message)
    for settled in (1, 0, 2, 3):
        messages[settled]._state = "ACK"
        before.append(position.settled_before)
    messages[4]._state = "REQUEUED"
    before.append(position.settled_before)
    assert before == [None, 3, 3, 5, 6, 7, 7]
    assert position.restart() == 7
    assert position.settled_before == 7


def test_a_long_stream_keeps_little() -> None:
    position = StreamPosition("first")
    put = position.watching(lambda message: None)
    stuck = Streamed(0)
    put(stuck)
    for offset in range(1, 10_000):
        message = Streamed(offset)
        put(message)
        message._state = "ACK"
    assert len(position._outstanding) <= 3 * SLACK
    assert position.restart() == 0


def test_a_message_without_offset_is_passed_on() -> None:
    passed: list[Any] = []
    message = Streamed(0)
    message.headers = {}
    StreamPosition("first").watching(passed.append)(message)
    assert passed == [message]


@pytest.mark.parametrize("first", ["next", "last"])
def test_who_has_read_nothing_goes_on_where_it_began(first: str) -> None:
    position = StreamPosition(first)
    assert position.restart() == first  # it never began
    position.note_begin()
    began = position.restart()
    assert isinstance(began, datetime)
    assert datetime.now(timezone.utc) - began < timedelta(minutes=1)
    position.note_begin()
    assert position.restart() == began
    position.watching(lambda message: None)(Streamed(7))
    assert position.restart() == 7


@pytest.mark.parametrize("first", ["first", "1h", 3])
def test_where_others_begin_does_not_move(first: Any) -> None:
    position = StreamPosition(first)
    position.note_begin()
    assert position.restart() == first


@given(st.lists(st.sampled_from(["ACK", "REJECTED", "REQUEUED", "RECEIVED"]), max_size=200))
def test_nothing_that_was_not_handled_is_left_out(states: list[str]) -> None:
    position = StreamPosition("first")
    put = position.watching(lambda message: None)
    messages = [Streamed(offset) for offset in range(len(states))]
    for message, state in zip(messages, states, strict=True):
        put(message)
        message._state = state
    left = [n for n, state in enumerate(states) if state in ("REQUEUED", "RECEIVED")]
    expected: Any = min(left, default=len(states)) if states else "first"
    assert position.restart() == expected


def test_one_that_is_gone_is_read_from_its_beginning() -> None:
    position = StreamPosition("next")
    position.note_begin()
    seen = [position.has_read]
    position.watching(lambda message: None)(Streamed(7))
    seen.append(position.has_read)
    assert seen == [False, True]
    position.begin_anew()
    assert position.restart() == "first"
