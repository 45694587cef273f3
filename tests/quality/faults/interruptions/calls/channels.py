"""The methods of a channel."""

# ruff: noqa: B023 - what is yielded runs before the loop goes on

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenconn.entity import Queue
from greenconn.messaging import Producer
from tests.fix_wires import until
from tests.quality.faults.interruptions.scene import (
    Interruptible,
    Scene,
    call,
    ended,
    enter,
    ignore,
)
from tests.quality.faults.interruptions.targets import Target

Use = Callable[[Any, str], Any]


def amqp(target: Target) -> bool:
    """Whether channels are those of AMQP itself."""
    return target.speaks_amqp


def using(scene: Scene, use: Use, again: Use | None = None) -> Interruptible:
    """A method that may be called again and again; *again* does it for good, or takes it back."""
    connection = scene.connection()
    scene.queue(connection)
    scene.whole(connection)
    before = scene.channels(connection)
    channel = connection.channel()
    channel.exchange_declare(f"{scene.name}-x", "direct", auto_delete=False, durable=False)
    try:
        while True:
            ended((yield lambda: use(channel, scene.name)))
            if again is not None:
                again(channel, scene.name)
            use(channel, scene.name)
            if again is not None:
                again(channel, scene.name)
            assert channel.is_open
            scene.whole(connection)
            until(lambda: scene.channels(connection) == before + (before >= 0))
    finally:
        channel.exchange_delete(f"{scene.name}-x")
        channel.close()


#: Methods that take back what the other one does.
PAIRS: list[tuple[str, Use, str, Use]] = [
    (
        "exchange_declare",
        lambda channel, name: channel.exchange_declare(
            f"{name}-e", "topic", auto_delete=False, durable=False
        ),
        "exchange_delete",
        lambda channel, name: channel.exchange_delete(f"{name}-e"),
    ),
    (
        "exchange_bind",
        lambda channel, name: channel.exchange_bind("amq.fanout", f"{name}-x", "key"),
        "exchange_unbind",
        lambda channel, name: channel.exchange_unbind("amq.fanout", f"{name}-x", "key"),
    ),
    (
        "queue_declare",
        lambda channel, name: channel.queue_declare(f"{name}-q", auto_delete=False),
        "queue_delete",
        lambda channel, name: channel.queue_delete(f"{name}-q"),
    ),
    (
        "queue_bind",
        lambda channel, name: channel.queue_bind(name, f"{name}-x", "key"),
        "queue_unbind",
        lambda channel, name: channel.queue_unbind(name, f"{name}-x", "key"),
    ),
]
for one, do, other, undo in PAIRS:
    fits = amqp if one == "exchange_bind" else (lambda target: True)
    enter("channel", f"Channel.{one}", using, do, undo, fits=fits)
    enter("channel", f"Channel.{other}", using, undo, do, fits=fits)
enter("channel", "Channel.basic_qos", using, lambda channel, name: channel.basic_qos(0, 7, False))
enter("channel", "Channel.flow", using, lambda channel, name: channel.flow(True), fits=amqp)
enter(
    "channel",
    "Channel.confirm_select",
    using,
    lambda channel, _: channel.confirm_select(),
    fits=amqp,
)


@call("channel", "Channel.tx_select, tx_commit, tx_rollback", amqp)
def transactions(scene: Scene) -> Interruptible:
    connection = scene.connection(confirm_publish=False)
    channel = connection.channel()
    channel.tx_select()

    def use() -> None:
        channel.tx_select()
        channel.tx_commit()
        channel.tx_rollback()

    while True:
        ended((yield use))
        use()
        scene.whole(connection)


@call("channel", "Channel.close")
def close(scene: Scene) -> Interruptible:
    connection = scene.connection()
    scene.whole(connection)
    before = scene.channels(connection)
    while True:
        channel = connection.channel()
        run = yield channel.close
        ended(run)
        assert not channel.is_open or not run.switches
        channel.close()
        until(lambda: scene.channels(connection) == before)
        scene.whole(connection)


