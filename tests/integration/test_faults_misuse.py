"""What programs do wrong, and what they are told."""

from __future__ import annotations

import gc
import logging
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gevent
import gevent.util
import pytest
from gevent.event import Event
from gevent.monkey import get_original
from gevent.threadpool import ThreadPool
from greenlet import settrace

from greenconn.connection import Connection
from greenconn.defaults import configure, reset
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import ConnectionBlocked, OperationalError, PublishTimeout, WrongHub
from greenconn.messaging import Consumer, Producer
from greenconn.publishing import publish
from greenconn.service.rpc import call
from greenconn.simple import SimpleQueue
from greenconn.transport import memory
from greenconn.worker import spawn_consumer, stop_consumers
from tests.brokers.rabbitmq import RabbitMQ, RabbitMQHandle
from tests.fix_relay import Relay, RelayFactory
from tests.fix_wires import until
from tests.texts import MARK, MARKS, reprs, texts_of

pytestmark = pytest.mark.full

SOON = 30.0

native_sleep = get_original("time", "sleep")


# Another thread


@pytest.fixture(params=["amqp", "memory", "redis"])
def url(request: pytest.FixtureRequest, unique: str) -> Iterator[str]:
    """The address of a broker of each kind."""
    if request.param != "memory":
        yield str(request.getfixturevalue(f"{request.param}_url"))
    else:
        yield f"memory://localhost/{unique}"
        memory.reset(unique)


def error_of(function: Callable[[], Any]) -> BaseException | None:
    """What *function* raises."""
    try:
        function()
    except BaseException as exc:
        return exc
    return None


def test_use_from_another_thread_is_refused(url: str, unique: str, thread: ThreadPool) -> None:
    with Connection(url) as connection:
        channel = connection.channel()
        exchange = Exchange(unique)(channel)
        queue = Queue(unique, exchange, unique)(channel)
        queue.declare()
        producer, on_channel = Producer(connection), Producer(channel, exchange, unique)
        for each in (producer, on_channel):
            each.publish("x", routing_key=unique)
        consumer = Consumer(connection, queue, callbacks=[lambda body, message: None])
        simple = SimpleQueue(connection, queue)
        pool, channels = connection.Pool(2), connection.ChannelPool(2)
        held = pool.acquire()
        held.connect()
        message = None
        on_channel.publish("x")
        with gevent.Timeout(SOON):
            while message is None:
                message = queue.get()
        publish(unique, "x", connection=connection, declare=True)
        uses: dict[str, Callable[[], Any]] = {
            "connect": connection.connect,
            "channel": connection.channel,
            "default_channel": lambda: connection.default_channel,
            "drain_events": lambda: connection.drain_events(timeout=0),
            "ensure_connection": connection.ensure_connection,
            "ensure": lambda: connection.ensure(producer, producer.publish)("x", unique),
            "close": connection.close,
            "declare": queue.declare,
            "queue_declare": lambda: channel.queue_declare(unique, passive=True),
            "get": queue.get,
            "qos": lambda: channel.basic_qos(0, 1, False),
            "ack": message.ack,
            "reject": message.reject,
            "close channel": channel.close,
            "publish": lambda: producer.publish("wrong", unique),
            "publish on channel": lambda: on_channel.publish("wrong"),
            "confirmed": lambda: channel.basic_publish_confirm(
                channel.prepare_message("wrong"), routing_key=unique
            ),
            "greenconn.publish": lambda: publish(
                unique, "wrong", connection=connection, declare=True
            ),
            "rpc": lambda: call(unique, "wrong", connection=connection, timeout=1),
            "spawn_consumer": lambda: spawn_consumer(unique, print, connection=connection),
            "consume": consumer.consume,
            "put": lambda: simple.put("wrong"),
            "simple get": lambda: simple.get(timeout=0.1),
            "get_nowait": simple.get_nowait,
            "acquire": pool.acquire,
            "acquire channel": channels.acquire,
            "release": held.release,
            "pooled": held.connect,
        }
        for name, use in uses.items():
            error = thread.apply(error_of, (use,))
            assert isinstance(error, WrongHub), f"{name}: {error!r}"
            text = str(error)
            assert text.count("thread") >= 2, f"{name}: {text}"
            assert "MainThread" in text, f"{name}: {text}"
            assert "clone()" in text, f"{name}: {text}"
            assert "guest:guest" not in text
        # A thread of its own uses a clone.
        error = thread.apply(error_of, (lambda: clone_works(connection, unique),))
        if url.startswith("memory"):
            assert isinstance(error, WrongHub)
            assert "virtual host" in str(error)
            publish(unique, "right", connection=connection)
        else:
            assert error is None
        message.ack()
        held.release()
        pool.force_close_all()
        channels.force_close_all()
        assert sorted(works(connection, unique)) == ["right", "right", "x", "x", "x"]
        queue.delete()
        exchange.delete()


