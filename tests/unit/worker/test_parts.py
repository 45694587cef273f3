"""The parts of consumers that can be looked at alone: errands, berths, states."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.transport import base
from greenconn.worker.berths import ROOM, Berths
from greenconn.worker.errands import LIMIT, Errand, Errands
from greenconn.worker.state import ENDS, MOVES, ConsumerState, moved
from tests.tiny_client import TinyClient
from tests.unit.worker.conftest import until


class Log(list[str]):
    """What errands did."""

    def note(self, text: str) -> Any:
        """A function that notes *text*."""
        return lambda: self.append(text)


def test_errands_run_in_their_order_a_few_at_a_time() -> None:
    errands, log, gate = Errands(), Log(), Event()
    running = peak = 0

    def errand(number: int) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        gate.wait()
        running -= 1
        log.append(str(number))

    for number in range(3 * LIMIT):
        errands.send(lambda number=number: errand(number), log.note("over"))  # type: ignore[misc]
    until(lambda: running == LIMIT)
    gate.set()
    until(lambda: len(log) == 6 * LIMIT)
    assert peak == LIMIT
    assert [each for each in log if each != "over"] == [str(each) for each in range(3 * LIMIT)]


def blocked(errands: Errands, gate: Event) -> list[Errand]:
    """Errands that take all places until *gate* is set."""
    made = [errands.send(gate.wait, lambda: None) for _ in range(LIMIT)]
    until(lambda: all(each.greenlet for each in made))
    return made


def test_an_errand_that_waits_is_called_off_at_once() -> None:
    errands, log, gate = Errands(), Log(), Event()
    blocked(errands, gate)
    errand = errands.send(log.note("done"), log.note("over"))
    errand.call_off()
    assert errand.is_over
    assert log == ["over"]
    errand.call_off()
    gate.set()
    gevent.sleep(0.01)
    assert log == ["over"]


def test_an_errand_under_way_is_interrupted_and_its_place_is_taken() -> None:
    errands, log, gate = Errands(), Log(), Event()
    running = blocked(errands, gate)
    errands.send(log.note("next"), log.note("next over"))
    running[0].call_off()
    running[0].call_off()
    until(lambda: log == ["next", "next over"])
    assert running[0].is_over
    assert not running[1].is_over
    gate.set()
    until(lambda: all(each.is_over for each in running))


def test_calling_off_never_hits_the_next_errand() -> None:
    errands, log = Errands(), Log()
    first_gate, second_gate = Event(), Event()
    first = errands.send(first_gate.wait, log.note("first over"))
    second = errands.send(second_gate.wait, log.note("second over"))
    until(lambda: first.greenlet and second.greenlet)
    first_gate.set()  # it is about to end by itself
    first.call_off()
    third = errands.send(second_gate.wait, log.note("third over"))
    gevent.sleep(0.01)
    assert not third.is_over
    second_gate.set()
    until(lambda: sorted(log) == ["first over", "second over", "third over"])


def test_an_errand_that_fails_is_over_too(caplog: pytest.LogCaptureFixture) -> None:
    errands, log = Errands(), Log()

    def fail() -> None:
        raise ValueError("no")

    errands.send(fail, log.note("over"))
    errands.send(log.note("next"), log.note("next over"))
    until(lambda: len(log) == 3)
    assert "ended with an error" in caplog.text


class Link(base.Link):
    """Something channels are made on."""

    def __init__(self) -> None:
        super().__init__(TinyClient())

    def create_channel(self, link: Any) -> Any:
        """A channel."""
        return Channel()


class Channel:
    """A channel."""

    is_open = True


def test_fifty_consumers_share_a_channel() -> None:
    berths, link = Berths(), Link()
    taken = [berths.take(link) for _ in range(2 * ROOM + 1)]
    assert len(berths) == 3
    assert [each.taken for each in dict.fromkeys(taken)] == [ROOM, ROOM, 1]
    berths.leave(taken[0])
    assert berths.take(link) is taken[0]


def test_a_private_one_is_shared_with_nobody() -> None:
    berths, link = Berths(), Link()
    shared = berths.take(link)
    private = berths.take(link, is_private=True)
    assert private is not shared
    assert berths.take(link) is shared
    assert berths.take(link, is_private=True) is not private
    berths.leave(private)
    assert berths.take(link, is_private=True) is private
    berths.leave(private)
    for _ in range(ROOM - 2):
        berths.take(link)
    assert berths.take(link) is private


def test_closed_channels_and_former_lives_are_forgotten() -> None:
    berths, link = Berths(), Link()
    first = berths.take(link)
    channel = first.channel(link)
    assert first.channel(link) is channel
    channel.is_open = False
    second = berths.take(link)
    assert second is not first
    assert berths.take(Link()) is not second
    assert len(berths) == 1


def test_the_table_of_moves_is_whole() -> None:
    assert set(MOVES) == set(ConsumerState)
    assert all(not MOVES[end] for end in ENDS)
    assert moved(ConsumerState.RUNNING, ConsumerState.RUNNING) is ConsumerState.RUNNING
    with pytest.raises(RuntimeError, match="from stopped to running"):
        moved(ConsumerState.STOPPED, ConsumerState.RUNNING)
