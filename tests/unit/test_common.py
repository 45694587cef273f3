"""Small tools: what needs no broker but the embedded one."""

from __future__ import annotations

import logging
import uuid as standard
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn import common
from greenconn.common import (
    Broadcast,
    QoS,
    declaration_cached,
    drain_consumer,
    eventloop,
    ignore_errors,
    insured,
    itermessages,
    send_reply,
)
from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import ChannelError, OperationalError, RecoverableConnectionError
from greenconn.messaging import Consumer, Producer
from greenconn.transport import memory

SOON = 30.0


@pytest.fixture
def connection(unique: str) -> Iterator[Connection]:
    with Connection(f"memory:///{unique}") as made:
        yield made
    memory.reset(unique)


def fill(connection: Connection, queue: Queue, *bodies: Any) -> None:
    queue(connection).declare()
    for body in bodies:
        Producer(connection).publish(body, queue.name)


def left(connection: Connection, queue: Queue) -> int:
    return int(connection.default_channel.queue_declare(queue.name, passive=True).message_count)


# Names


def test_oid() -> None:
    thing, other = object(), object()
    assert common.oid_from(thing) == common.oid_from(thing)
    assert common.oid_from(thing) != common.oid_from(other)
    assert common.oid_from(thing) != common.oid_from(thing, threads=False)
    assert common.generate_oid(1, 2, 3, thing) != common.generate_oid(1, 2, 4, thing)
    standard.UUID(common.oid_from(thing))


def test_oid_without_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> standard.UUID:
        raise ValueError("no MD5 in FIPS mode")

    monkeypatch.setattr(common, "uuid3", refuse)
    assert standard.UUID(common.oid_from(object())).version == 5


def test_broadcast_queues_have_names_of_their_own() -> None:
    one, other = Broadcast("news"), Broadcast("news")
    assert one.name != other.name
    assert one.name.startswith("bcast.")
    assert one.queue == one.name
    assert one.exchange == Exchange("news", type="fanout")
    assert (one.alias, one.auto_delete, one.durable) == ("news", True, True)


def test_broadcast_queues_may_be_named() -> None:
    assert Broadcast("news", "mine").name == "mine"
    assert Broadcast("news", "mine", alias="a").alias == "a"
    unique = Broadcast("news", "mine", unique=True)
    assert unique.name.startswith("mine.")
    assert len(unique.name) > len("mine.")
    exchange = Exchange("other", type="topic")
    queue = Broadcast("news", exchange=exchange, auto_delete=False, expires=3)
    assert (queue.exchange, queue.auto_delete, queue.expires) == (exchange, False, 3)


def test_whether_a_declaration_is_known(connection: Connection) -> None:
    exchange = Exchange("e")
    assert not declaration_cached(exchange, connection.default_channel)
    common.maybe_declare(exchange, connection)
    assert declaration_cached(exchange, connection.default_channel)


# Receiving


def test_an_event_loop_ends_at_its_limit(connection: Connection) -> None:
    queue = Queue("q")
    fill(connection, queue, 1, 2, 3)
    got: list[Any] = []
    with Consumer(connection, queue, on_message=got.append, no_ack=True):
        assert list(eventloop(connection, limit=2, timeout=SOON)) == [None, None]
    assert len(got) == 2


def test_an_event_loop_reports_silence_unless_it_shall_not(connection: Connection) -> None:
    with pytest.raises(TimeoutError):
        next(eventloop(connection, timeout=0.01))
    assert list(eventloop(connection, limit=2, timeout=0.01, ignore_timeouts=True)) == []
    assert list(eventloop(connection, limit=2, timeout=0)) == []


def test_an_event_loop_takes_no_others_timeout_for_its_own(connection: Connection) -> None:
    queue = Queue("q")
    fill(connection, queue, 1)

    def callback(body: Any, message: Any) -> None:
        raise TimeoutError("another service")

    consumer = Consumer(connection, queue, callbacks=[callback], no_ack=True)
    with consumer, pytest.raises(TimeoutError, match="another service"):
        next(eventloop(connection, timeout=SOON, ignore_timeouts=True))


