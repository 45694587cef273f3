"""Single flight: one execution for many callers, whoever of them is killed."""

from __future__ import annotations

import gc
import traceback
import weakref

import gevent
import pytest
from gevent.event import Event

from greenconn.exceptions import OperationalError
from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.slot import SingleFlight
from tests.fix_interrupts import Signal, SignalInLibrary


class Work:
    """Something slow that counts how often it was begun and ended."""

    def __init__(self, result: object = "done") -> None:
        self.result = result
        self.begun = 0
        self.ended = 0
        self.go = Event()

    def __call__(self) -> object:
        self.begun += 1
        assert self.go.wait(30)
        self.ended += 1
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def test_a_thousand_callers_share_one_execution() -> None:
    single, work = SingleFlight(), Work()
    callers = [gevent.spawn(single.run, "k", work) for _ in range(1000)]
    yield_to_hub()
    assert single.is_running("k")
    work.go.set()
    assert [caller.get(timeout=30) for caller in callers] == ["done"] * 1000
    assert work.begun == 1
    assert not single.is_running("k")


def test_callers_come_back_in_order() -> None:
    single, work = SingleFlight(), Work()
    order: list[int] = []

    def call(number: int) -> None:
        single.run("k", work)
        order.append(number)

    callers = [gevent.spawn(call, number) for number in range(50)]
    yield_to_hub()
    work.go.set()
    gevent.joinall(callers, timeout=5, raise_error=True)
    assert order == list(range(50))


def test_other_keys_and_later_calls_run_apart() -> None:
    single, work = SingleFlight(), Work()
    work.go.set()
    assert single.run("a", work) == single.run("a", work) == single.run("b", work) == "done"
    assert work.begun == 3


def test_every_caller_gets_the_error_with_a_short_traceback() -> None:
    single, work = SingleFlight(), Work(LookupError("no"))
    lengths: list[int] = []

    def call() -> None:
        try:
            single.run("k", work)
        except LookupError as exc:
            lengths.append(len(traceback.extract_tb(exc.__traceback__)))

    callers = [gevent.spawn(call) for _ in range(20)]
    yield_to_hub()
    work.go.set()
    gevent.joinall(callers, timeout=5, raise_error=True)
    assert len(lengths) == 20
    assert len(set(lengths)) == 1


def test_an_error_leaves_no_circle_behind() -> None:
    class Local(Exception):
        pass

    single = SingleFlight()

    def fail() -> None:
        raise Local

    gc.collect()
    gc.disable()
    try:
        try:
            single.run("k", fail)
        except Local as exc:
            gone = weakref.ref(exc)
        yield_to_hub()  # the greenlet of the flight ends
        assert gone() is None
    finally:
        gc.enable()


def test_a_killed_caller_cancels_nothing() -> None:
    single, work = SingleFlight(), Work()
    first = gevent.spawn(single.run, "k", work)
    second = gevent.spawn(single.run, "k", work)
    yield_to_hub()
    first.kill()
    work.go.set()
    assert second.get(timeout=30) == "done"
    assert work.begun == work.ended == 1


def test_the_flight_ends_by_itself_when_all_callers_are_killed() -> None:
    single, work = SingleFlight(), Work()
    callers = [gevent.spawn(single.run, "k", work) for _ in range(3)]
    yield_to_hub()
    gevent.killall(callers)
    assert single.is_running("k")
    work.go.set()
    yield_to_hub()
    yield_to_hub()
    assert work.ended == 1
    assert not single.is_running("k")


def test_a_caller_that_times_out_leaves_the_others_alone() -> None:
    single, work = SingleFlight(), Work()
    patient = gevent.spawn(single.run, "k", work, Deadline(5))
    with pytest.raises(TimeoutError):
        single.run("k", work, 0.02)
    work.go.set()
    assert patient.get(timeout=5) == "done"
    assert work.begun == 1


def test_a_timeout_of_the_user_hits_only_its_caller() -> None:
    single, work = SingleFlight(), Work()
    patient = gevent.spawn(single.run, "k", work)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
        single.run("k", work)
    work.go.set()
    assert patient.get(timeout=5) == "done"


def test_a_killed_flight_is_an_error_for_those_who_wait() -> None:
    single = SingleFlight("reconnect")
    inside: list[gevent.Greenlet[..., object]] = []

    def work() -> None:
        inside.append(gevent.getcurrent())  # type: ignore[arg-type]
        Event().wait(30)

    caller = gevent.spawn(single.run, "k", work)
    yield_to_hub()
    inside[0].kill()
    with pytest.raises(OperationalError, match="reconnect for 'k' was killed"):
        caller.get(timeout=5)


def test_asking_again_from_within_is_an_error() -> None:
    single = SingleFlight()
    with pytest.raises(RuntimeError, match="would wait for itself"):
        single.run("k", lambda: single.run("k", int, 5), 5)
    assert single.run("k", lambda: 3) == 3


def test_a_circle_of_two_is_an_error() -> None:
    single = SingleFlight()

    def outer() -> object:
        return single.run("inner", lambda: single.run("outer", int, 5), 5)

    with pytest.raises(RuntimeError, match="'outer' would wait for itself"):
        single.run("outer", outer, 5)


def test_forgotten_flights_are_not_joined() -> None:
    single, old, new = SingleFlight(), Work("old"), Work("new")
    former = gevent.spawn(single.run, "k", old)
    yield_to_hub()
    single.forget()
    later = gevent.spawn(single.run, "k", new)
    yield_to_hub()
    old.go.set()
    assert former.get(timeout=30) == "old"
    assert single.is_running("k")
    new.go.set()
    assert later.get(timeout=30) == "new"


def test_asking_from_within_for_what_somebody_else_began() -> None:
    single, work = SingleFlight(), Work()
    first = gevent.spawn(single.run, "inner", work)
    yield_to_hub()
    outer = gevent.spawn(single.run, "outer", lambda: single.run("inner", Work(), 30), 30)
    yield_to_hub()
    work.go.set()
    assert [each.get(timeout=30) for each in (first, outer)] == ["done", "done"]


def test_a_signal_amid_an_execution_leaves_no_caller_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *args: None)
    single, number, has_struck = SingleFlight(), 1, True
    while has_struck:
        signal = SignalInLibrary(number, between_calls=False)
        signal.begin()
        try:
            assert single.run("k", str, Deadline(30)) == ""
        except (Signal, OperationalError) as exc:
            assert not isinstance(exc, OperationalError) or "was killed" in str(exc)  # noqa: PT017
        finally:
            signal.end()
        has_struck, number = signal.left <= 0, number + 1
        assert single.run("k", str, Deadline(30)) == ""
