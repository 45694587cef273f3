"""A Redis that goes and comes back, and connections that are cut anywhere, under load."""

from __future__ import annotations

import random
from collections import Counter
from time import monotonic
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection
from tests.fix_brokers import RedisFactory
from tests.fix_relay import RelayFactory
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.integration.redis_clients import control

pytestmark = pytest.mark.full

#: Options of a server that has everything again when it is back.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def test_restarts_under_load_lose_nothing(redis_with: RedisFactory, long: bool) -> None:
    restarts, queues, senders = (20, 20, 1000) if long else (2, 10, 200)
    server = redis_with(*DURABLE)
    got: Counter[str] = Counter()
    sent: list[str] = []
    resumed: list[float] = []
    is_over = False
    with Connection(server.url) as connection, Connection(server.url) as sending:

        def handle(body: str, message: Any) -> None:
            got[body] += 1

        consumers = [
            greenconn.spawn_consumer(f"q{number}", handle, connection=connection)
            for number in range(queues)
        ]
        assert all(each.wait_ready(SOON) for each in consumers)

        def send(sender: int) -> None:
            number = 0
            while not is_over:
                body = f"{sender}.{number}"
                greenconn.publish(f"q{sender % queues}", body, connection=sending, timeout=60)
                sent.append(body)
                number += 1
                gevent.sleep(random.random())

        greenlets = [gevent.spawn(send, number) for number in range(senders)]
        for _ in range(restarts):
            gevent.sleep(random.uniform(0.3, 0.8))
            random.choice((server.stop, server.kill))()
            gevent.sleep(random.uniform(0.1, 1.5))
            server.start()
            back_at = monotonic()
            mark = f"mark {back_at}"
            with Connection(server.url) as fresh:
                for number in range(queues):
                    greenconn.publish(f"q{number}", mark, connection=fresh)
            until(lambda mark=mark: got[mark] >= queues, 20)  # type: ignore[misc]
            resumed.append(monotonic() - back_at)
            with control(server.url) as at_server:
                opened = int(at_server.stat("total_connections_received"))
            # One for who consumes, one for who sends, a few that came too soon, and this test's.
            assert opened <= 12
        is_over = True
        gevent.joinall(greenlets, raise_error=True)
        until(lambda: all(each in got for each in sent), 30)
        assert all(each.stop(SOON) for each in consumers)
        with control(server.url) as at_server:
            until(at_server.is_settled)
    print(f"{len(sent)} messages, all queues consumed again after {max(resumed):.2f} s at most")


@pytest.mark.parametrize("prefetch", [1, 100])
def test_cuts_anywhere_lose_nothing(
    prefetch: int, redis_with: RedisFactory, relay_to: RelayFactory, long: bool
) -> None:
    """The relay ends connections after some bytes, so also amid a command."""
    cuts, number, senders = (100, 20_000, 1000) if long else (8, 2000, 200)
    server = redis_with()
    to_sender, to_consumer = relay_to(server.url), relay_to(server.url)
    got: Counter[int] = Counter()
    with Connection(to_consumer.url) as connection, Connection(to_sender.url) as sending:

        def handle(body: int, message: Any) -> None:
            if prefetch > 1:
                gevent.sleep(0.001)
            got[body] += 1

        consumer = greenconn.spawn_consumer(
            "q", handle, connection=connection, prefetch_count=prefetch, concurrency=10
        )
        assert consumer.wait_ready(SOON)

        def send(first: int) -> None:
            for each in range(first, number, senders):
                greenconn.publish("q", each, connection=sending, timeout=60)
                gevent.sleep(random.random() * cuts * senders / number / 10)

        greenlets = [gevent.spawn(send, first) for first in range(senders)]
        for _ in range(cuts):
            gevent.sleep(random.uniform(0.02, 0.2))
            random.choice((to_sender, to_consumer)).cut_after(random.randrange(3000))
        gevent.joinall(greenlets, raise_error=True)
        until(lambda: len(got) == number, 60)
        with control(server.url) as at_server:
            until(at_server.is_settled)
            assert at_server("LLEN", "q") == 0
        assert consumer.stop(SOON)
    # One connection for each life, however many greenlets noticed its end.
    assert to_sender.accepted + to_consumer.accepted <= 2 + 2 * cuts
    assert to_sender.most <= 2
    assert set(got) == set(range(number))


def test_no_storm_when_a_server_is_back(redis_with: RedisFactory, relay_to: RelayFactory) -> None:
    """A thousand greenlets wait for it, and one of them knocks at a time."""
    server = redis_with(*DURABLE)
    relay = relay_to(server.url)
    with Connection(relay.url) as connection:
        greenconn.publish("q", -1, connection=connection, declare=True)
        server.kill()
        publishes = [
            gevent.spawn(
                greenconn.publish, "q", each, connection=connection, timeout=60, declare=True
            )
            for each in range(1000)
        ]
        gevent.sleep(1.0)
        knocks = relay.accepted
        assert knocks <= 12
        server.start()
        gevent.joinall(publishes, raise_error=True)
        assert relay.accepted <= knocks + 3
        assert relay.most <= 2
        with control(server.url) as at_server:
            assert at_server("LLEN", "q") >= 1001
