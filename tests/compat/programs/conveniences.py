"""Programs made of mixins and of the common tools."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

from tests.compat.programs.consuming import count_to, fill
from tests.compat.programs.library import Library, Names, drain, outcome


def life_of_a_mixin(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    log: list[Any] = []

    class Worker(lib.mixins.ConsumerMixin):  # type: ignore[misc,name-defined]  # of either library
        def __init__(self) -> None:
            self.connection = connection

        def get_consumers(self, consumer: Any, channel: Any) -> Any:
            log.append("get_consumers")
            return [consumer(queues=[queue], callbacks=[self.on_job])]

        def on_job(self, body: Any, message: Any) -> None:
            log.append(body)
            message.ack()
            if body == "again":
                # Anything of the connection's errors begins a new round.
                raise self.connection_errors[0]("by the program")
            self.should_stop = body == "last"

        def on_connection_revived(self) -> None:
            log.append("revived")

        def on_consume_ready(
            self, connection: Any, channel: Any, consumers: Any, **kwargs: Any
        ) -> None:
            log.append(("ready", len(consumers), kwargs))

        def on_consume_end(self, connection: Any, channel: Any) -> None:
            log.append("end")

        def on_iteration(self) -> None:
            if log[-1] != "iteration":
                log.append("iteration")

        @contextmanager
        def extra_context(self, connection: Any, channel: Any) -> Any:
            log.append("enter")
            yield
            log.append("leave")

    fill(lib, connection, queue, "first", "again", "last")
    worker = Worker()
    worker.restart_limit.capacity = worker.restart_limit._tokens = 10
    log.append(worker.run(more=1))
    log.append(outcome(worker.maybe_conn_error, lambda: 3))
    return [log, count_to(connection, queue, 0)]


def limits_of_a_mixin(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    got: list[Any] = []

    class Worker(lib.mixins.ConsumerMixin):  # type: ignore[misc,name-defined]  # of either library
        def __init__(self) -> None:
            self.connection = connection

        def get_consumers(self, consumer: Any, channel: Any) -> Any:
            return [consumer(queues=[queue], callbacks=[self.on_job])]

        def on_job(self, body: Any, message: Any) -> None:
            got.append(body)
            message.ack()

    fill(lib, connection, queue, 1, 2)
    worker = Worker()
    log: list[Any] = [list(worker.consume(limit=2)), list(got)]
    log.append(outcome(lambda: list(worker.consume(timeout=0.1, safety_interval=0.1))))
    log.append(list(worker.consume(limit=2, safety_interval=0.02)))
    missing = lib.mixins.ConsumerMixin()
    log.append(outcome(missing.get_consumers, None, None))
    return log


def a_mixin_that_answers(lib: Library, connection: Any, names: Names) -> Any:
    requests, replies = lib.entity.Queue(names("q")), lib.entity.Queue(names("r"))

    class Worker(lib.mixins.ConsumerProducerMixin):  # type: ignore[misc,name-defined]  # of either library
        def __init__(self) -> None:
            self.connection = connection
            self.left = 2

        def get_consumers(self, consumer: Any, channel: Any) -> Any:
            return [consumer(queues=[requests], on_message=self.on_request)]

        def on_request(self, message: Any) -> None:
            lib.common.send_reply(None, message, [message.payload], self.producer, retry=True)
            message.ack()
            self.left -= 1
            self.should_stop = not self.left

    fill(lib, connection, requests)
    fill(lib, connection, replies)
    producer = lib.messaging.Producer(connection)
    for number, serializer in enumerate(["json", "json"]):
        producer.publish(
            {"n": number},
            requests.name,
            reply_to=replies.name,
            correlation_id=str(number),
            serializer=serializer,
        )
    worker = Worker()
    worker.run()
    log: list[Any] = [worker._producer_connection]
    for _ in range(2):
        message = replies(connection).get(no_ack=True)
        log.append((message.payload, message.properties["correlation_id"], message.content_type))
    return log


def broadcasts(lib: Library, connection: Any, names: Names) -> Any:
    got: list[Any] = []
    queues = [lib.common.Broadcast(names("e")) for _ in range(3)]
    consumers = [
        lib.messaging.Consumer(
            connection, queue, callbacks=[lambda body, message: got.append(body)], no_ack=True
        )
        for queue in queues
    ]
    for consumer in consumers:
        consumer.consume()
    lib.messaging.Producer(
        connection, exchange=lib.entity.Exchange(names("e"), type="fanout")
    ).publish("news")
    drain(connection, lambda: len(got) == 3)
    for consumer in consumers:
        consumer.cancel()
    log: list[Any] = [got, len({queue.name for queue in queues})]
    log += [(queue.auto_delete, queue.durable, queue.exclusive, queue.alias) for queue in queues]
    log.append(lib.common.Broadcast("a", names("x")).name)
    return log


def iterating(lib: Library, connection: Any, names: Names) -> Any:
    queue = lib.entity.Queue(names("q"))
    fill(lib, connection, queue, 1, 2, 3)
    seen: list[Any] = []
    common = lib.common
    options: dict[str, Any] = {"timeout": 30, "no_ack": True}
    log: list[Any] = []
    found = common.itermessages(
        connection, None, queue, limit=3, callbacks=[lambda b, m: seen.append(b)], **options
    )
    log.append([(body, message.payload) for body, message in found])
    log += [seen, list(common.itermessages(connection, None, queue, timeout=0.02))]
    fill(lib, connection, queue, "a", "b")
    channel = connection.channel()
    log.append(list(common.collect_replies(connection, channel, queue, limit=2, timeout=30)))
    log.append(list(common.eventloop(connection, limit=2, timeout=0.02, ignore_timeouts=True)))
    log.append(outcome(lambda: list(common.eventloop(connection, limit=2, timeout=0.02))))
    return log


def insurance(lib: Library, connection: Any, names: Names) -> Any:
    log: list[Any] = []
    pool = connection.Pool(2)

    def fragile(number: int, connection: Any, channel: Any) -> int:
        log.append(number)
        if len(log) < 4:
            raise connection.recoverable_connection_errors[0]("for now")
        return number + int(channel is not None)

    result = lib.common.insured(
        pool,
        fragile,
        (1,),
        {},
        errback=lambda exc, interval: log.append(interval),
        on_revive=lambda channel: log.append("revived"),
        interval_start=0,
        interval_step=0,
    )
    pool.force_close_all()
    errors = connection.connection_errors + connection.channel_errors
    lib.common.ignore_errors(connection, _raise, errors[0]("x"))
    with lib.common.ignore_errors(connection):
        _raise(errors[-1]("x"))
    log.append(outcome(lib.common.ignore_errors, connection, _raise, KeyError()))
    return [log, result]


def _raise(exc: BaseException) -> None:
    raise exc


def prefetch_that_changes(lib: Library, connection: Any, names: Names) -> Any:
    notified: list[int] = []
    qos = lib.common.QoS(
        lambda prefetch_count: notified.append(prefetch_count), 10, max_prefetch=12
    )
    log = [qos.update(), qos.increment_eventually(), qos.increment_eventually(5), qos.update()]
    log += [qos.decrement_eventually(20), qos.update(), qos.value, qos.prev, qos.set(70000)]
    unlimited = lib.common.QoS(lambda prefetch_count: notified.append(prefetch_count), 0)
    log += [unlimited.increment_eventually(), unlimited.decrement_eventually(), unlimited.update()]
    return [log, notified]


PROGRAMS = [
    life_of_a_mixin,
    limits_of_a_mixin,
    a_mixin_that_answers,
    broadcasts,
    iterating,
    insurance,
    prefetch_that_changes,
]
