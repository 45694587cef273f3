"""Connections: opening, closing, and what they offer."""

# ruff: noqa: B023 - what is yielded runs before the loop goes on

from __future__ import annotations

from typing import Any

import gevent

import greenconn
from greenconn import defaults, health
from greenconn.connection import Connection
from greenconn.defaults import publishing_connection
from greenconn.entity import Queue
from greenconn.green.hub import yield_to_hub
from greenconn.messaging import Consumer, Producer
from greenconn.publishing import publish
from tests.fix_wires import until
from tests.quality.faults.interruptions.scene import (
    SOON,
    Interruptible,
    Scene,
    call,
    drain_for,
    ended,
    enter,
    ignore,
)


def opening(scene: Scene, use: Any) -> Interruptible:
    """What opens a connection."""
    while True:
        connection = scene.connection(opened=False)
        if ended((yield lambda: use(connection))):
            assert connection.connected
        scene.whole(connection)
        connection.close()


enter("connection", "Connection.connect", opening, Connection.connect)
enter(
    "connection",
    "Connection.ensure_connection",
    opening,
    lambda connection: connection.ensure_connection(max_retries=3),
)


@call("connection", "Connection.clone().connect")
def clone(scene: Scene) -> Interruptible:
    original = scene.connection()
    while True:
        connection = scene.keep(original.clone())
        if ended((yield connection.connect)):
            assert connection.connected
        scene.whole(connection)
        connection.close()
        scene.whole(original)


enter("connection", "Connection.get_heartbeat_interval", opening, Connection.get_heartbeat_interval)


@call("connection", "with Connection")
def with_connection(scene: Scene) -> Interruptible:
    made: list[Connection] = []

    def use() -> None:
        with scene.connection(opened=False) as connection:
            made.append(connection)
            connection.default_channel.basic_qos(0, 1, False)

    while True:
        ended((yield use))
        for connection in made:
            assert not connection.connected
        made.clear()
        scene.target.check()


@call("connection", "Connection.default_channel")
def default_channel(scene: Scene) -> Interruptible:
    connection, number = scene.connection(), 0
    while True:
        run = yield lambda: connection.default_channel
        if ended(run):
            assert run.result is connection.default_channel
        assert connection.default_channel is connection.default_channel
        scene.whole(connection)
        number += 1
        if number % 2:
            connection.default_channel.close()
        else:
            connection.close()
            connection = scene.connection(opened=False)


@call("connection", "Connection.channel")
def channel(scene: Scene) -> Interruptible:
    connection = scene.connection()
    scene.whole(connection)
    before = scene.channels(connection)
    while True:
        run = yield connection.channel
        if ended(run):
            run.result.close()
        scene.whole(connection)
        until(lambda: scene.channels(connection) == before)


@call("connection", "Connection.close")
def close(scene: Scene) -> Interruptible:
    while True:
        connection = scene.connection()
        queue = scene.queue(connection)
        Consumer(connection, queue, callbacks=[ignore]).consume()
        ended((yield connection.close))
        connection.close()
        assert not connection.connected
        scene.target.check()
        scene.whole(connection)
        connection.close()


@call("connection", "Connection.close, with a publisher")
def close_both(scene: Scene) -> Interruptible:
    """What ``greenconn.publish`` opened beside it goes with it."""
    mine = scene.connection()
    queue = scene.queue(mine).name
    while True:
        connection = scene.connection()
        publish(queue, "x", connection=connection, declare=True)
        beside = publishing_connection(connection)
        ended((yield connection.close))
        connection.close()
        until(lambda: not beside.connected)
        scene.whole(mine)


@call("connection", "defaults.reset")
def reset_defaults(scene: Scene) -> Interruptible:
    mine = scene.connection()
    queue = scene.queue(mine).name
    while True:
        greenconn.configure(scene.target.url)
        publish(queue, "x", declare=True)
        consumer = greenconn.spawn_consumer(queue, ignore)
        assert consumer.wait_ready(SOON)
        assert consumer.stop(SOON)
        both = [defaults.default_connection(kind) for kind in defaults.KINDS]
        try:
            ended((yield defaults.reset))
        finally:
            defaults.reset()
        for each in both:
            until(lambda: not each.connected)
        scene.whole(mine)


@call("connection", "Connection.release")
def release(scene: Scene) -> Interruptible:
    while True:
        connection = scene.connection()
        Producer(connection).publish("x", "nowhere")
        ended((yield connection.release))
        connection.release()
        assert not connection.connected
        scene.target.check()


@call("connection", "Connection.collect")
def collect(scene: Scene) -> Interruptible:
    while True:
        connection = scene.connection()
        ended((yield connection.collect))
        connection.collect()
        scene.whole(connection)
        connection.close()


