"""Programs about exchanges, queues, bindings and channels."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import amqp

from tests.compat.programs.library import Library, Names, Raised, drain, outcome


def bodies(queue: Any) -> list[Any]:
    """All bodies that wait in *queue*."""
    found = []
    while (message := queue.get(no_ack=True)) is not None:
        found.append(message.payload)
    return found


def routed(lib: Library, connection: Any, names: Names, kind: str, keys: Any, sent: Any) -> Any:
    """What comes into the queue of each key when messages go to an exchange of that kind."""
    exchange = lib.entity.Exchange(names("e"), kind, durable=False)
    found = {}
    with connection.channel() as channel:
        queues = []
        for number, key in enumerate(keys):
            bound = {"binding_arguments": key} if isinstance(key, dict) else {"routing_key": key}
            queue = lib.entity.Queue(names(f"q{number}"), exchange, durable=False, **bound)
            queues.append(queue(channel))
            queues[-1].declare()
        producer = lib.messaging.Producer(channel, exchange)
        for each in sent:
            if isinstance(each, dict):
                producer.publish(each, headers=each, routing_key="any")
            else:
                producer.publish(each, each)
        for key, queue in zip(keys, queues, strict=True):
            found[repr(key)] = bodies(queue)
    return found


def direct_routing(lib: Library, connection: Any, names: Names) -> Any:
    keys = ["a", "b", "a", "a.b", "*", ""]
    return routed(lib, connection, names, "direct", keys, ["a", "b", "a.b", "", "*", "c"])


def fanout_routing(lib: Library, connection: Any, names: Names) -> Any:
    return routed(lib, connection, names, "fanout", ["a", "b", ""], ["a", "b", "", "c"])


def topic_routing(lib: Library, connection: Any, names: Names) -> Any:
    keys = ["*.stock.#", "#.error", "a.*.c", "#", "stock", "*", "a.b.c", "*.*"]
    sent = [
        *("nyse.stock", "nyse.stock.goog.high", "error", "x.error", "x.y.error", "a.b.c", "stock"),
        *("a..c", "A.b.c", "a-b.c"),
    ]
    return routed(lib, connection, names, "topic", keys, sent)


def topic_that_ends_in_any(lib: Library, connection: Any, names: Names) -> Any:
    return routed(lib, connection, names, "topic", ["z.#", "#.#", "z.*.#"], ["z", "z.y", "zz", ""])


def headers_routing(lib: Library, connection: Any, names: Names) -> Any:
    keys = [
        {"x-match": "all", "a": 1, "b": "x"},
        {"x-match": "any", "a": 1, "b": "x"},
        {"a": 1},
        {"x-match": "all"},
    ]
    sent = [{"a": 1, "b": "x", "c": 2}, {"a": 1}, {"b": "x"}, {"a": 2}, {"c": 3}]
    return routed(lib, connection, names, "headers", keys, sent)


def default_exchange(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"), durable=False)(connection)
    log = [queue.declare(), queue.queue_declare(passive=True).queue]
    producer = lib.messaging.Producer(connection)
    producer.publish("by name", names("q"))
    producer.publish("by object", names("q"), exchange=lib.entity.Exchange(""))
    producer.publish("to nobody", names("unheard-of"))
    refused = []
    for call in (
        lambda: queue.bind_to("", "key"),
        lambda: lib.entity.Exchange("amq.unheard", "direct")(connection.channel()).declare(),
        lambda: lib.entity.Exchange("", "direct")(connection.channel()).declare(),
        lambda: lib.entity.Exchange("amq.topic", "topic")(connection.channel()).declare(),
    ):
        refused.append(isinstance(outcome(call), Raised))
    return [log, bodies(lib.entity.Queue(names("q"))(connection)), refused]


def server_named_queues(lib: Library, connection: Any, names: Names) -> Any:
    exchange = lib.entity.Exchange(names("e"), "fanout", durable=False)
    declared: list[Any] = []
    queue = lib.entity.Queue(
        "", exchange, exclusive=True, on_declared=lambda *reply: declared.append(reply)
    )(connection)
    name = queue.declare()
    other = lib.entity.Queue("", exchange, exclusive=True, channel=connection)
    other.declare()
    lib.messaging.Producer(connection, exchange).publish("x", "key")
    log = [bool(name), queue.name == name, name != other.name, name.startswith("amq.gen")]
    log += [len(declared), declared[0][0] == name, declared[0][1:], queue.auto_delete]
    return [log, bodies(queue), bodies(other)]


def queue_arguments(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(
        names("q"),
        expires=60.5,
        message_ttl=30,
        max_length=10,
        max_length_bytes=10_000,
        max_priority=5,
        queue_arguments={"x-overflow": "reject-publish", "x-max-length": 99},
    )
    channel = connection.channel()
    prepared = channel.prepare_queue_arguments({"x": 1}, expires=1.5, message_ttl=None)
    replies = [tuple(queue(channel).queue_declare()) for _ in range(2)]
    same = lib.entity.Queue(names("q"), queue_arguments={"x-max-length": 3})
    clash = outcome(same(connection.channel()).queue_declare)
    wrong = outcome(
        lib.entity.Queue(names("w"), queue_arguments={"x-message-ttl": "soon"})(
            connection.channel()
        ).queue_declare
    )
    return [prepared, replies, clash, wrong]


def what_the_broker_refuses(lib: Library, connection: Any, names: Names) -> Any:
    log: list[Any] = []

    def attempt(function: Any) -> None:
        channel = connection.channel()
        result = outcome(function, channel)
        log.append(result or None)
        if isinstance(result, Raised):
            log.append([name for name in result.names if name in ("ChannelError", "AMQPError")])
        channel.close()

    queue = lib.entity.Queue(names("q"), lib.entity.Exchange(names("e")), "k")
    queue(connection).declare()
    attempt(lambda channel: lib.entity.Queue(names("no"))(channel).queue_declare(passive=True))
    attempt(lambda channel: lib.entity.Queue(names("no"))(channel).get())
    attempt(lambda channel: lib.entity.Queue(names("no"))(channel).purge())
    attempt(lambda channel: lib.entity.Queue(names("no"))(channel).consume())
    attempt(lambda channel: lib.entity.Exchange(names("no"))(channel).declare(passive=True))
    attempt(lambda channel: lib.entity.Exchange(names("e"), "fanout")(channel).declare())
    attempt(lambda channel: lib.entity.Queue(names("q"), durable=False)(channel).queue_declare())
    attempt(lambda channel: queue(channel).bind_to(names("no"), "k"))
    attempt(lambda channel: queue(channel).unbind_from(queue.exchange, "never bound"))
    attempt(lambda channel: lib.entity.Queue(names("no"))(channel).delete())
    attempt(lambda channel: lib.entity.Exchange(names("no"))(channel).delete())
    attempt(lambda channel: lib.entity.Exchange(names("e"))(channel).delete(if_unused=True))
    lib.messaging.Producer(connection).publish("x", names("q"))
    queue(connection).queue_declare(passive=True)  # now the broker has it
    attempt(lambda channel: queue(channel).delete(if_empty=True))
    attempt(lambda channel: queue(channel).delete())
    return log


def binding_and_unbinding(lib: Library, connection: Any, names: Names) -> Any:
    first = lib.entity.Exchange(names("e"), "direct", durable=False)
    second = lib.entity.Exchange(names("f"), "topic", durable=False)
    channel = connection.channel()
    first(channel).declare()
    second(channel).declare()
    queue = lib.entity.Queue(
        names("q"),
        [first.binding("one"), first.binding("two"), lib.entity.binding(second, "x.*")],
        durable=False,
    )(channel)
    queue.declare()
    producer = lib.messaging.Producer(channel)

    def send() -> list[Any]:
        for exchange, key in ((first, "one"), (first, "two"), (second, "x.y"), (second, "three")):
            producer.publish(key, key, exchange=exchange)
        return bodies(queue)

    log = [send()]
    queue.unbind_from(first, "one")
    log.append(send())
    queue.bind_to(second, "three")
    log.append(send())
    for each in queue.bindings:
        each.unbind(queue)
    log.append(sorted(send()))
    queue.bind_to(exchange=names("e"), routing_key="one")
    log.append(sorted(send()))
    log.append(outcome(queue.delete))
    return log


def exchange_to_exchange(lib: Library, connection: Any, names: Names) -> Any:
    source = lib.entity.Exchange(names("s"), "topic", durable=False)
    target = lib.entity.Exchange(names("t"), "fanout", durable=False)
    with connection.channel() as channel:
        source(channel).declare()
        bound = target(channel)
        bound.declare()
        queue = lib.entity.Queue(names("q"), target, durable=False)(channel)
        queue.declare()
        bound.bind_to(source, routing_key="a.*")
        producer = lib.messaging.Producer(channel, source)
        producer.publish(1, "a.b")
        producer.publish(2, "b.b")
        found = [bodies(queue)]
        bound.unbind_from(source, routing_key="a.*")
        producer.publish(3, "a.b")
        found.append(bodies(queue))
        bound.bind_to(names("s"), "#")
        producer.publish(4, "b")
        found.append(bodies(queue))
    return found


def deleting_and_purging(lib: Library, connection: Any, names: Names) -> Any:
    exchange = lib.entity.Exchange(names("e"), durable=False)(connection)
    exchange.declare()
    queue = lib.entity.Queue(names("q"), exchange, "k", durable=False)(connection)
    queue.declare()
    for body in ("a", "b", "c"):
        exchange.publish(body, routing_key="k")
    log: list[Any] = [queue.purge(), queue.purge(nowait=False)]
    exchange.publish("d", routing_key="k")
    log += [queue.delete(), queue.delete()]
    queue.declare()
    log += [queue.delete(if_unused=True, if_empty=True)]
    log += [not exchange.delete(), not exchange.delete()]
    return log


def closed_channels(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"), durable=False)
    channel = connection.channel()
    log: list[Any] = [channel.is_open, channel.channel_id > 0, bool(channel.connection)]
    queue(channel).declare()
    channel.close()
    log += [channel.is_open]
    log += [isinstance(outcome(queue(channel).declare), Raised), outcome(channel.close)]
    with connection.channel() as second:
        queue(second).declare()
    log += [second.is_open]
    connection.maybe_close_channel(connection.channel())
    first, second = connection.channel(), connection.channel()
    log += [first.channel_id != second.channel_id, connection.default_channel is not first]
    log += [connection.default_channel is connection.default_channel]
    return log


def channels_alone(lib: Library, connection: Any, names: Names) -> Any:
    """A program that uses the methods of a channel, without entities."""
    log: list[Any] = []
    with connection.channel() as channel:
        channel.exchange_declare(
            exchange=names("e"), type="topic", durable=False, auto_delete=False
        )
        declared = channel.queue_declare(queue=names("q"), durable=False, auto_delete=False)
        log += [tuple(declared), declared.queue, declared.message_count, declared.consumer_count]
        channel.queue_bind(queue=names("q"), exchange=names("e"), routing_key="a.*")
        message = channel.prepare_message(
            "text",
            priority=2,
            content_type="text/plain",
            content_encoding="utf-8",
            headers={"h": 1},
            properties={"type": "t"},
        )
        for key in ("a.b", "a.c", "b"):
            channel.basic_publish(message, exchange=names("e"), routing_key=key)
        got = channel.message_to_python(channel.basic_get(queue=names("q"), no_ack=False))
        log += [got.payload, got.headers, got.properties["type"], got.delivery_info["routing_key"]]
        channel.basic_ack(got.delivery_tag)
        got = channel.message_to_python(channel.basic_get(names("q")))
        log += [got.delivery_info["routing_key"]]
        channel.basic_reject(got.delivery_tag, requeue=True)
        log += [channel.queue_purge(queue=names("q")), channel.basic_get(queue=names("q"))]
        channel.basic_qos(0, 5, False)
        seen: list[Any] = []
        channel.basic_consume(
            queue=names("q"), no_ack=True, callback=seen.append, consumer_tag="mine"
        )
        channel.basic_publish(message, exchange=names("e"), routing_key="a.d")
        drain(connection, lambda: seen)
        raw = seen[0]
        log += [raw.body, raw.delivery_info["consumer_tag"], raw.delivery_info["redelivered"]]
        log += [channel.message_to_python(raw).payload, channel.connection.client is connection]
        channel.basic_cancel("mine")
        channel.queue_unbind(queue=names("q"), exchange=names("e"), routing_key="a.*")
        channel.basic_publish(message, exchange=names("e"), routing_key="a.d")
        log += [channel.queue_declare(queue=names("q"), passive=True).message_count]
        log += [channel.queue_delete(queue=names("q")), not channel.exchange_delete(names("e"))]
    return log


def messages_and_transactions_of_amqp(lib: Library, connection: Any, names: Names) -> Any:
    """What ``amqp`` has and kombu does not hide."""
    log: list[Any] = []
    with connection.channel() as channel:
        channel.queue_declare(names("q"), auto_delete=False)
        message = amqp.Message("text", content_type="text/plain", application_headers={"h": 1})
        channel.basic_publish(message, routing_key=names("q"))
        channel.basic_publish_confirm(message, "", names("q"))
        log += [channel.queue_purge(names("q"))]
    with connection.channel() as channel:
        channel.tx_select()
        channel.basic_publish(channel.prepare_message(b"rolled back"), routing_key=names("q"))
        channel.tx_rollback()
        channel.basic_publish(channel.prepare_message(b"committed"), routing_key=names("q"))
        channel.tx_commit()
        log += [channel.queue_purge(names("q"))]
        link = channel.connection
        log += [link.server_properties["product"], link.connected]
        log += [sorted(link.server_capabilities), link.client_properties["capabilities"]]
        log += [sorted(link.channels) == sorted({0, channel.channel_id}), link.channel_max]
        log += [link.frame_max, link.virtual_host if hasattr(link, "virtual_host") else None]
    return log


def unbound_entities(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"), lib.entity.Exchange(names("e"), "fanout"), "k")
    bound = queue(connection.default_channel)
    log: list[Any] = [
        queue.is_bound,
        outcome(queue.declare),
        outcome(queue.get),
        outcome(lambda: queue.channel),
        bound.is_bound,
        bound.exchange.is_bound,
        bound is queue,
        bound == queue,
        hash(bound) == hash(queue),
        bound.channel is connection.default_channel,
        queue.maybe_bind(connection.default_channel) is queue,
        queue.bind(connection) is queue,
        copy.copy(bound).is_bound,
        pickle.loads(pickle.dumps(queue)) == queue,
        bound.as_dict(recurse=True),
        lib.entity.Queue(names("q")) == queue,
        queue == names("q"),
        queue != lib.entity.Queue(names("q"), queue.exchange, "k"),
        {queue: 1}[lib.entity.Queue(names("q"), queue.exchange, "k")],
        repr(queue),
        str(queue.exchange),
        lib.entity.Queue.from_dict(names("q"), exchange="x", routing_key="r").as_dict(recurse=True),
    ]
    other = connection.channel()
    bound.revive(other)
    return [*log, bound.channel is other, repr(lib.entity.Exchange(names("e"), "topic"))]


PROGRAMS = [
    direct_routing,
    fanout_routing,
    topic_routing,
    topic_that_ends_in_any,
    headers_routing,
    default_exchange,
    server_named_queues,
    queue_arguments,
    what_the_broker_refuses,
    binding_and_unbinding,
    exchange_to_exchange,
    deleting_and_purging,
    closed_channels,
    channels_alone,
    messages_and_transactions_of_amqp,
    unbound_entities,
]