def clone_works(connection: Connection, queue: str) -> None:
    """Use a clone, from opening to closing."""
    with connection.clone() as clone:
        publish(queue, "right", connection=clone, timeout=SOON, declare=True)
        clone.channel().queue_declare(queue, passive=True)


def works(connection: Connection, queue: str) -> list[Any]:
    """Publish a message, and take all that are there."""
    publish(queue, "right", connection=connection, timeout=SOON, declare=True)
    found: list[Any] = []
    with connection.channel() as channel, gevent.Timeout(SOON):
        while found.count("right") < 2:
            message = channel.basic_get(queue, no_ack=True)
            if message is not None:
                found.append(message.decode())
    return found


# Secrets


@pytest.fixture
def secret_url(rabbitmq: RabbitMQHandle, amqp_url: str, unique: str) -> Iterator[str]:
    """The address of the shared broker, for a user whose password is :data:`MARK`."""
    vhost = Connection(amqp_url).virtual_host
    rabbitmq.add_user(unique, MARK, vhost, configured=f"{unique}.*")
    yield f"amqp://{unique}:{quote(MARK, safe='')}@127.0.0.1:{rabbitmq.port}/{quote(vhost, safe='')}"
    rabbitmq.delete_user(unique)


def test_no_password_in_any_text(
    secret_url: str, relay_to: RelayFactory, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    relay = relay_to(secret_url)
    login = secret_url.partition("@")[0]

    def fails(function: Callable[[], Any]) -> None:
        error = error_of(function)
        assert error is not None, f"{function} did not fail"
        texts.extend(texts_of(error))

    connection = Connection(relay.url, heartbeat=1)
    channel = connection.default_channel
    queue = Queue(unique, expires=60)(channel)
    queue.declare()
    consumer = Consumer(connection, queue, callbacks=[lambda body, message: message.ack()])
    consumer.consume()
    pool = connection.Pool(1)
    held = pool.acquire()
    simple = connection.SimpleQueue(queue)
    spawned = spawn_consumer(unique, lambda body, message: None, connection=connection)
    publish(unique, "x", connection=connection, timeout=SOON)
    publish(unique, "x", connection=secret_url, timeout=SOON)
    texts.extend(reprs())
    format_run_info: Any = gevent.util.format_run_info  # which has no types
    texts.append("\n".join(format_run_info()))
    wrong: dict[str, Callable[[], Any]] = {
        "wrong password": lambda: connection.clone(password=f"{MARK}-wrong").connect(),
        "wrong user": lambda: connection.clone(userid="nobody").connect(),
        "wrong vhost": lambda: connection.clone(virtual_host="none-such").connect(),
        "nobody listens": lambda: connection.clone(port=9, connect_timeout=1).connect(),
        "ensure": lambda: connection.clone(port=9).ensure_connection(max_retries=1),
        "default channel": lambda: connection.clone(port=9, connect_timeout=1).default_channel,
        "unknown host": lambda: connection.clone(hostname="no.such.invalid").connect(),
        "no TLS there": lambda: connection.clone(ssl=True, connect_timeout=1).connect(),
        "options": lambda: connection.clone(transport_options={"frame_max": "x"}).connect(),
        "many": lambda: Connection(f"{login}@127.0.0.1:9/;{login}@127.0.0.1:8/").connect(),
        "query": lambda: Connection(f"{secret_url}?hartbeat=1"),
        "bad value": lambda: Connection(f"{secret_url}?heartbeat=often"),
        "scheme": lambda: Connection(f"{secret_url.replace('amqp', 'ampq', 1)}"),
        "class": lambda: Connection(f"{secret_url.replace('amqp', 'no.such:Class', 1)}"),
        "port": lambda: Connection(f"{login}@127.0.0.1:notaport//"),
        "bracket": lambda: Connection(f"{login}@[::1//"),
        "configure": lambda: configure(f"{secret_url}?nonsense=1"),
        "switch": lambda: connection.clone().switch(f"{secret_url}?nonsense=1"),
        "pool": pool.acquire,
        "pool in time": lambda: pool.acquire(block=True, timeout=0.01),
        "absent": lambda: connection.channel().queue_declare(f"{unique}-none", passive=True),
        "refused": lambda: connection.channel().queue_declare("not-mine"),
        "publish": lambda: publish("not-mine", "x", connection=connection, timeout=2),
        "unroutable": lambda: publish(
            Exchange(""), "x", connection=connection, routing_key=f"{unique}-none"
        ),
        "timeout": lambda: publish(unique, "x", connection=connection, timeout=0),
        "rpc": lambda: call(unique, "x", connection=connection, timeout=0.05),
        "short url": lambda: publish(unique, "x", connection=f"{login}@127.0.0.1:9/", timeout=0.2),
        "drain": lambda: (
            connection.drain_events(timeout=0.01) or connection.drain_events(timeout=0)
        ),
    }
    for name, function in wrong.items():
        with suppress(AssertionError):
            fails(function)
            continue
        assert name in ("drain", "timeout"), f"{name} did not fail"
    held.release()
    held.connect()  # works, and the log tells of the place
    texts.append(repr(held))
    draining = gevent.spawn(connection.drain_events)
    gevent.sleep(0)
    relay.server.stop()
    fails(lambda: draining.get(timeout=SOON))
    fails(lambda: Producer(connection).publish("x", unique, retry=True, timeout=0.2))
    fails(lambda: publish(unique, "x", connection=connection, timeout=0.2))
    fails(lambda: channel.queue_declare(unique, passive=True))
    texts.extend(reprs())
    relay.server.start()
    assert spawned.stop(SOON)
    simple.close()
    pool.force_close_all()
    connection.close()
    fails(lambda: connection.drain_events(timeout=0.1))
    texts.extend(reprs())
    texts.append(caplog.text)
    texts.extend(repr(record.args) for record in caplog.records)
    assert len(texts) > 1000
    assert sum("**@" in text for text in texts) > 100
    for text in texts:
        for mark in MARKS:
            assert mark not in text, text
    reset()
    with Connection(secret_url) as last:
        last.default_channel.queue_delete(unique)


@pytest.mark.parametrize("command", ["ping", "publish", "consume"])
def test_no_password_in_what_commands_print(command: str) -> None:
    url = f"amqp://me:{quote(MARK, safe='')}@127.0.0.1:9//"
    more = {"publish": ["queue", "body"], "consume": ["queue"]}.get(command, [])
    done = subprocess.run(
        [sys.executable, "-m", "greenconn", command, *more, "--url", url],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "GREENCONN_URL": url},
    )
    assert done.returncode != 0
    for mark in MARKS:
        assert mark not in done.stdout + done.stderr


