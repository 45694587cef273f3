"""Publishing: with producers, and with ``greenconn.publish``."""

# ruff: noqa: B023 - what is yielded runs before the loop goes on

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from greenconn.entity import Exchange, Queue
from greenconn.exceptions import AlreadyQueued, Unroutable
from greenconn.green.hub import yield_to_hub
from greenconn.messaging import Producer
from greenconn.publishing import publish, publish_many
from tests.fix_wires import until
from tests.quality.faults.interruptions.scene import SOON, Interruptible, Scene, call, ended, enter

#: What sends a body with a producer.
Send = Callable[[Producer, Any], Any]


def producing(scene: Scene, send: Send, count: int = 1, **options: Any) -> Interruptible:
    """What is sent comes once or, interrupted, perhaps not; what is sent next comes behind it."""
    connection = scene.connection(**options)
    exchange = Exchange(f"{scene.name}-x", durable=False, auto_delete=False)
    queue = scene.queue(connection, exchange=exchange, routing_key="key")
    producer, number = Producer(connection, exchange, "key"), 0
    while True:
        number += 1
        was_sent = ended((yield lambda: send(producer, number)))
        producer.publish("after", retry=True)
        bodies = scene.take_all(connection, queue.name, "after")[:-1]
        assert bodies == [number] * len(bodies), bodies
        assert len(bodies) <= count
        assert not was_sent or len(bodies) == count
        scene.whole(connection)


#: What a confirmed publish is given, by what it is called.
CONFIRMED: dict[str, dict[str, Any]] = {
    "Producer.publish, confirmed": {"timeout": SOON},
    "Producer.publish(retry=True)": {"retry": True},
    "Producer.publish(mandatory=True)": {"mandatory": True},
}
for each, options in CONFIRMED.items():
    enter("publish", each, producing, partial(Producer.publish, **options))
each = "Producer.publish, unconfirmed"
enter("publish", each, producing, Producer.publish, confirm_publish=False)


@call("publish", "Producer.publish(declare=...)")
def declaring(scene: Scene) -> Interruptible:
    entity = Queue(
        f"{scene.name}-d", Exchange(f"{scene.name}-x", durable=False), "key", auto_delete=True
    )

    def send(producer: Producer, body: Any) -> None:
        producer.connection.declared_entities.clear()
        producer.publish(body, declare=[entity], timeout=SOON)

    yield from producing(scene, send)


@call("publish", "Producer.publish of many turns")
def in_a_loop(scene: Scene) -> Interruptible:
    """One that publishes on and on gives way now and then, and may be interrupted there."""

    def send(producer: Producer, body: Any) -> None:
        for _ in range(20):
            producer.publish(body)

    yield from producing(scene, send, 20, confirm_publish=False)


@call("publish", "Producer.batch")
def batch(scene: Scene) -> Interruptible:
    def send(producer: Producer, body: Any) -> None:
        with producer.batch() as batched:
            for _ in range(5):
                producer.publish(body)
            batched.flush()

    yield from producing(scene, send, 5)


@call("publish", "Exchange.publish")
def of_exchange(scene: Scene) -> Interruptible:
    def send(producer: Producer, body: Any) -> None:
        bound = producer.exchange(producer.connection.default_channel)
        bound.publish(bound.Message(str(body)), "key")

    connection = scene.connection()
    exchange = Exchange(f"{scene.name}-x", durable=False)
    queue = scene.queue(connection, exchange=exchange, routing_key="key")
    producer = Producer(connection, exchange, "key")
    while True:
        was_sent = ended((yield lambda: send(producer, "x")))
        until(lambda: scene.count(connection, queue.name) in ((1,) if was_sent else (0, 1)))
        queue.purge()
        scene.whole(connection)


@call("publish", "Producer.declare")
def declare(scene: Scene) -> Interruptible:
    connection = scene.connection()
    exchange = Exchange(f"{scene.name}-x", durable=False, auto_delete=False)
    while True:
        connection.declared_entities.clear()
        producer = Producer(connection, exchange, auto_declare=False)
        ended((yield producer.declare))
        producer.declare()
        scene.whole(connection)


def shortly(scene: Scene, is_known: bool) -> Interruptible:
    """``greenconn.publish`` to a queue that is known, or that is looked for first."""
    connection, mine, number = scene.connection(), scene.connection(), 0
    queue = scene.queue(mine).name
    publish(queue, "first", connection=connection, timeout=SOON, declare=True)
    scene.take(mine, queue)
    while True:
        number += 1
        if not is_known:
            queue = scene.queue(mine, f"-{number}").name
        run = yield lambda: publish(
            queue, number, connection=connection, timeout=SOON, declare=True
        )
        was_sent = ended(run)
        publish(queue, "after", connection=connection, timeout=SOON, declare=True)
        bodies = scene.take_all(mine, queue, "after")
        assert bodies in ([number, "after"], ["after"])
        assert not was_sent or bodies[0] == number
        with pytest.raises(Unroutable):
            publish(Exchange(""), "x", connection=connection, routing_key=f"{queue}-nobody")
        scene.whole(mine)


