"""The soak tells what grows, and does not grow itself."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from tests import fix_relay
from tests.fix_peer import PeerFactory
from tests.fix_relay import Relay
from tests.quality.faults.soak import LONG, SLOPE, Figures, Memory


def test_a_relay_takes_no_memory_for_the_connections_of_others(
    peer: PeerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holes would stay in the process, and be taken for growth."""
    relay = Relay(peer, "amqp://127.0.0.1:1")
    table = tmp_path / "tcp"
    row = "%5d: 0100007F:%04X 0100007F:%04X %02d 00000000:00000000 00:00000000 00000000 0 0 0 1\n"
    here, elsewhere = relay.server.port, relay.server.port % 60000 + 1
    rows = [row % (number, number, elsewhere, 6) for number in range(20_000)]
    # The kernel may show one twice.
    rows += [row % (20_000 + state, 40_000 + state, here, state) for state in (1, 2, 2, 6)]
    table.write_text("  sl  local_address rem_address   st\n" + "".join(rows))
    monkeypatch.setattr(fix_relay, "TABLE", table)
    tracemalloc.start()
    try:
        assert relay.ends() == 2
        assert tracemalloc.get_traced_memory()[1] < 300_000  # of three million
    finally:
        tracemalloc.stop()


def test_growth_is_reported() -> None:
    """By the slope of all rests; a step that comes once is less than the same again and again."""

    def slope(sizes: list[float]) -> float:
        memory = Memory()
        for number, size in enumerate(sizes):
            memory.note(30.0 * number, 40_000 + size)
        return memory.slope()

    assert slope([0.0] * 11) == 0.0
    assert slope([150.0 * number for number in range(11)]) == pytest.approx(300.0)
    assert 0.0 < slope([0.0] * 5 + [512.0] * 6) < SLOPE


@pytest.mark.parametrize(
    ("figures", "problem"),
    [
        (Figures("x", LONG, slope=SLOPE + 1), "memory grows"),
        (Figures("x", LONG, blocks=(1000, 1100)), "blocks"),
        (Figures("x", LONG, grown={"builtins.list": 99}), "objects grow"),
        (Figures("x", LONG, greenlets=(100, 200)), "greenlets"),
        (Figures("x", 1.0, lost=1), "lost"),
    ],
)
def test_what_is_wrong_is_named(figures: Figures, problem: str) -> None:
    assert [problem in each for each in figures.problems()] == [True]


def test_what_is_right_is_not() -> None:
    assert Figures("x", LONG, slope=SLOPE, blocks=(1000, 1001)).problems() == []
    assert Figures("x", 1.0, slope=SLOPE + 1).problems() == []
