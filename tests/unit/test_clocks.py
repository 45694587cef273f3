"""Logical clocks and the order of events."""

from __future__ import annotations

import copy
import pickle
from heapq import heapify, heappop

from hypothesis import given
from hypothesis import strategies as st

from greenconn.clocks import LamportClock, timetuple


def test_a_clock_is_never_behind_what_it_heard_of() -> None:
    clock = LamportClock()
    assert clock.value == 0
    assert clock.forward() == 1
    assert clock.adjust(10) == 11
    assert clock.adjust(3) == 12
    assert (str(clock), repr(clock)) == ("12", "<LamportClock: 12>")
    assert LamportClock(7).forward() == 8


def test_the_first_of_events_with_the_same_clock_is_that_of_the_smallest_process() -> None:
    clock = LamportClock()
    assert clock.sort_heap([(3, "b:2"), (3, "a:1"), (4, "0")]) == (3, "a:1")
    assert clock.sort_heap([(3, "b:2"), (4, "a:1")]) == (3, "b:2")
    assert clock.sort_heap([(5, "only")]) == (5, "only")


def test_events_are_ordered_by_clock_then_by_process() -> None:
    first = timetuple(1, 99.0, "b", {"not": "comparable"})
    second = timetuple(2, 1.0, "a", {"not": "comparable"})
    third = timetuple(2, 0.0, "b")
    assert first < second < third
    assert third > second > first
    assert first <= first
    assert third >= second
    assert first.clock == 1
    assert first.timestamp == 99.0
    assert first.id == "b"
    assert first.obj == {"not": "comparable"}


def test_events_without_a_clock_are_ordered_by_time() -> None:
    assert timetuple(0, 1.0, "b") < timetuple(7, 2.0, "a")
    assert timetuple(None, 1.0, "b") < timetuple(None, 2.0, "a")


def test_events_can_be_copied_and_pickled() -> None:
    event = timetuple(1, 2.0, "host:3", ["x"])
    assert pickle.loads(pickle.dumps(event)) == copy.copy(event) == event
    assert repr(event) == "_lamport(clock=1, timestamp=2.0, id=host:3 ['x'])"


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from("abc")), unique=True))
def test_a_heap_gives_them_in_order(stamps: list[tuple[int, str]]) -> None:
    heap = [timetuple(clock, 0.0, process) for clock, process in stamps]
    heapify(heap)
    found = [heappop(heap) for _ in range(len(heap))]
    assert [(event.clock, event.id) for event in found] == sorted(stamps)
