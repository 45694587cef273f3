"""Signals whose handlers raise while pools are used: no pool loses a place."""

from __future__ import annotations

import pytest

from tests.integration.processes import run

pytestmark = [pytest.mark.programs]

#: Interrupts acquires and releases again and again, and counts the places that are left.
PROGRAM = """
import gc, random, signal, sys
from contextlib import suppress
import gevent
from greenconn import Connection
from greenconn.pools import ProducerPool

LIMIT, INTERRUPTIONS = 4, int(sys.argv[2])

class Signal(BaseException):
    pass

is_armed = False

def raise_signal(number, frame):
    global is_armed
    if is_armed and frame is not None and frame.f_code.co_filename != "<string>":
        is_armed = False
        raise Signal

def use_with(pool):
    with pool.acquire(block=True, timeout=10):
        pass

def use_and_release(pool):
    item = pool.acquire(block=True, timeout=10)
    try:
        pass
    finally:
        pool.release(item)

others = []

def use_beside_others(pool):
    others.extend(gevent.spawn(use_and_release, pool) for _ in range(LIMIT + 2))
    use_and_release(pool)

def settle():
    gevent.killall(others, block=False)
    while not all(other.ready() for other in others):
        with suppress(Exception):  # a switch for a wait that was interrupted
            gevent.sleep(0.001)
    others.clear()

connection = Connection("memory://")
make = {
    "connections": lambda: connection.Pool(LIMIT),
    "producers": lambda: ProducerPool(connection.Pool(LIMIT), limit=LIMIT),
}[sys.argv[1]]
chance, interrupted = random.Random(), 0
gevent.get_hub().NOT_ERROR += (Signal,)
signal.signal(signal.SIGALRM, raise_signal)
gc.collect()
gc.freeze()  # what was imported is not looked through each time
while interrupted < INTERRUPTIONS:
    pool, wanted = make(), interrupted + 10
    while interrupted < wanted:
        use = chance.choice([use_with, use_and_release, use_beside_others])
        try:
            is_armed = True
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 3e-4))
            for _ in range(5):
                use(pool)
        except Signal:
            interrupted += 1
        except Exception:
            pass  # of a greenlet of the library, which was interrupted
        is_armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        settle()
        gc.collect()  # while no signal can interrupt it
    items = [pool.acquire(block=True, timeout=10) for _ in range(LIMIT)]
    assert pool.stats()["in_use"] == LIMIT
    for item in items:
        pool.release(item)
    pool.force_close_all()
"""


@pytest.mark.parametrize("kind", ["connections", "producers"])
@pytest.mark.sampled(1)
def test_a_pool_loses_no_place_by_signals(kind: str, long: bool) -> None:
    outcome = run("-W", "ignore", "-c", PROGRAM, kind, "5000" if long else "60")
    assert outcome.code == 0, outcome.errors
