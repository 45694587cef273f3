"""kombu and greenconn on one Redis: each reads what the other wrote, and gives back what it held."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import gevent
import pytest
import redis
from gevent import Timeout

import greenconn
from greenconn import serialization
from greenconn.wire.resp import pack
from tests.brokers.redis_server import RedisServer
from tests.integration.contract import SOON, collecting

pytestmark = pytest.mark.full

kombu: Any = pytest.importorskip("kombu")

SERIALIZERS = ["json", "pickle", "yaml", "msgpack"]
COMPRESSIONS = [None, "zlib", "bzip2", "lzma"]
VISIBILITY = 1.0


@pytest.fixture
def redis_url(own_redis: RedisServer) -> str:
    """The address of a server that is emptied for each test."""
    return own_redis.url


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    """A plain client of an empty server."""
    client = redis.Redis.from_url(redis_url)
    client.flushdb()
    yield client
    client.close()


Connect = Callable[..., Any]


def opening(library: Any, url: str, **usual: Any) -> Iterator[Connect]:
    """Opens connections of *library*, until the test ends."""
    opened: list[Any] = []

    def connect(**options: Any) -> Any:
        opened.append(library.Connection(url, transport_options={**usual, **options}))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


@pytest.fixture
def ours(redis_url: str, server: Any) -> Iterator[Connect]:
    """Opens connections of greenconn."""
    yield from opening(greenconn, redis_url)


@pytest.fixture
def theirs(redis_url: str, server: Any) -> Iterator[Connect]:
    """Opens connections of kombu."""
    yield from opening(kombu, redis_url, visibility_timeout=VISIBILITY)


def library(name: str, ours: Connect, theirs: Connect) -> tuple[Any, Connect]:
    return (greenconn, ours) if name == "greenconn" else (kombu, theirs)


DIRECTIONS = [("kombu", "greenconn"), ("greenconn", "kombu")]


def consumed(lib: Any, connection: Any, queues: Any, count: int, **options: Any) -> list[Any]:
    """Consume and ack so many messages: bodies and messages."""
    got: list[Any] = []

    def take(body: Any, message: Any) -> None:
        message.ack()
        got.append((body, message))

    with Timeout(SOON), lib.Consumer(connection, queues, callbacks=[take], **options):
        while len(got) < count:
            drain(connection)
    return got


def drain(connection: Any) -> None:
    """One look for events; in an unpatched process kombu would block the hub."""
    try:
        connection.drain_events(timeout=0.05)
    except TimeoutError:
        pass
    gevent.sleep(0)


@pytest.mark.parametrize(("sender", "receiver"), DIRECTIONS)
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_bodies(
    sender: str,
    receiver: str,
    serializer: str,
    compression: str | None,
    ours: Connect,
    theirs: Connect,
) -> None:
    if serializer == "msgpack":
        pytest.importorskip("msgpack")
    out, connect_out = library(sender, ours, theirs)
    into, connect_into = library(receiver, ours, theirs)
    for lib in (kombu, serialization):
        lib.enable_insecure_serializers()
    body = {"text": "caf\u00e9", "list": [1, 2.5, None, True], "deep": {"a": "b" * 500}}
    producer = out.Producer(connect_out())
    producer.publish(
        body,
        routing_key="q",
        serializer=serializer,
        compression=compression,
        headers={"mine": {"n": 1}},
        correlation_id="cid",
        reply_to="me",
        priority=3,
        expiration=60,
    )
    ((found, message),) = consumed(
        into, connect_into(), [into.Queue("q")], 1, accept=["json", "pickle", "yaml", "msgpack"]
    )
    assert found == body
    assert message.headers["mine"] == {"n": 1}
    assert message.properties["correlation_id"] == "cid"
    assert message.properties["reply_to"] == "me"
    assert message.properties["priority"] == 3
    assert message.properties["delivery_mode"] == 2
    assert message.delivery_info["routing_key"] == "q"


def envelope(server: Any, queue: str) -> Any:
    """Return what a message says, without its tag and its queue's name."""
    found = json.loads(server.lindex(queue, 0))
    found["body"] = json.loads(b64decode(found["body"], validate=True))
    properties = found["properties"]
    UUID(properties.pop("delivery_tag"))
    assert properties["delivery_info"].pop("routing_key") == queue
    return found


