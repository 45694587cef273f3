"""Processes that are killed while they publish and consume, and sessions and servers that end."""

from __future__ import annotations

import json
import signal

import gevent
import pytest

import greenconn
from greenconn import Connection
from greenconn.exceptions import Unroutable
from tests.fix_wires import until
from tests.integration.processes import run, start

pytestmark = pytest.mark.programs

SOON = 60.0


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("faults", "few", "many"),
    [
        ((), 16, 2000),
        pytest.param(
            ("--terminations", "10", "--restarts", "1", "--longest", "1"),
            *(8, 300),
            marks=pytest.mark.full,
        ),
    ],
    ids=["killed processes", "terminated sessions and restarts"],
)
def test_nothing_is_lost_invented_or_done_twice(
    faults: tuple[str, ...], few: int, many: int, long: bool
) -> None:
    lives = many if long else few
    done = run("-m", "tests.quality.kills", "--lives", str(lives), *faults, timeout=1700)
    assert done.code == 0, f"{done.output}\n{done.errors}"
    found = json.loads(done.output)
    assert found["killed"] == lives
    assert found["begun"] + found["committed"] > 0  # it has done something at all


def test_a_publisher_sweeps_what_the_last_consumer_has_left(postgresql_url: str) -> None:
    """Killed while it handles a message, so that it waited for no word about another one."""
    program = """
import sys
import gevent
import greenconn
from greenconn import Queue

def handle(body, message):
    print("begun", flush=True)
    gevent.sleep(1000)

queue = Queue("news", auto_delete=True)
greenconn.spawn_consumer(queue, handle, connection=sys.argv[1], prefetch_count=1).join()
"""
    target = start("-c", program, postgresql_url)
    try:
        with Connection(postgresql_url, transport_options={"lease": 0.3}) as connection:
            until(lambda: "news" in connection.default_channel.list_queues(), SOON)
            for number in range(2):
                greenconn.publish("news", number, connection=connection)
            assert target.line() == "begun"
            target.signal(signal.SIGKILL)
            with gevent.Timeout(SOON), pytest.raises(Unroutable):
                while True:
                    greenconn.publish("news", 2, connection=connection)
                    gevent.sleep(0.1)
    finally:
        target.end()