# Heartbeats, and a hub that is blocked


def test_a_peer_that_falls_silent_is_noticed_with_heartbeats_alone(relay: Relay) -> None:
    with (
        Connection(relay.url, heartbeat=1) as with_heartbeat,
        Connection(relay.url, heartbeat=0) as without,
        Connection(relay.url) as brokers,
    ):
        assert with_heartbeat.get_heartbeat_interval() == 1
        assert without.get_heartbeat_interval() == 0
        assert brokers.get_heartbeat_interval() == 60
        clone = without.clone()
        assert clone.get_heartbeat_interval() == 0
        clone.close()
        connections = (with_heartbeat, without, brokers)
        waiting = [gevent.spawn(each.drain_events) for each in connections]
        gevent.sleep(0.01)
        relay.is_passing.clear()
        began = time.monotonic()
        with pytest.raises(with_heartbeat.connection_errors, match="heartbeat"):
            waiting[0].get(timeout=SOON)
        assert 1.5 < time.monotonic() - began < 15.0
        assert not with_heartbeat.connected
        assert with_heartbeat.heartbeat_check is not None
        with pytest.raises(with_heartbeat.connection_errors):
            with_heartbeat.heartbeat_check()
        for each in (without, brokers):
            each.heartbeat_check()
            assert each.connected
        relay.is_passing.set()
        assert without.channel().queue_declare(exclusive=True).queue
        gevent.killall(waiting)


