"""Leases: what is held is renewed, and what was lost is told."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from tests.unit.broker.fake_holding import Held, Link
from tests.unit.broker.sink import SOON


@pytest.fixture
def link() -> Link:
    return Link()


class Channel:
    """A channel with a handler of ``lease_lost``."""

    def __init__(self, told: list[int]) -> None:
        self.events: dict[str, list[Any]] = {"lease_lost": [told.append]}


def test_what_is_held_is_renewed_by_pages(link: Link) -> None:
    link.unanswered = [Held(f"{number}") for number in range(501)]
    link.unanswered[0].is_held = False
    link.leases.renew()
    assert [len(handles) for handles, _ in link.holding.renewed] == [500]
    link.unanswered.append(Held("more"))
    link.leases.renew()
    assert [len(handles) for handles, _ in link.holding.renewed] == [500, 500, 1]


def test_a_link_that_holds_nothing_says_that_it_lives(link: Link) -> None:
    link.leases.renew()
    assert [handles for handles, _ in link.holding.renewed] == [[]]


def test_what_was_lost_is_told_once(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []
    link.channels[1] = Channel(told)
    link.unanswered = [Held("kept"), Held("lost"), Held("gone")]
    link.leases.renew()
    del link.unanswered[2]  # it was answered meanwhile
    (_, done) = link.holding.renewed[0]
    done(["lost", "gone"])
    done([])
    gevent.sleep(0)
    assert ([each.is_held for each in link.unanswered], told) == ([True, False], [1])
    assert link.leases.lost == 1
    assert caplog.text.count("lease_lost") == 1
    link.note_late(2)
    gevent.sleep(0)
    assert (told, link.leases.lost) == ([1, 2], 3)


def test_renewal_that_is_refused_is_logged(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    link.leases.renew()
    link.holding.renewed[0][1](ValueError("no room"))
    gevent.sleep(0)
    assert "no room" in caplog.text


def test_a_tick_waits_for_the_one_before_and_repeats_what_was_refused(link: Link) -> None:
    link.holding.renewal_interval = 0.01
    link.leases.start()
    try:
        with gevent.Timeout(SOON):
            while not link.holding.renewed:
                gevent.sleep(0.01)
            link.answers.done(Held("a"))
            link.holding.end_turn()
            link.holding.acks[0][1](ValueError("no room"))
            while len(link.holding.acks) < 2:
                gevent.sleep(0.01)
        assert len(link.holding.renewed) == 1
    finally:
        link.leases.stop()
    assert not link.leases.is_renewing
