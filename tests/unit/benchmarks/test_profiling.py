"""The sampler of the benchmarks."""

from __future__ import annotations

from time import perf_counter

from benchmarks.clock import Clock
from benchmarks.profiling import Sampler


def busy() -> int:
    """Use CPU time."""
    return sum(number * number for number in range(200_000))


def test_the_busy_function_is_found() -> None:
    sampler = Sampler()
    end = perf_counter() + 30
    while not sampler.samples and perf_counter() < end:
        sampler.start()
        busy()
        sampler.stop()
    assert "busy" in sampler.report()


def test_the_clock_takes_a_watcher_along() -> None:
    seen: list[str] = []

    class Watcher:
        def start(self) -> None:
            seen.append("start")

        def stop(self) -> None:
            seen.append("stop")

    class Watched(Clock):
        watcher = Watcher()

    with Watched() as clock:
        clock.stop()
    assert seen == ["start", "stop"]
    assert clock.per(2, p50=1.0)["p50"] == 1.0
