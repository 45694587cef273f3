"""Consumers that a program drains by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenconn.connection import Connection
from greenconn.messaging import Consumer, Producer
from tests.fix_wires import until
from tests.quality.faults.interruptions.calls.connecting import drained
from tests.quality.faults.interruptions.scene import (
    SOON,
    Interruptible,
    Scene,
    call,
    ended,
    enter,
    ignore,
)


class Bench:
    """A consumer with its queue, and what it got."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.connection: Connection = scene.connection()
        self.queue = scene.queue(self.connection)
        self.got: list[Any] = []
        self.consumer = Consumer(
            self.connection, self.queue, callbacks=[self.receive], prefetch_count=5
        )

    def receive(self, body: Any, message: Any) -> None:
        """Take a message."""
        self.got.append(body)
        message.ack()

    def works(self) -> None:
        """A message comes, once.  May switch."""
        self.got.clear()
        Producer(self.connection).publish("x", self.queue.name)
        while not self.got:
            self.connection.drain_events(timeout=SOON)
        assert self.got == ["x"]
        assert self.consumers() == 1
        self.scene.whole(self.connection)

    def consumers(self) -> int:
        """How many the queue has.  May switch."""
        return self.scene.consumers(self.connection, self.queue.name)

    def ended(self) -> None:
        """None is left."""
        until(lambda: self.consumers() == 0)
        assert not self.connection.session._members._all


@call("consume", "Consumer.consume")
def consume(scene: Scene) -> Interruptible:
    bench = Bench(scene)
    while True:
        if not ended((yield bench.consumer.consume)):
            assert not bench.consumer.consuming_from(bench.queue)
            until(lambda: bench.consumers() == 0)
            bench.consumer.consume()
        bench.works()
        bench.consumer.cancel()
        bench.ended()


@call("consume", "with Consumer")
def with_consumer(scene: Scene) -> Interruptible:
    bench = Bench(scene)

    def use() -> None:
        with bench.consumer:
            Producer(bench.connection).publish("y", bench.queue.name)
            bench.connection.drain_events(timeout=SOON)

    while True:
        bench.got.clear()
        ended((yield use))
        bench.consumer.cancel()
        bench.ended()
        # What it received and did not handle comes to the next callback.
        while "y" not in bench.got and drained(bench.connection):
            pass
        bench.queue.purge()
        bench.consumer.consume()
        bench.works()
        bench.consumer.cancel()


def cancelling(scene: Scene, cancel: Callable[[Bench], Any]) -> Interruptible:
    """Ends the consumer."""
    bench = Bench(scene)
    while True:
        bench.consumer.consume()
        ended((yield lambda: cancel(bench)))
        assert not bench.consumer.consuming_from(bench.queue)
        bench.consumer.cancel()
        bench.ended()
        bench.consumer.consume()
        bench.works()
        bench.consumer.cancel()


enter("consume", "Consumer.cancel", cancelling, lambda bench: bench.consumer.cancel())
enter("consume", "Consumer.close", cancelling, lambda bench: bench.consumer.close())


@call("consume", "Consumer.cancel_by_queue")
def cancel_by_queue(scene: Scene) -> Interruptible:
    bench = Bench(scene)
    while True:
        bench.consumer.consume()
        ended((yield lambda: bench.consumer.cancel_by_queue(bench.queue.name)))
        bench.consumer.cancel()
        bench.ended()
        bench.consumer.add_queue(bench.queue)
        bench.consumer.consume()
        bench.works()
        bench.consumer.cancel()


def using(scene: Scene, use: Callable[[Bench], Any]) -> Interruptible:
    """Leaves the consumer as it is."""
    bench = Bench(scene)
    bench.consumer.consume()
    while True:
        ended((yield lambda: use(bench)))
        use(bench)
        bench.works()


enter("consume", "Consumer.qos", using, lambda bench: bench.consumer.qos(prefetch_count=3))
enter("consume", "Consumer.recover", using, lambda bench: bench.consumer.recover(requeue=True))
enter(
    "consume",
    "Consumer.flow",
    using,
    lambda bench: bench.consumer.flow(True),
    fits=lambda target: target.speaks_amqp,
)
enter("consume", "Consumer.purge", using, lambda bench: bench.consumer.purge())
enter("consume", "Consumer.declare", using, lambda bench: bench.consumer.declare())


@call("consume", "Consumer(connection, queues)")
def made(scene: Scene) -> Interruptible:
    bench = Bench(scene)
    while True:
        run = yield lambda: Consumer(bench.connection, bench.queue, callbacks=[bench.receive])
        if ended(run):
            run.result.consume()
            run.result.cancel()
        bench.ended()
        bench.consumer.consume()
        bench.works()
        bench.consumer.cancel()


@call("consume", "Queue.consume, Queue.cancel")
def of_queue(scene: Scene) -> Interruptible:
    bench, number = Bench(scene), 0

    def use() -> None:
        bench.queue.consume(f"{scene.name}-{number}", ignore)
        bench.queue.cancel(f"{scene.name}-{number}")

    while True:
        number += 1
        ended((yield use))
        bench.queue.cancel(f"{scene.name}-{number}")
        until(lambda: bench.consumers() == 0)
        bench.consumer.consume()
        bench.works()
        bench.consumer.cancel()
