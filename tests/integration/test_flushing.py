"""What is answered or published is on its way when it was asked for, though the process dies next.

RabbitMQ may drop what it has received and not yet done when a connection ends, so that only a confirm
tells what it has done.  Here a relay has RabbitMQ hear of the end after that: what is tested is that
the bytes left.
"""

from __future__ import annotations

from contextlib import closing
from sqlite3 import connect
from typing import Any

import pytest

from greenconn import Connection, Exchange, Producer, Queue, publish_many, spawn_consumer
from greenconn.exceptions import RecoverableConnectionError
from tests.brokers.rabbitmq import RabbitMQHandle
from tests.fix_relay import Relay
from tests.fix_wires import until
from tests.integration.capabilities import Can, Kind, needs
from tests.integration.processes import Outcome, start
from tests.integration.redis_clients import control

PRELUDE = """
import os, signal, sys
{patch}
from greenconn import Connection, Consumer, Producer, Queue, spawn_consumer
url, name = sys.argv[1:]

def die():
    # As the kernel's out-of-memory killer does, or a handler that blocks for ever.
    os.kill(os.getpid(), signal.SIGKILL)
"""

IN_A_HANDLER = """
def handle(body, message):
    {answer}
    die()

connection = Connection(url)
spawn_consumer(Queue(name, durable=True), handle, connection=connection, {options}).join()
"""

IN_A_CALLBACK = """
def handle(body, message):
    message.ack(flush=True)
    die()

connection = Connection(url)
with Consumer(connection, [Queue(name, durable=True)], callbacks=[handle]):
    while True:
        connection.drain_events()
"""

IN_CELERYS_KOMBU = """
from kombu import Connection, Consumer, Queue
import greenconn.contrib.celery

def handle(body, message):
    message.ack()
    die()

with Connection("greenconn-" + url) as connection:
    with Consumer(connection, [Queue(name, durable=True)], callbacks=[handle]):
        while True:
            connection.drain_events()
"""

ACKS = {
    "in a handler": IN_A_HANDLER.format(answer="message.ack()", options=""),
    "in one of many": IN_A_HANDLER.format(answer="message.ack()", options="concurrency=10"),
    "in a batch": IN_A_HANDLER.format(
        answer="[each.ack() for each in message]", options="batch_size=1"
    ),
    "rejected in a handler": IN_A_HANDLER.format(answer="message.reject()", options=""),
    "in a callback": IN_A_CALLBACK,
    "in Celery's kombu": IN_CELERYS_KOMBU,
}


def killed(code: str, url: str, name: str, patched: bool) -> Outcome:
    """Run a program that kills itself."""
    patch = "from gevent import monkey; monkey.patch_all()" if patched else ""
    process = start("-c", PRELUDE.format(patch=patch) + code, url, name)
    try:
        outcome = process.outcome()
    finally:
        process.end()
    assert outcome.code == -9, outcome.errors
    return outcome


def put(url: str, name: str) -> None:
    """Put one message into a queue of that name."""
    with Connection(url) as connection:
        queue = Queue(name, Exchange(""), durable=True, routing_key=name)
        Producer(connection).publish("x", routing_key=name, declare=[queue])
        connection.flush()


@pytest.mark.full
@pytest.mark.parametrize("how", ACKS)
def test_an_ack_has_left_when_rabbitmqs_consumer_is_killed(
    how: str, amqp_url: str, rabbitmq: RabbitMQHandle, relay: Relay, unique: str, patched: bool
) -> None:
    put(amqp_url, unique)
    relay.is_ending.clear()
    killed(ACKS[how], relay.url, unique, patched)
    with Connection(amqp_url) as connection:
        until(lambda: rabbitmq.message_count(unique, connection.virtual_host) == 0)
        relay.is_ending.set()
        connection.default_channel.queue_delete(unique)


@pytest.mark.full
@pytest.mark.parametrize("how", ["in a handler", "rejected in a handler", "in Celery's kombu"])
def test_an_ack_has_left_when_redis_consumer_is_killed(
    how: str, redis_url: str, unique: str, patched: bool
) -> None:
    put(redis_url, unique)
    killed(ACKS[how], redis_url, unique, patched)
    with control(redis_url) as command:
        assert command("LLEN", unique) == 0
        # Others may have left entries in this database, which wait for the sweep.
        mine = unique.encode()
        until(lambda: not any(mine in each for each in command("HVALS", "unacked")))
    with Connection(redis_url) as connection:
        connection.default_channel.queue_delete(unique)


@pytest.mark.full
def test_an_ack_is_stored_when_sqlites_consumer_is_killed(
    sqlite_url: str, unique: str, patched: bool
) -> None:
    put(sqlite_url, unique)
    killed(ACKS["in a handler"], sqlite_url, unique, patched)
    with closing(connect(sqlite_url.partition("//")[2])) as database:
        assert database.execute("SELECT count(*) FROM messages").fetchone() == (0,)


