"""One SQLite file and several processes: who is woken, who dies, and what is left of it."""

from __future__ import annotations

import glob
import os
import signal
from collections import Counter
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection, Queue
from greenconn.exceptions import NotFound
from greenconn.transport.sqlite.database import Database
from tests.fix_wires import until
from tests.forked import holds_in_child
from tests.integration.contract import SOON, collecting
from tests.integration.processes import Running, start

pytestmark = [pytest.mark.full, pytest.mark.programs]

#: Seconds; a process that a busy machine holds up for so long loses what it holds.
LEASE = 4.0

#: Consumes from a queue, slowly, and prints what it has handled.
CONSUMER = """
import sys
import gevent
import greenconn

def handle(body, message):
    gevent.sleep(float(sys.argv[2]))
    print(body, flush=True)

connection = greenconn.Connection(sys.argv[1])
consumer = greenconn.spawn_consumer("q", handle, connection=connection, prefetch_count=20,
                                    concurrency=10)
consumer.wait_ready()
print("ready", flush=True)
consumer.join()
"""

#: Publishes from many greenlets, and prints the number of each message that is stored.
PUBLISHER = """
import os, sys
import gevent
import greenconn

connection = greenconn.Connection(sys.argv[1])

def publish(first):
    for number in range(first, 100000, 10):
        greenconn.publish("q", number, connection=connection, declare=True)
        os.write(1, b"%d\\n" % number)

gevent.joinall([gevent.spawn(publish, first) for first in range(10)])
"""


@pytest.fixture
def url(sqlite_url: str) -> str:
    """The file, with a short lease, and looks so rare that only words wake."""
    return f"{sqlite_url}?lease={LEASE}&look_interval=600"


@pytest.fixture
def programs() -> Iterator[list[Running]]:
    """Programs that run; ended after the test."""
    running: list[Running] = []
    yield running
    for each in running:
        each.end()


def consumer_of(url: str, programs: list[Running], pause: float = 0.0) -> Running:
    """A consumer in a process of its own, which is ready."""
    running = start("-c", CONSUMER, url, str(pause))
    programs.append(running)
    assert running.line() == "ready"
    return running


def test_consumer_of_another_process_is_woken(url: str, programs: list[Running]) -> None:
    with Connection(url) as connection:
        greenconn.publish("q", "made", connection=connection, declare=True)
        consumers = [consumer_of(url, programs), consumer_of(url, programs)]
        got: list[str] = []
        readers = [gevent.spawn(each.read_into, got) for each in consumers]
        for number in range(20):
            # In less than the ten minutes until a look.
            until(lambda number=number: len(got) == number + 1)  # type: ignore[misc]
            greenconn.publish("q", number, connection=connection, declare=True)
        until(lambda: len(got) == 21)
        gevent.killall(readers)
        assert got == ["made", *map(str, range(20))]


