"""The order of the messages of a key, over retries, lost connections and the hand-over to others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, Message, Queue, Retry, in_order
from tests.fix_wires import until
from tests.integration.capabilities import Can, Kind, needs

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
def test_the_order_survives_retries(connection: Connection, unique: str, hold: Any) -> None:
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
        if end == "stop":
            stopping = gevent.spawn(first.stop, SOON)
        elif end == "abort":
            stopping = gevent.spawn(first.stop, 0.01)
        elif end == "pause":
            stopping = gevent.spawn(first.pause, SOON)
        elif end == "kill":
            stopping = gevent.spawn(first.kill)
        else:
            stopping = gevent.spawn(former.close)
        if end in ("stop", "pause"):
            gevent.idle()
            may_end.set()
        stopping.get(timeout=SOON)
        until(record.is_complete, SOON)
        may_end.set()
        assert second.stop(SOON)
    assert not record.broken
