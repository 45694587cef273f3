"""The inbox: items in their order, takers in theirs, and nothing lost when takers are killed."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import get_hub
from hypothesis import given
from hypothesis import strategies as st

from greenconn.green import inbox as inbox_module
from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.inbox import PACE, STREAK, Inbox, take_any
from tests.fix_interrupts import interruptions

LONG = Deadline(24 * 3600)  # made once for all tests, each of which has a timeout of its own

Inboxes = tuple[Inbox[Any], Inbox[Any]]


def test_items_come_out_in_order() -> None:
    inbox: Inbox[int] = Inbox()
    for number in range(5):
        inbox.put(number)
    assert len(inbox) == 5
    assert [inbox.get(LONG) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(inbox) == 0


def test_takers_are_served_in_order() -> None:
    inbox: Inbox[int] = Inbox()
    takers = [gevent.spawn(inbox.get, LONG) for _ in range(5)]
    yield_to_hub()
    assert inbox.waiting == 5
    for number in range(7):
        inbox.put(number)
    assert inbox.waiting == 0
    assert [taker.get(timeout=30) for taker in takers] == [0, 1, 2, 3, 4]
    assert [inbox.get(LONG), inbox.get(LONG)] == [5, 6]


def test_an_item_is_not_taken_from_the_one_who_waits() -> None:
    inbox: Inbox[int] = Inbox()
    waiting = gevent.spawn(inbox.get, LONG)
    yield_to_hub()
    inbox.put(1)
    with pytest.raises(TimeoutError):
        inbox.get(Deadline(0))
    assert waiting.get(timeout=5) == 1


def test_putting_never_switches_and_may_be_done_in_the_hub() -> None:
    inbox: Inbox[int] = Inbox()
    get_hub().loop.run_callback(inbox.put, 1)
    assert inbox.get(LONG) == 1


def test_an_empty_inbox_lets_the_hub_turn_before_it_says_so() -> None:
    inbox: Inbox[int] = Inbox()
    ran: list[int] = []
    gevent.spawn(ran.append, 1)
    with pytest.raises(TimeoutError):
        inbox.get(Deadline(0))
    assert ran == [1]


def test_what_comes_in_that_turn_is_taken() -> None:
    inbox: Inbox[int] = Inbox()
    gevent.spawn(inbox.put, 1)
    assert inbox.get(Deadline(0)) == 1


def test_a_deadline_ends_the_wait() -> None:
    inbox: Inbox[int] = Inbox()
    began = monotonic()
    with pytest.raises(TimeoutError):
        inbox.get(Deadline(0.03))
    assert monotonic() - began >= 0.03
    assert inbox.waiting == 0


def test_one_who_always_finds_an_item_lets_the_others_run() -> None:
    inbox: Inbox[int] = Inbox()
    stamps: list[float] = []

    def look() -> None:
        while True:
            stamps.append(monotonic())
            gevent.sleep(0.001)

    looker = gevent.spawn(look)
    yield_to_hub()
    deadline = monotonic() + 30
    while len(stamps) <= 5:
        inbox.put(1)
        inbox.get(LONG)
        assert monotonic() < deadline
    looker.kill()


def test_the_others_run_no_more_often_than_they_must(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    turns: list[float] = []
    monkeypatch.setattr(inbox_module, "monotonic", lambda: clock[0])
    monkeypatch.setattr(inbox_module, "yield_to_hub", lambda: turns.append(clock[0]))
    inbox: Inbox[int] = Inbox()
    for clock[0] in (1000.0, 1000.0 + PACE / 2, 1000.0 + PACE * 2):
        for _ in range(3 * STREAK):
            inbox.put(1)
            inbox.get(LONG)
    assert turns == [1000.0, 1000.0 + PACE * 2]


def test_the_clock_is_looked_at_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def look() -> float:
        looks.append(1)
        return 0.0

    monkeypatch.setattr(inbox_module, "monotonic", look)
    inbox: Inbox[int] = Inbox()
    for _ in range(100 * STREAK):
        inbox.put(1)
        inbox.get(LONG)
    assert len(looks) == 100


def test_an_error_reaches_all_who_wait_once_and_items_stay() -> None:
    inbox: Inbox[int] = Inbox()
    takers = [gevent.spawn(inbox.get, LONG) for _ in range(3)]
    yield_to_hub()
    inbox.put(1)
    inbox.fail(LookupError("lost"))
    inbox.put(2)
    assert takers[0].get(timeout=30) == 1
    errors = []
    for taker in takers[1:]:
        with pytest.raises(LookupError, match="lost") as caught:
            taker.get(timeout=5)
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert inbox.get(LONG) == 2


def test_clear_drops_what_nobody_has_taken() -> None:
    inbox: Inbox[int] = Inbox()
    taker = gevent.spawn(inbox.get, LONG)
    yield_to_hub()
    for number in range(3):
        inbox.put(number)
    inbox.clear()
    assert len(inbox) == 0
    assert taker.get(timeout=30) == 0


@pytest.mark.parametrize("kill_first", [True, False])
def test_an_item_on_its_way_to_a_killed_taker_goes_to_the_next(kill_first: bool) -> None:
    inbox: Inbox[int] = Inbox()
    killed, taker = gevent.spawn(inbox.get, LONG), gevent.spawn(inbox.get, LONG)
    yield_to_hub()
    if kill_first:
        killed.kill(block=False)
    inbox.put(1)
    killed.kill(block=False)
    inbox.put(2)
    gevent.joinall([killed, taker], timeout=30)
    got: list[Any] = [killed.value, taker.value, *(inbox.get(LONG) for _ in range(len(inbox)))]
    assert [item for item in got if isinstance(item, int)] == [1, 2]


def test_many_killed_at_once_lose_nothing_and_keep_the_order() -> None:
    inbox: Inbox[int] = Inbox()
    takers = [gevent.spawn(inbox.get, LONG) for _ in range(10)]
    yield_to_hub()
    # As a reader does with one chunk, in the turn in which the takers are killed.
    gevent.killall(takers[1::2] + takers[::2], block=False)
    for number in range(15):
        inbox.put(number)
    gevent.joinall(takers, timeout=30)
    assert [inbox.get(Deadline(0)) for _ in range(15)] == list(range(15))


def test_what_is_put_back_comes_first_even_before_what_is_on_its_way() -> None:
    inbox: Inbox[int] = Inbox()
    inbox.put(1)
    one = inbox.get(LONG)
    takers = [gevent.spawn(inbox.get, LONG) for _ in range(2)]
    yield_to_hub()
    inbox.put(2)
    inbox.put_back(one)
    assert [taker.get(timeout=30) for taker in takers] == [1, 2]
    inbox.put(4)
    inbox.put_back(3)
    assert [inbox.get(LONG), inbox.get(LONG)] == [3, 4]


STEPS = st.one_of(st.sampled_from(["put", "take", "turn"]), st.integers(0, 100))


@given(st.lists(STEPS, max_size=60))
def test_whatever_happens_to_takers_all_items_come_out_in_order(steps: list[str | int]) -> None:
    inbox: Inbox[int] = Inbox()
    taken: list[int] = []
    takers: list[gevent.Greenlet[..., Any]] = []
    count = 0

    def take() -> None:
        taken.append(inbox.get(LONG))

    for step in steps:
        if step == "put":
            inbox.put(count)
            count += 1
        elif step == "take":
            takers.append(gevent.spawn(take))
        elif step == "turn":
            yield_to_hub()
        elif takers and isinstance(step, int):
            takers[step % len(takers)].kill(block=False)
    yield_to_hub()
    yield_to_hub()
    left = [inbox.get(Deadline(0)) for _ in range(len(inbox))]
    gevent.killall(takers)
    assert taken + left == list(range(count))
    assert inbox.waiting == 0
    with pytest.raises(TimeoutError):
        inbox.get(Deadline(0))


def test_each_switch_of_a_taker_may_be_its_last() -> None:
    inbox: Inbox[int] = Inbox()

    def take() -> int:
        return inbox.get(LONG)

    came = 0
    outcomes: Counter[str] = Counter()
    for run in interruptions(take):
        # The next run's item; it is there before that begins, or not, in turn.
        came += 1
        inbox.put(came)
        outcomes["taken" if run.raised is None else "killed"] += 1
        if run.raised is not None:
            assert inbox.waiting == 0
    assert outcomes["taken"]
    left = [inbox.get(Deadline(0)) for _ in range(len(inbox))]
    assert left == sorted(left)
    assert len(left) + outcomes["taken"] == came


def test_what_is_dropped_is_returned() -> None:
    inbox: Inbox[int] = Inbox()
    assert inbox.clear() == []
    for number in range(3):
        inbox.put(number)
    assert inbox.clear() == [0, 1, 2]
    assert len(inbox) == 0


@pytest.fixture
def inboxes() -> Inboxes:
    return Inbox(), Inbox()


def test_the_first_that_has_an_item_is_taken_from(inboxes: Inboxes) -> None:
    first, second = inboxes
    second.put("b")
    assert take_any(inboxes, Deadline(None)) == (second, "b")
    second.put("b")
    first.put("a")
    assert take_any(inboxes, Deadline(None)) == (first, "a")


@pytest.mark.parametrize("number", [0, 1])
def test_it_waits_for_either(inboxes: Inboxes, number: int) -> None:
    taking = gevent.spawn(take_any, inboxes, Deadline(5.0))
    gevent.idle()
    inboxes[number].put("item")
    inboxes[number].put("next")
    assert taking.get(timeout=30.0) == (inboxes[number], "item")
    assert [each.waiting for each in inboxes] == [0, 0]
    assert len(inboxes[number]) == 1


def test_items_of_both_at_once_are_not_lost(inboxes: Inboxes) -> None:
    taking = gevent.spawn(take_any, inboxes, Deadline(5.0))
    gevent.idle()
    inboxes[1].put("b")
    inboxes[0].put("a")
    assert taking.get(timeout=30.0) == (inboxes[1], "b")
    assert take_any(inboxes, Deadline(0.0)) == (inboxes[0], "a")


@pytest.mark.parametrize("timeout", [0.0, 0.01])
def test_the_deadline_ends(inboxes: Inboxes, timeout: float) -> None:
    with pytest.raises(TimeoutError):
        take_any(inboxes, Deadline(timeout))
    assert [each.waiting for each in inboxes] == [0, 0]


def test_without_waiting_the_hub_has_a_turn(inboxes: Inboxes) -> None:
    gevent.spawn(inboxes[1].put, "item")
    assert take_any(inboxes, Deadline(0.0)) == (inboxes[1], "item")


def test_failing_either_is_raised(inboxes: Inboxes) -> None:
    def take() -> str:
        with pytest.raises(LookupError):
            take_any(inboxes, Deadline(5.0))
        return "raised"

    taking = gevent.spawn(take)
    gevent.idle()
    inboxes[1].fail(LookupError())
    assert taking.get(timeout=30.0) == "raised"
    assert [each.waiting for each in inboxes] == [0, 0]


def test_takers_from_any_are_served_in_order(inboxes: Inboxes) -> None:
    first = gevent.spawn(take_any, inboxes, Deadline(5.0))
    gevent.idle()
    second = gevent.spawn(inboxes[1].get, Deadline(5.0))
    gevent.idle()
    inboxes[1].put("a")
    inboxes[1].put("b")
    assert first.get(timeout=30.0) == (inboxes[1], "a")
    assert second.get(timeout=30.0) == "b"


def test_a_killed_taker_gives_back_what_was_on_its_way(inboxes: Inboxes) -> None:
    killed: Any = gevent.spawn(take_any, inboxes, Deadline(5.0))
    gevent.idle()
    killed.kill(block=False)
    inboxes[0].put("a")
    inboxes[0].put("b")
    killed.join(timeout=30.0)
    assert isinstance(killed.value, gevent.GreenletExit)
    assert [take_any(inboxes, Deadline(0.0))[1] for _ in range(2)] == ["a", "b"]
