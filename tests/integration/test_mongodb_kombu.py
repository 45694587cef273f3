"""kombu's own MongoDB transport and ours on one database.

kombu monkey-patches the process when it finds gevent there, so it runs in one of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import greenconn
from greenconn import Connection, Exchange, Queue
from tests.fix_wires import until
from tests.integration.contract import SOON, collecting
from tests.integration.processes import Running, start

pytestmark = [pytest.mark.full, pytest.mark.programs]

#: Does with kombu what it is told, a line of JSON at a time, and answers with one.
PROGRAM = """
import gevent.monkey
gevent.monkey.patch_all()
import json, socket, sys
from queue import Empty
from kombu import Connection, Exchange, Queue

connection = Connection(sys.argv[1], transport_options={"polling_interval": 0.02})
channel = connection.channel()
producer = connection.Producer()
heard = []

def queue_of(name, exchange="", kind="direct", key=""):
    return Queue(name, Exchange(exchange, kind), routing_key=key or name)

def declare(**names):
    queue_of(**names)(channel).declare()

def publish(body, exchange="", key="", kind="direct", priority=0):
    producer.publish(body, exchange=Exchange(exchange, kind), routing_key=key, priority=priority,
                     headers={"from": "kombu"})

def get(name):
    message = Queue(name)(channel).get()
    if message is None:
        return None
    message.ack()
    return [message.payload, message.headers, message.delivery_info]

def size(name):
    return channel.queue_declare(name, passive=True).message_count

def listen(**names):
    def handle(body, message):
        heard.append(body)
        message.ack()
    connection.Consumer([queue_of(**names)], callbacks=[handle], channel=channel).consume()

def hear(count):
    while len(heard) < count:
        connection.drain_events(timeout=30)
    return heard

for line in sys.stdin:
    name, arguments = json.loads(line)
    print(json.dumps(globals()[name](**arguments)), flush=True)
"""


class Kombu:
    """kombu, in its process."""

    def __init__(self, program: Running) -> None:
        self._program = program

    def __call__(self, name: str, /, **arguments: Any) -> Any:
        self._program.input.write(json.dumps([name, arguments]).encode() + b"\n")
        self._program.input.flush()
        return json.loads(self._program.line())


@pytest.fixture
def kombu(mongodb_url: str) -> Iterator[Kombu]:
    """kombu on the same database."""
    program = start("-W", "ignore", "-c", PROGRAM, mongodb_url)
    yield Kombu(program)
    program.end()


@pytest.fixture
def connection(mongodb_url: str) -> Iterator[Connection]:
    """Ours."""
    with Connection(mongodb_url) as connection:
        yield connection


def test_queue_of_both(kombu: Kombu, connection: Connection) -> None:
    kombu("declare", name="q")
    kombu("publish", body={"n": 1}, key="q", priority=2)
    kombu("publish", body="höher", key="q", priority=7)
    greenconn.publish("q", "highest", connection=connection, priority=9, declare=True)
    with connection.channel() as channel:
        messages = [Queue("q")(channel).get() for _ in range(3)]
        assert [each.payload for each in messages] == ["highest", "höher", {"n": 1}]
        assert messages[1].headers == {"from": "kombu"}
        # What is held here is nothing to kombu, until it is given back.
        assert kombu("get", name="q") is None
        assert kombu("size", name="q") == 0
        messages[0].ack()
        messages[2].ack()
    # The channel was closed, so what it held goes back.
    until(lambda: kombu("size", name="q") == 1)
    body, headers, _ = kombu("get", name="q")
    assert (body, headers["from"]) == ("höher", "kombu")
    greenconn.publish("q", [1, "ü"], connection=connection, headers={"h": "x"}, declare=True)
    body, headers, info = kombu("get", name="q")
    assert (body, headers["h"], info["routing_key"]) == ([1, "ü"], "x", "q")


def test_bindings_of_both(kombu: Kombu, connection: Connection) -> None:
    news = Exchange("news", "topic")
    ours = Queue("ours", news, routing_key="*.ours.#")
    kombu("declare", name="theirs", exchange="news", kind="topic", key="*.theirs")
    ours(connection.default_channel).declare()
    with connection.Producer() as producer:
        for key in ("a.theirs", "a.ours.b", "nothing"):
            producer.publish("of ours", exchange=news, routing_key=key)
    for key in ("a.theirs", "a.ours.b", "nothing"):
        kombu("publish", body="of kombu's", exchange="news", kind="topic", key=key)
    # (Within one second the keys of two processes, and so their messages, have no order.)
    both = ["of kombu's", "of ours"]
    assert sorted(kombu("get", name="theirs")[0] for _ in range(2)) == both
    assert kombu("get", name="theirs") is None
    with connection.SimpleQueue(ours) as queue:
        assert sorted(queue.get(timeout=SOON).payload for _ in range(2)) == both
        assert queue.qsize() == 0


def test_exchange_that_only_kombu_has_declared(kombu: Kombu, connection: Connection) -> None:
    kombu("declare", name="theirs", exchange="theirs only", kind="topic", key="a.#")
    with connection.channel() as channel:
        for key in ("a.b", "b"):
            channel.basic_publish(channel.prepare_message(key), "theirs only", key)
        channel.exchange_declare("theirs only", "topic", passive=True)
        assert channel.basic_get("theirs", no_ack=True).body == "a.b"
        assert channel.basic_get("theirs", no_ack=True) is None
        # What it is like is said only now.
        channel.exchange_declare("theirs only", "topic", auto_delete=False, durable=True)
        channel.basic_publish(channel.prepare_message("again"), "theirs only", "a")
        assert channel.basic_get("theirs", no_ack=True).body == "again"


def test_fanout_of_both(kombu: Kombu, connection: Connection) -> None:
    got: list[Any] = []
    news = Exchange("all", "fanout")
    kombu("listen", name="theirs", exchange="all", kind="fanout")
    consumer = collecting(connection, Queue("ours", news), got)
    kombu("publish", body="of kombu's", exchange="all", kind="fanout")
    until(lambda: got == ["of kombu's"])
    greenconn.publish(news, "of ours", connection=connection)
    assert kombu("hear", count=2) == ["of kombu's", "of ours"]
    until(lambda: got == ["of kombu's", "of ours"])
    assert consumer.stop(SOON)