def test_messages_of_a_queue(connection: Connection) -> None:
    queue = Queue("q")
    fill(connection, queue, 1, 2, 3)
    seen: list[Any] = []
    found = itermessages(
        connection, None, queue, limit=2, timeout=SOON, callbacks=[lambda b, m: seen.append(b)]
    )
    for body, message in found:
        assert seen[-1] == body
        message.ack()
    assert seen == [1, 2]
    # What was delivered and not asked for is there for others.
    assert left(connection, queue) == 1


def test_a_consumer_that_was_drained_is_cancelled(connection: Connection) -> None:
    queue = Queue("q")
    fill(connection, queue, 1, 2)
    consumer = Consumer(connection, queue, no_ack=True)
    messages = drain_consumer(consumer, limit=None)
    assert next(messages)[0] == 1
    assert consumer.consuming_from(queue)
    messages.close()
    assert not consumer.consuming_from(queue)
    assert consumer.sink is None
    # It can be used as any other.
    fill(connection, queue, 3)
    got: list[Any] = []
    consumer.callbacks = [lambda body, message: got.append(body)]
    with consumer:
        connection.drain_events(timeout=SOON)
    assert got == [3]


def test_others_that_drain_take_no_message_away(connection: Connection) -> None:
    queue, other = Queue("q"), Queue("other")
    fill(connection, queue)
    fill(connection, other)
    seen: list[Any] = []

    def drain() -> None:
        while True:
            connection.drain_events()

    drainers = [gevent.spawn(drain) for _ in range(3)]
    consumer = Consumer(connection, other, callbacks=[lambda body, m: seen.append(body)])
    consumer.consume(no_ack=True)

    def collect() -> list[Any]:
        messages = itermessages(connection, None, queue, limit=5, timeout=SOON, no_ack=True)
        return [body for body, _ in messages]

    collecting = gevent.spawn(collect)
    gevent.sleep(0)
    producer = Producer(connection)
    for number in range(5):
        producer.publish(number, queue.name)
        producer.publish(number, other.name)
    assert collecting.get(timeout=SOON) == [0, 1, 2, 3, 4]
    assert seen == [0, 1, 2, 3, 4]
    gevent.killall(drainers)


def test_callbacks_of_others_run_meanwhile(connection: Connection) -> None:
    """Nobody else drains, and their events do not use up the limit."""
    queue, other = Queue("q"), Queue("other")
    fill(connection, queue)
    fill(connection, other, "a", "b")
    producer = Producer(connection)
    consumer = Consumer(
        connection, other, no_ack=True, callbacks=[lambda body, m: producer.publish(body, "q")]
    )
    with consumer:
        found = itermessages(connection, None, queue, limit=2, timeout=SOON, no_ack=True)
        assert [body for body, _ in found] == ["a", "b"]


def test_a_killed_reader_leaves_nothing_behind(connection: Connection) -> None:
    queue = Queue("q")
    fill(connection, queue)
    reading = gevent.spawn(lambda: list(itermessages(connection, None, queue)))
    gevent.sleep(0.01)
    reading.kill()
    fill(connection, queue, 1)
    assert left(connection, queue) == 1


def test_a_reader_learns_of_the_end(connection: Connection) -> None:
    queue = Queue("q")
    fill(connection, queue)
    reading = gevent.spawn(lambda: list(itermessages(connection, None, queue)))
    gevent.sleep(0.01)
    memory.restart()
    with pytest.raises(connection.connection_errors):
        reading.get(timeout=SOON)


# Replies


def test_a_reply_without_a_producer_takes_the_requests_channel(connection: Connection) -> None:
    fill(connection, Queue("replies"))
    fill(connection, Queue("q"))
    Producer(connection).publish("?", "q", reply_to="replies", correlation_id="7")
    request = Queue("q")(connection).get(no_ack=True)
    send_reply(None, request, {"a": 1}, headers={"h": 1})
    reply = Queue("replies")(connection).get(no_ack=True)
    assert reply.payload == {"a": 1}
    assert (reply.properties["correlation_id"], reply.headers) == ("7", {"h": 1})


def test_what_wants_no_reply_gets_none(connection: Connection) -> None:
    fill(connection, Queue("q"), "x")
    with pytest.raises(KeyError):
        send_reply(None, Queue("q")(connection).get(), "y", Producer(connection))


# Errors


class Errors:
    connection_errors = (OSError,)
    channel_errors = (ChannelError,)


def fail(exc: BaseException) -> None:
    raise exc


