"""Programs about what is published, and how the consumer sees it."""

from __future__ import annotations

import decimal
import uuid
from datetime import datetime, timezone
from typing import Any

from tests.compat.programs.library import (
    SOON,
    Library,
    Names,
    Raised,
    drain,
    fetch,
    outcome,
    quiet,
    seen,
)

ALL_CONTENT = ["json", "yaml", "pickle", "msgpack", "application/data", "text/plain"]


def receive(lib: Library, connection: Any, queue: Any, count: int, **options: Any) -> list[Any]:
    """Consume so many messages, acknowledge them, and tell how they look."""
    got: list[Any] = []

    def on_message(message: Any) -> None:
        got.append(seen(message))
        message.ack()

    with lib.messaging.Consumer(connection, [queue], on_message=on_message, **options):
        drain(connection, lambda: len(got) >= count)
    return got


def send_letters(lib: Library, connection: Any, queue: str) -> int:
    """Publish one message of each kind into *queue*, and return how many."""
    producer = lib.messaging.Producer(connection)
    body = {"number": 1, "text": "\u00e4\u20ac", "list": [None, True, 1.5]}
    letters: list[tuple[Any, dict[str, Any]]] = [
        *((body, {"serializer": serializer}) for serializer in (None, "json", "yaml", "pickle")),
        *((plain, {}) for plain in ("text \u00e4", b"\x00\xff", "")),
        (b"\xff", {"serializer": "raw"}),
        (["z" * 100], {"compression": "zlib"}),
        ("text", {"compression": "bzip2", "headers": {"mine": {"a": [1, None]}}}),
        ({"a": 1}, {"correlation_id": "c", "reply_to": "r", "priority": 3, "expiration": 60}),
        ("own", {"content_type": "text/x", "content_encoding": "latin-1", "delivery_mode": 1}),
    ]
    for each, options in letters:
        producer.publish(each, queue, **options)
    return len(letters)


