"""Outboxes: relays in processes that are killed and stopped, and brokers that are."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

import gevent
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

import greenconn
from greenconn import Connection, Queue
from greenconn.contrib.outbox.sqlalchemy import Outbox
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_wires import until
from tests.integration.outbox_apps.database import connect_arguments
from tests.integration.processes import ROOT, Running, start

pytestmark = [pytest.mark.programs]

SOON = 120.0
KEYS = [f"key-{number}" for number in range(8)]


class Shop:
    """A program that writes messages, its relays, and what a consumer gets."""

    def __init__(self, url: str, name: str, folder: Path) -> None:
        self.url = url
        self.database = os.environ.get("GREENCONN_TEST_POSTGRESQL_URL", f"sqlite:///{folder}/box")
        self.engine = create_engine(self.database, connect_args=connect_arguments(self.database))
        self.outbox = Outbox()
        self.outbox.messages.metadata.drop_all(self.engine)
        self.outbox.create_tables(self.engine)
        self.store = self.outbox.relay(self.engine)._store
        self._begin = sessionmaker(self.engine).begin
        self._queue = Queue(name)
        self.relays: list[Running] = []
        self.written: dict[str | None, int] = Counter()
        self.received: dict[str | None, list[int]] = defaultdict(list)
        self._connection = Connection(url)
        self._consumer = greenconn.spawn_consumer(
            self._queue, self._receive, connection=self._connection, prefetch_count=50
        )
        assert self._consumer.wait_ready(SOON)

    def _receive(self, body: Any, message: Any) -> None:
        self.received[body["key"]].append(body["n"])

    def start(self, patched: bool = True) -> Running:
        """Start a relay."""
        env = {
            "OUTBOX_BROKER": self.url,
            "OUTBOX_DATABASE": self.database,
            "OUTBOX_PATCHED": str(int(patched)),
            "PYTHONPATH": str(ROOT),
        }
        program = str(ROOT / "tests" / "integration" / "outbox_apps" / "relaying.py")
        relay = start(program, env=env)
        assert relay.line() == "begun"
        self.relays.append(relay)
        return relay

    def write(self, count: int) -> None:
        """Write *count* messages in one transaction, and as many that are rolled back."""
        with self._begin() as session:
            for _ in range(count):
                for key in (*KEYS, None):
                    body = {"key": key, "n": self.written[key]}
                    self.outbox.publish(session, self._queue, body, key=key)
                    self.written[key] += 1
        with pytest.raises(LookupError), self._begin() as session:
            self.outbox.publish(session, self._queue, {"key": None, "n": -1})
            raise LookupError

    def check(self) -> int:
        """Wait until all was received, in the order of each key; return how much came twice."""
        written = {key: list(range(count)) for key, count in self.written.items()}

        def received() -> bool:
            return all(set(self.received[key]) == set(written[key]) for key in written)

        until(received, SOON, "all received")
        until(lambda: not self.store.backlog().waiting, SOON, "all marked")
        for key in KEYS:
            assert list(dict.fromkeys(self.received[key])) == written[key]
        return sum(map(len, self.received.values())) - sum(self.written.values())

    def end(self) -> None:
        for relay in self.relays:
            relay.end()
        if self._consumer.stop(SOON):
            self._connection.default_channel.queue_delete(self._queue.name)
        self._connection.close()
        self.engine.dispose()


@pytest.fixture
def shop(amqp_url: str, unique: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(amqp_url, unique, tmp_path)
    yield shop
    shop.end()


@pytest.mark.full
def test_killed_relays_lose_nothing(
    shop: Shop, long: bool, request: pytest.FixtureRequest, record_property: Any
) -> None:
    chance = random.Random(request.config.getoption("randomly_seed", 0))
    relays = [shop.start(), shop.start(patched=False)]
    for _ in range(30 if long else 3):
        shop.write(chance.randrange(10, 40))
        before = sum(map(len, shop.received.values()))
        until(lambda: sum(map(len, shop.received.values())) > before, SOON)  # noqa: B023
        gevent.sleep(chance.random() * 0.1)
        killed = relays.pop(chance.randrange(2))
        killed.signal(signal.SIGKILL)
        relays.append(shop.start(patched=chance.random() < 0.5))
    twice = shop.check()
    record_property("twice", twice)
    print(f"{sum(shop.written.values())} written, {twice} came twice")


@pytest.mark.full
def test_a_relay_that_stands_still_longer_than_its_lease(shop: Shop, long: bool) -> None:
    one, two = shop.start(), shop.start()
    for stopped, _ in [(one, two), (two, one)] * (5 if long else 1):
        shop.write(30)
        until(lambda: any(shop.received.values()), SOON)
        stopped.suspend(shop.database)
        try:
            shop.write(5)
            shop.check()  # by the other one
        finally:
            stopped.signal(signal.SIGCONT)
    shop.write(10)
    shop.check()


def test_a_relay_ends_at_a_signal_as_its_program_does(shop: Shop) -> None:
    relay = shop.start()
    shop.write(3)
    shop.check()
    relay.signal(signal.SIGINT)
    until(lambda: relay.process.poll() is not None, SOON)
    assert {each.owner for each in shop.store.leases()} == {""}


@pytest.mark.full
def test_a_killed_broker_loses_nothing(
    own_rabbitmq: RabbitMQ, unique: str, tmp_path: Path, long: bool
) -> None:
    shop = Shop(own_rabbitmq.url, unique, tmp_path)
    try:
        shop.start()
        shop.start(patched=False)
        for _ in range(5 if long else 1):
            shop.write(50)
            until(lambda: any(shop.received.values()), SOON)
            own_rabbitmq.kill()
            shop.write(20)
            own_rabbitmq.start()
            shop.write(20)
            twice = shop.check()
            print(f"{sum(shop.written.values())} written, {twice} came twice")
        assert shop.store.backlog().failing == 0
    finally:
        shop.end()
