"""Input of other programs in the places where only the library's messages and records should be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection, Consumer, Exchange, Producer, Queue
from greenconn.exceptions import NotFound
from greenconn.pidbox import Mailbox
from tests.fix_wires import until
from tests.integration.redis_clients import control
from tests.quality.fuzz import corpus
from tests.quality.fuzz.poison import AMQP, amqp_poison, in_envelope, redis_poison

SOON = 30.0
#: Bodies that are no commands.
NO_COMMANDS: list[Any] = [
    None,
    5,
    "text",
    [],
    {},
    {"method": 5},
    {"method": "echo", "arguments": 5},
    {"method": "echo", "arguments": {"unknown": 1}},
    {"method": "echo", "destination": 5},
    {"method": "echo", "destination": "somebody"},
    {"method": "echo", "pattern": "*", "matcher": "nothing"},
    {"method": "echo", "pattern": "(", "matcher": "pcre"},
    {"method": "echo", "pattern": 5, "matcher": []},
    {"method": "echo", "arguments": {"text": "x"}, "reply_to": 5},
    {"method": "echo", "arguments": {"text": "x"}, "reply_to": {"exchange": []}},
    {"method": "echo", "arguments": {"text": "x"}, "reply_to": {"exchange": "x"}},
    {"method": "echo", "arguments": {"text": "x"}, "self": 1},
    {"method": "echo", "reply_to": {"exchange": "amq.topic", "routing_key": "y"}},
    {"method": "nothing", "reply_to": {"exchange": "x" * 300, "routing_key": "y"}, "ticket": []},
]
#: Headers of such, and of replies.
HEADERS: list[dict[str, Any]] = [
    {"clock": "late", "expires": "soon", "ticket": []},
    {"clock": {}, "expires": [], "ticket": {}},
    {"clock": -5, "expires": -5, "ticket": 5},
    {"clock": 2**63 - 1, "ticket": "x"},
]


@pytest.fixture(params=["amqp", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """The address of each broker in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """A connection to it."""
    with Connection(url) as connection:
        yield connection


def test_node_of_a_mailbox(connection: Connection, unique: str) -> None:
    mailbox = Mailbox(unique, type="direct", connection=connection, queue_exclusive=False)
    node = mailbox.Node("node", state=None, handlers={"echo": lambda state, text: text})
    node.channel = connection.channel()
    consumer = node.listen()
    other = connection.clone()
    producer = Producer(other, mailbox.exchange, "", serializer="json")
    for body in NO_COMMANDS:
        producer.publish(body, retry=False)
    for headers in HEADERS:
        producer.publish({"method": "echo", "arguments": {"text": "x"}}, headers=headers)
    drainer = gevent.spawn(_drain, connection)
    asking = mailbox(other)
    try:
        until(lambda: asking.call(["node"], "echo", {"text": "hello"}, timeout=1) != [], SOON)
        assert node.refused >= 10
        assert mailbox.clock.value < 10**6
        assert not drainer.ready()
    finally:
        drainer.kill()
        consumer.cancel()
        node.channel.close()
        other.close()


def _drain(connection: Connection) -> None:
    while True:
        connection.drain_events()


def test_replies_to_a_mailbox(connection: Connection, unique: str) -> None:
    mailbox = Mailbox(unique, type="direct", connection=connection, queue_exclusive=False)
    other = connection.clone()
    reply_queue = mailbox.reply_queue(connection.channel())
    reply_queue.declare()
    producer = Producer(other, mailbox.reply_exchange, mailbox.oid, serializer="json")
    for headers in HEADERS:
        for _ in range(200):
            producer.publish({"x": 1}, headers=headers, retry=False)
    producer.publish({"mine": 1}, headers={"ticket": "mine", "clock": 7})
    assert mailbox._collect("mine", timeout=SOON, limit=1) == [{"mine": 1}]
    assert mailbox.clock.value < 10**6
    assert all(len(kept) <= 100 for kept in mailbox._replies._unclaimed.data.values())
    other.close()


def test_replies_to_calls(connection: Connection, url: str, unique: str) -> None:
    """An answer that cannot be read, or to nobody, comes before the right one."""
    other = Connection(url)
    other.connect()

    def serve(body: Any, message: Any) -> None:
        reply_to = message.properties["reply_to"]
        producer = Producer(other, Exchange(""), reply_to, serializer="json")
        if url.startswith("redis"):
            redis_poison(url, reply_to, corpus.ENVELOPES)
        else:
            for block, wrong in AMQP[:25]:
                amqp_poison(url, reply_to, [(block, wrong)])
        for wrong_id in ("nobody", "", "x" * 200):
            producer.publish("wrong", correlation_id=wrong_id)
        producer.publish("right", correlation_id=message.properties["correlation_id"])

    serving = Connection(url)
    server = greenconn.spawn_consumer(unique, serve, connection=serving)
    assert server.wait_ready(SOON)
    for _ in range(2):
        assert greenconn.rpc.call(unique, 1, connection=connection, timeout=SOON) == "right"
    assert server.stop(SOON)
    serving.close()
    other.close()