def test_idle_consumers_touch_nothing(
    url: str, programs: list[Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody polls: a consumer that waits makes no transaction, but for its sign of life."""
    calls = []
    transact = Database._transact

    def counted(self: Database, jobs: Any) -> Any:
        calls.append(jobs)
        return transact(self, jobs)

    with Connection(f"{url}&lease=60") as connection:
        got: list[Any] = []
        consumers = [
            greenconn.spawn_consumer(
                f"q{n}", lambda body, message: got.append(body), connection=connection
            )
            for n in range(20)
        ]
        for each in consumers:
            assert each.wait_ready(SOON)
        monkeypatch.setattr(Database, "_transact", counted)

        def is_idle() -> bool:
            calls.clear()
            gevent.sleep(0.5)
            return calls == []

        until(is_idle, SOON)  # on a busy machine some begin late
        for each in consumers:
            each.stop()


def test_queues_that_others_delete_end_their_consumers(url: str) -> None:
    with Connection(url) as connection, Connection(f"{url}&busy_timeout=9") as other:
        lost: list[str] = []
        channel = connection.default_channel
        for name in ("a", "b", "c"):
            Queue(name)(channel).declare()
            channel.basic_consume(name, f"tag-{name}", callback=print, on_cancel=lost.append)
        for name in ("a", "b"):
            other.default_channel.queue_delete(name)
        while len(lost) < 2:
            connection.drain_events(timeout=SOON)
        assert sorted(lost) == ["tag-a", "tag-b"]
        got: list[Any] = []
        channel.basic_consume("c", callback=got.append)
        greenconn.publish("c", "still", connection=other, declare=True)
        connection.drain_events(timeout=SOON)


def test_killed_consumer_loses_nothing(url: str, programs: list[Running], long: bool) -> None:
    count = 2000 if long else 300
    with Connection(url) as connection:
        queue = Queue("q")(connection.default_channel)
        queue.declare()
        targets = [consumer_of(url, programs, 0.05) for _ in range(3)]
        handled: list[str] = []
        readers = [gevent.spawn(each.read_into, handled) for each in targets]
        for number in range(count):
            greenconn.publish("q", number, connection=connection, declare=True)
            if number % (count // 3) == count // 6:
                target = targets.pop()
                target.signal(signal.SIGKILL)
        until(lambda: not targets or all(each.process.poll() is not None for each in targets))
        killed_at = monotonic()
        gevent.joinall(readers, timeout=SOON)
        done = {int(each) for each in handled}
        seen: Counter[int] = Counter()
        redelivered: list[int] = []

        def handle(body: int, message: Any) -> None:
            seen[body] += 1
            if message.delivery_info["redelivered"]:
                redelivered.append(body)

        consumer = greenconn.spawn_consumer("q", handle, connection=connection, prefetch_count=50)
        until(lambda: done | set(seen) == set(range(count)), 30 * LEASE)
        took = monotonic() - killed_at
        # What a killed one had finished and not yet acked is handled once more; nothing else is.
        assert all(seen[body] == 1 for body in seen)
        assert len(redelivered) <= 3 * 20
        assert consumer.stop(SOON)
    print(f"{len(redelivered)} redelivered, all there {took:.2f} s after the last kill")


def test_killed_publisher_loses_nothing_confirmed(
    url: str, programs: list[Running], long: bool
) -> None:
    with Connection(url) as connection:
        queue = Queue("q")(connection.default_channel)
        queue.declare()
        confirmed: set[int] = set()
        for _ in range(5 if long else 2):
            publisher = start("-c", PUBLISHER, url)
            programs.append(publisher)
            lines: list[str] = []
            reader = gevent.spawn(publisher.read_into, lines)
            until(lambda lines=lines: len(lines) > 300)  # type: ignore[misc]
            publisher.signal(signal.SIGKILL)
            reader.join(SOON)
            confirmed.update(map(int, lines))
        stored: Counter[int] = Counter()
        while (message := queue.get(no_ack=True)) is not None:
            stored[message.payload] += 1
        assert confirmed <= set(stored)
        # At most what each of ten greenlets had under way beside.
        assert len(set(stored) - confirmed) <= 10 * len(programs)


def test_what_dead_processes_leave_is_swept(sqlite_url: str, programs: list[Running]) -> None:
    program = """
import sys
import gevent
import greenconn
from greenconn import Connection, Queue

connection = Connection(sys.argv[1])
channel = connection.default_channel
Queue("own", exclusive=True)(channel).declare()
Queue("used", auto_delete=True)(channel).declare()
channel.basic_consume("used", callback=print)
print("ready", flush=True)
gevent.sleep(1000)
"""
    url = f"{sqlite_url}?lease={LEASE}&look_interval=0.2"
    target = start("-c", program, url)
    programs.append(target)
    assert target.line() == "ready"
    path = sqlite_url.removeprefix("sqlite:///")
    with Connection(url) as connection:
        got: list[Any] = []
        consumer = collecting(connection, "q", got)
        assert len(glob.glob(f"{path}-*.wake")) == 2
        target.signal(signal.SIGKILL)
        until(lambda: len(glob.glob(f"{path}-*.wake")) == 1, 20 * LEASE)
        for name in ("own", "used"):
            with pytest.raises(NotFound):
                connection.channel().queue_declare(name, passive=True)
        assert consumer.stop(SOON)
    assert glob.glob(f"{path}-*.wake") == []


def test_frozen_consumer_comes_too_late(url: str, programs: list[Running]) -> None:
    program = """
import logging, sys
import greenconn
from gevent.event import AsyncResult
logging.basicConfig(format="%(message)s", stream=sys.stdout)
connection = greenconn.Connection(sys.argv[1])
channel = connection.default_channel
lost = AsyncResult()
channel.events["lease_lost"].add(lambda count: print("lost", count, flush=True))
channel.events["lease_lost"].add(lost.set)
message = channel.basic_get("q")
print("holds", message.payload, flush=True)
sys.stdin.readline()
message.ack()
lost.get(timeout=60)
"""
    with Connection(url) as connection:
        greenconn.publish("q", 1, connection=connection, declare=True)
        frozen = start("-c", program, url)
        programs.append(frozen)
        assert frozen.line() == "holds 1"
        frozen.suspend(url)
        got: list[Any] = []
        may_end = gevent.event.Event()

        def keep(body: int, message: Any) -> None:
            got.append(body)
            may_end.wait()

        consumer = greenconn.spawn_consumer("q", keep, connection=connection)
        until(lambda: got == [1], 15 * LEASE)
        frozen.signal(signal.SIGCONT)
        outcome = frozen.outcome(b"\n")
        assert "lost 1" in outcome.output
        assert "lease_lost" in outcome.output
        may_end.set()
        until(lambda: consumer.stats()["handled"] == 1)
        assert got == [1]
        assert consumer.stop(SOON)


@pytest.mark.parametrize("times", [3])
def test_fork_while_it_is_busy(url: str, times: int, long: bool) -> None:
    """A child never uses what its parent has open, and waits for nobody's lock."""
    with Connection(url) as connection:
        stop = False
        numbers = iter(range(10**6))

        def publish() -> None:
            while not stop:
                # In a child, the copies of these greenlets go on, too.
                body = (next(numbers), os.getpid())
                greenconn.publish("q", body, connection=connection, declare=True)

        publishers = [gevent.spawn(publish) for _ in range(20)]
        gevent.sleep(0.1)

        def in_child() -> bool:
            with Connection(url) as own:
                greenconn.publish("child", os.getpid(), connection=own, declare=True)
                assert own.default_channel.basic_get("child", no_ack=True) is not None
            # What is the parent's can be used again, as a connection of the child's.
            greenconn.publish("child", os.getpid(), connection=connection, declare=True)
            return connection.default_channel.basic_get("child", no_ack=True) is not None

        for _ in range(20 if long else times):
            assert holds_in_child(in_child)
            gevent.sleep(0.02)
        stop = True
        gevent.joinall(publishers, timeout=SOON, raise_error=True)
        published = next(numbers)
        queue = Queue("q")(connection.default_channel)
        stored = set()
        while (message := queue.get(no_ack=True)) is not None:
            number, pid = message.payload
            if pid == os.getpid():
                stored.add(number)
        assert stored == set(range(published))
