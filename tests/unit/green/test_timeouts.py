"""The deadlines of slots: one timer for all of a hub, which comes for each in time."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any
from weakref import ref

import gevent
import pytest
from gevent import get_hub
from gevent.exceptions import LoopExit
from gevent.monkey import get_original
from gevent.socket import socketpair
from greenlet import greenlet

from greenconn.green import slot as module
from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.slot import GRACE, SPAN, Slot, Timeouts

FAR = 24 * 3600.0


class Loop:
    """The loop of a hub whose timers come when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.started = 0

    def timer(self, after: float) -> Timer:
        """Make a timer."""
        return Timer(self, after)

    def run(self, seconds: float) -> None:
        """Let time go by: the timers come one after the other, each at its time."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.at <= end]:
            timer = min(due, key=lambda timer: timer.at)
            self.now = max(self.now, timer.at)
            timer.stop()
            timer.callback()
        self.now = end

    def late(self, seconds: float) -> None:
        """Let time go by at once, as a hub does that is busy: the timers come behind it."""
        self.now += seconds
        self.run(0.0)


class Timer:
    """A timer of that loop."""

    def __init__(self, loop: Loop, after: float) -> None:
        self.loop, self.after, self.ref = loop, after, True
        self.at = 0.0
        self.callback: Callable[[], None]

    def start(self, callback: Callable[[], None], update: bool) -> None:
        """Begin."""
        assert update
        assert self.after >= 0.0
        self.at, self.callback = self.loop.now + self.after, callback
        self.loop.timers.append(self)
        self.loop.started += 1

    def stop(self) -> None:
        """Do not come."""
        if self in self.loop.timers:
            self.loop.timers.remove(self)

    close = stop


class Wait:
    """The wait of one slot."""

    def __init__(self, board: Board, after: float) -> None:
        self.board, self.at = board, board.loop.now + after
        self.then: Callable[[], object] | None = None
        timeouts = board.timeouts
        timeouts.waiting[self] = self.at
        if self.at < timeouts.noted_before:
            timeouts.note(self, self.at)

    def leave(self) -> None:
        """End before the deadline."""
        del self.board.timeouts.waiting[self]

    def expire(self) -> None:
        """Note when that was."""
        self.board.expired.append((self, self.board.loop.now))
        self.board.timeouts.waiting.pop(self)
        if self.then is not None:
            self.then()


class Board:
    """The timeouts of one loop, and what has expired."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.timeouts = Timeouts(self.loop)
        self.expired: list[tuple[Wait, float]] = []

    def wait(self, after: float) -> Wait:
        """Enter a slot."""
        return Wait(self, after)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    made = Board()
    monkeypatch.setattr(module, "monotonic", lambda: made.loop.now)
    return made


def seconds(board: Board, begun: float = 1000.0) -> list[float]:
    """When the slots expired, and that each did when it should."""
    for wait, at in board.expired:
        assert at == pytest.approx(wait.at, abs=1e-6)
    return [round(at - begun, 6) for _, at in board.expired]


def test_each_expires_at_its_time_whatever_their_order(board: Board) -> None:
    times = [30.0, 5.0, 0.03, 30.01, 0.05, 5.0, 12.0, 0.01, 5.05, 40.0]
    for after in times:
        board.wait(after)
    board.loop.run(60.0)
    assert seconds(board) == sorted(times)
    assert not board.timeouts.waiting
    assert not board.loop.timers


def test_those_that_come_while_others_are_near_expire_in_time(board: Board) -> None:
    board.wait(1.0)
    board.wait(1.0 + SPAN / 2)
    board.loop.run(1.0)  # the second one is in order now
    assert len(board.expired) == 1
    board.wait(SPAN / 4)
    board.wait(SPAN * 0.75)
    board.wait(SPAN * 2)
    board.loop.run(1.0)
    assert seconds(board) == [
        1.0,
        1.0 + SPAN / 4,
        1.0 + SPAN / 2,
        1.0 + SPAN * 0.75,
        1.0 + SPAN * 2,
    ]


