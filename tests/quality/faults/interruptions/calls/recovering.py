"""Calls that find the connection dead: who is interrupted while it comes back takes nobody along."""

# ruff: noqa: B023 - what is yielded runs before the loop goes on

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent

from greenconn import rpc
from greenconn.connection import Connection
from greenconn.green.hub import yield_to_hub
from greenconn.messaging import Consumer, Producer
from greenconn.publishing import publish
from greenconn.simple import SimpleQueue
from greenconn.worker import spawn_consumer
from tests.fix_wires import until
from tests.quality.faults.interruptions.scene import (
    SOON,
    Interruptible,
    Scene,
    call,
    drain_for,
    ended,
)
from tests.quality.faults.interruptions.targets import Target


def can_cut(target: Target) -> bool:
    """Whether links can be cut."""
    return target.can_cut


def cut(scene: Scene, *connections: Connection) -> None:
    """End all links, and wait until *connections* have noticed.  May switch."""
    noticing = [(each.session, each.session.generation) for each in connections]
    scene.target.cut()
    for session, before in noticing:
        while session.is_open and session.generation == before:
            yield_to_hub()  # not longer: it comes back


class Bench:
    """A connection that is cut before each run, with a queue and a consumer that comes back."""

    def __init__(self, scene: Scene, consumes: bool) -> None:
        self.scene = scene
        self.connection: Connection = scene.connection()
        self.queue = scene.queue(self.connection)
        self.producer = Producer(self.connection)
        self.got: list[Any] = []
        self.consumer = Consumer(self.connection, self.queue, callbacks=[self.receive])
        self.consumes = consumes
        if consumes:
            self.consumer.consume()

    def receive(self, body: Any, message: Any) -> None:
        """Take a message."""
        self.got.append(body)
        message.ack()

    def cut(self) -> None:
        """End the link, and wait until that is noticed.  May switch."""
        cut(self.scene, self.connection)

    def whole(self) -> None:
        """One consumer, or none, and each message once.  May switch."""
        self.scene.whole(self.connection)
        consumers = self.scene.consumers
        until(lambda: consumers(self.connection, self.queue.name) == self.consumes)
        if self.consumes:
            self.got.clear()
            publish(self.queue.name, "last", connection=self.connection, timeout=SOON, declare=True)
            while "last" not in self.got:
                with suppress(*self.connection.connection_errors):
                    self.connection.drain_events(timeout=SOON)
        else:
            self.queue.purge()


def dead(scene: Scene, use: Callable[[Bench], Any], consumes: bool) -> Interruptible:
    bench = Bench(scene, consumes)
    while True:
        bench.cut()
        ended((yield lambda: use(bench)))
        bench.whole()


def drain(bench: Bench) -> None:
    """Drain for a moment.  May switch."""
    drain_for(bench.connection, 0.02)


def consume(bench: Bench) -> None:
    """A consumer of one's own.  May switch."""
    other = Consumer(bench.connection, bench.queue, callbacks=[bench.receive])
    with other:
        pass


def simple_get(bench: Bench) -> None:
    """Get and give back.  May switch."""
    simple = SimpleQueue(bench.connection, f"{bench.scene.name}-simple")
    bench.scene.delete_in_the_end(simple.queue.name)
    try:
        with suppress(simple.Empty):
            simple.get(timeout=0.01)
    finally:
        simple.close()


def ensured(bench: Bench) -> None:
    """Publish by way of ``ensure``.  May switch."""
    send = bench.connection.ensure(bench.producer, bench.producer.publish, max_retries=3)
    send("x", bench.queue.name)


def retried(bench: Bench) -> None:
    """Declare by way of ``autoretry``.  May switch."""

    def declare(channel: Any) -> Any:
        return channel.queue_declare(bench.queue.name, passive=True)

    bench.connection.autoretry(declare, max_retries=3)()


