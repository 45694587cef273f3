"""The ledger of the fault tests finds what it must find."""

from __future__ import annotations

import random

import pytest

from tests.quality.faults.kinds import Kind, faults_of, kinds_of
from tests.quality.faults.ledger import Ledger, Stream, body_of, key_of


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(is_ordered=True)


def sent(ledger: Ledger, stream: Stream) -> str:
    """The body of a message that was sent."""
    number = stream.begin()
    ledger.published(stream, number)
    return body_of(stream.number, number, random.Random(number))


def test_bodies_name_their_message() -> None:
    for seed in range(500):
        body = body_of(3, seed, random.Random(seed))
        assert key_of(body) == (3, seed)
        assert key_of(body + "x") is None
    for other in (None, "", "x.y", b"\xff"):
        assert key_of(other) is None


def test_what_was_sent_and_not_handled_is_missing(ledger: Ledger) -> None:
    stream = ledger.stream("q")
    bodies = [sent(ledger, stream) for _ in range(3)]
    ledger.handle("q", bodies[1], False)
    assert ledger.missing() == [(stream, 0), (stream, 2)]


def test_what_was_in_a_queue_that_was_deleted_is_excused(ledger: Ledger) -> None:
    stream, other = ledger.stream("q"), ledger.stream("other")
    sent(ledger, stream)
    sent(ledger, other)
    ledger.excuse("q")
    sent(ledger, stream)
    assert ledger.missing() == [(stream, 1), (other, 0)]


def test_a_unconfirmed_message_may_come_or_not(ledger: Ledger) -> None:
    stream = ledger.stream("q")
    ledger.failed(stream, stream.begin(), "OSError")
    assert not ledger.missing()
    ledger.handle("q", body_of(0, 0, random.Random(0)), False)
    assert (ledger.handled, ledger.unexplained) == (1, 0)


def test_duplicates_need_a_reason(ledger: Ledger) -> None:
    body = sent(ledger, ledger.stream("q"))
    ledger.handle("q", body, False)
    ledger.handle("q", body, True)
    ledger.handle("q", body, False)
    assert (ledger.redelivered, ledger.repeated, ledger.unexplained) == (1, 0, 1)
    ledger.fault_begins()
    ledger.handle("q", body, False)
    ledger.fault_ended("cut", {"q"})
    ledger.handle("q", body, False)
    assert (ledger.redelivered, ledger.repeated, ledger.unexplained) == (1, 2, 1)


def test_order_counts_where_there_are_no_faults(ledger: Ledger) -> None:
    stream = ledger.stream("q")
    bodies = [sent(ledger, stream) for _ in range(3)]
    for number in (0, 2, 1):
        ledger.handle("q", bodies[number], False)
    assert ledger.disordered == 1


def test_recovery_is_timed_by_queue(ledger: Ledger) -> None:
    one, other = ledger.stream("one"), ledger.stream("other")
    before = sent(ledger, one)
    ledger.fault_begins()
    ledger.fault_ended("cut", {"one", "other"})
    ledger.handle("one", before, False)
    assert ledger.longest_recovery == 0
    ledger.handle("one", sent(ledger, one), False)
    ledger.handle("other", sent(ledger, other), False)
    assert ledger.longest_after == "cut, other"
    assert 0 < ledger.longest_recovery < 1


def test_recovery_is_noted_by_fault_where_that_was_alone(ledger: Ledger) -> None:
    stream = ledger.stream("q")
    for alone in ("cut", ""):
        ledger.fault_begins()
        assert not ledger.is_whole.is_set()
        ledger.fault_ended("cut there", {"q"}, alone)
        ledger.handle("q", sent(ledger, stream), False)
        assert ledger.is_whole.is_set()
    assert list(ledger.recoveries) == ["cut"]
    ledger.fault_begins()
    ledger.fault_ended("kill", {"q"}, "kill")
    ledger.give_up()
    assert ledger.is_whole.is_set()
    assert set(ledger.recoveries) == {"cut", "kill"}


def test_without_acks_a_fault_may_lose_what_is_under_way(ledger: Ledger) -> None:
    stream = ledger.stream("q", is_acked=False)
    sent(ledger, stream)
    assert ledger.missing() == [(stream, 0)]
    ledger.fault_begins()
    ledger.fault_ended("cut", {"q"})
    assert (ledger.missing(), ledger.dropped(), ledger.are_open()) == ([], 1, True)
    ledger.handle("q", body_of(0, 0, random.Random(0)), False)
    assert (ledger.dropped(), ledger.are_open()) == (0, False)


def test_what_another_process_publishes_may_be_handled_before_it_is_reported(
    ledger: Ledger,
) -> None:
    stream = ledger.stream("q")
    ledger.handle_key("q", (0, 2), False)
    stream.reach(1)
    stream.reach(2)
    assert (ledger.handled, ledger.unexplained, stream.next) == (1, 0, 3)
    ledger.published(stream, 2)
    assert not ledger.missing()
    ledger.handle_key("q", None, False)
    assert ledger.spoiled == 1


def test_what_is_settled_is_forgotten(ledger: Ledger) -> None:
    stream = ledger.stream("q")
    bodies = [sent(ledger, stream) for _ in range(3)]
    for body in bodies[:2]:
        ledger.handle("q", body, False)
    stream.forget(float("inf"))
    assert list(stream.entries) == [2]
    assert ledger.missing() == [(stream, 2)]
    ledger.handle("q", bodies[0], False)
    assert ledger.unexplained == 1


def test_a_publish_that_takes_long_is_not_forgotten(ledger: Ledger) -> None:
    stream = ledger.stream("q")
    number = stream.begin()
    ledger.handle("q", body_of(0, number, random.Random(0)), False)
    stream.forget(float("inf"))
    ledger.published(stream, number)
    stream.forget(float("inf"))
    assert not stream.entries


def test_a_seed_is_an_order_of_faults() -> None:
    def first(seed: int, count: int) -> list[object]:
        faults = faults_of(seed, Kind)
        return [next(faults) for _ in range(count)]

    assert first(1, 40) == first(1, 40) != first(2, 40)
    # Each kind comes before any comes again.
    faults = faults_of(1, Kind)
    assert {next(faults).kind for _ in Kind} == set(Kind)
    assert not list(faults_of(1, ()))


def test_names_of_faults() -> None:
    assert kinds_of(["all"]) == set(Kind)
    assert kinds_of(["none"]) == set()
    assert kinds_of(["cut", "half-open"]) == {Kind.CUT, Kind.HALF_OPEN}
    with pytest.raises(ValueError, match="rain"):
        kinds_of(["rain"])
