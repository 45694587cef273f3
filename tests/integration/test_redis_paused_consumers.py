"""Consumers whose process stands still until others take it for dead, on a real Redis."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import greenconn
from greenconn import Connection, Queue
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.integration.processes import Running, start
from tests.integration.redis_clients import Control
from tests.receiving import consuming

#: Seconds; a busy machine holds a process up for shorter ones.
LEASE = 2.0

#: Consumes until it is killed, and tells of what comes and of its consumers.
PROGRAM = f"""
import logging
import sys

import gevent
import greenconn
from greenconn import Connection, Queue

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
connection = Connection(sys.argv[1], transport_options={{"lease": {LEASE}}})
queues = {{
    Queue("own", exclusive=True): {{}},
    Queue("temporary", auto_delete=True): {{}},
    Queue("shared"): {{}},
    Queue("alone"): {{"exclusive": True}},
}}
for queue, options in queues.items():
    consumer = greenconn.spawn_consumer(
        queue, lambda body, message: print("got", body, flush=True), connection=connection, **options
    )
    consumer.wait_ready(30)
print("ready", flush=True)
gevent.sleep(600)
"""


def line_with(program: Running, text: str) -> str:
    """The next line of a program that has *text* in it."""
    while text not in (line := program.line()):
        assert line, text
    return line


def consumers(at_server: Control, queue: str) -> Any:
    """The owners that are registered as consumers of a queue."""
    return set(at_server("HKEYS", f"greenconn.consumers.{queue}"))


@contextmanager
def paused(program: Running, at_server: Control) -> Iterator[None]:
    """Stop a program, and go on when its lease has ended; let it go on behind."""
    program.signal(signal.SIGSTOP)
    try:
        # It ends with its owner.
        until(lambda: not at_server("EXISTS", "greenconn.queue.own"), 60 * LEASE)
        yield
    finally:
        program.signal(signal.SIGCONT)


@pytest.fixture
def program(own_redis: RedisServer, at_server: Control) -> Iterator[Running]:
    running = start("-c", PROGRAM, own_redis.url)
    try:
        line_with(running, "ready")
        yield running
    finally:
        running.end()


@pytest.fixture
def connection(own_redis: RedisServer, program: Running) -> Iterator[Connection]:
    """A connection of another process, which sees who is dead."""
    with Connection(own_redis.url, transport_options={"lease": LEASE}) as connection:
        consumer = consuming("watch", print, connection=connection)
        yield connection
        assert consumer.stop(SOON)


def test_consumers_are_registered_again(
    program: Running, connection: Connection, at_server: Control
) -> None:
    """Also those of queues that have ended meanwhile, which are declared anew."""
    (owner,) = consumers(at_server, "shared")
    with paused(program, at_server):
        rival = consuming("shared", print, connection=connection)
        assert owner not in consumers(at_server, "shared")  # as who is dead
    until(lambda: len(consumers(at_server, "shared")) == 2)
    feed = connection.connection.feeds["shared"]

    def has_rival() -> bool:
        feed.wake()
        return bool(feed.rivals == 1)

    until(has_rival)
    for queue in ("own", "temporary"):
        until(lambda queue=queue: consumers(at_server, queue))  # type: ignore[misc]
        greenconn.publish(queue, f"message of {queue}", connection=connection)
        line_with(program, f"got message of {queue}")
    assert rival.stop(SOON)


def test_who_consumed_alone_lets_its_successor_be_alone(
    program: Running, connection: Connection, at_server: Control
) -> None:
    (owner,) = consumers(at_server, "alone")
    with paused(program, at_server):
        successor = consuming(Queue("alone"), print, connection=connection, exclusive=True)
    line_with(program, "queue 'alone' in vhost '0' in exclusive use")
    assert owner not in consumers(at_server, "alone")
    assert successor.stop(SOON)
    until(lambda: consumers(at_server, "alone"))
    greenconn.publish("alone", "the next", connection=connection)
    line_with(program, "got the next")