STOPS = {
    "stop": "assert consumer.stop(30)",
    "all": "assert greenconn.stop_consumers(30)",
    "pause": "assert consumer.pause(30)",
    "cancel, flush": "consumer.cancel(); connection.flush()",
    "cancel, flush the channel": "consumer.cancel(); connection.default_channel.flush()",
}

STOPPED = """
import gevent.event
import greenconn
done, some = [], gevent.event.Event()

def handle(body, message):
    done.append(body)
    message.ack()
    if len(done) == 3:
        some.set()

connection = Connection(url, transport_options={{"lease": 600.0}})
{begin}
{end}
print(*done, flush=True)
die()
"""

SPAWNED = """
consumer = spawn_consumer(name, handle, connection=connection, prefetch_count=10)
some.wait()
"""

DRAINED = """
consumer = Consumer(connection.default_channel, [Queue(name)], callbacks=[handle], prefetch_count=10)
consumer.consume()
while not some.is_set():
    connection.drain_events(timeout=30)
"""


@needs(Can.PROCESSES)
@pytest.mark.parametrize("how", STOPS)
@pytest.mark.sampled(3)
def test_requeues_have_left_when_a_stopped_program_is_killed(
    how: str, broker_kind: Kind, kind_url: str, unique: str, patched: bool
) -> None:
    with Connection(kind_url, transport_options=dict(broker_kind.options)) as connection:
        publish_many(unique, list(range(60)), connection=connection, declare=True)
        begin = DRAINED if "flush" in how else SPAWNED
        code = STOPPED.format(begin=begin, end=STOPS[how])
        done = {int(each) for each in killed(code, kind_url, unique, patched).output.split()}
        left, channel = set(range(60)) - done, connection.default_channel

        def take() -> bool:
            while (message := channel.basic_get(unique, no_ack=True)) is not None:
                left.discard(message.decode())
            return not left

        until(take)
        channel.queue_delete(unique)


PUBLISHES = {"connection": "connection.flush()", "channel": "producer.channel.flush()"}


@pytest.mark.full
@pytest.mark.parametrize("how", PUBLISHES)
def test_flushed_publishes_have_left_when_the_process_is_killed(
    how: str, amqp_url: str, relay: Relay, unique: str, patched: bool
) -> None:
    code = f"""
connection = Connection(url)
producer = Producer(connection)
for number in range(3):
    producer.publish(number, routing_key=name)
{PUBLISHES[how]}
die()
"""
    with Connection(amqp_url) as connection:
        channel = connection.default_channel
        channel.queue_declare(unique, durable=True, auto_delete=False)
        relay.is_ending.clear()
        killed(code, relay.url, unique, patched)

        def count() -> int:
            return int(channel.queue_declare(unique, passive=True).message_count)

        until(lambda: count() == 3)
        relay.is_ending.set()
        channel.queue_delete(unique)


def test_flush_of_a_connection_that_is_not_open_does_nothing(amqp_url: str) -> None:
    connection = Connection(amqp_url)
    connection.flush()
    assert not connection.connected
    connection.connect()
    connection.flush()
    connection.close()
    connection.flush()
    assert not connection.connected


def test_flush_waits_for_a_lost_connection(amqp_url: str, unique: str) -> None:
    with Connection(amqp_url) as connection:
        channel = connection.default_channel
        channel.queue_declare(unique, durable=True, auto_delete=False)
        link = connection.connection
        link.end(RecoverableConnectionError("cut"))
        connection.flush(timeout=10)
        assert connection.connection is not link
        connection.default_channel.queue_delete(unique)


@pytest.mark.parametrize("is_explicit", [True, False], ids=["explicit", "on return"])
def test_acks_on_return_leave_together(amqp_url: str, unique: str, is_explicit: bool) -> None:
    sends: list[int] = []

    def handle(body: Any, message: Any) -> None:
        if is_explicit:
            message.ack()
        sends.append(message.channel.connection.writer.sends)

    with Connection(amqp_url) as connection:
        for number in range(50):
            put_quietly(connection, unique, number)
        connection.flush()
        consumer = spawn_consumer(
            Queue(unique, durable=True), handle, connection=connection, prefetch_count=50
        )
        until(lambda: len(sends) == 50)
        assert consumer.stop(10)
        between = sends[-1] - sends[0]
        assert between >= 49 if is_explicit else between < 49
        connection.default_channel.queue_delete(unique)


def put_quietly(connection: Connection, name: str, body: Any) -> None:
    """Publish without a confirm."""
    queue = Queue(name, Exchange(""), durable=True, routing_key=name)
    Producer(connection).publish(body, routing_key=name, declare=[queue])
