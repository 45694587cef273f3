"""Programs about consumers, and about the answers that they give."""

from __future__ import annotations

import logging
from typing import Any

from tests.compat.programs.library import Library, Names, Raised, drain, outcome, quiet


def fill(lib: Library, connection: Any, queue: Any, *bodies: Any) -> None:
    """Publish *bodies* into *queue*, declared if need be."""
    queue(connection).declare()
    producer = lib.messaging.Producer(connection)
    for body in bodies:
        producer.publish(body, queue.name)
    # Behind them on their channel: when this is answered the broker has them.
    queue(connection).queue_declare(passive=True)


def count(connection: Any, queue: Any) -> int:
    """Messages that wait in *queue*."""
    return int(queue(connection).queue_declare(passive=True).message_count)


def count_to(connection: Any, queue: Any, expected: int) -> int:
    """Messages that wait in *queue*: the broker may need a moment to take some back."""
    for _ in range(100):
        if count(connection, queue) == expected:
            break
        quiet(connection, 0.02)
    return count(connection, queue)


def settlements_and_their_states(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    fill(lib, connection, queue, *range(4))
    bound = queue(connection)
    log: list[Any] = []

    def look(message: Any, *answers: str) -> None:
        log.append((message.payload, message._state, message.acknowledged))
        for answer in answers:
            log.append((answer, outcome(getattr(message, answer)), message._state))
            log.append(message.acknowledged)

    look(bound.get(), "ack", "ack", "reject", "requeue")
    look(bound.get(), "reject", "reject", "ack")
    look(bound.get(), "requeue", "requeue", "ack")
    again = bound.get()
    log.append(again.delivery_info.get("redelivered", True))
    look(again, "ack")
    message = bound.get(no_ack=False)
    message.ack_log_error(logging.getLogger("programs"), (Exception,))
    log.append(message.acknowledged)
    log.append(bound.get())
    message = lib.message.Message(body="x", channel=None)
    look_alone = outcome(message.ack), outcome(message.reject), outcome(message.requeue)
    return [log, look_alone, count(connection, queue)]


def multiple_acks(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    fill(lib, connection, queue, *range(3))
    with connection.channel() as channel:
        bound = queue(channel)
        first, second, third = (bound.get() for _ in range(3))
        second.ack(multiple=True)
        states = [each.acknowledged for each in (first, second, third)]
        third.reject(requeue=True)
    return [states, count_to(connection, queue, 1)]


def callbacks_in_order(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    fill(lib, connection, queue, "a", "b")
    log: list[Any] = []
    consumer = connection.Consumer(queue, callbacks=[lambda body, message: log.append((1, body))])
    consumer.register_callback(lambda body, message: log.append((2, body)))
    consumer.register_callback(lambda body, message: message.ack())
    with consumer as entered:
        drain(connection, lambda: len(log) == 4)
        log.append(entered is consumer)
    without = lib.messaging.Consumer(connection, [queue])
    return [log, outcome(without.receive, "x", None), quiet(connection), len(consumer.callbacks)]


def errors_in_callbacks(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    fill(lib, connection, queue, "a", "b")
    log: list[Any] = []

    def callback(body: Any, message: Any) -> None:
        log.append(body)
        message.ack()
        raise LookupError(body)

    with lib.messaging.Consumer(connection, [queue], callbacks=[callback]):
        log.append(outcome(drain, connection, lambda: False))
        log.append(outcome(drain, connection, lambda: False))
    log.append(count(connection, queue))
    return log


def prefetch(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    fill(lib, connection, queue, *range(6))
    got: list[Any] = []
    with connection.channel() as channel:
        consumer = lib.messaging.Consumer(channel, [queue], on_message=got.append, prefetch_count=2)
        consumer.consume()
        drain(connection, lambda: len(got) == 2)
        held = quiet(connection), len(got)
        got[0].ack()
        drain(connection, lambda: len(got) == 3)
        consumer.cancel()
        again = [each.payload for each in got]
    got.clear()
    left = count_to(connection, queue, 5)
    with connection.channel() as channel:
        consumer = lib.messaging.Consumer(channel, [queue], on_message=got.append)
        consumer.qos(prefetch_size=0, prefetch_count=1, apply_global=False)
        consumer.consume()
        drain(connection, lambda: len(got) == 1)
        return [held, again, left, quiet(connection), len(got), got[0].payload]


def prefetch_by_amqps_name(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    fill(lib, connection, queue, *range(3))
    got: list[Any] = []
    with connection.channel() as channel:
        channel.basic_qos(prefetch_size=0, prefetch_count=2, a_global=False)
        lib.messaging.Consumer(channel, [queue], on_message=got.append).consume()
        drain(connection, lambda: len(got) == 2)
        return [quiet(connection), len(got)]


def no_ack(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    fill(lib, connection, queue, "a", "b")
    got: list[Any] = []
    with lib.messaging.Consumer(connection, [queue], no_ack=True, on_message=got.append):
        drain(connection, lambda: len(got) == 2)
        answers = [outcome(got[0].ack), got[0].acknowledged]
    other = lib.entity.Queue(names("o"), no_ack=True)
    fill(lib, connection, other, "c")
    with lib.messaging.Consumer(connection, [other], on_message=got.append) as consumer:
        drain(connection, lambda: len(got) == 3)
        answers += [consumer.no_ack]
    return [answers, count(connection, queue), count(connection, other)]


def several_queues(lib: Library, connection: Any, names: Names) -> Any:
    queues = [lib.entity.Queue(names(letter)) for letter in "abc"]
    for queue in queues:
        fill(lib, connection, queue)
    got: list[Any] = []
    log: list[Any] = []

    def callback(body: Any, message: Any) -> None:
        got.append(body)
        message.ack()

    with connection.channel() as channel:
        consumer = lib.messaging.Consumer(channel, queues[:2], callbacks=[callback])
        log.append([each.name for each in consumer.queues])
        log.append([consumer.consuming_from(each) for each in (queues[0], names("b"), names("c"))])
        consumer.consume()
        log.append([consumer.consuming_from(each) for each in (queues[0], names("b"), names("c"))])
        added = consumer.add_queue(queues[2])
        log.append([added is queues[2], added.name, added.is_bound])
        consumer.consume()
        fill(lib, connection, queues[2], "c")
        drain(connection, lambda: len(got) == 1)
        consumer.cancel_by_queue(names("a"))
        consumer.cancel_by_queue(queues[1])
        consumer.cancel_by_queue("unheard-of")
        log.append([consumer.consuming_from(each) for each in queues])
        log.append(sorted(each.name for each in consumer.queues))
        fill(lib, connection, queues[0], "a")
        log.append([quiet(connection), count(connection, queues[0])])
        log.append(consumer.purge())
        consumer.cancel()
        consumer.close()
        log.append([consumer.consuming_from(each) for each in queues])
    return [log, got]


def purge_recover_flow(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    fill(lib, connection, queue, "a", "b", "c")
    got: list[Any] = []
    log: list[Any] = []
    with connection.channel() as channel:
        consumer = lib.messaging.Consumer(channel, [queue], on_message=got.append)
        consumer.consume()
        drain(connection, lambda: len(got) == 3)
        consumer.recover(requeue=True)
        drain(connection, lambda: len(got) == 6)
        log.append(sorted(each.payload for each in got[3:]))
        log.append([each.delivery_info.get("redelivered", True) for each in got[3:]])
        for message in got[3:]:
            message.ack()
        log.append(outcome(consumer.flow, True))
        consumer.cancel()
    fill(lib, connection, queue, "d", "e")
    bound = queue(connection)
    log.append([bound.purge(), bound.purge()])
    fill(lib, connection, queue, "f")
    log.append(lib.messaging.Consumer(connection, [queue]).purge())
    return log


def cancelled_by_the_broker(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    fill(lib, connection, queue)
    notified: list[Any] = []
    with connection.channel() as channel:
        tag = queue(channel).consume("tag", callback=notified.append, on_cancel=notified.append)
        queue(connection).delete()
        drain(connection, lambda: notified)
    fill(lib, connection, queue)
    with connection.channel() as channel:
        lib.messaging.Consumer(channel, [queue], on_message=notified.append).consume()

        def delete_and_drain() -> None:
            queue(connection).delete()  # which may tell it already
            drain(connection, lambda: False)

        lost = outcome(delete_and_drain)
    return [tag, notified, lost]


def closed_with_messages(lib: Library, connection: Any, names: Names) -> Any:
    """What a consumer had not answered when its channel was closed goes back."""
    queue = lib.entity.Queue(names("q"))
    fill(lib, connection, queue, "a", "b")
    got: list[Any] = []
    channel = connection.channel()
    with lib.messaging.Consumer(channel, [queue], on_message=got.append):
        drain(connection, lambda: len(got) == 2)
        got[0].ack()
    before = count(connection, queue)
    channel.close()
    channel.close()
    after = count_to(connection, queue, 1)
    late = outcome(got[1].ack)
    return [before, after, isinstance(late, Raised)]


def without_messages(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    fill(lib, connection, queue)
    with lib.messaging.Consumer(connection, [queue], on_message=print):
        waited = [outcome(connection.drain_events, timeout=seconds) for seconds in (0.02, 0.05)]
        at_once = outcome(connection.drain_events, timeout=0)
    return [waited, at_once, [isinstance(each, Raised) for each in waited]]


def revived_consumer(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    got: list[Any] = []
    first, second = connection.channel(), connection.channel()
    consumer = lib.messaging.Consumer(first, [queue], on_message=got.append, accept=["json"])
    consumer.consume()
    first.close()
    consumer.revive(second)
    bound = [each.channel is second for each in consumer.queues]
    consumer.consume()
    fill(lib, connection, queue, {"a": 1})
    drain(connection, lambda: got)
    got[0].ack()
    second.close()
    return [bound, got[0].payload, consumer.channel is second, sorted(consumer.accept)]


def simple_queue(lib: Library, connection: Any, names: Names) -> Any:
    log: list[Any] = []
    with connection.SimpleQueue(names("q"), serializer="json", compression="zlib") as queue:
        log += [len(queue), bool(queue), queue.qsize(), queue.no_ack]
        queue.put({"a": 1}, headers={"h": 1}, priority=3)
        queue.put("text", serializer="raw", routing_key=names("q"), expiration=60)
        message = queue.get(block=True, timeout=30)
        log += [message.payload, message.headers["h"], message.content_type]
        message.requeue()
        # In an order that depends on what was delivered.
        rest = [queue.get(timeout=30), queue.get()]
        log += sorted(type(message.payload).__name__ for message in rest)
        for message in rest:
            message.ack()
        log += [outcome(queue.get, timeout=0.05), outcome(queue.get, block=False)]
        log += [outcome(queue.get_nowait), queue.Empty.__name__]
        queue.put(1)
        queue.put(2)
        log += [queue.clear(), queue.qsize()]
    entity = lib.entity.Queue(names("o"), lib.entity.Exchange(names("e")), "key", durable=False)
    with connection.SimpleQueue(entity, no_ack=True) as queue:
        queue.put("by entity")
        log += [queue.get(timeout=30).payload, queue.queue.name, queue.queue.exchange.name]
    opts = {"exclusive": True, "message_ttl": 60}
    with connection.SimpleQueue(
        names("p"), queue_opts=opts, exchange_opts={"type": "fanout", "durable": False}
    ) as queue:
        queue.put([1])
        log += [queue.get(timeout=30).payload, queue.queue.exchange.type, queue.queue.exclusive]
    return log


def simple_buffer(lib: Library, connection: Any, names: Names) -> Any:
    with connection.SimpleBuffer(names("b")) as buffer:
        buffer.put({"a": 1})
        message = buffer.get(timeout=30)
        log = [message.payload, message.properties["delivery_mode"], buffer.no_ack]
        log += [buffer.queue.durable, buffer.queue.auto_delete, buffer.queue.exchange.delivery_mode]
        log += [buffer.queue.exclusive, outcome(buffer.get, timeout=0.05)]
    channel = connection.channel()
    with lib.simple.SimpleBuffer(channel, names("c"), no_ack=False) as buffer:
        buffer.put("x")
        buffer.get(timeout=30).ack()
    channel.close()
    return log


PROGRAMS = [
    settlements_and_their_states,
    multiple_acks,
    callbacks_in_order,
    errors_in_callbacks,
    prefetch,
    prefetch_by_amqps_name,
    no_ack,
    several_queues,
    purge_recover_flow,
    cancelled_by_the_broker,
    closed_with_messages,
    without_messages,
    revived_consumer,
    simple_queue,
    simple_buffer,
]
