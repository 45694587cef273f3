"""The shares of several relays."""

from __future__ import annotations

from collections import Counter

import pytest

from greenconn.contrib.outbox import PARTITIONS
from greenconn.contrib.outbox.relay import Partitions
from tests.unit.contrib.outbox.conftest import Box

LENGTH = 15.0


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def turn(*relays: Partitions) -> None:
    for each in relays:
        each.renew()
        each.rebalance()


def holders(*relays: Partitions) -> Counter[int]:
    """How many relays hold each partition."""
    return Counter(number for each in relays for number in range(PARTITIONS) if each.left(number))


def test_one_relay_holds_all(box: Box) -> None:
    clock = Clock()
    relay = Partitions(box.store, LENGTH, clock)
    assert not relay.left(0)
    assert relay.renewal_due == 0
    turn(relay)
    assert len(relay.held) == PARTITIONS
    assert relay.left(7) == LENGTH
    assert relay.renewal_due == LENGTH / 3
    clock.now += 5
    assert relay.left(7) == 10
    assert relay.renewal_due == 0
    relay.renew()
    assert relay.left(7) == LENGTH
    clock.now += LENGTH
    assert not relay.left(7)
    assert not relay.are_valid


def test_relays_share_equally(box: Box) -> None:
    clock = Clock()
    one, two, three = (Partitions(box.store, LENGTH, clock) for _ in range(3))
    turn(one)
    turn(two)
    assert not two.held  # the first one has not released anything yet
    turn(one, two)
    assert (len(one.held), len(two.held)) == (16, 16)
    turn(three, one, two, three)
    assert sorted(map(len, (one.held, two.held, three.held))) == [10, 11, 11]
    assert holders(one, two, three) == Counter(range(PARTITIONS))
    two.release()
    assert not two.held
    turn(one, three)
    assert holders(one, two, three) == Counter(range(PARTITIONS))


def test_the_work_of_a_relay_that_died_is_taken_over(box: Box) -> None:
    # The clocks of two machines need not agree.
    clock, other = Clock(), Clock(5000.0)
    dead, alive = Partitions(box.store, LENGTH, clock), Partitions(box.store, LENGTH, other)
    turn(dead, alive, dead, alive)
    assert len(alive.held) == 16
    for _ in range(2):
        other.now += LENGTH / 2 - 0.1
        clock.now += LENGTH / 2 - 0.1
        turn(alive)
        assert holders(dead, alive) == Counter(range(PARTITIONS))
    other.now += 1
    clock.now += 1
    assert holders(dead) == Counter()
    turn(alive)
    assert len(alive.held) == PARTITIONS
    assert [each.owner for each in box.store.leases()] == [alive.owner] * (PARTITIONS + 1)
    # It was only stopped: it takes its part again, and not what is another's.
    turn(dead)
    assert not dead.held
    turn(alive, dead)
    assert holders(dead, alive) == Counter(range(PARTITIONS))
    assert len(dead.held) == 16


def test_a_lease_that_was_renewed_in_between_is_not_taken(box: Box) -> None:
    clock = Clock()
    one, two = Partitions(box.store, LENGTH, clock), Partitions(box.store, LENGTH, clock)
    turn(one, two, one, two)
    seen = box.store.leases()
    one.renew()
    box.store.take_leases(seen, two.owner)
    box.store.delete_leases(seen)
    two.renew()
    assert len(one.held) == 16
    assert holders(one, two) == Counter(range(PARTITIONS))


def test_a_failed_renewal_is_tried_again_before_the_lease_ends(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    relay = Partitions(box.store, LENGTH, clock)
    turn(relay)
    clock.now += 5
    with monkeypatch.context() as broken:

        def fail(owner: str) -> None:
            raise OSError("the database is away")

        broken.setattr(box.store, "renew_leases", fail)
        with pytest.raises(OSError):
            relay.renew()
    assert relay.renewal_due == LENGTH / 10
    assert relay.left(0) == 10  # as before
    relay.renew()
    assert relay.left(0) == LENGTH


def test_nothing_is_left_of_a_relay_that_ended(box: Box) -> None:
    relay = Partitions(box.store, LENGTH)
    relay.release()  # before it began
    turn(relay)
    relay.release()
    leases = box.store.leases()
    assert len(leases) == PARTITIONS
    assert {each.owner for each in leases} == {""}