def compute(body: Any, message: Any) -> None:
    """A handler that waits for nothing and so blocks the hub for longer than a heartbeat."""
    if body == "compute":
        native_sleep(1.6)
    message.ack()


def quick(body: Any, message: Any) -> None:
    """A handler that has its turn before the timers have theirs."""
    message.ack()


@pytest.mark.parametrize("how", ["drained", "on_message", "spawned"])
def test_a_blocked_hub_is_reported_by_name_and_survived(
    amqp_url: str, unique: str, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    with Connection(amqp_url, heartbeat=1) as connection:
        slow, fast = (
            Queue(f"{unique}-{name}", expires=60)(connection.default_channel)
            for name in ("slow", "fast")
        )
        slow.declare()
        fast.declare()
        handled: list[str] = []

        def whole(message: Any) -> None:
            compute(message.payload, message)

        def both() -> None:
            for body in ("compute", "after"):
                connection.Producer().publish(body, slow.name)
                for _ in range(3):
                    connection.Producer().publish(body, fast.name)

        def note(body: Any, message: Any) -> None:
            handled.append(body)

        if how == "spawned":
            consumers = [
                spawn_consumer(slow.name, compute, connection=connection),
                spawn_consumer(fast.name, quick, connection=connection),
            ]
            assert all(each.wait_ready(SOON) for each in consumers)
            both()
            until(lambda: sum(each.stats()["handled"] for each in consumers) == 8, SOON)
            gevent.sleep(0.3)
            assert all(each.stop(SOON) for each in consumers)
        else:
            channel = connection.channel()
            callbacks: dict[str, Any] = {"callbacks": [note, compute]}
            if how == "on_message":
                callbacks = {"on_message": whole}
            with Consumer(channel, slow, **callbacks), Consumer(channel, fast, callbacks=[quick]):
                both()
                with suppress(TimeoutError):
                    while True:
                        connection.drain_events(timeout=0.4)
        assert connection.session.generation == 1
        slow.delete()
        fast.delete()
    assert "the hub was blocked for 1." in caplog.text
    name = "whole" if how == "on_message" else "compute"
    assert re.search(rf"the last handler called was \S*\b{name}:", caplog.text)


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_a_blocked_hub_is_reported_where_messages_are_leased(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    unique: str,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """A lease that is not renewed ends: nobody should have to guess why messages come twice."""
    url = f"sqlite:///{tmp_path}/mail.db"
    if kind == "redis":
        url = request.getfixturevalue("redis_url")

    def hog(body: Any, message: Any) -> None:
        native_sleep(0.5)

    with Connection(url, transport_options={"lease": 0.6}) as connection:
        consumer = spawn_consumer(unique, hog, connection=connection)
        assert consumer.wait_ready(SOON)
        publish(unique, "x", connection=connection)
        logged = r"the hub was blocked for .*; the last handler called was \S*\bhog:"
        until(lambda: re.search(logged, caplog.text), SOON)
        until(lambda: consumer.stats()["handled"], SOON)
        assert consumer.stop(SOON)
        connection.default_channel.queue_delete(unique)


# A peer that takes nothing, a broker that blocks


@pytest.mark.parametrize("how", ["plain", "confirmed", "short"])
def test_a_peer_that_stops_reading_blocks_publishers_with_bounded_memory(
    relay: Relay, unique: str, how: str
) -> None:
    options = {"blocked_timeout": 1.5, "confirm_publish": how == "confirmed"}
    with Connection(relay.url, transport_options=options) as connection:
        connection.default_channel.queue_declare(unique, arguments={"x-expires": 60_000})
        producer = Producer(connection)
        publish(unique, "first", connection=connection, declare=True)
        body = b"x" * (1 << 20)
        errors: list[BaseException] = []
        sent = 0

        def flood() -> None:
            nonlocal sent
            try:
                for _ in range(100):
                    if how == "short":
                        publish(unique, body, connection=connection, timeout=1.5, declare=True)
                    else:
                        timeout = 1.5 if how == "confirmed" else None
                        producer.publish(body, unique, timeout=timeout)
                    sent += 1
            except OperationalError as exc:
                errors.append(exc)

        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        relay.is_passing.clear()
        began = time.monotonic()
        gevent.joinall([gevent.spawn(flood) for _ in range(10)], timeout=SOON, raise_error=True)
        took = time.monotonic() - began
        assert 1.4 < took < 14.0  # ten one after the other would take 15 seconds
        assert len(errors) == 10
        assert any(isinstance(each, ConnectionBlocked) for each in errors), errors
        assert all(isinstance(each, (ConnectionBlocked, PublishTimeout)) for each in errors)
        if how == "plain":
            assert all(isinstance(each, ConnectionBlocked) for each in errors)
            assert connection.session.life.link.writer.pending < (3 << 20)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 64 * 1024  # KiB
        relay.is_passing.set()
        publish(unique, "last", connection=connection, timeout=SOON, declare=True)
        producer.publish("last", unique)
        connection.default_channel.queue_delete(unique)


def test_a_memory_alarm_stops_publishers_and_nobody_else(
    own_rabbitmq: RabbitMQ, unique: str
) -> None:
    options = {"blocked_timeout": 0.5}
    notified: list[Any] = []
    options["on_blocked"] = notified.append  # type: ignore[assignment]
    options["on_unblocked"] = lambda: notified.append(None)  # type: ignore[assignment]
    got: list[Any] = []
    with Connection(own_rabbitmq.url, transport_options=options) as connection:
        for number in range(50):
            publish(unique, number, connection=connection, declare=True)
        own_rabbitmq.set_memory_alarm(True)
        producer = Producer(connection)
        may_go = Event()

        def handle(body: Any, message: Any) -> None:
            may_go.wait(SOON)
            got.append(body)

        consumer = spawn_consumer(unique, handle, connection=connection, prefetch_count=5)
        with suppress(ConnectionBlocked):  # the broker blocks a connection when it publishes
            producer.publish("too many", unique)
            gevent.sleep(0.2)
        with pytest.raises(ConnectionBlocked, match="alarm"):
            producer.publish("too many", unique)
        with pytest.raises((ConnectionBlocked, PublishTimeout)):
            publish(unique, "too many", connection=connection, timeout=0.5)
        waiting = gevent.spawn(producer.publish, "waited", unique, timeout=SOON)
        waits = gevent.spawn(publish, unique, "waited", connection=connection, timeout=SOON)
        gevent.sleep(0.2)
        own_rabbitmq.set_memory_alarm(False)
        waiting.get(timeout=SOON)
        waits.get(timeout=SOON)
        may_go.set()
        until(lambda: got.count("waited") == 2, SOON)
        assert consumer.stop(SOON)
        assert set(range(50)) <= set(got)
        with suppress(TimeoutError):
            while True:
                connection.drain_events(timeout=0.1)
        assert notified[0]
        assert notified[-1] is None
        connection.default_channel.queue_delete(unique)


# Idle


@pytest.mark.parametrize("kind", ["spawned", "drained"])
def test_a_thousand_idle_consumers_do_not_poll(relay: Relay, unique: str, kind: str) -> None:
    names = [f"{unique}-{number}" for number in range(10)]
    count = 1000
    with Connection(relay.url) as connection:
        channel = connection.default_channel
        for name in names:
            channel.queue_declare(name, arguments={"x-expires": 120_000})
        draining: list[gevent.Greenlet[..., Any]] = []
        if kind == "spawned":
            consumers = [
                spawn_consumer(
                    names[number % 10], lambda body, message: None, connection=connection
                )
                for number in range(count)
            ]
            assert all(each.wait_ready(SOON) for each in consumers)
        else:
            for number in range(count):
                if number % 50 == 0:
                    channel = connection.channel()
                channel.basic_consume(names[number % 10], callback=lambda message: None)
            draining = [gevent.spawn(connection.drain_events) for _ in range(count)]
        gevent.sleep(0.5)
        turns = switches = 0
        watcher = gevent.get_hub().loop.prepare()
        main = gevent.getcurrent()

        def turned() -> None:
            nonlocal turns
            turns += 1

        def switched(event: str, ends: tuple[Any, Any]) -> None:
            nonlocal switches
            switches += main not in ends

        watcher.start(turned)
        former = settrace(switched)
        try:
            gevent.sleep(1.0)
        finally:
            settrace(former)
            watcher.stop()
            watcher.close()
        assert switches <= 10
        assert turns <= 20
        assert relay.open <= 2
        if kind == "spawned":
            assert stop_consumers(SOON)
        gevent.killall(draining)
        for name in names:
            connection.default_channel.queue_delete(name)
