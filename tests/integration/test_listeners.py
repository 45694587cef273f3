"""Listeners over brokers: the same events from each, and each beginning has its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection, Consumer, Listener, Queue
from greenconn.listeners import (
    ConfirmEvent,
    ConnectEvent,
    DeadLetterEvent,
    DeliverEvent,
    DisconnectEvent,
    HandledEvent,
    PublishEvent,
    RetryEvent,
    SettleEvent,
)
from tests.fix_relay import Relay
from tests.fix_wires import until
from tests.integration.recovering import lose
from tests.receiving import delete

SOON = 90.0
COUNT = 60


class Ledger(Listener):
    """Counts the events, and keeps those that have begun and not ended."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.open: set[object] = set()
        self.urls: set[str] = set()
        self.errors: list[BaseException | None] = []
        self.lives: list[int] = []
        self.lost: list[BaseException | None] = []

    def on_connect(self, event: ConnectEvent) -> None:
        assert event.duration > 0.0
        self.lives.append(event.life)

    def on_disconnect(self, event: DisconnectEvent) -> None:
        self.lost.append(event.error)

    def on_publish(self, event: PublishEvent) -> None:
        event.headers["number"] = self.counts["publish"]
        self.urls.add(event.connection)
        self.counts["publish"] += 1
        self.open.add(event)

    def on_confirm(self, event: ConfirmEvent) -> None:
        self.open.remove(event.publish)
        self.errors.append(event.error)

    def on_deliver(self, event: DeliverEvent) -> None:
        assert isinstance(event.message.headers["number"], int)
        self.urls.add(event.connection)
        self.counts[f"deliver {event.queue}"] += 1
        if event.handler is not None:
            self.open.add(event)

    def on_handled(self, event: HandledEvent) -> None:
        self.open.remove(event.delivery)
        self.errors.append(event.error)

    def on_settle(self, event: SettleEvent) -> None:
        self.counts[event.outcome] += 1

    def on_retry(self, event: RetryEvent) -> None:
        self.counts["retry"] += 1

    def on_dead_letter(self, event: DeadLetterEvent) -> None:
        self.counts["dead letter"] += 1


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = Ledger()
    greenconn.add_listener(ledger)
    yield ledger
    greenconn.remove_listener(ledger)


def test_publish_and_spawn_consumer(connection: Connection, ledger: Ledger, unique: str) -> None:
    def handle(body: Any, message: Any) -> None:
        gevent.sleep(0)
        if body == 7:
            raise LookupError("7")

    consumer = greenconn.spawn_consumer(
        unique,
        handle,
        connection=connection,
        concurrency=10,
        retry=greenconn.Retry(tries=2, delay=0.01, hold="process"),
        dead_letter=True,
    )
    consumer.wait_ready(SOON)
    half = COUNT // 2
    jobs = [gevent.spawn(greenconn.publish, unique, n, connection=connection) for n in range(half)]
    greenconn.publish_many(unique, range(half, COUNT), connection=connection)
    gevent.joinall(jobs, timeout=SOON, raise_error=True)
    until(lambda: ledger.counts["ack"] == COUNT, SOON)
    assert consumer.stop(SOON)
    assert not ledger.open
    assert ledger.counts["publish"] == COUNT + 1  # and the dead letter
    assert ledger.counts[f"deliver {unique}"] == COUNT + 1  # and the second try
    assert ledger.counts["retry"] == ledger.counts["dead letter"] == 1
    assert [type(each) for each in ledger.errors if each is not None] == [LookupError] * 2
    assert ledger.urls == {connection.as_uri()}
    delete(connection, unique, f"{unique}.dead")


def test_a_program_as_kombu_has_it(connection: Connection, ledger: Ledger, unique: str) -> None:
    seen = []

    def callback(body: Any, message: Any) -> None:
        seen.append(body)
        message.ack() if body else message.reject()

    queue = Queue(unique)
    with connection.Producer() as producer, Consumer(connection, queue, callbacks=[callback]):
        for number in range(COUNT):
            producer.publish(number, routing_key=unique, retry=bool(number % 2))
        while len(seen) < COUNT:
            connection.drain_events(timeout=SOON)
    assert sorted(seen) == list(range(COUNT))
    assert not ledger.open
    assert ledger.errors == [None] * (2 * COUNT)
    assert ledger.counts == {
        "publish": COUNT,
        f"deliver {unique}": COUNT,
        "ack": COUNT - 1,
        "reject": 1,
    }
    assert ledger.urls == {connection.as_uri()}
    delete(connection, unique)


def test_a_simple_queue(connection: Connection, ledger: Ledger, unique: str) -> None:
    with connection.SimpleQueue(unique) as queue:
        for number in range(3):
            queue.put(number)
            queue.get(timeout=SOON).ack()
    assert not ledger.open
    assert ledger.counts == {"publish": 3, f"deliver {unique}": 3, "ack": 3}
    delete(connection, unique)


def test_killed_publishers_and_handlers_end_what_they_began(
    connection: Connection, ledger: Ledger, unique: str
) -> None:
    begun = []

    def handle(body: Any, message: Any) -> None:
        begun.append(body)
        gevent.sleep(SOON)

    consumer = greenconn.spawn_consumer(unique, handle, connection=connection, concurrency=5)
    consumer.wait_ready(SOON)
    jobs = [gevent.spawn(greenconn.publish, unique, n, connection=connection) for n in range(20)]
    many = gevent.spawn(greenconn.publish_many, unique, range(200), connection=connection)
    gevent.sleep(0)
    gevent.killall([*jobs[::2], many], timeout=SOON)
    gevent.joinall(jobs, timeout=SOON)
    until(lambda: len(begun) == 5, SOON)
    assert not consumer.stop(0)
    until(lambda: not ledger.open, SOON)
    assert ledger.counts["requeue"] >= 5
    delete(connection, unique)


def test_a_lost_connection(relay: Relay, ledger: Ledger, unique: str) -> None:
    with Connection(relay.url) as connection:
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: None, connection=connection
        )
        consumer.wait_ready(SOON)
        lose(relay, connection)
        greenconn.publish(unique, 1, connection=connection)
        assert consumer.stop(SOON)
        delete(connection, unique)
    until(lambda: len(ledger.lost) == len(ledger.lives), SOON)
    assert 2 in ledger.lives
    assert sum(each is not None for each in ledger.lost) == 1
