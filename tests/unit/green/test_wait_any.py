"""Waiting for whichever of several inboxes has an item first."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from greenconn.green.deadline import Deadline
from greenconn.green.inbox import Inbox
from greenconn.green.wait_any import take_any

Inboxes = tuple[Inbox[Any], Inbox[Any]]


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


def test_takers_are_served_in_order(inboxes: Inboxes) -> None:
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
