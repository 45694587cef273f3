"""A deadline over calls that take none."""

from __future__ import annotations

import gevent
import pytest

from greenconn.green.deadline import Deadline
from greenconn.green.time_limit import TimeLimit


def test_it_ends_what_waits_too_long() -> None:
    with (
        pytest.raises(TimeoutError, match=r"sleeping took longer than 0\.01 s"),
        TimeLimit(Deadline(0.01), "sleeping"),
    ):
        gevent.sleep(5.0)


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
