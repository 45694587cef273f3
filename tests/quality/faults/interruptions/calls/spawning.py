"""Consumers that live by themselves."""

# ruff: noqa: B023 - what is yielded runs before the loop goes on

from __future__ import annotations

from typing import Any

import gevent
from gevent.event import Event

import greenconn
from greenconn.connection import Connection
from greenconn.publishing import publish
from greenconn.worker import ConsumerGreenlet, spawn_consumer
from tests.fix_wires import until
from tests.quality.faults.interruptions.scene import SOON, Interruptible, Scene, call, ended
from tests.quality.faults.interruptions.targets import Target


class Bench:
    """A queue for consumers, and what they got."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.connection: Connection = scene.connection()
        self.queue: str = scene.queue(self.connection).name
        self.got: list[Any] = []
        #: Handlers wait until it is set.
        self.may_end = Event()
        self.may_end.set()
        self._spawned: list[ConsumerGreenlet] = []

    def handle(self, body: Any, message: Any) -> None:
        """Take a message."""
        self.may_end.wait(SOON)
        self.got.append(body)

    def spawn(self, **options: Any) -> ConsumerGreenlet:
        """A consumer."""
        consumer = spawn_consumer(self.queue, self.handle, connection=self.connection, **options)
        self._spawned.append(consumer)
        return consumer

    def ready(self, **options: Any) -> ConsumerGreenlet:
        """A consumer that the broker has confirmed.  May switch."""
        consumer = self.spawn(**options)
        assert consumer.wait_ready(SOON)
        return consumer

    def busy(self, messages: int, **options: Any) -> ConsumerGreenlet:
        """A consumer of so many messages, two of which are with handlers that wait.  May switch."""
        self.may_end.clear()
        self.got.clear()
        consumer = self.ready(concurrency=2, **options)
        for number in range(messages):
            publish(self.queue, number, connection=self.connection, timeout=SOON, declare=True)
        until(lambda: consumer.stats()["in_flight"] == 2)
        return consumer

    def accounts_for(self, messages: int) -> None:
        """Each of them was handled, or is in the queue.  May switch."""
        self.gone()
        left = self.scene.take(self.connection, self.queue, messages - len(self.got))
        assert sorted([*self.got, *left]) == list(range(messages))

    def works(self, consumer: ConsumerGreenlet) -> None:
        """It handles a message, once.  May switch."""
        self.got.clear()
        publish(self.queue, "x", connection=self.connection, timeout=SOON, declare=True)
        until(lambda: self.got, SOON)
        assert self.got == ["x"]
        assert self.consumers() == 1
        assert consumer.stop(SOON)
        self.gone()

    def consumers(self) -> int:
        """How many the queue has.  May switch."""
        return self.scene.consumers(self.connection, self.queue)

    def gone(self) -> None:
        """No consumer is left, and nobody holds a message.  May switch."""
        until(lambda: self.consumers() == 0)
        self.scene.whole(self.connection)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End all of them.  May switch."""
        self.may_end.set()
        for consumer in self._spawned:
            consumer.stop(SOON)


@call("spawn", "spawn_consumer, wait_ready")
def wait_ready(scene: Scene) -> Interruptible:
    spawned: list[ConsumerGreenlet] = []

    def use() -> Any:
        spawned.append(bench.spawn())
        return spawned[-1].wait_ready(SOON)

    with Bench(scene) as bench:
        while True:
            run = yield use
            if ended(run):
                assert run.result is True
            assert spawned[-1].wait_ready(SOON)
            bench.works(spawned[-1])


@call("spawn", "spawn_consumer over a new connection")
def new_connection(scene: Scene) -> Interruptible:
    bench = Bench(scene)
    while True:
        connection = scene.connection(opened=False)
        made: list[ConsumerGreenlet] = []

        def use(connection: Connection = connection, made: list[Any] = made) -> Any:
            made.append(spawn_consumer(bench.queue, bench.handle, connection=connection))
            return made[0].wait_ready(SOON)

        ended((yield use))
        assert made[0].wait_ready(SOON)
        bench.works(made[0])
        connection.close()


@call("spawn", "ConsumerGreenlet.stop")
def stop(scene: Scene) -> Interruptible:
    with Bench(scene) as bench:
        while True:
            consumer = bench.ready()
            run = yield lambda: consumer.stop(SOON)
            if ended(run):
                assert run.result is True
            assert consumer.stop(SOON)
            bench.gone()
            bench.works(bench.ready())


@call("spawn", "ConsumerGreenlet.stop amid handlers")
def stop_busy(scene: Scene) -> Interruptible:
    """Each message was handled, or is in the queue."""
    with Bench(scene) as bench:
        while True:
            consumer = bench.busy(6, prefetch_count=4)
            timer = gevent.spawn_later(0.0, bench.may_end.set)
            ended((yield lambda: consumer.stop(SOON)))
            timer.join()
            assert consumer.stop(SOON)
            bench.accounts_for(6)


@call("spawn", "ConsumerGreenlet.pause")
def pause(scene: Scene) -> Interruptible:
    with Bench(scene) as bench:
        while True:
            consumer = bench.ready()
            run = yield lambda: consumer.pause(SOON)
            if ended(run):
                assert run.result is True
            assert consumer.pause(SOON)
            until(lambda: bench.consumers() == 0)
            consumer.resume()
            assert consumer.wait_ready(SOON)
            bench.works(consumer)


@call("spawn", "ConsumerGreenlet.resume, wait_ready")
def resume(scene: Scene) -> Interruptible:
    with Bench(scene) as bench:
        while True:
            consumer = bench.ready()
            assert consumer.pause(SOON)

            def use(consumer: ConsumerGreenlet = consumer) -> Any:
                consumer.resume()
                return consumer.wait_ready(SOON)

            ended((yield use))
            assert consumer.wait_ready(SOON)
            bench.works(consumer)


@call("spawn", "ConsumerGreenlet.kill")
def kill(scene: Scene) -> Interruptible:
    """However it ends, its messages are there for the next one."""
    with Bench(scene) as bench:
        while True:
            consumer = bench.busy(4)
            ended((yield consumer.kill))
            consumer.kill()
            bench.may_end.set()
            bench.accounts_for(4)


@call("spawn", "ConsumerGreenlet.join, get")
def join(scene: Scene) -> Interruptible:
    with Bench(scene) as bench:
        while True:
            consumer = bench.ready()
            stopping = gevent.spawn_later(0.0, consumer.stop)
            run = yield lambda: consumer.get(timeout=SOON)
            if ended(run):
                assert run.result["state"] == "stopped"
            stopping.join()
            assert consumer.stop(SOON)
            bench.gone()


@call("spawn", "stop_consumers")
def stop_all(scene: Scene) -> Interruptible:
    with Bench(scene) as bench:
        while True:
            consumers = [bench.ready() for _ in range(3)]
            ended((yield lambda: greenconn.stop_consumers(SOON)))
            assert greenconn.stop_consumers(SOON)
            assert all(each.ready() for each in consumers)
            bench.gone()


def counts_at_once(target: Target) -> bool:
    """Whether a consumer whose link ended somehow does not count any more, without a lease to end."""
    return target.name != "sqlite"


@call("spawn", "Connection.close beneath a consumer", counts_at_once)
def close_beneath(scene: Scene) -> Interruptible:
    bench = Bench(scene)
    while True:
        connection = scene.connection()
        consumer = spawn_consumer(bench.queue, bench.handle, connection=connection)
        assert consumer.wait_ready(SOON)
        ended((yield connection.close))
        connection.close()
        consumer.stop(SOON)
        bench.gone()
