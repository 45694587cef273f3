"""The order of the messages of a key, over retries, lost connections and the hand-over to others."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, Message, Queue, Retry, in_order
from tests.fix_wires import until
from tests.integration.capabilities import Can, Kind, needs

pytestmark = pytest.mark.halved

SOON = 60.0
KEYS = "abc"
COUNT = 12


@pytest.fixture
def options(broker_kind: Kind) -> dict[str, Any]:
    """The options of connections."""
    return {name: each for name, each in broker_kind.options.items() if name != "fanout_lists"}


@pytest.fixture
def connection(kind_url: str, options: dict[str, Any]) -> Iterator[Connection]:
    with Connection(kind_url, transport_options=options) as connection:
        yield connection


def publish(queue: Queue, connection: Connection, numbers: range) -> None:
    bodies = [{"key": key, "n": number} for number in numbers for key in KEYS]
    greenconn.publish_many(queue, bodies, connection=connection)


class Record:
    """What was handled of each key, and what fails.

    A message begins when all earlier ones of its key were handled; an earlier one may come again.
    """

    def __init__(self, failures: int = 1) -> None:
        self.handled: dict[str, list[int]] = defaultdict(list)
        self.broken: list[str] = []
        self._failures = failures
        self._failed: dict[tuple[str, int], int] = defaultdict(int)

    def begin(self, body: Any) -> None:
        key, number = body["key"], body["n"]
        if number > len(self.handled[key]):
            self.broken.append(f"{key}{number} began after {self.handled[key]}")
        if number % 4 == 0 and self._failed[key, number] < self._failures:
            self._failed[key, number] += 1
            raise ValueError("not yet")

    def end(self, body: Any) -> None:
        key, number = body["key"], body["n"]
        if number == len(self.handled[key]):
            self.handled[key].append(number)

    def work(self, body: Any, message: Message) -> None:
        self.begin(body)
        gevent.sleep(0.001)
        self.end(body)

    def is_complete(self) -> bool:
        assert not self.broken, (self.broken, dict(self.handled))
        return sum(map(len, self.handled.values())) == COUNT * len(KEYS)


def by_key(body: Any, message: Message) -> Any:
    return body["key"]


@pytest.mark.parametrize("hold", [None, "broker", "process"])
def test_the_order_survives_retries(
    kind_url: str, connection: Connection, unique: str, hold: Any
) -> None:
    if kind_url.startswith("sqs:"):
        pytest.skip("a standard queue of SQS is received from by several requests, in any order")
    record, queue = Record(failures=2), Queue(unique)
    publish(queue, connection, range(COUNT))
    retry = Retry(tries=3, delay=0.02, hold=hold)
    consumer = greenconn.spawn_consumer(
        queue, in_order(by_key)(record.work), connection=connection, concurrency=50, retry=retry
    )
    until(record.is_complete, SOON)
    assert consumer.stop(SOON)
    assert not record.broken


@needs(Can.SINGLE_ACTIVE, Can.CROWD)
@pytest.mark.parametrize("end", ["stop", "abort", "kill", "close", "pause"])
def test_the_order_survives_a_hand_over(
    kind_url: str, options: dict[str, Any], connection: Connection, unique: str, end: str
) -> None:
    """The next active consumer begins when the handlers of the former one have ended."""
    record = Record()
    queue = Queue(unique, queue_arguments={"x-single-active-consumer": True})
    first_begun, may_end = Event(), Event()

    def work(body: Any, message: Message) -> None:
        record.begin(body)
        if (body["key"], body["n"]) == ("a", 1):
            first_begun.set()
            may_end.wait(SOON)
        record.end(body)

    retry = Retry(tries=3, delay=0.05)
    with Connection(kind_url, transport_options=options) as former:
        first = greenconn.spawn_consumer(
            queue,
            in_order(by_key)(work),
            connection=former,
            concurrency=10,
            prefetch_count=10,
            retry=retry,
        )
        assert first.wait_ready(SOON)
        second = greenconn.spawn_consumer(
            queue, in_order(by_key)(record.work), connection=connection, concurrency=50, retry=retry
        )
        assert second.wait_ready(SOON)
        publish(queue, connection, range(COUNT))
        assert first_begun.wait(SOON)
        ends: dict[str, Callable[[], object]] = {
            "stop": lambda: first.stop(SOON),
            "abort": lambda: first.stop(0.01),
            "pause": lambda: first.pause(SOON),
            "kill": lambda: first.kill(),
            "close": lambda: former.close(),
        }
        stopping = gevent.spawn(ends[end])
        if end in ("stop", "pause"):
            gevent.idle()
            may_end.set()
        stopping.get(timeout=SOON)
        until(record.is_complete, SOON)
        may_end.set()
        assert second.stop(SOON)
    assert not record.broken


class Process:
    """A consumer with a connection of its own, as another process has it."""

    def __init__(self, url: str, options: dict[str, Any], queue: Any, record: Record) -> None:
        self.connection = Connection(url, transport_options=options)
        self.handled = 0

        def work(body: Any, message: Message) -> None:
            record.begin(body)
            gevent.sleep(0.001)
            self.handled += 1
            record.end(body)

        self.consumer = greenconn.spawn_consumer(
            queue,
            work,
            connection=self.connection,
            concurrency=50,
            retry=Retry(tries=3, delay=0.02),
        )
        assert self.consumer.wait_ready(SOON)

    @property
    def shards(self) -> int:
        """The number of shards that it is active on."""
        subscriptions: Any = self.consumer.lifecycle._queues
        return sum(each.is_active for each in subscriptions)

    def close(self) -> None:
        assert self.consumer.stop(SOON)
        self.connection.close()


@needs(Can.SINGLE_ACTIVE, Can.CROWD)
def test_shards_are_divided_and_stay_in_order(
    kind_url: str,
    options: dict[str, Any],
    connection: Connection,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("greenconn.worker.subscriptions.BALANCE_INTERVAL", 0.1)
    ledger = Queue.sharded(unique, 4, key=lambda body: body["key"])
    record = Record()
    keys = [f"key-{number}" for number in range(40)]
    first = Process(kind_url, options, ledger, record)
    sent = 0

    def publish_round() -> None:
        nonlocal sent
        bodies = [{"key": key, "n": sent} for key in keys]
        assert greenconn.publish_many(ledger, bodies, connection=connection) == len(keys)
        sent += 1

    def is_handled() -> bool:
        assert not record.broken, record.broken
        return all(len(record.handled[key]) == sent for key in keys)

    publish_round()
    until(is_handled, SOON)
    assert first.shards == 4
    second = Process(kind_url, options, ledger, record)

    def is_divided() -> bool:
        publish_round()
        until(is_handled, SOON)
        return first.shards == second.shards == 2

    until(is_divided, SOON)
    first.close()  # the other one goes on with all of them
    publish_round()
    until(is_handled, SOON)
    assert second.shards == 4
    second.close()
    with connection.channel() as channel:
        ledger.delete(channel)


@pytest.mark.parametrize("broker_kind", ["mongodb"], indirect=True)
def test_shards_need_a_single_active_consumer(connection: Connection, unique: str) -> None:
    ledger = Queue.sharded(unique, 2, key=lambda body: body)
    consumer = greenconn.spawn_consumer(ledger, lambda body, message: None, connection=connection)
    with pytest.raises(ValueError, match="single active consumer"):
        consumer.wait_ready(SOON)
    with pytest.raises(ValueError, match="single active consumer"):
        consumer.get(timeout=SOON)


@needs(Can.SINGLE_ACTIVE, Can.CROWD, Can.PROCESSES)
@pytest.mark.sampled(2)
def test_the_order_survives_processes_that_end(kind_url: str, long: bool) -> None:
    """Killed, stopped, suspended and replaced, by the checker of histories."""
    size = ["--messages", "300", "--keys", "30", "--processes", "2", "--shards", "3"]
    command = [sys.executable, "-m", "tests.quality.history", kind_url, "--interval", "0.5"]
    seen = subprocess.run(
        command if long else [*command, *size], capture_output=True, text=True, timeout=None
    )
    assert seen.returncode == 0, seen.stdout + seen.stderr