def test_those_that_have_left_do_not_expire(board: Board) -> None:
    waits = [board.wait(1.0 + number * SPAN / 8) for number in range(12)]
    for wait in waits[:3]:
        wait.leave()
    board.loop.run(1.0 + SPAN / 2)
    for wait in waits[6:9]:
        wait.leave()
    board.loop.run(60.0)
    assert [wait for wait, _ in board.expired] == waits[3:6] + waits[9:]
    seconds(board)


def test_one_timer_for_many_waits_that_end_early(board: Board) -> None:
    for _ in range(1000):
        board.wait(30.0).leave()
        board.loop.run(0.001)
    assert board.loop.started == 1
    board.wait(30.0)
    assert board.loop.started == 1
    board.loop.run(31.0)
    assert seconds(board) == [31.0]


def test_thousands_at_one_moment_take_one_pass(board: Board) -> None:
    for _ in range(5000):
        board.wait(2.0)
    board.loop.run(3.0)
    assert seconds(board) == [2.0] * 5000
    assert board.loop.started == 1


def test_many_moments_take_few_passes(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(dict[Any, float]):
        passes = 0

        def items(self) -> Any:
            self.passes += 1
            return super().items()

        def values(self) -> Any:
            self.passes += 1
            return super().values()

    waiting = board.timeouts.waiting = Counted()
    for number in range(2000):
        board.wait(5.0 + number / 1000)
    board.loop.run(10.0)
    assert len(seconds(board)) == 2000
    assert waiting.passes <= 2 * (2.0 / SPAN + 2)


def test_a_timer_that_comes_late_expires_all_that_are_due(board: Board) -> None:
    early, second = board.wait(1.0), board.wait(1.0 + SPAN * 3)
    board.wait(60.0)
    board.loop.late(2.0)
    board.loop.run(GRACE)
    assert [wait for wait, _ in board.expired] == [early, second]
    board.expired.clear()
    board.loop.run(60.0)
    assert seconds(board) == [60.0]


def strike_late(board: Board, seconds: float) -> None:
    """Have the timer come late, and nothing after it."""
    (timer,) = board.loop.timers
    timer.stop()
    board.loop.now += seconds
    timer.callback()


def test_a_timer_that_comes_late_comes_once_more_before_any_expires(board: Board) -> None:
    answered, other = board.wait(1.0), board.wait(1.0)
    strike_late(board, 1.25)
    assert not board.expired
    answered.leave()
    strike_late(board, 2.0)  # each turn of a busy hub may take long
    assert [wait for wait, _ in board.expired] == [other]


def test_who_comes_after_a_late_timer_expires_in_time(board: Board) -> None:
    late = board.wait(1.0)
    strike_late(board, 3.0)
    later = board.wait(0.5)
    board.loop.run(0.9)
    assert [wait for wait, _ in board.expired] == [later]
    assert seconds(board) == [3.5]
    board.loop.run(0.2)
    assert [wait for wait, _ in board.expired] == [later, late]
    other = board.wait(1.0)
    strike_late(board, 2.0)
    assert other in board.timeouts.waiting


def test_what_was_given_more_time_expires_although_others_are_given_some(board: Board) -> None:
    late = board.wait(1.0)
    strike_late(board, 2.0)
    board.wait(0.1)
    strike_late(board, 0.3)
    assert not board.expired
    strike_late(board, 1.0)
    assert late in [wait for wait, _ in board.expired]


@pytest.mark.parametrize(("late", "more"), [(0.25, 0.25), (60.0, GRACE)])
def test_what_is_late_is_given_as_much_again(board: Board, late: float, more: float) -> None:
    board.wait(1.0)
    strike_late(board, 1.0 + late)
    board.loop.run(more - 0.01)
    assert not board.expired
    board.loop.run(0.02)
    assert len(board.expired) == 1


def test_what_came_while_the_hub_was_blocked_is_no_timeout() -> None:
    here, there = socketpair()
    slot: Slot[bytes] = Slot()
    readers = [gevent.spawn(lambda: slot.offer(here.recv(1)))]
    waiting = gevent.spawn(slot.wait, Deadline(0.05))
    gevent.sleep(0)
    there.send(b"x")
    get_original("time", "sleep")(0.4)
    assert waiting.get(timeout=10) == b"x"
    gevent.joinall(readers, timeout=10)
    for each in (here, there):
        each.close()


def test_a_timer_that_comes_early_comes_again(board: Board) -> None:
    board.wait(1.0)
    (timer,) = board.loop.timers
    timer.stop()
    board.loop.now += 0.999
    timer.callback()
    assert not board.expired
    board.loop.run(0.5)
    assert seconds(board) == [1.0]


def test_who_expires_may_make_others_wait_and_leave(board: Board) -> None:
    first = board.wait(1.0)
    gone = board.wait(1.0)
    made: list[Wait] = []

    def then() -> None:
        gone.leave()
        made.extend((board.wait(SPAN / 2), board.wait(0.0), board.wait(20.0)))

    first.then = then
    board.loop.run(60.0)
    assert [wait for wait, _ in board.expired] == [first, made[1], made[0], made[2]]
    seconds(board)


def test_the_timer_does_not_come_again_for_one_that_is_on_its_way(board: Board) -> None:
    class OnItsWay(Wait):
        """The wait of a slot that was filled, whose greenlet has not run yet."""

        def expire(self) -> None:
            """Leave it to the callback."""

    OnItsWay(board, 1.0)
    board.wait(5.0)
    board.loop.run(2.0)
    assert board.loop.started == 2
    board.loop.run(4.0)
    assert seconds(board) == [5.0]


def test_the_others_expire_when_waking_one_raises(board: Board) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    board.wait(1.0).then = fail
    rest = [board.wait(1.0), board.wait(9.0)]
    with pytest.raises(KeyboardInterrupt):
        board.loop.run(5.0)
    board.loop.run(20.0)
    assert [wait for wait, _ in board.expired[1:]] == rest


def test_the_last_one_leaves_nothing_to_come_for_but_the_timer(board: Board) -> None:
    board.wait(1.0).leave()
    board.loop.run(2.0)
    assert not board.loop.timers
    board.wait(5.0)
    board.loop.run(10.0)
    assert seconds(board) == [7.0]


# With gevent's hub.


def waiting() -> int:
    """The number of slots that wait in this hub."""
    timeouts: Timeouts = get_hub().greenconn_timeouts  # type: ignore[attr-defined]  # set by a slot
    return len(timeouts.waiting)


def wait_once(timeout: float) -> None:
    slot: Slot[int] = Slot()
    get_hub().loop.run_callback(slot.offer, 1)
    assert slot.wait(Deadline(timeout)) == 1


def test_a_slot_that_waits_no_more_is_not_kept() -> None:
    wait_once(FAR)
    before = waiting()
    kept: list[ref[Any]] = []
    for _ in range(10):

        class Body:
            """What is offered."""

        body = Body()
        kept.append(ref(body))
        slot: Slot[Body] = Slot()
        get_hub().loop.run_callback(slot.offer, body)
        assert slot.wait(Deadline(FAR)) is body
        del body, slot
    waiter = gevent.spawn(Slot[int]().wait, Deadline(FAR))
    yield_to_hub()
    assert waiting() == before + 1
    waiter.kill()
    yield_to_hub()
    gc.collect()
    assert waiting() == before
    assert [each() for each in kept] == [None] * 10


def test_thousands_of_greenlets_time_out_and_others_run() -> None:
    ended: list[float] = []

    def wait(after: float) -> None:
        deadline = Deadline(after)
        with pytest.raises(TimeoutError):
            Slot[int]().wait(deadline)
        assert deadline.has_ended
        ended.append(after)

    waiters = [gevent.spawn(wait, 0.05 + number % 7 / 100) for number in range(2000)]
    gevent.joinall(waiters, timeout=60.0, raise_error=True)
    assert len(ended) == 2000


def in_hub_of_its_own(function: Callable[[], object]) -> list[BaseException]:
    """Run *function* in a native thread; return what it raised."""
    raised: list[BaseException] = []
    ended = get_original("_thread", "allocate_lock")()
    ended.acquire()

    def run() -> None:
        try:
            function()
        except BaseException as exc:
            raised.append(exc)
        finally:
            ended.release()

    get_original("_thread", "start_new_thread")(run, ())
    assert ended.acquire(timeout=60.0)
    return raised


def test_a_deadline_keeps_a_loop_alive_that_has_nothing_else() -> None:
    def wait() -> None:
        with pytest.raises(TimeoutError):
            Slot[int]().wait(Deadline(0.05))

    assert in_hub_of_its_own(wait) == []


def test_a_wait_that_has_ended_keeps_no_loop_alive() -> None:
    def wait() -> None:
        wait_once(FAR)
        get_hub().switch()

    began = monotonic()
    (raised,) = in_hub_of_its_own(wait)
    assert isinstance(raised, LoopExit)
    assert monotonic() - began < FAR


def test_each_hub_has_its_own() -> None:
    seen: list[object] = []

    def wait() -> None:
        wait_once(FAR)
        seen.append(get_hub().greenconn_timeouts)  # type: ignore[attr-defined]  # set by a slot

    wait()
    assert in_hub_of_its_own(wait) == []
    assert len({id(each) for each in seen}) == 2


def test_the_next_hub_of_a_thread_has_its_own() -> None:
    def wait() -> None:
        for _ in range(2):
            wait_once(FAR)
            with pytest.raises(TimeoutError):
                Slot[int]().wait(Deadline(0.01))
            get_hub().destroy(destroy_loop=True)

    assert in_hub_of_its_own(wait) == []


def test_a_timer_does_not_outlive_its_thread() -> None:
    timers: list[Any] = []

    def wait() -> None:
        wait_once(FAR)
        timers.append(get_hub().greenconn_timeouts.timer)  # type: ignore[attr-defined]
        assert timers[0].active

    assert in_hub_of_its_own(wait) == []
    deadline = monotonic() + 60.0
    while timers[0].active and monotonic() < deadline:
        yield_to_hub()  # the lock is released a moment before the thread ends
    assert not timers[0].active


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_of_a_fork_times_out_too() -> None:
    wait_once(FAR)
    waiter = gevent.spawn(Slot[int]().wait, Deadline(FAR))
    yield_to_hub()
    pid = os.fork() if os.fork.__module__ == "posix" else gevent.os.fork()
    if not pid:
        status = 1
        try:
            gevent.reinit()
            try:
                Slot[int]().wait(Deadline(0.05))
            except TimeoutError:
                status = 0
        finally:
            os._exit(status)
    waiter.kill()
    assert gevent.os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def raw() -> Iterator[list[greenlet]]:
    """Greenlets that are not gevent's."""
    made: list[greenlet] = []
    yield made
    assert all(each.dead for each in made)


def test_greenlets_that_are_not_gevents_time_out(raw: list[greenlet]) -> None:
    outcomes: list[str] = []

    def wait() -> None:
        try:
            Slot[int]().wait(Deadline(0.02))
        except TimeoutError:
            outcomes.append("expired")

    raw.extend(greenlet(wait, get_hub()) for _ in range(3))
    for each in raw:
        get_hub().loop.run_callback(each.switch)
    deadline = monotonic() + 60.0
    while len(outcomes) < 3 and monotonic() < deadline:
        yield_to_hub()
    assert outcomes == ["expired"] * 3
