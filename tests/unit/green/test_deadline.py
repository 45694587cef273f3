"""Deadlines and time limits."""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import pytest

from greenconn.green.deadline import LEAST_SHARE, NEVER, Deadline, TimeLimit, is_seconds
from tests.fix_leaks import noted_unraisable


def test_no_deadline_never_ends() -> None:
    deadline = Deadline()
    assert deadline.left() is None
    assert deadline.timeout is None
    assert not deadline.has_ended
    assert repr(deadline) == "<Deadline: none>"


def test_time_that_is_left_goes_down_to_nothing_and_not_below() -> None:
    left = Deadline(60.0).left()
    assert left is not None
    assert 0.0 < left <= 60.0
    deadline = Deadline(0.02)
    while monotonic() < deadline.at:  # type: ignore[operator]
        pass
    assert deadline.left() == 0.0
    assert deadline.has_ended


@pytest.mark.parametrize("timeout", [0, 0.0, -1])
def test_nothing_or_less_has_ended_already(timeout: float) -> None:
    deadline = Deadline(timeout)
    assert deadline.has_ended
    assert deadline.left() == 0.0
    assert deadline.timeout == timeout


@pytest.mark.parametrize("timeout", [0, 5, -1, 0.5, -0.5, 1e300])
def test_numbers_of_seconds_need_no_check(timeout: float) -> None:
    assert is_seconds(timeout)
    assert Deadline(timeout).timeout == timeout


@pytest.mark.parametrize(
    "timeout", [None, True, "5", b"5", float("inf"), -float("inf"), float("nan"), [], Deadline(1)]
)
def test_what_may_be_no_number_of_seconds_needs_a_check(timeout: object) -> None:
    assert not is_seconds(timeout)


def test_a_running_deadline_is_taken_as_it_is() -> None:
    deadline = Deadline(5)
    assert Deadline.of(deadline) is deadline
    assert Deadline.of(None).left() is None
    assert Deadline.of(7).timeout == 7


def test_the_earlier_of_two_counts() -> None:
    deadline = Deadline(10)
    assert deadline.within(None) is deadline
    assert deadline.within(20) is deadline
    shorter = deadline.within(1)
    assert shorter.timeout == 1
    assert shorter.left() <= 1  # type: ignore[operator]
    assert Deadline().within(3).timeout == 3
    assert Deadline(0).within(3).has_ended


@pytest.mark.parametrize(
    ("timeout", "candidates", "share"),
    [
        (60, 1, 60),  # the last one gets all
        (60, 2, 30),
        (60, 3, 20),
        (60, 60, LEAST_SHARE),
        (5, 4, LEAST_SHARE),
        (2, 4, 1),  # no more than half while others wait
        (0, 3, 0),
    ],
)
def test_a_candidate_gets_its_share(timeout: float, candidates: int, share: float) -> None:
    deadline = Deadline(timeout)
    assert deadline.share(candidates).timeout == pytest.approx(share, abs=0.1)


def test_the_last_candidate_has_the_same_deadline() -> None:
    deadline = Deadline(10)
    assert deadline.share(1) is deadline
    assert deadline.share(0) is deadline


def test_without_an_end_a_share_has_none() -> None:
    assert Deadline().share(3).left() is None


@pytest.mark.parametrize("candidates", [2, 3, 7, 20])
def test_something_is_left_for_each_candidate(
    candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenconn.green.deadline.monotonic", lambda: 100.0)
    left = 5.0
    for waiting in range(candidates, 0, -1):
        share = Deadline(left).share(waiting).timeout
        assert share is not None
        assert share > 0.0
        assert share <= left / 2 or waiting == 1
        left -= share
        left = max(left, 0.0)
    assert left == pytest.approx(0.0, abs=0.1)


def test_what_is_left_can_be_seen() -> None:
    assert repr(Deadline(0)) == "<Deadline: 0.000 s left>"


@pytest.mark.parametrize("timeout", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="finite number"):
        Deadline(timeout)


@pytest.mark.parametrize("timeout", [True, "5", [1]])
def test_what_is_no_number_is_refused(timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout must be a number of seconds, or None"):
        Deadline(timeout)


def test_it_ends_what_waits_too_long() -> None:
    with (
        pytest.raises(TimeoutError, match=r"sleeping took longer than 0\.01 s"),
        TimeLimit(Deadline(0.01), "sleeping"),
    ):
        gevent.sleep(5.0)


def test_it_is_renewed_when_it_has_ended() -> None:
    deadline = Deadline(5.0)
    assert deadline.renewed() is deadline
    assert NEVER.renewed() is NEVER
    assert deadline.at is not None
    deadline.at -= 6.0
    left = deadline.renewed().left()
    assert left is not None
    assert 4.0 < left <= 5.0


def test_what_is_called_cannot_take_it_for_an_error_of_its_own() -> None:
    tries = 0
    with pytest.raises(TimeoutError), TimeLimit(Deadline(0.01), "trying"):
        while tries < 3:
            tries += 1
            try:
                gevent.sleep(5.0)
            except Exception:
                continue
    assert tries == 1


def test_in_time_nothing_happens() -> None:
    with TimeLimit(Deadline(0.01), "quick"):
        pass
    with TimeLimit(Deadline(None), "endless"):
        pass
    gevent.sleep(0.02)


def test_other_errors_pass() -> None:
    with pytest.raises(LookupError), TimeLimit(Deadline(5.0), "failing"):
        raise LookupError
    with (
        pytest.raises(gevent.Timeout) as caught,
        gevent.Timeout(0.01) as outer,
        TimeLimit(Deadline(5.0), "sleeping"),
    ):
        gevent.sleep(5.0)
    assert caught.value is outer


def test_it_is_entered_again_with_what_is_left() -> None:
    limit = TimeLimit(Deadline(0.02), "both")
    with limit:
        pass
    with pytest.raises(TimeoutError), limit:
        gevent.sleep(5.0)


def test_a_signal_before_its_first_line_leaves_no_error() -> None:
    with noted_unraisable() as errors:
        TimeLimit.__new__(TimeLimit)
    assert errors == []