def test_envelopes_are_the_same(ours: Connect, theirs: Connect, server: Any) -> None:
    for lib, connect in ((kombu, theirs), (greenconn, ours)):
        lib.Producer(connect()).publish({"a": 1}, routing_key=lib.__name__, headers={"h": "x"})
    assert envelope(server, "greenconn") == envelope(server, "kombu")


@pytest.mark.parametrize(("sender", "receiver"), DIRECTIONS)
def test_priorities(sender: str, receiver: str, ours: Connect, theirs: Connect) -> None:
    out, connect_out = library(sender, ours, theirs)
    into, connect_into = library(receiver, ours, theirs)
    producer = out.Producer(connect_out())
    for number, priority in enumerate([9, 0, 5, 3, 0, 8]):
        producer.publish(number, routing_key="q", priority=priority)
    got = consumed(into, connect_into(), [into.Queue("q")], 6, prefetch_count=1)
    assert [body for body, _ in got] == [1, 4, 2, 3, 5, 0]


@pytest.mark.parametrize(("sender", "receiver"), DIRECTIONS)
def test_exchanges(sender: str, receiver: str, ours: Connect, theirs: Connect) -> None:
    out, connect_out = library(sender, ours, theirs)
    into, connect_into = library(receiver, ours, theirs)
    receiving = connect_into()
    topic = into.Exchange("tx", "topic")
    direct = into.Exchange("dx", "direct")
    queues = [into.Queue("t", topic, "a.#"), into.Queue("d", direct, "key")]
    for queue in queues:
        queue(receiving.default_channel).declare()
    sending = connect_out()
    for exchange, key in (("tx", "a.b"), ("tx", "b.a"), ("dx", "key"), ("dx", "other")):
        kind = "topic" if exchange == "tx" else "direct"
        out.Producer(sending, out.Exchange(exchange, kind)).publish(key, key)
    got = consumed(into, receiving, queues, 2)
    assert sorted(body for body, _ in got) == ["a.b", "key"]


@pytest.mark.parametrize(("sender", "receiver"), DIRECTIONS)
@pytest.mark.parametrize("options", [{}, {"fanout_patterns": False}, {"fanout_prefix": False}])
def test_fanout(
    sender: str, receiver: str, options: dict[str, Any], ours: Connect, theirs: Connect
) -> None:
    out, connect_out = library(sender, ours, theirs)
    into, connect_into = library(receiver, ours, theirs)
    receiving = connect_into(**options)
    queue = into.Queue("f", into.Exchange("fx", "fanout"))
    got: list[Any] = []

    def take(body: Any, message: Any) -> None:
        message.ack()
        got.append(body)

    with Timeout(SOON), into.Consumer(receiving, [queue], callbacks=[take]):
        drain(receiving)
        producer = out.Producer(connect_out(**options), out.Exchange("fx", "fanout"))
        number = 0
        while len(got) < 3:
            producer.publish(number)
            number += 1
            drain(receiving)
    assert got == sorted(got)


def test_prefix(ours: Connect, theirs: Connect, server: Any) -> None:
    options = {"global_keyprefix": "p:"}
    kombu.Producer(theirs(**options)).publish(1, routing_key="q")
    greenconn.Producer(ours(**options)).publish(2, routing_key="q")
    assert server.llen("p:q") == 2
    got = consumed(greenconn, ours(**options), [greenconn.Queue("q")], 2)
    assert [body for body, _ in got] == [1, 2]


