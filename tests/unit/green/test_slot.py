"""The slot: one waiter, one value or error, at most once, whatever happens to the waiter."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

import gevent
import pytest
from gevent import get_hub
from gevent.monkey import get_original
from greenlet import greenlet, settrace

from greenconn.exceptions import NotFound, PublishTimeout, RecoverableConnectionError
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.slot import Slot
from tests.fix_interrupts import INTERRUPTIONS, SignalAt, interruptions

_start = get_original("_thread", "start_new_thread")
_lock = get_original("_thread", "allocate_lock")

LONG = Deadline(24 * 3600)  # made once for all tests, each of which has a timeout of its own


def state_of(slot: Slot[int]) -> str:
    """What became of a slot."""
    states = {"value": slot.has_value, "left": slot.has_left, "filled": slot.is_filled}
    return next((name for name, is_so in states.items() if is_so), "empty")


def switches_of(function: Callable[[], object]) -> int:
    """How often *function* leaves this greenlet."""
    current, count = gevent.getcurrent(), 0

    def trace(event: str, ends: tuple[greenlet, greenlet]) -> None:
        nonlocal count
        count += ends[0] is current

    former = settrace(trace)
    try:
        function()
    finally:
        settrace(former)
    return count


def test_a_waiter_gets_the_value() -> None:
    slot: Slot[int] = Slot()
    waiter = gevent.spawn(slot.wait, LONG)
    yield_to_hub()
    assert state_of(slot) == "empty"
    assert slot.offer(5)
    assert state_of(slot) == "value"
    assert slot.value == 5
    assert waiter.get(timeout=30) == 5


def test_a_value_that_is_there_needs_no_switch() -> None:
    slot: Slot[int] = Slot()
    assert slot.offer(5)
    assert switches_of(lambda: slot.wait(Deadline(0))) == 0
    assert slot.wait(Deadline(0)) == 5


def test_only_the_first_counts() -> None:
    slot: Slot[int] = Slot()
    assert slot.offer(1)
    assert not slot.offer(2)
    assert not slot.fail(ValueError())
    assert slot.wait(LONG) == 1
    other: Slot[int] = Slot()
    assert other.fail(ValueError())
    assert not other.offer(1)
    assert state_of(other) == "filled"
    with pytest.raises(ValueError):
        other.wait(LONG)


def test_filling_never_switches() -> None:
    slots: list[Slot[int]] = [Slot() for _ in range(3)]
    waiters = [gevent.spawn(slot.wait, LONG) for slot in slots]
    yield_to_hub()
    assert switches_of(lambda: [slot.offer(1) for slot in slots]) == 0
    assert [waiter.get(timeout=30) for waiter in waiters] == [1, 1, 1]


def test_a_hub_callback_may_fill_it() -> None:
    slot: Slot[int] = Slot()
    get_hub().loop.run_callback(slot.offer, 3)
    assert slot.wait(LONG) == 3


def test_none_is_a_value() -> None:
    slot: Slot[None] = Slot()
    slot.offer(None)
    slot.wait(LONG)
    assert slot.has_value


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_waiter_whose_deadline_ends_has_left(timeout: float) -> None:
    left: list[Slot[int]] = []
    slot: Slot[int] = Slot(left.append)
    with pytest.raises(TimeoutError):
        slot.wait(Deadline(timeout))
    assert left == [slot]
    assert not slot.offer(1)
    assert not slot.fail(ValueError())
    assert state_of(slot) == "left"
    assert slot.has_expired


def test_the_deadline_takes_as_long_as_it_says() -> None:
    slot: Slot[int] = Slot()
    began = monotonic()
    with pytest.raises(TimeoutError):
        slot.wait(Deadline(0.05))
    assert monotonic() - began >= 0.05


def put(slot: Slot[int], taken: list[bool]) -> None:
    taken.append(slot.offer(1))


def test_a_value_of_the_very_turn_in_which_the_deadline_ends_is_taken_or_refused() -> None:
    for number in range(50):
        slot: Slot[int] = Slot()
        timer = get_hub().loop.timer(0.002)
        taken: list[bool] = []
        timer.start(put, slot, taken)
        try:
            assert slot.wait(Deadline(0.002)) == 1, number
            assert taken == [True]
        except TimeoutError:
            yield_to_hub()
            gevent.sleep(0.002)
            assert taken == [False], number
        finally:
            timer.close()


@pytest.mark.parametrize("make", INTERRUPTIONS)
def test_a_killed_waiter_has_left(make: Callable[[], BaseException]) -> None:
    left: list[Slot[int]] = []
    slot: Slot[int] = Slot(left.append)
    waiter = gevent.spawn(slot.wait, LONG)
    yield_to_hub()
    error = make()
    waiter.kill(error)
    assert state_of(slot) == "left"
    assert left == [slot]
    assert not slot.offer(1)
    if not isinstance(error, gevent.GreenletExit):
        with pytest.raises(type(error)):
            waiter.get()


def test_a_timeout_of_gevent_leaves() -> None:
    slot: Slot[int] = Slot()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        slot.wait(LONG)
    assert slot.has_left


def test_a_timeout_error_that_is_thrown_in_is_not_the_end_of_the_deadline() -> None:
    slot: Slot[int] = Slot()
    with pytest.raises(TimeoutError), gevent.Timeout(0.01, TimeoutError):
        slot.wait(LONG)
    assert slot.has_left
    assert not slot.has_expired


def test_a_value_on_its_way_to_a_killed_waiter_is_still_there() -> None:
    slot: Slot[int] = Slot(lambda _: pytest.fail("it did not leave empty-handed"))
    waiter = gevent.spawn(slot.wait, LONG)
    yield_to_hub()
    waiter.kill(block=False)
    assert slot.offer(7)
    waiter.join()
    outcome: object = waiter.value
    assert isinstance(outcome, gevent.GreenletExit)
    assert state_of(slot) == "value"
    assert slot.value == 7


def test_a_value_that_nobody_took_can_be_exchanged() -> None:
    slot: Slot[int] = Slot()
    waiter = gevent.spawn(slot.wait, LONG)
    yield_to_hub()
    slot.offer(7)
    assert slot.exchange(6) == 7
    assert waiter.get(timeout=30) == 6


def test_each_switch_may_be_the_last() -> None:
    made: list[Slot[int]] = []

    def wait() -> int:
        made.append(Slot())
        get_hub().loop.run_callback(made[-1].offer, 1)
        return made[-1].wait(LONG)

    for run in interruptions(wait):
        slot = made[-1]
        if run.raised is None:
            assert run.result == 1
        else:
            assert state_of(slot) in ("value", "left")
            yield_to_hub()
            assert not slot.offer(2)


def test_nothing_of_a_wait_stays_with_the_hub() -> None:
    loop = get_hub().loop
    yield_to_hub()
    before = loop.activecnt
    for _ in range(20):
        with pytest.raises(TimeoutError):
            Slot[int]().wait(Deadline(0.001))
        waiter = gevent.spawn(Slot[int]().wait, LONG)
        yield_to_hub()
        waiter.kill()
    yield_to_hub()
    assert loop.activecnt <= before


def test_each_waiter_gets_an_error_of_its_own() -> None:
    cause = OSError(104, "reset")
    error = NotFound("no queue", (50, 10), "Queue.declare", 404)
    error.__cause__ = cause
    slots: list[Slot[int]] = [Slot() for _ in range(3)]
    for slot in slots:
        slot.fail(error)
    raised = []
    for slot in slots:
        with pytest.raises(NotFound) as caught:
            slot.wait(LONG)
        raised.append(caught.value)
    assert len({id(each) for each in raised} | {id(error)}) == 4
    for each in raised:
        assert str(each) == str(error)
        assert each.args == error.args
        assert each.reply_code == 404
        assert each.method_sig == (50, 10)
        assert each.__cause__ is cause
        assert len(traceback.extract_tb(each.__traceback__)) == 2
    assert error.__traceback__ is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(111, "refused"),
        ConnectionResetError(104, "reset"),
        RecoverableConnectionError("gone"),
        PublishTimeout("late", maybe_delivered=True),
        gevent.Timeout(None),
        gevent.GreenletExit(),
        KeyError("k"),
    ],
)
def test_any_error_keeps_its_class_and_words(error: BaseException) -> None:
    slot: Slot[int] = Slot()
    slot.fail(error)
    with pytest.raises(type(error)) as caught:
        slot.wait(LONG)
    assert str(caught.value) == str(error)
    assert caught.value.args == error.args
    assert {**caught.value.__dict__} == {**error.__dict__}


def test_who_waits_is_woken_by_an_error() -> None:
    slot: Slot[int] = Slot()
    waiter = gevent.spawn(slot.wait, Deadline(30))
    yield_to_hub()
    assert slot.fail(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        waiter.get(timeout=20)


def test_who_waits_without_an_end_is_woken_by_an_error() -> None:
    slot: Slot[int] = Slot()
    waiter = gevent.spawn(slot.wait, NEVER)
    yield_to_hub()
    assert slot.fail(ValueError("no"))
    assert not slot.fail(ValueError("again"))
    with pytest.raises(ValueError, match="no"):
        waiter.get(timeout=20)


@pytest.mark.parametrize("by", ["a value", "an error"])
def test_another_thread_wakes_a_hub_that_waits_for_the_network(by: str) -> None:
    slot: Slot[int] = Slot()
    polls, has_ended = _lock(), _lock()
    polls.acquire()
    has_ended.acquire()

    def fill() -> None:
        polls.acquire()
        if by == "a value":
            slot.offer(5)
        else:
            slot.fail(ValueError("no"))
        get_hub().destroy(destroy_loop=True)
        has_ended.release()

    def polls_now() -> None:
        about_to_poll.close()
        polls.release()

    _start(fill, ())
    about_to_poll = get_hub().loop.prepare()
    about_to_poll.start(polls_now)
    # Nothing else wakes this hub, whose callbacks are for its own thread.
    with gevent.Timeout(30):
        if by == "a value":
            assert slot.wait(LONG) == 5
        else:
            with pytest.raises(ValueError, match="no"):
                slot.wait(LONG)
    assert has_ended.acquire(timeout=30)


@pytest.mark.parametrize("how", ["offer", "fail"])
def test_a_signal_amid_the_filling_leaves_no_waiter_of_a_filled_slot(how: str) -> None:
    def fill() -> None:
        if how == "offer":
            slot.offer(1)
        else:
            slot.fail(NotFound("no"))

    def wait() -> None:
        with suppress(NotFound):
            assert slot.wait(NEVER) == 1

    has_struck, number = True, 1
    while has_struck:
        slot: Slot[int] = Slot()
        waiter = gevent.spawn(wait)
        yield_to_hub()
        signal = SignalAt(number, between_calls=False)
        signal.run(fill)
        has_struck, number = signal.left <= 0, number + 1
        if not slot.is_filled:
            fill()
        waiter.get(timeout=30)