def each_serializer(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"), lib.entity.Exchange(names("e")), names("q"))
    producer = lib.messaging.Producer(connection)
    body = {"number": 1, "text": "\u00e4\u20ac", "list": [None, True, 1.5]}
    for serializer in (None, "json", "yaml", "pickle", "msgpack"):
        producer.publish(
            body, names("q"), exchange=queue.exchange, serializer=serializer, declare=[queue]
        )
    for plain in ("text \u00e4", b"\x00\xff", "", b""):
        producer.publish(plain, names("q"), exchange=queue.exchange)
    producer.publish(b"\xff", names("q"), exchange=queue.exchange, serializer="raw")
    found = receive(lib, connection, queue, 10, accept=ALL_CONTENT)
    for each in found:
        if each["content"][0] == "application/x-msgpack":
            each["body"] = None  # two packers may pack one thing in two ways
        if not each["body"]:
            each["body"] = each["payload"] = None  # empty text is text here
    return found


def typed_json(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    body = {
        "time": datetime(2024, 5, 17, 12, 30, tzinfo=timezone.utc),
        "decimal": decimal.Decimal("1.10"),
        "uuid": uuid.UUID(int=7),
        "bytes": b"x",
    }
    lib.messaging.Producer(connection, serializer="json").publish(body, names("q"), declare=[queue])
    return receive(lib, connection, queue, 1)


def own_serializer(lib: Library, connection: Any, names: Names) -> Any:
    serialization = lib.serialization
    registry = serialization.registry
    before = set(registry._disabled_content_types)
    log: list[Any] = []
    queue = lib.entity.Queue(names("q"))
    serialization.register(
        "upper", str.upper, lambda body: body.lower(), "application/x-upper", "utf-8"
    )
    try:
        producer = lib.messaging.Producer(connection, serializer="upper")
        producer.publish("Text", names("q"), declare=[queue])
        log += [outcome(producer.publish, object(), names("q"))]
        log += receive(lib, connection, queue, 1, accept=["upper"])
        for change in (
            serialization.disable_insecure_serializers,
            lambda: serialization.disable_insecure_serializers(["json", "yaml"]),
            lambda: serialization.disable_insecure_serializers(None),
            lambda: serialization.enable_insecure_serializers(["pickle"]),
            serialization.enable_insecure_serializers,
            lambda: registry.disable("json"),
            lambda: registry.enable("application/json"),
        ):
            log += [outcome(change), sorted(registry._disabled_content_types)]
        log += [outcome(registry.disable, "unheard-of"), outcome(registry.enable, "unheard-of")]
    finally:
        registry._disabled_content_types.clear()
        registry._disabled_content_types.update(before)
        serialization.unregister("upper")
    log += [outcome(serialization.unregister, "upper"), "upper" in registry.name_to_type]
    log += [outcome(serialization.dumps, "x", "upper"), outcome(producer.publish, "x", names("q"))]
    return log


def each_compression(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    producer = lib.messaging.Producer(connection, compression="zlib")
    kinds = [None, "gzip", "bzip2", "lzma", "application/x-gzip"]
    for kind in kinds:
        producer.publish(["z" * 500], names("q"), compression=kind, declare=[queue])
    producer.publish("text", names("q"), headers={"mine": 1})
    producer.publish(b"bytes", names("q"), compression="bzip2")
    refused = outcome(producer.publish, "x", names("q"), compression="unheard-of")
    return [refused, receive(lib, connection, queue, len(kinds) + 2)]


def properties_and_headers(lib: Library, connection: Any, names: Names) -> Any:
    exchange = lib.entity.Exchange(names("e"), "direct")
    queue = lib.entity.Queue(names("q"), exchange, "key")
    producer = connection.Producer(exchange=exchange, routing_key="key")
    headers = {
        "text": "\u00e4",
        "number": 7,
        "big": 2**40,
        "none": None,
        "list": [1, "a"],
        "dict": {"a": 1},
        "flag": True,
    }
    producer.publish(
        {"a": 1},
        declare=[queue],
        headers=headers,
        correlation_id="correlation",
        reply_to="reply",
        message_id="id",
        type="kind",
        app_id="app",
        priority=4,
    )
    producer.publish("transient", delivery_mode="transient", user_id=None, cluster_id="c")
    producer.publish("by number", delivery_mode=1, timestamp=1715949000)
    producer.publish("own type", content_type="text/x-mine", content_encoding="utf-8")
    producer.publish(b"own bytes", content_type="x/y", content_encoding="binary")
    producer.publish("expires", expiration=60, priority=None)
    producer.publish("soon", expiration=2.5, headers={})
    return receive(lib, connection, queue, 7, accept=[*ALL_CONTENT, "text/x-mine", "x/y"])


def delivery_mode_of_the_exchange(lib: Library, connection: Any, names: Names) -> Any:
    exchange = lib.entity.Exchange(names("e"), delivery_mode="transient", durable=False)
    queue = lib.entity.Queue(names("q"), exchange, "key", durable=False)
    channel = connection.channel()
    producer = lib.messaging.Producer(channel, exchange, "key")
    producer.publish(1, declare=[queue])
    producer.publish(2, delivery_mode=2)
    exchange = exchange(channel)
    message = exchange.Message("raw", delivery_mode=2, properties={"type": "t"}, headers={"h": 1})
    exchange.publish(message, routing_key="key")
    exchange.publish("plain", routing_key="key")
    return receive(lib, connection, queue(connection), 4)


def fetched_one_by_one(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"), lib.entity.Exchange(names("e")), names("q"))
    queue = queue(connection.default_channel)
    found = [queue.declare() == names("q"), queue.get()]
    producer = lib.messaging.Producer(connection, queue.exchange, names("q"))
    for body in ("text", {"json": 1}, b"bytes"):
        producer.publish(body, serializer="pickle" if body == b"bytes" else None)
    message = queue.get()
    found += [seen(message), type(message.delivery_tag) is not None]
    message.ack()
    message = queue.get(no_ack=True, accept=["json"])
    found += [seen(message), message.payload]
    message = queue.get(accept=["json"])
    found += [seen(message)]
    message.reject()
    found += [queue.get()]
    return found


def returned_messages(lib: Library, connection: Any, names: Names) -> Any:
    back: list[Any] = []

    def on_return(exc: Any, exchange: str, routing_key: str, message: Any) -> None:
        body = bytes(message.body) if not isinstance(message.body, str) else message.body.encode()
        back.append((Raised(exc), exchange, routing_key, body, exc.reply_code))

    exchange = lib.entity.Exchange(names("e"), durable=False, auto_delete=True)
    with connection.channel() as channel:
        producer = lib.messaging.Producer(channel, exchange, on_return=on_return)
        producer.publish("lost", "nowhere")
        producer.publish("back", "nowhere", mandatory=True)
        queue = lib.entity.Queue(names("q"), exchange, "here", durable=False)
        producer.publish("kept", "here", mandatory=True, declare=[queue])
        drain(connection, lambda: back)
        kept = queue(channel).get(no_ack=True)
        return [back, kept.payload, quiet(connection)]


def accepted_content(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    producer = lib.messaging.Producer(connection)
    bodies: list[tuple[Any, str]] = [({"a": 1}, "json"), ({"p": 1}, "pickle"), ([1], "yaml")]
    for body, serializer in bodies:
        producer.publish(body, names("q"), serializer=serializer, declare=[queue])
    producer.publish("{", names("q"), content_type="application/json", content_encoding="utf-8")
    producer.publish(b"x", names("q"), headers={"compression": "application/x-gzip"})
    results: list[Any] = []
    failed: list[Any] = []

    def callback(body: Any, message: Any) -> None:
        results.append(body)
        message.ack()

    def on_decode_error(message: Any, exc: Exception) -> None:
        failed.append((message.content_type, sorted(message.accept or ())))
        message.reject()

    with lib.messaging.Consumer(
        connection,
        [queue],
        callbacks=[callback],
        accept=["json", "application/x-yaml"],
        on_decode_error=on_decode_error,
    ) as consumer:
        drain(connection, lambda: len(results) + len(failed) == 5)
        accepted = sorted(consumer.accept)
    producer.publish({"p": 2}, names("q"), serializer="pickle")
    refused, undecided = [], None
    for accept in (["json"], None):
        with connection.channel() as channel:
            consumer = lib.messaging.Consumer(channel, [queue], callbacks=[callback], accept=accept)
            consumer.consume()
            refused.append(outcome(drain, connection, lambda: results[2:]))
            undecided = consumer.accept
    message = fetch(connection, queue)  # the closed channel gives it back in its own time
    direct = outcome(message.decode)
    message.ack()
    unknown = outcome(lib.messaging.Consumer, connection, [queue], accept=["unheard-of"])
    return [results, failed, accepted, refused, undecided, direct, unknown]


def expired_messages(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"), message_ttl=0.05, max_length=2)
    producer = lib.messaging.Producer(connection)
    for number in range(4):
        producer.publish(number, names("q"), declare=[queue])
    bound = queue(connection)
    producer.publish(
        "last", names("other"), expiration=0.05, declare=[lib.entity.Queue(names("other"))]
    )
    gone = quiet(connection, 0.3)
    return [gone, bound.get(), lib.entity.Queue(names("other"))(connection).get()]


def bounded_queue(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"), max_length=2, queue_arguments={"x-overflow": "drop-head"})
    producer = lib.messaging.Producer(connection)
    for number in range(4):
        producer.publish(number, names("q"), declare=[queue])
    return [each["payload"] for each in receive(lib, connection, queue, 2)]


def priorities(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"), max_priority=9)
    producer = lib.messaging.Producer(connection)
    for priority in (0, 9, 3, 9, 5):
        producer.publish(priority, names("q"), priority=priority, declare=[queue])
    found = receive(lib, connection, queue, 5)
    return [(each["payload"], each["properties"].get("priority")) for each in found]


def batches_and_retries(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    producer = connection.Producer(serializer="json")
    producer.publish(
        "retried",
        names("q"),
        declare=[queue],
        retry=True,
        retry_policy={"interval_start": 0, "interval_step": 0, "interval_max": 0, "max_retries": 2},
    )
    with producer.batch(max_size=10):
        producer.publish("batched", names("q"))
    with connection.Producer(auto_declare=False) as other:
        other.publish("timed", names("q"), timeout=SOON, confirm_timeout=SOON)
    again = outcome(producer.maybe_declare, queue)
    supports = producer.supports_batch_publish
    found = [each["payload"] for each in receive(lib, connection, queue, 3)]
    producer.close()
    return [found, again, supports, producer.connection is connection]


PROGRAMS = [
    each_serializer,
    typed_json,
    own_serializer,
    each_compression,
    properties_and_headers,
    delivery_mode_of_the_exchange,
    fetched_one_by_one,
    returned_messages,
    accepted_content,
    expired_messages,
    bounded_queue,
    priorities,
    batches_and_retries,
]
