"""Retry policies: their intervals, and the attempts of a loop."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from itertools import islice
from typing import Any
from weakref import ref

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenconn.green.deadline import NEVER, Deadline, is_thrown
from greenconn.green.retry import Attempts, Backoff, RetryPolicy, attempts, isolated, sleep
from greenconn.green.slot import Slot


def policy(**values: Any) -> RetryPolicy:
    """A policy without jitter, growing by addition unless it says how."""
    return RetryPolicy(**{"factor": 1.0, "longest": 30.0, "jitter": 0.0, **values})


# -- intervals -----------------------------------------------------------------------------------


def test_some_repetitions_are_immediate() -> None:
    backoff = Backoff(policy(first=0.5, factor=2.0, immediate=2))
    assert list(islice(backoff, 4)) == [0.0, 0.0, 0.5, 1.0]


def test_a_round_has_one_pause() -> None:
    backoff = Backoff(policy(first=0.5, factor=2.0, round=3))
    assert list(islice(backoff, 7)) == [0.0, 0.0, 0.5, 0.0, 0.0, 1.0, 0.0]


def test_the_last_of_all_tries_has_no_interval() -> None:
    assert list(Backoff(policy(first=1.0, factor=2.0, tries=3))) == [1.0, 2.0]
    assert list(Backoff(policy(tries=1))) == []


def test_no_interval_is_longer_than_the_longest() -> None:
    assert next(Backoff(policy(first=9.0, longest=5.0))) == 5.0


def test_full_jitter_draws_from_nothing_to_the_whole_interval() -> None:
    backoff = Backoff(RetryPolicy(first=1.0, longest=4.0, jitter=1.0), random.Random(1).random)
    drawn = [next(backoff) for _ in range(2000)]
    assert 0.0 < drawn[0] <= 1.0
    assert 0.0 < drawn[1] <= 2.0
    assert min(drawn) < 0.1
    assert 3.9 < max(drawn) <= 4.0


def test_reset_begins_again() -> None:
    backoff = Backoff(policy(first=1.0, step=1.0, longest=9.0))
    assert list(islice(backoff, 3)) == [1.0, 2.0, 3.0]
    assert backoff.failures == 3
    backoff.reset()
    assert backoff.failures == 0
    assert next(backoff) == 1.0


@given(
    first=st.floats(0, 100),
    step=st.floats(0, 100),
    factor=st.floats(1, 100),
    longest=st.floats(0, 100),
    jitter=st.floats(0, 1),
    round_=st.integers(1, 4),
)
def test_no_interval_is_negative_or_above_the_maximum(
    first: float, step: float, factor: float, longest: float, jitter: float, round_: int
) -> None:
    chosen = RetryPolicy(
        first=first, step=step, factor=factor, longest=longest, jitter=jitter, round=round_
    )
    for interval in islice(Backoff(chosen), 200):
        assert 0.0 <= interval <= longest


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"first": -1}, "pauses must be"),
        ({"step": -1}, "pauses must be"),
        ({"longest": -1}, "pauses must be"),
        ({"factor": 0.5}, "factor must be"),
        ({"jitter": 1.5}, "jitter must be"),
        ({"jitter": -0.5}, "jitter must be"),
        ({"immediate": -1}, "immediate"),
        ({"round": 0}, "round"),
        ({"tries": 0}, "tries"),
    ],
)
def test_wrong_values(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RetryPolicy(**wrong)


# -- attempts ------------------------------------------------------------------------------------


class Trial:
    """Something that fails as often as it is told, and the pauses meanwhile."""

    def __init__(self, *failures: BaseException | None) -> None:
        self._failures = list(failures)
        self.calls = 0
        self.pauses: list[float] = []

    def __call__(self) -> int:
        self.calls += 1
        failure = self._failures.pop(0) if self._failures else None
        if failure is not None:
            raise failure
        return self.calls

    def run(self, again: Attempts) -> int:
        """Try it."""
        for attempt in again:
            with attempt:
                return self()
        raise AssertionError("unreachable")


def is_lost(exc: Exception) -> bool:
    """Whether it is worth another attempt."""
    return isinstance(exc, OSError)


def test_what_works_is_done_once() -> None:
    trial = Trial()
    assert trial.run(attempts(policy(), NEVER, is_lost, pause=trial.pauses.append)) == 1
    assert trial.pauses == []


def test_it_goes_on_until_it_works() -> None:
    trial = Trial(OSError("1"), OSError("2"), OSError("3"))
    again = attempts(policy(first=1.0, factor=2.0), NEVER, is_lost, pause=trial.pauses.append)
    assert trial.run(again) == 4
    assert trial.pauses == [1.0, 2.0, 4.0]
    assert again.error is None


def test_other_errors_end_it() -> None:
    trial = Trial(OSError("1"), LookupError("2"))
    with pytest.raises(LookupError, match="2"):
        trial.run(attempts(policy(), NEVER, is_lost, pause=trial.pauses.append))
    assert trial.calls == 2


def test_what_is_no_error_ends_it() -> None:
    for kind in (gevent.GreenletExit, KeyboardInterrupt, gevent.Timeout):
        trial = Trial(kind())
        with pytest.raises(kind):
            trial.run(attempts(policy(), NEVER, lambda exc: True, pause=trial.pauses.append))
        assert trial.calls == 1


def test_the_last_of_all_tries_raises() -> None:
    trial = Trial(OSError("1"), OSError("2"), OSError("3"))
    with pytest.raises(OSError, match="3"):
        trial.run(attempts(policy(tries=3), NEVER, is_lost, pause=trial.pauses.append))
    assert trial.calls == 3


def test_no_attempt_begins_after_the_deadline() -> None:
    trial = Trial(OSError("1"), OSError("2"))
    with pytest.raises(OSError, match="1"):
        trial.run(attempts(policy(first=20.0), Deadline(0.01), is_lost))
    assert trial.calls == 1


def test_one_attempt_is_made_without_any_time() -> None:
    assert Trial().run(attempts(policy(), Deadline(0))) == 1
    trial = Trial(OSError("1"))
    with pytest.raises(OSError, match="1"):
        trial.run(attempts(policy(), Deadline(0), is_lost, pause=trial.pauses.append))
    assert trial.pauses == []


def test_pauses_are_cut_to_the_time_left() -> None:
    trial = Trial(OSError("1"))
    again = attempts(policy(first=20.0), Deadline(10.0), is_lost, pause=trial.pauses.append)
    assert trial.run(again) == 2
    assert 5.0 < trial.pauses[0] <= 10.0


def test_an_immediate_repetition_lets_nobody_run() -> None:
    ran: list[int] = []
    trial = Trial(OSError("1"))
    other = gevent.spawn(ran.append, 1)
    trial.run(attempts(policy(first=0.0, immediate=1), NEVER, is_lost))
    assert ran == []
    trial = Trial(OSError("1"))
    trial.run(attempts(policy(first=0.0), NEVER, is_lost))
    assert ran == [1]
    other.join()


def test_the_loop_gets_what_failed_and_how_long_it_waits() -> None:
    trial, notified = Trial(OSError("1"), OSError("2")), []
    for attempt in attempts(policy(first=1.0, step=1.0), NEVER, is_lost, pause=trial.pauses.append):
        with attempt:
            trial()
            break
        notified.append((attempt.number, str(attempt.error), attempt.interval))
    assert notified == [(1, "1", 1.0), (2, "2", 2.0)]


def test_what_ends_without_leaving_the_loop_is_tried_again() -> None:
    numbers = []
    pauses: list[float] = []
    for attempt in attempts(policy(first=1.0, tries=3), pause=pauses.append):
        with attempt:
            numbers.append(attempt.number)
        assert attempt.error is None
    assert numbers == [1, 2, 3]
    assert pauses == [1.0, 1.0]
    assert [each.number for each in attempts(policy(first=1.0), Deadline(0))] == [1]


def test_the_first_failure_may_be_given() -> None:
    trial = Trial()
    again = attempts(
        policy(first=3.0), NEVER, is_lost, pause=trial.pauses.append, failure=OSError("0")
    )
    assert trial.run(again) == 1
    assert again.number == 2
    assert trial.pauses == [3.0]
    for failure, deadline, tries in (
        (LookupError("0"), NEVER, None),
        (OSError("0"), Deadline(0), None),
        (OSError("0"), NEVER, 1),
    ):
        trial = Trial()
        with pytest.raises(type(failure), match="0"):
            trial.run(attempts(policy(tries=tries), deadline, is_lost, failure=failure))
        assert trial.calls == 0


def test_the_pauses_may_begin_anew() -> None:
    trial = Trial(OSError("1"), OSError("2"), OSError("3"))
    calls = 0

    def may_pass(exc: Exception) -> bool:
        nonlocal calls
        calls += 1
        if calls == 3:
            again.reset()
        return True

    again = attempts(policy(first=1.0, step=1.0), NEVER, may_pass, pause=trial.pauses.append)
    assert trial.run(again) == 4
    assert trial.pauses == [1.0, 2.0, 1.0]


def test_errors_do_not_carry_each_other_along() -> None:
    first, last = OSError("1"), OSError("2")
    with pytest.raises(OSError, match="2") as raised:
        Trial(first, last).run(attempts(policy(first=0.0, tries=2), NEVER, is_lost))
    assert raised.value.__context__ is None


@pytest.mark.parametrize("deadline", [None, 0.01])
def test_nothing_stays_for_the_collector(deadline: float | None) -> None:
    class Kept:
        """What the frame of the caller refers to."""

    def fail(kept: Kept) -> None:
        for attempt in attempts(policy(first=0.02, tries=2), Deadline(deadline), is_lost):
            with attempt:
                raise OSError(f"{kept}")

    gc.disable()
    try:
        kept = Kept()
        watched = ref(kept)
        try:
            fail(kept)
        except OSError:
            pass
        del kept
        assert watched() is None
    finally:
        gc.enable()


def test_an_attempt_that_ends_without_an_error_counts_behind_a_failure() -> None:
    numbers = []
    pauses: list[float] = []
    for attempt in attempts(policy(first=1.0, factor=2.0, tries=3), pause=pauses.append):
        with attempt as entered:
            assert entered is attempt
            numbers.append(attempt.number)
            if attempt.number == 1:
                raise OSError("lost")
    assert (numbers, pauses) == ([1, 2, 3], [1.0, 2.0])


class Broker:
    """Refuses negative numbers, and is lost at 0."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []

    def tell(self, numbers: Sequence[int]) -> int:
        self.sent.append(list(numbers))
        if 0 in numbers:
            raise ConnectionError("lost")
        if min(numbers) < 0:
            raise ValueError(f"{min(numbers)} is refused")
        return sum(numbers)