USES: dict[str, Callable[[Bench], Any]] = {
    "Connection.connect": lambda bench: bench.connection.connect(),
    "Connection.ensure_connection": lambda bench: bench.connection.ensure_connection(),
    "Connection.channel": lambda bench: bench.connection.channel().close(),
    "Connection.default_channel": lambda bench: bench.connection.default_channel.basic_qos(
        0, 1, False
    ),
    "Connection.drain_events": drain,
    "Connection.ensure": ensured,
    "Connection.autoretry": retried,
    "Producer.publish(retry=True)": lambda bench: bench.producer.publish(
        "x", bench.queue.name, retry=True, timeout=SOON
    ),
    "greenconn.publish": lambda bench: publish(
        bench.queue.name, "x", connection=bench.connection, timeout=SOON
    ),
    "Queue.queue_declare": lambda bench: bench.queue.queue_declare(passive=True),
    "with Consumer": consume,
    "SimpleQueue.get": simple_get,
}


def enter(name: str, use: Callable[[Bench], Any]) -> None:
    """Enter a call, on a connection without and with what has to be restored."""

    def plain(scene: Scene) -> Interruptible:
        yield from dead(scene, use, False)

    def restored(scene: Scene) -> Interruptible:
        yield from dead(scene, use, True)

    call("recovery", f"{name}, dead", can_cut)(plain)
    call("recovery", f"{name}, restoring", can_cut)(restored)


for each, used in USES.items():
    enter(each, used)


@call("recovery", "ConsumerGreenlet.wait_ready, restoring", can_cut)
def wait_ready(scene: Scene) -> Interruptible:
    connection = scene.connection()
    queue, got = scene.queue(connection).name, list[Any]()
    consumer = spawn_consumer(queue, lambda body, message: got.append(body), connection=connection)
    assert consumer.wait_ready(SOON)
    try:
        while True:
            cut(scene, connection)
            ended((yield lambda: consumer.wait_ready(SOON)))
            publish(queue, "x", connection=connection, timeout=SOON)
            until(lambda: got, SOON)
            got.clear()
            scene.whole(connection)
            until(lambda: scene.consumers(connection, queue) == 1)
    finally:
        consumer.stop(SOON)


@call("recovery", "rpc.call, dead", can_cut)
def rpc_call(scene: Scene) -> Interruptible:
    serving = scene.connection()
    queue = scene.queue(serving).name
    server = rpc.spawn_server(queue, lambda body: body, connection=serving)
    assert server.wait_ready(SOON)
    connection = scene.connection()
    assert rpc.call(queue, 0, connection=connection, timeout=SOON) == 0
    try:
        while True:
            cut(scene, serving, connection)
            until(lambda: server.wait_ready(SOON) and scene.consumers(connection, queue) == 1)
            run = yield lambda: rpc.call(queue, 1, connection=connection, timeout=SOON)
            if ended(run):
                assert run.result == 1
            greenlets = [
                gevent.spawn(rpc.call, queue, number, connection=connection, timeout=SOON)
                for number in range(5)
            ]
            assert [each.get(timeout=SOON) for each in greenlets] == list(range(5))
            scene.whole(connection)
    finally:
        server.stop(SOON)


@call("recovery", "Connection.Pool.acquire, dead", can_cut)
def pool_acquire(scene: Scene) -> Interruptible:
    pool = scene.connection(opened=False).Pool(2)

    used: set[Connection] = set()

    def use() -> None:
        with pool.acquire(block=True, timeout=SOON) as connection:
            connection.ensure_connection(max_retries=3)
            used.add(connection)
            connection.default_channel.basic_qos(0, 1, False)

    try:
        while True:
            use()
            cut(scene, *used)
            used.clear()
            ended((yield use))
            assert pool.stats()["in_use"] == 0
            with pool.acquire() as connection:
                connection.ensure_connection(max_retries=3)
                scene.whole(connection)
    finally:
        pool.force_close_all()


def counts_at_once(target: Target) -> bool:
    """Whether a consumer whose link was cut does not count any more, without a lease to end."""
    return can_cut(target) and target.name != "redis"


@call("recovery", "Connection.close, restoring", counts_at_once)
def close(scene: Scene) -> Interruptible:
    while True:
        bench = Bench(scene, True)
        bench.cut()
        ended((yield bench.connection.close))
        bench.connection.close()
        assert not bench.connection.connected
        mine = scene.connection()
        until(lambda: scene.consumers(mine, bench.queue.name) == 0)
        scene.whole(mine)
        mine.close()