def test_errors_are_ignored_in_a_call() -> None:
    assert ignore_errors(Errors(), lambda a, b: a + b, 1, b=2) == 3
    for exc in (OSError(), ChannelError()):
        assert ignore_errors(Errors(), fail, exc) is None
    with pytest.raises(ValueError, match="mine"):
        ignore_errors(Errors(), fail, ValueError("mine"))


def test_errors_are_ignored_in_a_block() -> None:
    reached = []
    for exc in (OSError(), ChannelError()):
        with ignore_errors(Errors()):
            fail(exc)
        reached.append(exc)
    assert len(reached) == 2
    with pytest.raises(ValueError, match="mine"), ignore_errors(Errors()):
        fail(ValueError("mine"))


def test_an_insured_call_is_repeated(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[dict[str, Any]] = []
    revived: list[Any] = []

    def fragile(number: int, **kwargs: Any) -> int:
        calls.append(kwargs)
        if len(calls) < 3:
            raise RecoverableConnectionError("for now")
        return number + 1

    pool = connection.Pool(2)
    options: dict[str, Any] = {"interval_start": 0, "interval_step": 0.01}
    with caplog.at_level(logging.ERROR, "greenconn.common"):
        assert insured(pool, fragile, (1,), {"more": 2}, on_revive=revived.append, **options) == 2
    assert [call["more"] for call in calls] == [2, 2, 2]
    assert calls[0]["connection"] == calls[-1]["connection"] != connection
    assert all(call["channel"].is_open for call in calls)
    assert len(revived) == 2
    assert len(caplog.records) == 2
    # The connection is free again.
    assert [pool.acquire() for _ in range(2)]
    pool.force_close_all()


def test_an_insured_call_may_be_given_up(connection: Connection) -> None:
    errors: list[Exception] = []
    pool = connection.Pool(1)
    with pytest.raises(OperationalError):
        insured(
            pool,
            lambda **kwargs: fail(RecoverableConnectionError("always")),
            (),
            {},
            errback=lambda exc, interval: errors.append(exc),
            max_retries=2,
            interval_start=0,
            interval_step=0,
        )
    assert len(errors) == 2
    with pytest.raises(ValueError, match="mine"):
        insured(pool, lambda **kwargs: fail(ValueError("mine")), (), {})
    pool.force_close_all()


# Prefetch


def notified_by(qos: Callable[[Callable[..., Any]], QoS]) -> tuple[QoS, list[int]]:
    notified: list[int] = []
    return qos(lambda prefetch_count: notified.append(prefetch_count)), notified


def test_a_prefetch_is_sent_when_it_changed() -> None:
    qos, notified = notified_by(lambda callback: QoS(callback, 10))
    assert qos.update() == 10
    assert qos.update() == 10
    assert notified == [10]
    assert qos.prev == 10
    assert (qos.increment_eventually(), qos.increment_eventually(4)) == (11, 15)
    assert qos.decrement_eventually(2) == 13
    assert notified == [10]
    qos.update()
    assert notified == [10, 13]
    assert qos.increment_eventually(-5) == 13
    assert qos.decrement_eventually(100) == 1


def test_no_limit_stays_none() -> None:
    for initial in (0, None):
        qos, notified = notified_by(lambda callback, initial=initial: QoS(callback, initial))  # type: ignore[misc]
        assert (qos.increment_eventually(3), qos.decrement_eventually()) == (0, 0)
        assert qos.update() == 0
        assert notified == [0]


def test_a_prefetch_may_be_bounded() -> None:
    qos, _ = notified_by(lambda callback: QoS(callback, 8, max_prefetch=10))
    assert qos.increment_eventually(5) == 10


def test_counting_does_not_wait_for_the_broker() -> None:
    answered = Event()
    notified: list[int] = []

    def callback(prefetch_count: int) -> None:
        notified.append(prefetch_count)
        answered.wait(SOON)

    qos = QoS(callback, 5)
    first = gevent.spawn(qos.update)
    gevent.sleep(0)
    assert notified == [5]
    assert qos.increment_eventually() == 6
    second = gevent.spawn(qos.update)
    gevent.sleep(0)
    assert notified == [5]  # one at a time, so that the last one told is the last one noted
    answered.set()
    gevent.joinall([first, second], timeout=SOON, raise_error=True)
    assert notified == [5, 6]
    assert qos.prev == 6