def test_where_replies_shall_go(connection: Connection, unique: str) -> None:
    """A request names an odd place: only its own reply is lost."""
    server = greenconn.rpc.spawn_server(unique, lambda body: body, connection=connection)
    assert server.wait_ready(SOON)
    logger = logging.getLogger("greenconn")
    logger.setLevel(logging.CRITICAL)
    other = connection.clone()
    producer = Producer(other, Exchange(""), unique, serializer="json")
    try:
        for reply_to in (
            "amq.rabbitmq.reply-to.nonsense",
            "amq.rabbitmq.reply-to",
            "\0",
            "x" * 250,
        ):
            # Again on another channel, where the broker has closed it because of the one before.
            producer.publish(1, reply_to=reply_to, correlation_id="\0", retry=True)
        assert greenconn.rpc.call(unique, "fine", connection=connection, timeout=SOON) == "fine"
        assert server.stop(SOON)
    finally:
        other.close()
        logger.setLevel(logging.NOTSET)


# Redis: whoever may write to a queue's list may write anywhere in the database.


@pytest.fixture
def prefixed(redis_url: str, unique: str) -> Iterator[Connection]:
    """A connection with keys of its own."""
    options = {"global_keyprefix": f"{unique}.", "visibility_timeout": 1.0, "lease": 1.0}
    with Connection(redis_url, transport_options=options) as connection:
        yield connection


def test_dead_letters_of_any_kind(prefixed: Connection, redis_url: str, unique: str) -> None:
    dead_letters = Exchange("dead_letters", "topic")
    for exchange, key in (("", "dead"), ("dead_letters", None), ("dead_letters", "some.key")):
        queue = Queue(
            f"living{key}{exchange}",
            queue_arguments={"x-dead-letter-exchange": exchange}
            | ({} if key is None else {"x-dead-letter-routing-key": key}),
        )
        with prefixed.channel() as channel:
            Queue("dead", dead_letters, routing_key="#")(channel).declare()
            queue(channel).declare()
            channel.queue_purge("dead")
            redis_poison(redis_url, f"{unique}.{queue.name}", corpus.ENVELOPES)
            count = 0
            while (message := channel.basic_get(queue.name)) is not None:
                message.reject()
                count += 1
            assert count == len(corpus.ENVELOPES)
            sizes = channel.queue_purge("dead")
            # What has no routing key that can be read goes where its queue's name leads.
            assert sizes == count
            assert (
                prefixed.connection.commands.call(
                    b"*2\r\n$4\r\nHLEN\r\n$%d\r\n%b\r\n"
                    % (len(f"{unique}.unacked"), f"{unique}.unacked".encode())
                )
                == 0
            )


def test_held_messages_of_any_kind(prefixed: Connection, redis_url: str, unique: str) -> None:
    """Entries that nobody of us wrote stand in nobody's way."""
    received: list[Any] = []
    with control(redis_url) as command:
        for number, raw in enumerate(corpus.ENVELOPES):
            for field in (f"gc.dead.{number}", f"foreign-{number}", f"gc.{number}", "gc."):
                for value in (b"[" + raw + b', "", "held"]', raw, b"[" + raw + b', "a", "b"]'):
                    command("HSET", f"{unique}.unacked", field, value)
                    command("ZADD", f"{unique}.unacked_index", number / 1000, field)
        good = in_envelope(b"[]").decode()
        command("HSET", f"{unique}.unacked", "gc.dead.999", f'[{good}, "", "held"]')
        command("ZADD", f"{unique}.unacked_index", 1, "gc.dead.999")
        command("HSET", f"{unique}.greenconn.exclusive", b"\xff\xfe", b"\xff")
        command("ZADD", f"{unique}.greenconn.owners", 1, b"\xff\xfe")
    with prefixed.channel() as channel:
        Queue("held")(channel).declare()
        with Consumer(
            channel,
            [Queue("held")],
            callbacks=[lambda body, message: received.append(body)],
            on_decode_error=lambda message, exc: message.ack(),
        ):
            link = prefixed.connection

            def look() -> bool:
                with pytest.raises(TimeoutError):
                    while True:
                        prefixed.drain_events(timeout=0.2)
                return bool(received)

            until(look, SOON)
            assert (
                link.placement.partition("").sweeper.sweep() == 0
            )  # whatever can be given back was


def test_records_of_any_kind(prefixed: Connection, redis_url: str, unique: str) -> None:
    """Declarations and bindings that nobody of us wrote."""
    with control(redis_url) as command:
        for number, raw in enumerate(corpus.ENVELOPES):
            command("SET", f"{unique}.greenconn.queue.q{number}", raw)
            command("SET", f"{unique}.greenconn.exchange.e{number}", raw)
            for member in (raw, b"\xff\x06\x16\xff\x06\x16\xff", b"(\x06\x16(\x06\x16q", b""):
                command("SADD", f"{unique}._kombu.binding.e{number}", member)
    for number in range(len(corpus.ENVELOPES)):
        with prefixed.channel() as channel:
            channel.queue_declare(f"q{number}", passive=True)
            producer = Producer(channel, Exchange(f"e{number}", no_declare=True), serializer="json")
            producer.publish(1, routing_key="key")
            with pytest.raises(NotFound):
                channel.queue_declare("nothing", passive=True)
        greenconn.publish(f"q{number}", 5, connection=prefixed, declare=True)
        with (
            prefixed.channel() as channel,
            Consumer(
                channel,
                [Queue(f"q{number}", no_declare=True)],
                auto_declare=False,
                callbacks=[lambda body, message: message.ack()],
            ),
        ):
            prefixed.drain_events(timeout=SOON)
