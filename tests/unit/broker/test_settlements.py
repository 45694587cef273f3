"""Settlements: what a broker is told, when, and what becomes of what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.port import Settlement, SettleRequest
from greenconn.green import supervisor
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from tests.fix_wires import until
from tests.unit.broker.fake_settler import Held, Link
from tests.unit.broker.sink import SOON


@pytest.fixture
def link() -> Link:
    return Link()


def handles_of(requests: list[SettleRequest]) -> list[Any]:
    return [each.message.handle for each in requests]


def test_what_is_settled_when_the_link_is_gone_is_handed_to_the_next_life(link: Link) -> None:
    link.settlements.ack(Held("a"))
    link.lost = ConnectionError("cut by the test")
    link.settlements.stop(link.lost)
    link.settlements.ack(Held("b"))
    link.settlements.requeue([Held("back")])
    link.settlements.dead_letter([Held("dead")], "rejected")
    assert [(each.message.handle, each.is_ack) for each in link.handover.requests] == [
        ("a", True),
        ("b", True),
        ("back", False),
        ("dead", False),
    ]
    assert link.settler.acks == []


def test_what_is_refused_is_sent_again(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    link.settlements.ack(Held("a"))
    link.settlements.requeue([Held("b"), Held("c")])
    link.settler.end_turn()
    for _, done in (*link.settler.acks, *link.settler.settled):
        done(ValueError("no room"))
    assert link.settlements.refused == 3
    gevent.sleep(0)
    assert "2 acks or rejects are sent again later: no room" in caplog.text
    link.settler.acks.clear()
    link.settler.settled.clear()
    link.settlements.repeat()
    assert [handles for handles, _ in link.settler.acks] == [["a"]]
    # Each by itself: it may be another one's fault.
    assert [len(part) for part, _ in link.settler.settled] == [1, 1]
    for _, done in (*link.settler.acks, *link.settler.settled):
        done(None)
    assert (link.settlements.refused, link.settlements.unsettled()) == (0, [])


def test_dead_letter_that_cannot_be_routed_is_tried_again(link: Link) -> None:
    def refuse() -> list[str]:
        raise ValueError("you may not look at it")

    link.route = refuse
    link.settlements.dead_letter([Held("a")], "rejected")
    link.settlements.wait_routed(Deadline(SOON))
    assert [str(each) for each in link.failures] == ["you may not look at it"]
    assert (link.settlements.refused, link.settler.settled) == (1, [])
    assert [each.settlement for each in link.settlements.unsettled()] == [Settlement.REQUEUE]
    link.route = lambda: ["dead"]
    link.settlements.repeat()
    link.settlements.wait_routed(Deadline(SOON))
    ((request,), _) = link.settler.settled[0]
    assert request.settlement is Settlement.ACK


def test_who_waits_for_dead_letters_is_woken_when_the_link_is_gone(link: Link) -> None:
    def route() -> list[str]:
        gevent.sleep(SOON)
        return []

    link.route = route
    link.settlements.dead_letter([Held("a")], "rejected")
    waiting = gevent.spawn(link.settlements.wait_routed, Deadline(SOON))
    gevent.sleep(0)
    assert handles_of(link.settlements.unsettled()) == ["a"]
    link.lost = ConnectionError("cut by the test")
    link.settlements.stop(link.lost)
    with pytest.raises(ConnectionError, match="cut"):
        waiting.get(timeout=SOON)
    assert not link.settlements.is_routing
    assert link.settlements.unsettled() == []  # the next life has them


def test_an_interruption_while_settlements_leave_is_noted_and_goes_on(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(requests: Any, done: Any) -> None:
        raise KeyboardInterrupt

    noted: list[BaseException] = []
    monkeypatch.setattr(link.settler, "settle", interrupt)
    monkeypatch.setattr(link.settler, "interrupted", noted.append)
    link.settlements.ack(Held("a"))
    with pytest.raises(KeyboardInterrupt):
        link.settlements.flush()
    assert [type(each) for each in noted] == [KeyboardInterrupt]
    assert handles_of(link.settlements.unsettled()) == ["a"]


def test_a_refusal_of_a_lost_link_is_the_next_lifes(
    link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    link.settlements.ack(Held("a"))
    link.settlements.requeue_unseen(Held("b"))
    link.settler.end_turn()
    link.lost = ConnectionError("cut by the test")
    for _, done in (*link.settler.acks, *link.settler.settled):
        done(link.lost)
    gevent.sleep(0)
    assert link.settlements.refused == 0
    assert handles_of(link.settlements.unsettled()) == ["a", "b"]
    assert caplog.text == ""


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_caller_that_is_interrupted_does_not_let_dead_letters_be_routed_twice(
    link: Link, monkeypatch: pytest.MonkeyPatch, has_begun: bool
) -> None:
    """The interruption comes when the greenlet is spawned and not noted yet."""

    def interrupted(name: str, function: Callable[[], None]) -> None:
        spawn(name, function)
        raise KeyboardInterrupt

    routing, may_go = Event(), Event()
    routed = 0

    def route() -> list[str]:
        nonlocal routed
        routed += 1
        routing.set()
        may_go.wait()
        return ["dead"]

    link.route = route
    with monkeypatch.context() as patched:
        patched.setattr(supervisor, "spawn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            link.settlements.dead_letter([Held("a")], "rejected")
    if has_begun:
        assert routing.wait(SOON)
    link.settlements.dead_letter([Held("b")], "rejected")
    assert routing.wait(SOON)
    for _ in range(3):
        gevent.sleep(0)
    assert (routed, link.settlements.is_routing) == (1, True)
    may_go.set()
    link.settlements.wait_routed(Deadline(SOON))
    until(lambda: not link.settlements.is_routing)
    handles = [each.message.handle for part, _ in link.settler.settled for each in part]
    assert (routed, handles) == (2, ["a", "b"])