enter("publish", "greenconn.publish", shortly, True)
enter("publish", "greenconn.publish to another queue", shortly, False)


@call("publish", "greenconn.publish to no queue yet")
def short_absent(scene: Scene) -> Interruptible:
    connection, number = scene.connection(), 0
    while True:
        number += 1
        name = f"{scene.name}-absent-{number}"
        run = yield lambda: publish(name, "x", connection=connection, timeout=SOON, declare=True)
        was_sent = ended(run)
        publish(name, "after", connection=connection, timeout=SOON, declare=True)
        bodies = scene.take_all(connection, name, "after")
        assert bodies in (["x", "after"], ["after"])
        assert not was_sent or len(bodies) == 2
        connection.default_channel.queue_delete(name)
        scene.whole(connection)


@call("publish", "greenconn.publish over a new connection")
def short_new(scene: Scene) -> Interruptible:
    mine = scene.connection()
    queue = scene.queue(mine).name
    while True:
        connection = scene.connection(opened=False)
        was_sent = ended((yield lambda: publish(queue, "x", connection=connection, declare=True)))
        publish(queue, "after", connection=connection, timeout=SOON, declare=True)
        bodies = scene.take_all(mine, queue, "after")
        assert bodies in (["x", "after"], ["after"])
        assert not was_sent or len(bodies) == 2
        scene.whole(connection)
        connection.close()


@call("publish", "greenconn.publish that is refused")
def short_refused(scene: Scene) -> Interruptible:
    """Whose message nobody takes is the only one who is told."""
    connection = scene.connection()
    queue = scene.queue(connection).name

    def send() -> None:
        with pytest.raises(Unroutable):
            publish(Exchange(""), "x", connection=connection, routing_key=f"{queue}-nobody")

    while True:
        ended((yield send))
        publish(queue, "after", connection=connection, timeout=SOON, declare=True)
        assert scene.take(connection, queue) == ["after"]
        scene.whole(connection)


@call("publish", "greenconn.publish(unique=...)", lambda target: not target.speaks_amqp)
def short_unique(scene: Scene) -> Interruptible:
    """A key is taken while its message is in the queue, and else it is free."""
    connection, number = scene.connection(), 0
    queue = scene.queue(connection).name

    def is_right() -> bool:
        try:
            publish(queue, "after", connection=connection, timeout=SOON, unique=f"{number}")
        except AlreadyQueued:
            return scene.count(connection, queue) == 1
        return True

    while True:
        number += 1
        run = yield lambda: publish(
            queue, number, connection=connection, timeout=SOON, unique=f"{number}"
        )
        was_sent = ended(run)
        until(is_right)
        assert scene.take(connection, queue) in (([number],) if was_sent else ([number], ["after"]))
        scene.whole(connection)


def several(scene: Scene, make: Callable[[], Any], bodies: Sequence[Any]) -> Interruptible:
    """What is sent of *bodies* are the first of them."""
    connection = scene.connection()
    queue = scene.queue(connection).name
    while True:
        run = yield lambda: publish_many(
            queue, make(), connection=connection, timeout=SOON, declare=True
        )
        was_sent = ended(run)
        publish(queue, "after", connection=connection, timeout=SOON, declare=True)
        found = scene.take_all(connection, queue, "after")[:-1]
        assert found == bodies[: len(found)]
        assert not was_sent or len(found) == len(bodies)
        scene.whole(connection)


def generated() -> Iterator[int]:
    """Numbers, between which others run."""
    for number in range(4):
        yield_to_hub()
        yield number


#: Each but the first waits for the writer's next turn.
LARGE = [f"{number}{'x' * 70_000}" for number in range(4)]
enter("publish", "greenconn.publish_many", several, lambda: range(30), list(range(30)))
enter("publish", "publish_many of a generator that waits", several, generated, list(range(4)))
enter("publish", "publish_many of large bodies", several, lambda: LARGE, LARGE)


@call("publish", "Producer.close")
def close(scene: Scene) -> Interruptible:
    connection = scene.connection(confirm_publish=False)
    queue = scene.queue(connection)
    while True:
        producer = Producer(connection)
        producer.publish("x", queue.name)
        ended((yield producer.close))
        producer.close()
        assert scene.take(connection, queue.name) == ["x"]
        scene.whole(connection)
