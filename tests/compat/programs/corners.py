"""Programs at the edges of the API: odd bodies and arguments, subclasses, copies, errors."""

from __future__ import annotations

import copy
import logging
import pickle
import zlib
from typing import Any

from tests.compat.programs.library import Library, Names, as_kombu_writes, drain, fetch, outcome


def bodies_of_all_kinds(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"), durable=False)
    producer = lib.messaging.Producer(connection, serializer="yaml")
    log: list[Any] = []
    plans: list[tuple[Any, dict[str, Any]]] = [
        (None, {"serializer": "json"}),
        (0, {"serializer": "json"}),
        ([], {"serializer": "json"}),
        (True, {"serializer": "json"}),
        ("", {"serializer": "raw"}),
        ({"a": 1}, {}),
        ("raw", {"content_type": "application/x-own", "content_encoding": "latin-1"}),
        (b"raw", {"content_type": "application/x-own"}),
        ("\u00e9", {"content_type": "text/x"}),
        ("long" * 99, {"compression": "zlib", "serializer": "json"}),
        ("x", {"serializer": "json", "expiration": 30.5, "delivery_mode": "transient"}),
    ]
    for body, options in plans:
        producer.publish(body, names("q"), declare=[queue], **options)
        message = fetch(connection, queue, no_ack=True)
        log.append([message.content_type, message.content_encoding, message.body])
        log.append([outcome(lambda: message.payload), message.properties.get("expiration")])  # noqa: B023
    for options in (
        {"serializer": "unknown"},
        {"compression": "unknown"},
        {"delivery_mode": "sometimes"},
    ):
        log.append(outcome(producer.publish, ["x"], names("q"), **options))
    log.append(outcome(producer.publish, object(), names("q"), serializer="json"))
    return log


def messages_of_ones_own(lib: Library, connection: Any, names: Names) -> Any:
    make = lib.message.Message
    message = make(
        body='{"a": 1}',
        delivery_tag=1,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_info={"x": 1},
        properties={"p": 1},
        headers={"h": 1},
        accept={"application/json"},
    )
    log: list[Any] = [message.payload, message.payload is message.payload, message.decode()]
    log += [message.channel, message.acknowledged, outcome(message.ack), outcome(message.requeue)]
    packed = make(
        body=zlib.compress(b"hello"),
        content_type="text/plain",
        content_encoding="utf-8",
        headers={"compression": "application/x-gzip"},
    )
    log += [packed.body, packed.payload, make(body="\u00e9", postencode="utf-8").body]
    empty = make()
    log += [empty.body, empty.headers, empty.properties, empty.delivery_info, empty.content_type]
    empty.extra = 1
    return [*log, empty.extra]


class Noted(logging.Handler):
    """Keeps levels."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep its level."""
        self.levels.append(record.levelname)


def settlements_that_are_logged(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"), durable=False)
    producer = lib.messaging.Producer(connection)
    for body in ("a", "b", "c"):
        producer.publish(body, names("q"), declare=[queue])
    logger, noted = logging.Logger("answers"), Noted()
    logger.addHandler(noted)
    held: list[Any] = []
    with lib.messaging.Consumer(connection, [queue], on_message=held.append):
        drain(connection, lambda: len(held) == 3)
        errors = (lib.exceptions.MessageStateError,)
        held[0].ack_log_error(logger, errors)
        held[0].ack_log_error(logger, errors)
        held[1].reject_log_error(logger, errors, requeue=False)
        held[1].reject_log_error(logger, errors)
        held[2].ack()
        refused = outcome(held[2].ack_log_error, logger, (LookupError,))
    return [noted.levels, [message.acknowledged for message in held], refused]


def returned_bodies(lib: Library, connection: Any, names: Names) -> Any:
    returned: list[Any] = []

    def keep(exc: Any, exchange: str, routing_key: str, message: Any) -> None:
        body = as_kombu_writes(message.body)
        returned.append([exchange, routing_key, body, message.content_encoding])

    producer = lib.messaging.Producer(connection.channel(), on_return=keep)
    for body in ("text", b"bytes", {"a": 1}):
        producer.publish(body, names("nowhere"), mandatory=True)
    drain(connection, lambda: len(returned) == 3)
    return returned


def consumers_in_detail(lib: Library, connection: Any, names: Names) -> Any:
    channel = connection.channel()
    queues = [lib.entity.Queue(names(letter), durable=False) for letter in "qr"]
    got: list[Any] = []

    def keep(body: Any, message: Any) -> None:
        got.append([body, message.delivery_info["consumer_tag"].startswith("mine-")])
        message.ack()

    consumer = lib.messaging.Consumer(
        channel, queues, tag_prefix="mine-", prefetch_count=2, accept=["json"], callbacks=[keep]
    )
    log: list[Any] = [consumer.no_ack, consumer.auto_declare, consumer.on_message, consumer.accept]
    log += [consumer.prefetch_count, consumer.channel is channel, consumer.connection is connection]
    log += [consumer.consuming_from(queues[0]), consumer.consuming_from(names("q"))]
    consumer.consume()
    log += [consumer.consuming_from(names("q")), consumer.consuming_from(names("other"))]
    producer = lib.messaging.Producer(channel)
    for letter in "qr":
        producer.publish([letter], names(letter))
    drain(connection, lambda: len(got) == 2)
    log.append(sorted(got))
    consumer.cancel_by_queue(names("q"))
    log += [[each.name for each in consumer.queues], consumer.consuming_from(queues[0])]
    consumer.add_queue(queues[0])
    consumer.consume()
    log += [consumer.consuming_from(queues[0]), consumer.add_queue(queues[1]).name]
    consumer.close()
    log += [consumer.consuming_from(queues[0]), outcome(consumer.cancel)]
    log += [outcome(lib.messaging.Consumer, channel, queues, accept=["unknown"])]
    log += [outcome(lib.messaging.Consumer(channel, queues).receive, "body", None)]
    log += [[type(each).__name__ for each in (channel.Consumer(), channel.Producer())]]

    class Own(lib.messaging.Consumer):  # type: ignore[misc, name-defined]
        no_ack = True
        auto_declare = False
        accept = frozenset({"application/json"})
        prefetch_count = 4

    own = Own(channel)
    return [*log, own.no_ack, own.auto_declare, own.accept, own.prefetch_count]


def copies_of_entities(lib: Library, connection: Any, names: Names) -> Any:
    exchange = lib.entity.Exchange(
        "e", "topic", durable=False, auto_delete=True, delivery_mode=1, arguments={"a": 1}
    )
    queue = lib.entity.Queue(
        "q",
        exchange,
        "k",
        queue_arguments={"x": 1},
        binding_arguments={"y": 1},
        consumer_arguments={"z": 1},
        exclusive=True,
        no_ack=True,
        alias="other",
        expires=1,
        message_ttl=2,
        max_length=3,
        max_length_bytes=4,
        max_priority=5,
    )
    several = lib.entity.Queue("several", [lib.entity.binding(exchange, "x", {"b": 1}, {"c": 1})])
    log: list[Any] = []
    for entity in (exchange, queue, several, several.bindings.copy().pop()):
        pickled = pickle.loads(pickle.dumps(entity))
        for each in (copy.copy(entity), copy.deepcopy(entity), pickled):
            log.append([repr(each), each.as_dict(recurse=True)])
    bound = queue(connection.default_channel)
    log += [[copy.copy(bound).is_bound, pickle.loads(pickle.dumps(bound)).is_bound]]
    plans: list[dict[str, Any]] = [
        {},
        {"exchange": "x", "routing_key": "r"},
        {"exchange": "x", "exchange_type": "topic", "binding_key": "b"},
        {"exchange": exchange, "durable": False, "auto_delete": True, "no_ack": True},
        {"exchange": "x", "exchange_durable": False, "queue_durable": False},
        {"exchange": "x", "delivery_mode": 1, "exchange_arguments": {"k": 1}},
        {"expires": 3, "message_ttl": 4, "max_length": 5, "max_priority": 6, "alias": "a"},
        {"queue_arguments": {"a": 1}, "binding_arguments": {"b": 2}},
    ]
    for options in plans:
        log.append(lib.entity.Queue.from_dict("n", **options).as_dict(recurse=True))
    modes = (None, 1, 2, "transient", "persistent", "sometimes")
    return [*log, *(outcome(lib.entity.maybe_delivery_mode, mode) for mode in modes)]


def copies_of_producers(lib: Library, connection: Any, names: Names) -> Any:
    producer = lib.messaging.Producer(
        connection, lib.entity.Exchange("e", "topic"), "k", "yaml", False, "zlib"
    )
    copied = pickle.loads(pickle.dumps(producer))
    log = [
        copied.exchange == producer.exchange,
        copied.routing_key,
        copied.serializer,
        copied.compression,
    ]
    return [*log, copied.auto_declare, producer.connection is connection]


def odd_failover_strategies(lib: Library, connection: Any, names: Names) -> Any:
    def backwards(hosts: Any) -> Any:
        while True:
            yield from reversed(list(hosts))

    make = lib.connection.Connection
    log: list[Any] = []
    for strategy in (backwards, iter, lambda hosts: iter(hosts * 2)):
        several = make("amqp://a;amqp://b;amqp://c", failover_strategy=strategy)
        hosts = [several.hostname]
        for _ in range(2):
            several.maybe_switch_next()
            hosts.append(several.hostname)
        log.append([hosts, several.alt, [several.completes_cycle(each) for each in range(4)]])

    class Own(make):  # type: ignore[misc, valid-type]
        failover_strategies = {"first": iter}
        resolve_aliases = {"mem": "memory"}

    log += [Own("amqp://a;amqp://b", failover_strategy="first").alt, Own("amqp://h").hostname]
    return [*log, Own("memory://").clone().__class__.__name__]


PROGRAMS = [
    bodies_of_all_kinds,
    messages_of_ones_own,
    settlements_that_are_logged,
    returned_bodies,
    consumers_in_detail,
    copies_of_entities,
    copies_of_producers,
    odd_failover_strategies,
]
