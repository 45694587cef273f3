"""Many who wait on one Redis: nobody starves, nobody stampedes, nobody polls."""

from __future__ import annotations

from contextlib import ExitStack
from time import monotonic
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection
from greenconn.wire.resp import pack
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
from tests.integration.contract import SOON, collecting
from tests.integration.redis_clients import Control

pytestmark = pytest.mark.full


def test_ping_asks_the_server(own_redis: RedisServer, at_server: Control) -> None:
    with Connection(own_redis.url) as connection:
        connection.connect()
        at_server("CONFIG", "RESETSTAT")
        connection.connection.ping()
        assert "cmdstat_ping:calls=1," in str(at_server("INFO", "commandstats"))


def test_crowd_on_one_queue_does_not_stampede(
    own_redis: RedisServer, at_server: Control, long: bool
) -> None:
    """Each waiter has a connection, as fifty processes have."""
    waiters, seconds = (50, 10.0) if long else (50, 1.5)
    got: list[int] = []
    with ExitStack() as stack:
        consumers = []
        for _ in range(waiters):
            connection = stack.enter_context(Connection(own_redis.url))
            consumers.append(
                greenconn.spawn_consumer(
                    "q", lambda body, message: got.append(body), connection=connection
                )
            )
        assert all(each.wait_ready(SOON) for each in consumers)
        gevent.sleep(0.3)
        sender = stack.enter_context(Connection(own_redis.url))
        at_server("CONFIG", "RESETSTAT")
        began, sent = monotonic(), 0
        while monotonic() - began < seconds:
            greenconn.publish("q", sent, connection=sender)
            sent += 1
            gevent.sleep(0.002)
        until(lambda: len(got) == sent)
        lasted = monotonic() - began
        claims = at_server.calls("evalsha")
        assert all(each.stop(SOON) for each in consumers)
    assert sorted(got) == list(range(sent))
    # Each message wakes everybody: if all came running, it would be fifty claims a message.  Where the
    # machine is busy few messages come, and each waiter may come running for each, 20 times a second.
    assert claims < 8 * sent + (10 + 20 * lasted) * waiters


def test_crowd_of_idle_consumers_asks_nothing(
    own_redis: RedisServer, at_server: Control, long: bool
) -> None:
    number, seconds = (1000, 20.0) if long else (1000, 1.0)
    with Connection(own_redis.url) as connection:
        consumers = [
            greenconn.spawn_consumer(f"q{each}", print, connection=connection)
            for each in range(number)
        ]
        assert all(each.wait_ready(SOON) for each in consumers)
        gevent.sleep(0.3)
        at_server("CONFIG", "RESETSTAT")
        received = int(at_server.stat("total_commands_processed"))
        clients = at_server("CLIENT", "LIST").decode().count("\n")
        gevent.sleep(seconds)
        asked = int(at_server.stat("total_commands_processed")) - received - 2
        claims = at_server.calls("evalsha")
        for each in consumers:
            each.kill()
    assert clients == 2  # theirs and ours
    # One safety look (in four pages) every 5 to 10 s; the lease, by a script every 10 s; the sweeper,
    # which looks a few commands deep, and by a script, every 3 to 6 s.  Both may fall into that time.
    assert claims <= (1 + seconds / 10) + (1 + seconds / 3)
    assert asked <= 30 + 5 * seconds


def test_claims_are_fair_between_queues(own_redis: RedisServer, at_server: Control) -> None:
    """A queue that is never empty does not hold up the others of its connection."""
    got: list[str] = []
    with Connection(own_redis.url) as connection, Connection(own_redis.url) as sender:
        channel = sender.default_channel
        busy = channel.prepare_message("busy")
        for _ in range(3000):
            channel.begin_publish(busy, "", "busy")
        for number in range(20):
            greenconn.publish(f"quiet{number}", "quiet", connection=sender, declare=True)

        def handle(body: str, message: Any) -> None:
            got.append(body)
            gevent.sleep(0)

        queues = ["busy", *(f"quiet{number}" for number in range(20))]
        consumers = [
            greenconn.spawn_consumer(each, handle, connection=connection) for each in queues
        ]
        until(lambda: got.count("quiet") == 20)
        assert got.count("busy") < 3000
        until(lambda: len(got) == 3020, 30)
        assert all(each.stop(SOON) for each in consumers)


def test_foreign_blocking_consumer_gets_its_share(
    own_redis: RedisServer, at_server: Control
) -> None:
    """One that waits with BRPOP is served before ours, which are told only afterwards."""
    ours: list[int] = []
    theirs: list[Any] = []
    with (
        Connection(own_redis.url) as connection,
        Connection(own_redis.url) as foreign,
        Connection(own_redis.url) as sender,
    ):
        consumer = collecting(connection, "q", ours)

        def pop() -> None:
            while True:
                theirs.append(foreign.connection.commands.call(pack("BRPOP", "q", 10)))

        popping = gevent.spawn(pop)
        until(lambda: int(at_server.stat("blocked_clients", "clients")) == 1)
        for number in range(200):
            greenconn.publish("q", number, connection=sender)
            gevent.sleep(0.001)
        until(lambda: len(ours) + len(theirs) == 200)
        popping.kill()
        assert consumer.stop(SOON)
    assert len(theirs) >= 50


def test_burst_is_shared_by_a_crowd(own_redis: RedisServer, at_server: Control) -> None:
    """Those who backed off come back when there is work for all of them."""
    shares: list[list[int]] = [[] for _ in range(10)]
    with ExitStack() as stack:
        consumers = []
        for share in shares:
            connection = stack.enter_context(Connection(own_redis.url))

            def handle(body: int, message: Any, share: list[int] = share) -> None:
                gevent.sleep(0.005)
                share.append(body)

            consumers.append(
                greenconn.spawn_consumer("q", handle, connection=connection, prefetch_count=2)
            )
        assert all(each.wait_ready(SOON) for each in consumers)
        sender = stack.enter_context(Connection(own_redis.url))
        channel = sender.default_channel
        for number in range(1000):
            channel.begin_publish(channel.prepare_message(str(number)), "", "q")
        until(lambda: sum(map(len, shares)) == 1000, 20)
        assert all(each.stop(SOON) for each in consumers)
    assert min(map(len, shares)) >= 30