@call("channel", "Channel.queue_declare of a name by the broker", amqp)
def generated(scene: Scene) -> Interruptible:
    """A queue that nobody knows the name of does not stay."""
    connection = scene.connection()
    channel = connection.channel()
    arguments = {"x-expires": 60_000}
    peer = getattr(scene.target, "peer", None)
    while True:
        run = yield lambda: channel.queue_declare(auto_delete=False, arguments=arguments).queue
        if ended(run):
            channel.queue_delete(run.result)
        scene.whole(connection)
        if peer is not None:
            until(lambda: not [each for each in peer.model.queues if each.startswith("amq.gen")])


@call("channel", "Channel.queue_purge")
def purge(scene: Scene) -> Interruptible:
    connection = scene.connection()
    queue = scene.queue(connection)
    while True:
        Producer(connection).publish("x", queue.name)
        run = yield lambda: connection.default_channel.queue_purge(queue.name)
        if ended(run):
            assert run.result == 1
        connection.default_channel.queue_purge(queue.name)
        assert connection.default_channel.queue_purge(queue.name) == 0
        scene.whole(connection)


def getting(scene: Scene, get: Callable[[Queue], Any]) -> Interruptible:
    """A message that comes for a caller who is gone is there for the next."""
    connection = scene.connection()
    queue = scene.queue(connection)
    for number in range(3):
        Producer(connection).publish(number, queue.name)

    while True:
        run = yield lambda: get(queue)
        if ended(run):
            assert run.result.decode() in range(3)
            run.result.requeue()
        found: list[Any] = []

        def came(found: list[Any] = found) -> bool:
            message = get(queue)
            if message is not None:
                found.append(message)
            return len(found) == 3

        until(came)
        assert get(queue) is None
        assert sorted(each.decode() for each in found) == [0, 1, 2]
        for each in found:
            each.requeue()
        scene.whole(connection)
        until(lambda: scene.count(connection, queue.name) == 3)


enter("channel", "Channel.basic_get", getting, lambda queue: queue.channel.basic_get(queue.name))
enter("channel", "Queue.get", getting, lambda queue: queue.get())


@call("channel", "Channel.basic_consume")
def consume(scene: Scene) -> Interruptible:
    connection = scene.connection()
    queue, number = scene.queue(connection), 0
    channel = connection.channel()
    while True:
        number += 1
        tag = f"{scene.name}-{number}"
        run = yield lambda: channel.basic_consume(queue.name, tag, callback=ignore)
        if ended(run):
            assert run.result == tag
            channel.basic_cancel(tag)
        until(lambda: scene.consumers(connection, queue.name) == 0)
        assert channel.is_open
        scene.whole(connection)


@call("channel", "Channel.basic_cancel")
def cancel(scene: Scene) -> Interruptible:
    connection = scene.connection()
    queue, number = scene.queue(connection), 0
    channel = connection.channel()
    while True:
        number += 1
        tag = f"{scene.name}-{number}"
        channel.basic_consume(queue.name, tag, callback=ignore)
        ended((yield lambda: channel.basic_cancel(tag)))
        channel.basic_cancel(tag)
        until(lambda: scene.consumers(connection, queue.name) == 0)
        scene.whole(connection)


def settling(scene: Scene, settle: Callable[[Any], Any], left: int) -> Interruptible:
    """A message is settled, or can still be; *left* of one are in the queue when it is."""
    connection = scene.connection()
    queue = scene.queue(connection)
    while True:
        connection.default_channel.queue_purge(queue.name)
        Producer(connection).publish("x", queue.name)
        message = queue.get()
        ended((yield lambda: settle(message)))
        if not message.acknowledged:
            settle(message)
        until(lambda: scene.count(connection, queue.name) == left)
        scene.whole(connection)


enter("channel", "Message.ack", settling, lambda message: message.ack(), 0)
enter("channel", "Message.reject", settling, lambda message: message.reject(), 0)
enter("channel", "Message.requeue", settling, lambda message: message.requeue(), 1)


@call("channel", "Channel.basic_recover")
def recover(scene: Scene) -> Interruptible:
    connection = scene.connection()
    queue = scene.queue(connection)
    channel = connection.channel()
    while True:
        Producer(connection).publish("x", queue.name)
        assert channel.basic_get(queue.name) is not None
        ended((yield lambda: channel.basic_recover(requeue=True)))
        channel.basic_recover(requeue=True)
        until(lambda: scene.count(connection, queue.name) == 1)
        connection.default_channel.queue_purge(queue.name)
        scene.whole(connection)
