"""The heartbeat clockwork on a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenconn.wire.amqp import Heartbeat, HeartbeatAction

NOTHING, SEND, READ_FIRST, DEAD = (
    HeartbeatAction.NOTHING,
    HeartbeatAction.SEND,
    HeartbeatAction.READ_FIRST,
    HeartbeatAction.DEAD,
)


def test_nothing_is_due_while_both_sides_talk() -> None:
    beat = Heartbeat(10.0, 0.0)
    for now in range(1, 100):
        beat.note_received(now)
        beat.note_sent(now)
        assert beat.tick(now + 0.5) is NOTHING


def test_a_heartbeat_is_due_after_half_an_interval_of_our_silence() -> None:
    beat = Heartbeat(10.0, 0.0)
    assert beat.tick(4.9) is NOTHING
    assert beat.tick(5.0) is SEND
    assert beat.tick(7.5) is SEND
    beat.note_sent(7.5)
    assert beat.tick(10.0) is NOTHING


def test_the_peer_is_dead_after_two_intervals_of_silence() -> None:
    beat = Heartbeat(10.0, 0.0)
    beat.note_received(1.0)
    beat.note_sent(20.0)
    assert beat.tick(20.9) is NOTHING
    assert beat.silence(20.9) == pytest.approx(19.9)
    assert not beat.is_dead(20.9)
    assert beat.tick(21.0) is DEAD
    assert beat.is_dead(21.0)


def test_after_a_blocked_hub_the_peer_gets_one_more_tick() -> None:
    beat = Heartbeat(1.0, 0.0)
    assert beat.tick(30.0, lag=29.0) == SEND | READ_FIRST
    beat.note_sent(30.0)
    beat.note_received(30.0)
    assert beat.tick(30.25) is NOTHING


def test_grace_is_given_once() -> None:
    beat = Heartbeat(1.0, 0.0)
    beat.note_sent(30.0)
    assert beat.tick(30.0, lag=29.0) is READ_FIRST
    assert beat.tick(35.0, lag=4.0) is DEAD


def test_grace_is_given_again_after_a_sign_of_life() -> None:
    beat = Heartbeat(1.0, 0.0)
    assert beat.tick(30.0, lag=29.0) & READ_FIRST
    beat.note_received(30.0)
    assert beat.tick(60.0, lag=29.0) & READ_FIRST
    assert beat.tick(60.25) is DEAD


def test_silence_while_reading_is_paused_is_no_missed_heartbeat() -> None:
    beat = Heartbeat(1.0, 0.0)
    beat.pause()
    assert beat.tick(100.0) is SEND
    assert not beat.is_dead(100.0)
    beat.resume(100.0)
    beat.note_sent(100.0)
    assert beat.tick(100.25) is NOTHING
    assert beat.tick(102.0) is DEAD


def test_resume_without_pause_is_no_sign_of_life() -> None:
    beat = Heartbeat(1.0, 0.0)
    beat.resume(5.0)
    assert beat.tick(5.0) is DEAD


def test_zero_is_off() -> None:
    beat = Heartbeat(0.0, 0.0)
    assert beat.tick(1e9, lag=1e6) is NOTHING
    assert not beat.is_dead(1e9)


@given(st.lists(st.sampled_from([0.9, 1.0, 1.1]), min_size=40, max_size=200))
def test_two_of_them_never_think_each_other_dead(steps: list[float]) -> None:
    """Each ticks when it should (10 % early or late) and hears the other at once."""
    interval = 8.0
    left, right = Heartbeat(interval, 0.0), Heartbeat(interval, 0.0)
    now = 0.0
    for step in steps:
        now += left.tick_interval * step
        for one, other in ((left, right), (right, left)):
            verdict = one.tick(now)
            assert verdict is not DEAD
            assert one.silence(now) < interval
            if verdict is SEND:
                one.note_sent(now)
                other.note_received(now)


def test_grace_is_given_for_any_delay_of_ours() -> None:
    beat = Heartbeat(1.0, 0.0)
    beat.note_sent(2.2)
    assert beat.tick(2.2, lag=0.01) is READ_FIRST
    beat = Heartbeat(1.0, 0.0)
    beat.note_sent(2.2)
    assert beat.tick(2.2, lag=0.0) is DEAD
