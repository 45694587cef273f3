"""Ranges, texts of calls, and calls that are repeated."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from greenconn.utils.functional import (
    accepts_argument,
    fxrange,
    fxrangemax,
    reprcall,
    retry_over_time,
)


def test_ranges() -> None:
    assert list(fxrange(1.0, 3.0, 1.0)) == [1.0, 2.0, 3.0]
    assert list(islice(fxrange(1.0, 2.0, 1.0, repeatlast=True), 4)) == [1.0, 2.0, 2.0, 2.0]
    assert list(islice(fxrange(step=0.5), 3)) == [1.0, 1.5, 2.0]
    assert list(fxrangemax(1.0, 3.0, 1.0, max=8.0)) == [1.0, 2.0, 3.0]
    assert list(fxrangemax(4.0, None, 2.0, max=7.0)) == [4.0, 6.0]


def test_the_text_of_a_call() -> None:
    assert reprcall("f", (1, "a"), {"x": None}) == "f(1, 'a', x=None)"
    assert reprcall("f") == "f()"
    assert accepts_argument(reprcall, "sep")
    assert not accepts_argument(reprcall, "fmt")


class Flaky:
    """Raises a number of times before it answers."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self, answer: str, *, suffix: str = "") -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError(f"failure {self.calls}")
        return answer + suffix


def test_a_call_is_repeated_until_it_answers() -> None:
    flaky = Flaky(2)
    seen: list[tuple[str, float, int]] = []

    def errback(exc: BaseException, intervals: Iterator[float], retries: int) -> float:
        seen.append((str(exc), next(intervals), retries))
        return 0.0

    answer = retry_over_time(flaky, (OSError,), ["yes"], {"suffix": "!"}, errback)
    assert answer == "yes!"
    assert seen == [("failure 1", 2.0, 0), ("failure 2", 4.0, 1)]


def test_it_ends_with_the_last_error() -> None:
    flaky = Flaky(9)
    with pytest.raises(OSError, match="failure 4"):
        retry_over_time(flaky, OSError, ["yes"], max_retries=3, interval_start=0, interval_max=0)
    with pytest.raises(ValueError, match="other"):
        retry_over_time(_other, OSError)


def _other() -> None:
    raise ValueError("other")


def test_it_ends_after_a_time() -> None:
    flaky = Flaky(10**9)
    with pytest.raises(OSError, match="failure"):
        retry_over_time(
            flaky, OSError, ["yes"], interval_start=0.01, interval_max=0.01, timeout=0.1
        )
    assert flaky.calls > 1


def test_the_callback_may_end_it() -> None:
    def stop() -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        retry_over_time(Flaky(9), OSError, ["yes"], callback=stop)
