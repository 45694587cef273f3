"""A server that goes and comes back, processes that are killed, connections that are cut.

The server is the stand-in of :mod:`tests.brokers.mongodb`, which notes each write in a file before it
confirms it: what is lost here would be lost by us.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from contextlib import suppress
from typing import Any

import gevent
import pytest
from gevent import socket

import greenconn
from greenconn import Connection
from greenconn.exceptions import OperationalError
from tests.brokers.mongodb_server import MongoStandin
from tests.fix_peer import PeerFactory
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.integration.processes import start

pytestmark = pytest.mark.full

LEASE = 0.6
HELD = 5

#: Takes some messages and holds them for ever.
HOLDER = f"""
import sys
import gevent
import greenconn

def handle(body, message):
    print(body, flush=True)
    gevent.sleep(1000)

connection = greenconn.Connection(sys.argv[1], transport_options={{"lease": {LEASE}}})
greenconn.spawn_consumer("q", handle, connection=connection, prefetch_count={HELD},
                         concurrency={HELD}).join()
"""


def test_restarts_under_load_lose_nothing(
    own_mongodb: MongoStandin, unique: str, long: bool
) -> None:
    restarts, senders = (20, 200) if long else (1, 20)
    got: Counter[str] = Counter()
    sent: list[str] = []
    is_over = False
    url = f"{own_mongodb.url}/{unique}"
    options = {"lease": 2.0}
    with Connection(url, transport_options=options) as connection, Connection(url) as sending:
        consumer = greenconn.spawn_consumer(
            "q", lambda body, message: got.update([body]), connection=connection, prefetch_count=20
        )
        assert consumer.wait_ready(SOON)

        def send(sender: int) -> None:
            number = 0
            while not is_over:
                body = f"{sender}.{number}"
                greenconn.publish("q", body, connection=sending, timeout=SOON * 3)
                sent.append(body)
                number += 1
                gevent.sleep(random.random() / 4)

        greenlets = [gevent.spawn(send, number) for number in range(senders)]
        for _ in range(restarts):
            gevent.sleep(random.uniform(0.2, 0.5))
            random.choice((own_mongodb.stop, own_mongodb.kill))()
            gevent.sleep(random.uniform(0.1, 0.5))
            own_mongodb.start()
        is_over = True
        gevent.joinall(greenlets, raise_error=True)
        until(lambda: all(each in got for each in sent), SOON * 3)
        assert consumer.stop(SOON)


@pytest.mark.programs
def test_messages_of_the_killed_are_back_after_their_lease(mongodb_url: str) -> None:
    holder = start("-c", HOLDER, mongodb_url)
    try:
        with Connection(mongodb_url) as connection:
            for body in range(HELD):
                greenconn.publish("q", body, connection=connection, declare=True)
            assert sorted(int(holder.line()) for _ in range(HELD)) == list(range(HELD))
            # As long as it lives it keeps them.
            gevent.sleep(2 * LEASE)
            got: dict[int, Any] = {}

            def handle(body: int, message: Any) -> None:
                got[body] = (message.delivery_info["redelivered"], message.delivery_count)

            consumer = greenconn.spawn_consumer("q", handle, connection=connection)
            assert consumer.wait_ready(SOON)
            gevent.sleep(2 * LEASE)
            assert not got
            holder.signal(signal.SIGKILL)
            until(lambda: len(got) == HELD)
            assert set(got.values()) == {(True, 1)}
            assert consumer.stop(SOON)
    finally:
        holder.end()


@pytest.mark.parametrize("side", ["there", "back"])
def test_cuts_anywhere_lose_nothing(
    side: str, own_mongodb: MongoStandin, unique: str, peer: PeerFactory, long: bool
) -> None:
    """Each connection ends after some bytes, in the midst of a request or of a reply."""
    count = 200 if long else 8
    chance = random.Random(7)
    is_cutting = True

    def copy(source: socket.socket, target: socket.socket, budget: int | None) -> None:
        with suppress(OSError):
            while part := source.recv(1 << 16):
                if budget is not None:
                    part = part[:budget]
                    budget -= len(part)
                target.sendall(part)
                if budget == 0:
                    break
            source.shutdown(socket.SHUT_RDWR)
            target.shutdown(socket.SHUT_RDWR)

    def relay(client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", own_mongodb.port)) as server:
            budget = chance.randrange(500, 12_000) if is_cutting else None
            there = gevent.spawn(copy, client, server, budget if side == "there" else None)
            try:
                copy(server, client, budget if side == "back" else None)
            finally:
                there.kill()

    got: Counter[int] = Counter()
    sent: list[int] = []
    url = f"mongodb://127.0.0.1:{peer(relay).port}/{unique}"
    with Connection(url, transport_options={"lease": 1.0}) as connection:
        consumer = greenconn.spawn_consumer(
            "q", lambda body, message: got.update([body]), connection=connection
        )
        for body in range(count):
            while True:
                try:
                    greenconn.publish("q", body, connection=connection, timeout=SOON)
                except OperationalError:
                    continue
                break
            sent.append(body)
        is_cutting = False
        until(lambda: all(each in got for each in sent), SOON * 3)
        assert consumer.stop(SOON)
