"""Queues whose messages have a time to live, on a real Redis: used for delays, too."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

import greenconn
from greenconn import Connection, Exchange, Queue
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.integration.processes import start
from tests.integration.redis_clients import Control

pytestmark = pytest.mark.halved

#: Without types.
kombu: Any = pytest.importorskip("kombu")

#: Seconds.
TTL = 0.3
LEASE = 0.5
ARGUMENTS = {
    "x-message-ttl": int(TTL * 1000),
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": "work",
}

#: Declares a queue for delays, sends to it, and is killed.
DECLARER = f"""
import gevent, sys
from greenconn import Connection, Queue, publish
connection = Connection(sys.argv[1], transport_options={{"lease": {LEASE}}})
Queue("delay", queue_arguments={ARGUMENTS})(connection.default_channel).declare()
publish("delay", "from the dead", connection=connection)
print("sent", flush=True)
gevent.sleep(1000)
"""


@pytest.fixture
def connection(own_redis: RedisServer, at_server: Control) -> Iterator[Connection]:
    with Connection(own_redis.url, transport_options={"lease": LEASE}) as connection:
        yield connection


def delay(connection: Connection) -> None:
    """Declare a queue whose messages go to another one after a while."""
    for queue in (Queue("work"), Queue("delay", queue_arguments=ARGUMENTS)):
        queue(connection.default_channel).declare()


def test_a_delay_keeps_the_order_and_is_not_too_short(
    connection: Connection, at_server: Control
) -> None:
    delay(connection)
    sent: dict[int, float] = {}
    got: dict[int, float] = {}

    def handle(body: int, message: Any) -> None:
        got[body] = monotonic()
        assert message.headers["x-death"][0]["reason"] == "expired"
        assert message.headers["x-death"][0]["queue"] == "delay"

    consumer = greenconn.spawn_consumer("work", handle, connection=connection)
    assert consumer.wait_ready(SOON)
    for body in range(250):
        sent[body] = monotonic()
        greenconn.publish("delay", body, connection=connection)
    until(lambda: len(got) == 250)
    assert list(got) == list(range(250))
    assert min(got[each] - sent[each] for each in got) >= TTL
    assert consumer.stop(SOON)
    until(at_server.is_settled)


def fill(connection: Connection, count: int) -> None:
    """Put messages into the queue for delays."""
    greenconn.publish_many("delay", range(count), connection=connection)


def test_long_queue_expires_without_searches(connection: Connection, at_server: Control) -> None:
    # To search compares all messages in front: the square of their number, if each step does it.
    delay(connection)
    fill(connection, 3000)
    before = at_server.calls("lpos")
    until(lambda: at_server("LLEN", "work") == 3000)
    # One that is sent while the newest is noted makes the place unknown, once for each note.
    assert at_server.calls("lpos") - before <= 6
    until(at_server.is_settled)
    channel = connection.default_channel
    assert [int(channel.basic_get("work", no_ack=True).body) for _ in range(3000)] == [*range(3000)]


def test_several_expire_one_queue(
    connection: Connection, own_redis: RedisServer, at_server: Control
) -> None:
    delay(connection)
    with Connection(own_redis.url, transport_options={"lease": 60.0}) as other:
        delay(other)
        fill(connection, 1000)
        taken = 0
        while at_server("LLEN", "delay"):
            message = other.default_channel.basic_get("delay", no_ack=True)
            taken += message is not None
        until(at_server.is_settled)
        assert at_server("LLEN", "work") == 1000 - taken


def test_messages_of_kombu_expire_too(connection: Connection, own_redis: RedisServer) -> None:
    delay(connection)
    with kombu.Connection(own_redis.url) as theirs:
        theirs.Producer().publish("theirs", routing_key="delay")
    channel = connection.default_channel
    until(lambda: (found := channel.basic_get("work", no_ack=True)) is not None and found)


def test_without_a_dead_letter_exchange_they_are_dropped(
    connection: Connection, at_server: Control
) -> None:
    queue = Queue("brief", Exchange("news", "topic"), "#", message_ttl=3.0, max_priority=None)
    queue(connection.default_channel).declare()
    producer = connection.Producer(exchange=Exchange("news", "topic"))
    for priority in (0, 3, 9):
        producer.publish("x", routing_key="a", priority=priority)
    assert queue(connection.default_channel).queue_declare(passive=True).message_count == 3
    until(lambda: not at_server("KEYS", "brief*"))
    until(at_server.is_settled)


def test_others_go_on_where_a_program_was_killed(
    own_redis: RedisServer, at_server: Control
) -> None:
    declarer = start("-c", DECLARER, own_redis.url)
    try:
        assert declarer.line() == "sent"
        declarer.signal(signal.SIGKILL)
        with Connection(own_redis.url, transport_options={"lease": LEASE}) as connection:
            got: list[str] = []
            consumer = greenconn.spawn_consumer(
                "work", lambda body, message: got.append(body), connection=connection
            )
            until(lambda: got == ["from the dead"])
            assert consumer.stop(SOON)
    finally:
        declarer.end()


def test_a_deleted_queue_is_looked_after_no_more(
    connection: Connection, at_server: Control
) -> None:
    delay(connection)
    link = connection.connection
    assert link.placement.partition("").expiry.watches("delay")
    connection.default_channel.queue_delete("delay")
    assert not link.placement.partition("").expiry.watches("delay")
    link.placement.partition("").sweeper.sweep()
    assert not at_server("EXISTS", "greenconn.timed")


def test_a_lost_link_leaves_nothing_half_done(connection: Connection, at_server: Control) -> None:
    delay(connection)
    number = 500
    for body in range(number):
        greenconn.publish("delay", body, connection=connection, declare=True)
    got: list[int] = []
    consumer = greenconn.spawn_consumer(
        "work", lambda body, message: got.append(body), connection=connection
    )
    until(lambda: len(got) > 50)
    for _ in range(3):
        at_server("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        seen = len(got)
        until(lambda seen=seen: len(got) > seen or len(set(got)) == number)  # type: ignore[misc]
    until(lambda: set(got) == set(range(number)), 60)
    assert consumer.stop(SOON)
