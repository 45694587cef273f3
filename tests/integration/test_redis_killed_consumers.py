"""Consumers killed at random moments, on a real Redis: nothing is lost."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import gevent
import pytest

import greenconn
from greenconn import Connection
from greenconn.wire.resp import pack
from tests.brokers.redis_server import RedisServer
from tests.integration.processes import ROOT

pytestmark = [pytest.mark.full, pytest.mark.programs]

#: Seconds.
LEASE = 2.0

#: Consumes with a short lease, and notes what it has handled before it acks.
WORKER = """
import os, random, sys
import gevent
import greenconn

url, path, lease = sys.argv[1], sys.argv[2], float(sys.argv[3])
notes = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def handle(body, message):
    if random.random() < 0.1:
        gevent.sleep(random.random() / 100)
    os.write(notes, b"%d %d\\n" % (body, bool(message.delivery_info["redelivered"])))

connection = greenconn.Connection(url, transport_options={"lease": lease})
greenconn.spawn_consumer("work", handle, connection=connection, prefetch_count=40,
                         concurrency=5).join()
"""


class Workers:
    """Consumers in processes of their own.

    Arguments:
        notes: the file in which they note what they have handled.
    """

    def __init__(self, url: str, notes: Path) -> None:
        self._command = [sys.executable, "-c", WORKER, url, str(notes), str(LEASE)]
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start one more."""
        self.processes.append(subprocess.Popen(self._command, cwd=ROOT))

    def kill_one(self) -> None:
        """Kill one of them, whatever it does just now."""
        process = self.processes.pop(random.randrange(len(self.processes)))
        process.send_signal(signal.SIGKILL)
        process.wait()

    def kill_all(self) -> None:
        """Kill all."""
        while self.processes:
            self.kill_one()


@pytest.fixture
def workers(own_redis: RedisServer, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(own_redis.url, tmp_path / "notes")
    yield made
    made.kill_all()


def noted(path: Path) -> Counter[int]:
    """How often each message was handled."""
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(int(each.split()[0]) for each in lines)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_consumers_lose_nothing(
    own_redis: RedisServer, workers: Workers, tmp_path: Path, long: bool
) -> None:
    kills, number = (200, 20_000) if long else (8, 1200)
    path = tmp_path / "notes"
    with Connection(own_redis.url, transport_options={"lease": LEASE}) as connection:
        link = connection.connection
        link.commands.call(pack("FLUSHALL"))
        for _ in range(3):
            workers.start()

        def send() -> None:
            for each in range(number):
                greenconn.publish("work", each, connection=connection, declare=True)
                if each % 20 == 0:
                    gevent.sleep(kills * 0.3 / number * 20)

        sender = gevent.spawn(send)
        for _ in range(kills):
            gevent.sleep(random.uniform(0.1, 0.5))
            workers.kill_one()
            workers.start()
        sender.get(timeout=300)
        # With three that live, all that the killed held is due within 1.5 leases; then it is handled.
        end = monotonic() + 1.5 * LEASE + 30
        while len(noted(path)) < number and monotonic() < end:
            gevent.sleep(0.1)
        counts = noted(path)
        assert sorted(counts) == list(range(number))
        while link.commands.call(pack("HLEN", "unacked")) and monotonic() < end:
            gevent.sleep(0.1)
        assert link.commands.call(pack("HLEN", "unacked")) == 0
        assert link.commands.call(pack("ZCARD", "unacked_index")) == 0
        # What was handled twice was in the hands of one that was killed.
        twice = sum(count - 1 for count in counts.values())
        assert twice <= 40 * kills