@call("connection", "Connection.switch")
def switch(scene: Scene) -> Interruptible:
    while True:
        connection = scene.connection()
        connection.default_channel.basic_qos(0, 1, False)
        ended((yield lambda: connection.switch(scene.target.url)))
        scene.whole(connection)
        connection.close()


@call("connection", "Connection.maybe_close_channel")
def maybe_close_channel(scene: Scene) -> Interruptible:
    connection = scene.connection()
    scene.whole(connection)
    before = scene.channels(connection)
    while True:
        opened = connection.channel()
        ended((yield lambda: connection.maybe_close_channel(opened)))
        connection.maybe_close_channel(opened)
        until(lambda: scene.channels(connection) == before)
        scene.whole(connection)


@call("connection", "Connection.heartbeat_check")
def heartbeat_check(scene: Scene) -> Interruptible:
    connection = scene.connection()
    while True:
        ended((yield connection.heartbeat_check))
        scene.whole(connection)


@call("connection", "Connection.ensure")
def ensure(scene: Scene) -> Interruptible:
    connection = scene.connection()
    queue = scene.queue(connection)
    producer = Producer(connection)
    publish = connection.ensure(producer, producer.publish, max_retries=3)
    while True:
        was_sent = ended((yield lambda: publish("x", queue.name)))
        producer.publish("after", queue.name)
        bodies = scene.take_all(connection, queue.name, "after")
        assert bodies in (["x", "after"], ["after"])
        assert not was_sent or len(bodies) == 2
        scene.whole(connection)


@call("connection", "Connection.autoretry")
def autoretry(scene: Scene) -> Interruptible:
    connection = scene.connection()
    queue = scene.queue(connection)

    def declare(channel: Any) -> Any:
        return channel.queue_declare(queue.name, passive=True)

    retried = connection.autoretry(declare, max_retries=3)
    while True:
        run = yield retried
        if ended(run):
            assert run.result[0].queue == queue.name
        scene.whole(connection)


def receiving(scene: Scene, is_late: bool) -> Interruptible:
    """A message that was on its way to a greenlet that is interrupted goes to the next one."""

    connection, got = scene.connection(), list[Any]()
    queue, producer = scene.queue(connection), Producer(connection)
    sending: list[gevent.Greenlet[..., Any]] = []

    def receive(body: Any, message: Any) -> None:
        got.append(body)
        yield_to_hub()  # a place to be interrupted at
        message.ack()

    def drain() -> None:
        if is_late:
            sending.append(gevent.spawn(producer.publish, number, queue.name))
        else:
            producer.publish(number, queue.name)
        connection.drain_events(timeout=30)

    number = 0
    with Consumer(connection, queue, callbacks=[receive]) as consumer:
        while True:
            ended((yield drain))
            gevent.joinall(sending, timeout=30)
            producer.publish("after", queue.name)
            while "after" not in got:
                connection.drain_events(timeout=30)
            assert got in ([number, "after"], ["after"]), got
            number += 1
            consumer.recover(requeue=True)  # what was interrupted in its callback
            while scene.count(connection, queue.name) or drained(connection):
                pass
            got.clear()
            assert scene.consumers(connection, queue.name) == 1
            scene.whole(connection)


def drained(connection: Connection) -> bool:
    """Whether there was an event to be drained.  May switch."""
    try:
        connection.drain_events(timeout=0)
    except TimeoutError:
        return False
    return True


enter("connection", "Connection.drain_events", receiving, False)
enter("connection", "Connection.drain_events, waiting", receiving, True)


@call("connection", "Connection.drain_events(timeout=...)")
def drain_nothing(scene: Scene) -> Interruptible:
    connection = scene.connection()
    queue = scene.queue(connection)

    def drain() -> None:
        for timeout in (0, 0.001):
            drain_for(connection, timeout)

    with Consumer(connection, queue, callbacks=[ignore]):
        while True:
            ended((yield drain))
            scene.whole(connection)


@call("connection", "Connection.update_secret", lambda target: target.speaks_amqp)
def update_secret(scene: Scene) -> Interruptible:
    connection = scene.connection()
    while True:
        ended((yield lambda: connection.update_secret("guest")))
        scene.whole(connection)


@call("connection", "health.check(timeout)")
def check(scene: Scene) -> Interruptible:

    while True:
        connection = scene.connection(opened=False)
        opening = gevent.spawn(connection.connect)
        gevent.sleep(0)
        try:
            run = yield lambda: health.check(timeout=10)
        finally:
            opening.join(timeout=30)
        if ended(run):
            assert run.result.is_ready, run.result
        opening.get(block=False)
        scene.whole(connection)
        connection.close()


@call("connection", "Queue(...)(connection)")
def binding(scene: Scene) -> Interruptible:
    while True:
        connection = scene.connection(opened=False)
        ended((yield lambda: Queue(scene.name)(connection).queue_declare()))
        connection.default_channel.queue_delete(scene.name)
        scene.whole(connection)
        connection.close()
