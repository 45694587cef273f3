"""The same little programs on kombu and on greenconn: entities, producers, consumers, simple queues."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import greenconn.abstract
import greenconn.connection
import greenconn.entity
import greenconn.exceptions
import greenconn.messaging
import greenconn.simple
from tests.compat.programs.library import as_kombu_writes
from tests.unit.fake_channel import FakeChannel, FakeClient

kombu = pytest.importorskip("kombu")
for room in ("abstract", "common", "entity", "exceptions", "messaging", "simple"):
    pytest.importorskip(f"kombu.{room}")

Library = SimpleNamespace

KOMBU = Library(
    abstract=kombu.abstract,
    entity=kombu.entity,
    messaging=kombu.messaging,
    simple=kombu.simple,
    exceptions=kombu.exceptions,
    Connection=kombu.Connection,
    maybe_declare=kombu.common.maybe_declare,
)
GREENCONN = Library(
    abstract=greenconn.abstract,
    entity=greenconn.entity,
    messaging=greenconn.messaging,
    simple=greenconn.simple,
    exceptions=greenconn.exceptions,
    Connection=greenconn.connection.Connection,
    maybe_declare=greenconn.entity.maybe_declare,
)

# Signatures


# What entities are


def describe_entities(lib: Library) -> list[Any]:
    """Dicts, texts and comparisons of entities."""
    entity = lib.entity
    exchange = entity.Exchange("e", "topic", durable=False, delivery_mode="transient", arguments={})
    queue = entity.Queue(
        "q", exchange, "k.#", expires=1, message_ttl="2", max_length="3", exclusive=True, alias="a"
    )
    bound = entity.Queue("b", [exchange.binding("x"), entity.binding(exchange, "x")])
    from_dict = entity.Queue.from_dict(
        "q", exchange="e", exchange_type="fanout", durable=False, queue_durable=True, max_priority=9
    )
    again = pickle.loads(pickle.dumps(queue))
    return [
        exchange.as_dict(),
        str(exchange),
        repr(exchange),
        repr(queue),
        repr(bound),
        queue.as_dict(recurse=True),
        bound.as_dict(recurse=True),
        from_dict.as_dict(recurse=True),
        again == queue,
        again.as_dict(recurse=True),
        hash(exchange) == hash(entity.Exchange("e")),
        exchange == entity.Exchange("e"),
        exchange == "e",
        queue != entity.Queue("q"),
        entity.Queue("q", "name").as_dict(recurse=True),
        [each.can_cache_declaration for each in (exchange, queue, bound, from_dict)],
        entity.Exchange(auto_delete=True).can_cache_declaration,
        entity.Queue(queue_arguments={"x-expires": 1}).can_cache_declaration,
        repr(exchange.binding("key")),
        lib.abstract.Object(1).as_dict(),
        entity.maybe_delivery_mode("persistent"),
    ]


def test_entities_are_the_same() -> None:
    assert describe_entities(GREENCONN) == describe_entities(KOMBU)


# What is asked of a channel


def journal(channel: FakeChannel) -> list[tuple[str, dict[str, Any]]]:
    """The calls of *channel*, without what differs by nature: tags and functions."""
    tags: dict[str, int] = {}
    lines = []
    for method, arguments in channel.calls:
        line = {}
        for name, value in arguments.items():
            if name == "consumer_tag":
                value = tags.setdefault(value, len(tags))
            if name not in ("callback", "on_cancel"):
                if name == "message":
                    value = {**value, "body": as_kombu_writes(value["body"])}
                line[name] = value
        lines.append((method, line))
    return lines


def declare_entities(lib: Library, channel: FakeChannel) -> None:
    entity = lib.entity
    exchange = entity.Exchange("e", "topic", durable=False)(channel)
    exchange.declare(nowait=True)
    exchange.declare(passive=True)
    exchange.bind_to("source", "k", arguments={"a": 1})
    exchange.bind_to(exchange=entity.Exchange("other"))
    exchange.unbind_from("source", "k")
    exchange.publish("text", "key")
    exchange.publish(exchange.Message(b"x", delivery_mode=1, headers={"h": 1}), "key", True)
    exchange.delete(if_unused=True)
    entity.Exchange("amq.direct")(channel).declare()
    entity.Exchange("")(channel).declare()
    queue = entity.Queue("q", exchange, "k.#", channel=channel, max_priority=3, expires=1.5)
    queue.declare()
    queue.queue_unbind()
    queue.get(no_ack=True)
    queue.purge()
    queue.consume("tag", no_ack=True)
    queue.cancel("tag")
    queue.delete(if_empty=True)
    entity.Queue("", channel=channel, exclusive=True).declare()
    entity.Queue("c", [exchange.binding("x")], channel=channel).declare()
    entity.Queue("n", exchange, channel=channel, no_declare=True).declare()
    for each in (exchange, exchange, queue, entity.Exchange("auto", auto_delete=True)(channel)):
        lib.maybe_declare(each, channel)


def publish_messages(lib: Library, channel: FakeChannel) -> None:
    entity, messaging = lib.entity, lib.messaging
    producer = messaging.Producer(channel, entity.Exchange("e", delivery_mode=1), "default")
    producer.publish({"a": 1})
    producer.publish("text", routing_key="other", priority=5, expiration=2.5, mandatory=True)
    producer.publish(b"bytes", exchange=entity.Exchange("f"), headers={"h": 1})
    producer.publish("x", content_type="text/x", content_encoding="utf-8", exchange="g")
    producer.publish(b"y", content_type="application/x", delivery_mode="persistent")
    producer.publish({"a": 1}, serializer="yaml", compression="zlib", correlation_id="c")
    producer.publish("1", declare=[entity.Queue("q", entity.Exchange("e"), "k")], reply_to="r")
    producer.publish("2", confirm_timeout=3.0, immediate=True)
    with messaging.Producer(channel, auto_declare=False, serializer="json") as other:
        other.publish("3", "k")
        with other.batch():
            other.publish("4", "k")
    producer.declare()


def consume_messages(lib: Library, channel: FakeChannel) -> None:
    entity, messaging = lib.entity, lib.messaging
    queues = [entity.Queue(name, entity.Exchange("e"), name) for name in "abc"]
    consumer = messaging.Consumer(channel, queues, callbacks=[lambda body, message: None])
    consumer.consume()
    consumer.consume()
    consumer.cancel_by_queue("b")
    consumer.add_queue(entity.Queue("d", no_ack=True))
    consumer.consume()
    consumer.qos(prefetch_count=3)
    consumer.flow(False)
    consumer.recover(requeue=True)
    consumer.purge()
    consumer.cancel()
    with messaging.Consumer(channel, queues[0], no_ack=True, auto_declare=False):
        pass


@pytest.mark.parametrize("program", [declare_entities, publish_messages, consume_messages])
def test_channels_are_asked_for_the_same(program: Callable[[Library, FakeChannel], None]) -> None:
    journals = []
    for lib in (KOMBU, GREENCONN):
        channel = FakeClient().channel()
        FakeChannel._last_id = 0
        channel.channel_id = 1
        program(lib, channel)
        journals.append(journal(channel))
    assert journals[1] == journals[0]


# Whole programs on the memory transports


def consume_all(lib: Library, connection: Any, names: Callable[[str], str]) -> list[Any]:
    """Topic exchange, two queues, callbacks, acks and a message that nobody may decode."""
    got: list[Any] = []
    failed: list[Any] = []
    exchange = lib.entity.Exchange(names("e"), "topic")
    queues = [
        lib.entity.Queue(names("a"), exchange, "*.a"),
        lib.entity.Queue(names("b"), exchange, "x.*"),
    ]

    def on_message(body: Any, message: Any) -> None:
        got.append((body, message.headers.get("n"), message.content_type, message.content_encoding))
        message.ack()

    def on_decode_error(message: Any, exc: Exception) -> None:
        failed.append(type(exc).__name__)
        message.reject()

    consumer = lib.messaging.Consumer(
        connection,
        queues,
        callbacks=[on_message],
        on_decode_error=on_decode_error,
        accept=["json", "yaml"],
    )
    producer = lib.messaging.Producer(connection, exchange)
    sent: list[tuple[str, Any, dict[str, Any]]] = [
        ("1.a", {"a": 1}, {}),
        ("x.b", [1, None, "ä"], {"serializer": "yaml"}),
        ("x.a", "both", {"compression": "zlib"}),
        ("none", "nobody", {}),
        ("x.b", {"p": 1}, {"serializer": "pickle"}),
        ("x.b", "{", {"content_type": "application/json", "content_encoding": "utf-8"}),
        ("1.a", b"\xff", {}),
    ]
    for number, (key, body, options) in enumerate(sent):
        producer.publish(body, key, headers={"n": number}, **options)
    with consumer:
        while len(got) + len(failed) < 7:
            connection.drain_events(timeout=30)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.05)
    return [sorted(got, key=repr), sorted(failed), [queue(connection).get() for queue in queues]]


def use_simple_queues(lib: Library, connection: Any, names: Callable[[str], str]) -> list[Any]:
    """Put, get, sizes, emptiness."""
    result: list[Any] = []
    with lib.simple.SimpleQueue(connection, names("q"), serializer="json") as simple:
        result += [bool(simple), len(simple)]
        for number in range(4):
            simple.put({"n": number}, headers={"h": number})
        result.append(simple.qsize())
        message = simple.get_nowait()
        result.append(message.payload)
        message.ack()
        message = simple.get(timeout=30)
        result += [message.payload, message.headers["h"]]
        message.ack()
        for _ in range(2):
            simple.get(timeout=30).ack()
        for options in ({"block": False}, {"timeout": 0.05}):
            with pytest.raises(simple.Empty):
                simple.get(**options)
        simple.close()
        simple.put("left")
        result.append(simple.clear())
    with lib.simple.SimpleBuffer(connection, names("b")) as buffer:
        buffer.put([1, 2])
        message = buffer.get(timeout=30)
        result += [message.payload, buffer.no_ack]
    return result


def declare_and_look(lib: Library, connection: Any, names: Callable[[str], str]) -> list[Any]:
    """Declarations that are remembered, names that the broker gives, fan-out."""
    result: list[Any] = []
    exchange = lib.entity.Exchange(names("f"), "fanout")
    notified: list[Any] = []
    queues = [
        lib.entity.Queue(
            names(name), exchange, on_declared=lambda *reply: notified.append(reply[1:])
        )
        for name in "ab"
    ]
    channel = connection.channel()
    for queue in queues:
        result.append(lib.maybe_declare(queue, channel))
        result.append(lib.maybe_declare(queue, channel))
    lib.messaging.Producer(channel, exchange).publish("to all", routing_key="ignored")
    for queue in queues:
        message = queue(channel).get()
        result += [message.payload, message.delivery_info["exchange"] == names("f")]
        message.ack()
    anonymous = lib.entity.Queue("", channel=channel)
    result.append(bool(anonymous.declare()))
    result += [anonymous.purge(), notified]
    with pytest.raises(lib.exceptions.NotBoundError):
        lib.entity.Queue("q").declare()
    return result


@pytest.mark.parametrize("program", [consume_all, use_simple_queues, declare_and_look])
def test_programs_do_the_same(
    program: Callable[[Library, Any, Callable[[str], str]], list[Any]],
) -> None:
    results = []
    for lib in (KOMBU, GREENCONN):
        unique = uuid.uuid4().hex
        options = {} if lib is GREENCONN else {"polling_interval": 0.005}
        with lib.Connection(
            f"memory://localhost/{unique}", transport_options=options
        ) as connection:
            results.append(program(lib, connection, lambda name, end=unique: f"{name}.{end}"))  # type: ignore[misc]
    assert results[1] == results[0]