def test_requeued_by_kombu(ours: Connect, theirs: Connect) -> None:
    kombu.Producer(theirs()).publish("x", routing_key="q")
    message = theirs().default_channel.basic_get("q")
    message.requeue()
    ((body, again),) = consumed(greenconn, ours(), [greenconn.Queue("q")], 1)
    assert body == "x"
    assert again.delivery_info["redelivered"]


def test_requeued_by_us(ours: Connect, theirs: Connect) -> None:
    greenconn.Producer(ours()).publish("x", routing_key="q", priority=9)
    channel = ours().default_channel
    channel.basic_get("q").requeue()
    ((body, again),) = consumed(kombu, theirs(), [kombu.Queue("q")], 1)
    assert body == "x"
    assert again.headers["redelivered"]
    assert again.properties["priority"] == 9


def test_kombu_requeues_what_we_held(ours: Connect, theirs: Connect, server: Any) -> None:
    greenconn.Producer(ours()).publish("x", routing_key="q", priority=5)
    held = ours(lease=600.0)
    assert held.default_channel.basic_get("q").body == "x"
    held.connection.collect()  # as if it had been killed
    gevent.sleep(VISIBILITY + 0.1)
    kombu_channel = theirs().default_channel
    kombu_channel.qos.restore_visible(interval=1)
    assert server.hlen("unacked") == 0
    ((body, again),) = consumed(kombu, theirs(), [kombu.Queue("q")], 1)
    assert body == "x"
    assert again.headers["redelivered"]


@pytest.mark.parametrize("lease", [1.0, 600.0])
def test_we_requeue_what_kombu_held(
    ours: Connect, theirs: Connect, server: Any, lease: float
) -> None:
    kombu.Producer(theirs()).publish("x", routing_key="q")
    dead = theirs()
    channel = dead.default_channel
    got: list[Any] = []
    consumer = kombu.Consumer(
        channel, [kombu.Queue("q")], callbacks=[lambda body, message: got.append(message)]
    )
    consumer.consume()
    with Timeout(SOON):
        while not got:
            drain(dead)
    channel.qos.restore_at_shutdown = False
    channel.qos._delivered.clear()  # it forgets it, as if it had been killed
    assert server.hlen("unacked") == 1
    consumer.cancel()
    successor = ours(visibility_timeout=VISIBILITY, lease=lease)
    assert successor.default_channel.visibility_timeout == channel.visibility_timeout == VISIBILITY
    if lease > SOON:
        gevent.sleep(VISIBILITY + 0.1)
        successor.default_channel.qos.restore_visible()
        assert server.hlen("unacked") == 0
    found = consumed(greenconn, successor, [greenconn.Queue("q")], 1)
    assert [body for body, _ in found] == ["x"]
    assert found[0][1].delivery_info["redelivered"]
    gevent.sleep(0.05)
    assert server.hlen("unacked") == server.zcard("unacked_index") == 0


def test_kombu_leaves_a_living_consumer_of_ours_alone(
    ours: Connect, theirs: Connect, server: Any
) -> None:
    greenconn.Producer(ours()).publish("x", routing_key="q")
    holder = ours(visibility_timeout=VISIBILITY)
    message = holder.default_channel.basic_get("q")
    kombu_channel = theirs().default_channel
    for _ in range(15):
        gevent.sleep(0.1)
        kombu_channel.qos.restore_visible(interval=1)
    assert server.llen("q") == 0
    message.ack()
    gevent.sleep(0.05)
    assert server.hlen("unacked") == 0


def test_a_foreign_consumer_is_not_starved(ours: Connect, server: Any) -> None:
    store: list[Any] = []
    connection = ours()
    consumer = collecting(connection, "q", store)
    foreign = ours().connection  # a BRPOP holds up its own connection
    waiting = gevent.spawn(foreign.commands.call, pack("BRPOP", "q", 5))
    gevent.sleep(0.1)
    producer = greenconn.Producer(ours())
    for number in range(20):
        producer.publish(number, routing_key="q")
        gevent.sleep(0.005)
    assert waiting.get(timeout=SOON) is not None
    consumer.stop(SOON)