@pytest.fixture
def broker() -> Broker:
    return Broker()


def ask(broker: Broker, numbers: Sequence[int]) -> list[int | str]:
    """Tell *numbers*; those that are refused by themselves are described."""

    def refused(number: int, exc: Exception) -> int | str:
        return str(exc)

    return isolated(numbers, broker.tell, refused, lambda exc: isinstance(exc, ValueError))


def test_what_is_taken_is_sent_once(broker: Broker) -> None:
    assert ask(broker, [1, 2, 3]) == [6]
    assert broker.sent == [[1, 2, 3]]


def test_a_culprit_harms_no_other(broker: Broker) -> None:
    assert ask(broker, [1, -2, 3]) == [1, "-2 is refused", 3]
    assert broker.sent == [[1, -2, 3], [1], [-2], [3]]


def test_one_that_is_refused_is_not_sent_twice(broker: Broker) -> None:
    assert ask(broker, [-1]) == ["-1 is refused"]
    assert broker.sent == [[-1]]


@pytest.mark.parametrize("numbers", [[1, 0], [-1, 0, 2]])
def test_a_lost_broker_is_nobodys_fault(broker: Broker, numbers: list[int]) -> None:
    with pytest.raises(ConnectionError):
        ask(broker, numbers)
    assert [2] not in broker.sent


# -- errors of the program ------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [lambda: Slot[None]().wait(NEVER), lambda: sleep(60.0)])
def test_an_error_that_is_thrown_into_an_attempt_is_its_last(wait: Any) -> None:
    begun = []

    def work() -> BaseException | None:
        try:
            for attempt in attempts(policy(first=0.0)):
                begun.append(attempt.number)
                with attempt:
                    wait()
        except ConnectionError as exc:
            return exc
        return None

    working = gevent.spawn(work)
    gevent.sleep(0)
    error = ConnectionError("mine")
    working.kill(error)
    assert working.get() is error
    assert is_thrown(error)
    assert not is_thrown(ConnectionError("the broker's"))
    assert begun == [1]
