"""The option ``--pauses``: a test's process stands still twice, at turns of the hub of a seed's choice.

It finds tests, and code, that rely on something happening within a few hundred milliseconds: what a busy
machine does to one test in ten thousand, it does to each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import gevent
import pytest
from gevent import monkey

#: Seconds of a pause: shorter than what counts as a blocked hub.
PAUSE = 0.25
#: One pause comes within the first few turns of the hub, when most tests begin, one later.
EARLY, LATE = 4, 25

_sleep = monkey.get_original("time", "sleep")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--pauses``."""
    parser.addoption(
        "--pauses", action="store_true", help="stop the process for 0.25 s twice in each test"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Pause at two turns of the hub, which a report of a failure names."""
    if not item.config.getoption("--pauses"):
        return (yield)
    seed = item.config.getoption("randomly_seed", 0)
    chance = random.Random(f"{seed} {item.nodeid}")
    turns = {chance.randint(1, EARLY), chance.randint(1, LATE)}
    item.add_report_section("call", "pauses", f"at the hub's turns {sorted(turns)}")
    count = 0

    def turn() -> None:
        nonlocal count
        count += 1
        if count in turns:
            _sleep(PAUSE)
        if count >= LATE:
            watcher.stop()

    watcher = gevent.get_hub().loop.prepare(ref=False)
    watcher.start(turn)
    try:
        return (yield)
    finally:
        watcher.stop()
        watcher.close()
