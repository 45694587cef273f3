"""Scripts use declared keys alone, as Dragonfly and some managed servers demand.

The server's own record of what it carries out (``MONITOR``) names each script with its keys, and behind
it each command of the script.
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

import greenconn
from greenconn import Connection, Exchange, Queue, Retry
from greenconn.transport.redis import scripts
from greenconn.transport.redis.scripts import Script
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
from tests.integration.contract import SOON

SCRIPTS = {each.name: each for each in vars(scripts).values() if isinstance(each, Script)}
NAMES = {text: each.name for each in SCRIPTS.values() for text in (each.text, each.digest)}
#: Commands all of whose arguments are keys, and those that have none; all others have one, in front.
OF_KEYS = {b"DEL", b"EXISTS"}
WITHOUT = {b"TIME"}


class Record:
    """What the server has carried out, as it says.

    Attributes:
        used: script -> the commands that it has carried out, and its keys.
        undeclared: scripts with the keys that they used without declaring them.
    """

    def __init__(self, server: RedisServer) -> None:
        self.used: dict[str, list[bytes]] = {}
        self.undeclared: set[tuple[str, bytes]] = set()
        self._script, self._keys = "", set[bytes]()
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.sendall(b"MONITOR\r\n")
        self._reader = self._socket.makefile("rb")
        assert self._reader.readline() == b"+OK\r\n"
        self._greenlet = gevent.spawn(self._read)

    def _read(self) -> None:
        for line in self._reader:
            words = re.findall(rb'"(?:[^"\\]|\\.)*"', line)
            name, *args = [literal_eval(f"b{each.decode('latin-1')}") for each in words]
            if b" lua] " in line.partition(b'"')[0]:
                self._note(name.upper(), args)
            elif name.upper() in (b"EVAL", b"EVALSHA"):
                self._script = NAMES.get(args[0], "")
                self._keys = set(args[2 : 2 + int(args[1])])

    def _note(self, name: bytes, args: list[bytes]) -> None:
        self.used.setdefault(self._script, []).append(name)
        if name not in WITHOUT:
            keys = set(args if name in OF_KEYS else args[:1])
            self.undeclared |= {(self._script, key) for key in keys - self._keys}

    def close(self) -> None:
        """Read no more."""
        self._greenlet.kill()
        self._reader.close()
        self._socket.close()


@pytest.fixture
def record(own_redis: RedisServer) -> Iterator[Record]:
    """The record of a server, from now on."""
    record = Record(own_redis)
    yield record
    record.close()


def consume(connection: Connection, queue: Any, handler: Callable[..., Any], **options: Any) -> Any:
    """Start a consumer, and wait until it gets messages."""
    consumer = greenconn.spawn_consumer(queue, handler, connection=connection, **options)
    assert consumer.wait_ready(SOON)
    return consumer


def test_scripts_use_the_keys_that_they_declare(own_redis: RedisServer, record: Record) -> None:
    options = {"lease": 0.5}
    handled: list[Any] = []
    events = Exchange("events", "topic")

    def handle(body: Any, message: Any) -> None:
        handled.append(body)
        if body == "again" and handled.count(body) == 1:
            message.requeue()
        elif body == "dead":
            message.reject()
        elif body == "later" and handled.count(body) == 1:
            raise ValueError("later")

    def publish(route: Any, body: Any, **rest: Any) -> None:
        greenconn.publish(route, body, connection=connection, **rest)

    with (
        Connection(own_redis.url, transport_options=options) as connection,
        Connection(own_redis.url, transport_options=options) as other,
    ):
        channel = connection.default_channel
        dead = Queue("dead", events, "dead")
        letters = {"x-dead-letter-exchange": "events", "x-dead-letter-routing-key": "dead"}
        work = Queue("work", events, "work.#", queue_arguments=letters)
        brief = Queue("brief", message_ttl=0.1, queue_arguments=letters)
        for queue in (dead, work, brief):
            queue(channel).declare()
        retry = Retry(tries=2, delay=0.1, hold="broker")
        consumers = [consume(each, work, handle, retry=retry) for each in (connection, other)]
        own = Queue("own", events, "own", auto_delete=True)
        consumers.append(consume(other, own, handle))
        sole = Queue("sole", queue_arguments={"x-single-active-consumer": True})
        active = consume(other, sole, handle)
        for body in ("again", "dead", "later", *range(100)):
            publish(events, body, routing_key="work.x", priority=3)
        publish(events, "own", routing_key="own")
        publish("own", "delayed", delay=0.05)
        publish("sole", "sole")
        publish("brief", "expired")
        wanted = {"again", "dead", "later", "own", "delayed", "sole", *range(100)}
        until(lambda: wanted <= set(handled) and handled.count("later") == 2)
        assert active.stop(SOON)
        until(lambda: dead(channel).queue_declare(passive=True).message_count == 2)
        until(lambda: record.used.keys() >= SCRIPTS.keys() - {"drop"})
        for consumer in consumers:
            assert consumer.stop(SOON)
        until(lambda: other.default_channel.client.exists("_kombu.binding.events"))
        for queue in (dead, work, brief, sole):
            queue(channel).delete()
        until(lambda: not other.default_channel.client.exists("_kombu.binding.events", "own"))
        until(lambda: record.used.get("drop", []).count(b"SREM") > 6)
    assert record.undeclared == set()
