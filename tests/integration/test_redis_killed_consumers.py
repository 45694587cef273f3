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
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection
from greenconn.wire.resp import pack
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
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


def test_frozen_consumer_comes_back_too_late(own_redis: RedisServer, workers: Workers) -> None:
    """One that was stopped for longer than its lease: others have its messages, and it harms nobody."""
    with Connection(own_redis.url, transport_options={"lease": LEASE}) as connection:
        link = connection.connection
        link.commands.call(pack("FLUSHALL"))
        connection.default_channel.queue_declare("work", durable=True)
        workers.start()
        until(lambda: link.commands.call(pack("HLEN", "greenconn.consumers.work")))
        (process,) = workers.processes
        process.send_signal(signal.SIGSTOP)
        greenconn.publish("work", 1, connection=connection, declare=True)
        gevent.sleep(LEASE * 1.6)
        # It held nothing: the push waits in its socket.  The message is there for others.
        message = connection.default_channel.basic_get("work")
        assert message.payload == 1
        process.send_signal(signal.SIGCONT)
        gevent.sleep(0.5)
        message.ack()
        until(lambda: link.commands.call(pack("HLEN", "unacked")) == 0)


class Life:
    """Consumers and senders of one queue, in one process, and what happens to them.

    Arguments:
        number: of messages.
    """

    def __init__(self, url: str, rng: random.Random, number: int) -> None:
        options = {"lease": LEASE}
        self.rng = rng
        self.number = number
        self.connections = [Connection(url, transport_options=options) for _ in range(4)]
        self.control = Connection(url)
        self.control.connect()
        self.handled: set[int] = set()
        self.consumers = [self._consumer(each) for each in range(6)]

    def _consumer(self, place: int) -> greenconn.ConsumerGreenlet:
        return greenconn.spawn_consumer(
            "work",
            self._handle,
            connection=self.connections[place % 4],
            prefetch_count=self.rng.choice([5, 50]),
            concurrency=self.rng.choice([1, 4]),
            on_error="requeue",
        )

    def _handle(self, body: int, message: Any) -> None:
        fate = self.rng.random()
        if fate < 0.1:
            gevent.sleep(self.rng.random() / 100)
        if fate < 0.05:
            message.requeue()
            return
        if fate < 0.08:
            raise ValueError("the handler fails")
        self.handled.add(body)

    def send(self, start: int) -> None:
        """Publish every twentieth message."""
        for each in range(start, self.number, 20):
            greenconn.publish("work", each, connection=self.connections[start % 4], declare=True)

    def suffer(self, times: int) -> None:
        """Let something happen now and then."""
        for _ in range(times):
            gevent.sleep(self.rng.random() * 0.15)
            fate, place = self.rng.random(), self.rng.randrange(6)
            if fate < 0.4:
                kill = pack("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                self.control.connection.commands.call(kill)
            elif fate < 0.6:
                self.consumers[place].kill(block=False)
                self.consumers[place] = self._consumer(place)
            elif fate < 0.8:
                self.consumers[place].stop(2)
                self.consumers[place] = self._consumer(place)
            else:
                self._get_and_requeue()

    def _get_and_requeue(self) -> None:
        try:
            message = self.connections[0].default_channel.basic_get("work")
            if message is not None:
                message.requeue()
        except self.connections[0].recoverable_connection_errors:
            pass  # it was cut just then

    def close(self) -> None:
        """End all."""
        for consumer in self.consumers:
            consumer.stop(5)
        for connection in (*self.connections, self.control):
            connection.close()


@pytest.mark.timeout(200)
def test_cuts_kills_stops_and_requeues(own_redis: RedisServer, long: bool) -> None:
    seed = random.randrange(1_000_000)
    print("seed", seed)
    life = Life(own_redis.url, random.Random(seed), 3000 if long else 800)
    life.control.connection.commands.call(pack("FLUSHALL"))
    life.control.default_channel.queue_declare("work", durable=True)  # before it is asked for
    try:
        running = [gevent.spawn(life.send, each) for each in range(20)]
        life.suffer(100 if long else 12)
        gevent.joinall(running, raise_error=True)
        link = life.control.connection
        with gevent.Timeout(60):
            # A publish whose reply was cut off is sent again, so one may come twice, after all others.
            while (
                len(life.handled) < life.number
                or link.commands.call(pack("LLEN", "work"))
                or link.commands.call(pack("HLEN", "unacked"))
            ):
                gevent.sleep(0.02)
        assert life.handled == set(range(life.number))
        assert link.commands.call(pack("LLEN", "work")) == 0
        assert link.commands.call(pack("ZCARD", "unacked_index")) == 0
    finally:
        life.close()
